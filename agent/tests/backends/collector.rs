//! The OpenTelemetry Collector.

use super::receiver::{Receiver, free_port, runtime, send};

#[test]
#[ignore = "needs the collector's program in OTELCOL"]
fn the_collector_receives_what_was_sent_by_both_protocols() {
    let (grpc, http) = (free_port(), free_port());
    let config = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: \"127.0.0.1:{grpc}\"}}, \
         http: {{endpoint: \"127.0.0.1:{http}\"}}}}}}}}\n\
         exporters: {{debug: {{verbosity: detailed}}}}\n\
         service: {{telemetry: {{metrics: {{level: none}}}}, \
         pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}}}\n"
    );
    let arguments = |command: &mut std::process::Command| {
        command.args(["--config", &format!("yaml:{config}")]);
    };
    let collector = Receiver::start("OTELCOL", arguments, &[grpc, http]);
    for (protocol, port) in [("grpc", grpc), ("http/protobuf", http)] {
        let [shop, cart, name] = send(protocol, port, &runtime());
        // As its debug exporter writes a span.
        let schema = "SchemaURL: https://opentelemetry.io/schemas/1.45.0";
        let (name, shop, cart) = (
            format!("Name           : {name}"),
            format!("service.name: Str({shop})"),
            format!("service.name: Str({cart})"),
        );
        let kind = "Kind           : Server";
        let status = "Status message : no greeter";
        collector.says(&[&shop, &cart, &name, schema, kind, status]);
    }
}
