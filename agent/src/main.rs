//! The `tracewire` command: see `tracewire::cli`.

fn main() -> std::process::ExitCode {
    tracewire::cli::main()
}
