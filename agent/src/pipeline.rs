//! The one wiring file.
