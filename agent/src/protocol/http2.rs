//! HTTP/2 frames and streams (RFC 9113) from the elided stream.
