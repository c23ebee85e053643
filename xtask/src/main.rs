//! `cargo xtask TASK`: the project's own commands, one file a task.
fn main() {}
