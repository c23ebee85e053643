//! Makes Rust of the `.proto` files with a compiler written in Rust, so that no
//! `protoc` need be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["bank/v1/ledger.proto", "bank/v1/treasury.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
