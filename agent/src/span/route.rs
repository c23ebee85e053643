//! Route naming.
