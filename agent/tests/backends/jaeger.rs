//! Jaeger, with its storage in memory.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::receiver::{Receiver, free_port, runtime, send, wait_until};

/// Answer to a GET, its head included; empty if there is none.
fn get(port: u16, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        let ask = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
        let _ = stream.write_all(ask.as_bytes());
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

#[test]
#[ignore = "needs Jaeger's program in JAEGER"]
fn jaeger_shows_what_was_sent_by_both_protocols() {
    let (grpc, http, query) = (free_port(), free_port(), free_port());
    let others = [free_port(), free_port()];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jaeger.yaml");
    let config = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: \"127.0.0.1:{grpc}\"}}, \
         http: {{endpoint: \"127.0.0.1:{http}\"}}}}}}}}\n\
         exporters: {{jaeger_storage_exporter: {{trace_storage: memory}}}}\n\
         extensions:\n  jaeger_storage: {{backends: {{memory: {{memory: {{max_traces: 1000}}}}}}}}\n  \
         jaeger_query: {{storage: {{traces: memory}}, http: {{endpoint: \"127.0.0.1:{query}\"}}, \
         grpc: {{endpoint: \"127.0.0.1:{}\"}}}}\n\
         service: {{extensions: [jaeger_storage, jaeger_query], \
         telemetry: {{metrics: {{level: none}}}}, \
         pipelines: {{traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}}}}}\n",
        others[0]
    );
    std::fs::write(&file, config).unwrap();
    let arguments = |command: &mut std::process::Command| {
        command.arg("--config").arg(&file);
    };
    let _jaeger = Receiver::start("JAEGER", arguments, &[grpc, http, query]);
    for (protocol, port, first) in [("grpc", grpc, 16), ("http/protobuf", http, 0)] {
        let [shop, cart, name] = send(protocol, port, &runtime());
        wait_until("Jaeger knows both services", || {
            let services = get(query, "/api/services");
            services.contains(&shop) && services.contains(&cart)
        });
        // The trace of the first service's span: its id is one byte sixteen times.
        let id = format!("{:02x}", first + 1).repeat(16);
        let trace = get(query, &format!("/api/traces/{id}"));
        for part in [&name, "no greeter", "\"span.kind\"", "\"error\""] {
            assert!(trace.contains(part), "{part} is not in {trace}");
        }
    }
}
