//! HPACK (RFC 7541) for an observer: what was not seen is unknown, never a wrong value.
