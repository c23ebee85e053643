//! Resource of a process.
