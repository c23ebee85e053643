//! What a user gives and what the agent makes of it.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn load(flags: ExportFlags, env: &[(&str, &str)]) -> Result<Config, Error> {
    Config::of(&flags, &LogFlags::default(), |name| {
        env.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into())
    })
}

fn env(env: &[(&str, &str)]) -> Config {
    load(ExportFlags::default(), env).unwrap()
}

#[test]
fn told_nothing_nothing_leaves_the_host() {
    let config = env(&[]);
    assert!(config.otlp.is_none());
    assert_eq!((config.output, config.log_level), (None, LogLevel::Info));
    assert_eq!(config.batch, Batch::default());
    assert!(config.warnings.is_empty());
}

#[test]
fn an_endpoint_turns_otlp_on_unless_another_exporter_is_chosen() {
    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
    assert!(env(&[ENDPOINT]).otlp.is_some());
    assert!(env(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).otlp.is_none());
    assert!(env(&[("OTEL_TRACES_EXPORTER", "otlp")]).otlp.is_some());
    assert!(env(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]).otlp.is_none());

    let both = env(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "console, otlp")]);
    assert!(both.otlp.is_some() && both.output == Some(Output::Tree));

    let flags = ExportFlags {
        otlp_endpoint: Some("http://f:4318".into()),
        ..ExportFlags::default()
    };
    let config = load(flags, &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]).unwrap();
    assert_eq!(config.otlp.unwrap().endpoint.unwrap().value.url, "http://f:4318");
}

#[test]
fn the_form_for_traces_wins_over_the_general_one() {
    let otlp = env(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces/x"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", ""),
        ("OTEL_EXPORTER_OTLP_INSECURE", "TRUE"),
    ])
    .otlp
    .unwrap();
    let endpoint = otlp.endpoint.unwrap();
    assert_eq!(
        (endpoint.value.url.as_str(), endpoint.value.is_base),
        ("http://traces/x", false)
    );
    assert_eq!(otlp.protocol.value, Protocol::Grpc);
    assert_eq!(otlp.timeout, Duration::from_millis(2500));
    assert_eq!(otlp.compression, Compression::Gzip);
    assert!(otlp.insecure);
}

#[test]
fn an_unknown_word_is_ignored_with_a_warning() {
    let config = env(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "thrift"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_LOG_LEVEL", "loud"),
    ]);
    assert_eq!(config.otlp.unwrap().protocol.value, Protocol::Grpc);
    assert_eq!(config.log_level, LogLevel::Info);
    for name in [
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "OTEL_TRACES_EXPORTER",
        "OTEL_LOG_LEVEL",
    ] {
        assert!(
            config.warnings.iter().any(|w| w.starts_with(name)),
            "{name}: {:?}",
            config.warnings
        );
    }
}

#[test]
fn a_number_that_is_none_is_an_error_by_its_name() {
    for (name, value) in [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "30s"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1.5"),
    ] {
        let error = load(ExportFlags::default(), &[(name, value)]).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{name}: ")), "{error}");
    }
}

#[test]
fn batches_are_as_told_and_never_larger_than_the_queue() {
    let config = env(&[
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
        ("OTEL_BSP_SCHEDULE_DELAY", "250"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "1000"),
    ]);
    assert_eq!(config.batch.max_export_batch_size, 100);
    assert_eq!(config.batch.schedule_delay, Duration::from_millis(250));
    assert_eq!(config.batch.export_timeout, Duration::from_secs(1));
    assert_eq!(config.warnings.len(), 1);
}

#[test]
fn headers_are_decoded_and_never_shown() {
    let config = env(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "Authorization=Bearer%20hunter2, x-tenant = a=b,",
        ),
    ]);
    assert!(!format!("{config:?}").contains("hunter2"));
    let headers = config.otlp.unwrap().headers;
    let fields: Vec<_> = headers.iter().collect();
    assert_eq!(fields, [("authorization", "Bearer hunter2"), ("x-tenant", "a=b")]);
    assert_eq!(headers.redact("bad token hunter2!"), "bad token …!");

    for bad in [
        "hunter2",
        "authorization:Bearer hunter2",
        "=hunter2",
        "x=hunter2%0d%0aevil: 1",
        "k v=hunter2",
    ] {
        let error = load(ExportFlags::default(), &[("OTEL_EXPORTER_OTLP_HEADERS", bad)])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("OTEL_EXPORTER_OTLP_HEADERS: entry 1") && !error.contains("hunter2"),
            "{error}"
        );
    }
}

#[test]
fn flags_win_and_there_is_none_for_headers() {
    use clap::{Args, Command, FromArgMatches};
    let command = ExportFlags::augment_args(Command::new("tracewire"));
    assert!(command.get_arguments().all(|a| !a.get_id().as_str().contains("header")));
    let matches = command.try_get_matches_from([
        "tracewire",
        "--otlp-endpoint=http://f:4317",
        "--otlp-protocol=grpc",
        "--otlp-compression=gzip",
        "--output=json",
    ]);
    let flags = ExportFlags::from_arg_matches(&matches.unwrap()).unwrap();
    let config = load(
        flags,
        &[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
            ("OTEL_TRACES_EXPORTER", "console"),
        ],
    )
    .unwrap();
    let otlp = config.otlp.unwrap();
    assert_eq!(
        (otlp.protocol.value, otlp.protocol.source),
        (Protocol::Grpc, "--otlp-protocol")
    );
    assert_eq!(
        (otlp.compression, config.output),
        (Compression::Gzip, Some(Output::Json))
    );
}

#[test]
fn the_limit_for_spans_wins_over_the_general_one() {
    let limits = env(&[
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "64"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "32"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "256"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "0"),
    ])
    .limits;
    assert_eq!(
        (limits.attributes, limits.value_length, limits.links),
        (32, Some(256), 0)
    );
    assert_eq!((limits.event_attributes, limits.events), (64, 128));
    let error = load(ExportFlags::default(), &[("OTEL_SPAN_EVENT_COUNT_LIMIT", "-1")]).unwrap_err();
    assert!(
        error.to_string().starts_with("OTEL_SPAN_EVENT_COUNT_LIMIT: "),
        "{error}"
    );
}
