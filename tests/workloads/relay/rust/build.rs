//! Makes the relay's messages and stubs of their definition.

fn main() -> std::io::Result<()> {
    tonic_prost_build::compile_protos("../../proto/relay.proto")
}
