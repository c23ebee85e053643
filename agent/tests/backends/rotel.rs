//! rotel, a collector in Rust.

use super::receiver::{Receiver, free_port, runtime, send};

#[test]
#[ignore = "needs rotel's program in ROTEL"]
fn rotel_receives_what_was_sent_by_both_protocols() {
    let (grpc, http) = (free_port(), free_port());
    let arguments = |command: &mut std::process::Command| {
        command
            .args(["start", "--exporter", "blackhole"])
            .args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"])
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")]);
    };
    let rotel = Receiver::start("ROTEL", arguments, &[grpc, http]);
    for (protocol, port) in [("grpc", grpc), ("http/protobuf", http)] {
        let [shop, cart, name] = send(protocol, port, &runtime());
        let schema = "https://opentelemetry.io/schemas/1.45.0";
        rotel.says(&[&shop, &cart, &name, schema, "no greeter"]);
    }
}
