//! Attribute names and the rules of the semantic conventions 1.45.
