//! The one model: every setting by its key in the file, its variables (the
//! more specific first), its flag, its kind and its default. The file's keys,
//! the example file, the schema and `tracewire config` are all made of this
//! list, so none can know a setting that the others don't.

/// What a setting's text must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true` or `false`.
    Boolean,
    /// A whole number.
    Count,
    /// A number, fractions allowed.
    Number,
    /// From 0 to 1.
    Share,
    /// A duration in milliseconds.
    Milliseconds,
    /// The path of a file.
    Path,
    /// Several texts; in a variable they are separated by this.
    List(char),
}

impl Kind {
    /// What is expected, in words.
    pub fn expected(self) -> String {
        match self {
            Kind::Text => "a text".into(),
            Kind::Word(words) => format!("one of {}", words.join(", ")),
            Kind::Boolean => "true or false".into(),
            Kind::Count => "a whole number".into(),
            Kind::Number => "a number".into(),
            Kind::Share => "a number from 0 to 1".into(),
            Kind::Milliseconds => "a number of milliseconds".into(),
            Kind::Path => "the path of a file".into(),
            Kind::List(_) => "a list".into(),
        }
    }

    /// Whether a text of the file fits.
    pub fn takes(self, text: &str) -> bool {
        match self {
            Kind::Text | Kind::Path | Kind::List(_) => true,
            Kind::Word(words) => words.iter().any(|word| word.eq_ignore_ascii_case(text)),
            Kind::Boolean => matches!(text, "true" | "false"),
            Kind::Count => text.parse::<u64>().is_ok(),
            Kind::Number => text.parse::<f64>().is_ok_and(f64::is_finite),
            Kind::Share => text.parse::<f64>().is_ok_and(|n| (0.0..=1.0).contains(&n)),
            Kind::Milliseconds => text.parse::<u32>().is_ok(),
        }
    }
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its key in the file, parts joined by dots.
    pub key: &'static str,
    /// What messages call it where the file gave it.
    pub in_file: &'static str,
    /// Its variables, the more specific first.
    pub variables: &'static [&'static str],
    /// Its flag without dashes, or empty.
    pub flag: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What it is if nobody gives it, in words where it depends.
    pub default: &'static str,
    /// Whether its value is a secret.
    pub secret: bool,
    /// Whether a running agent takes a new value.
    pub live: bool,
    /// What it does.
    pub about: &'static str,
}

/// The setting that this variable gives.
pub fn of_variable(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.variables.contains(&name))
}

/// The setting of this key.
pub fn of_key(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

macro_rules! settings {
    ($($key:literal $kind:expr, $default:literal, [$($variable:literal),*], $flag:literal $(, $mark:ident)*; $about:literal)*) => {
        /// All settings, by key.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: $key,
            in_file: concat!("--config, key ", $key),
            variables: &[$($variable),*],
            flag: $flag,
            kind: $kind,
            default: $default,
            secret: false $(|| settings!(@secret $mark))*,
            live: false $(|| settings!(@live $mark))*,
            about: $about,
        },)*];
    };
    (@secret secret) => { true };
    (@secret $other:ident) => { false };
    (@live live) => { true };
    (@live $other:ident) => { false };
}

const PROTOCOLS: Kind = Kind::Word(&["grpc", "http/protobuf", "http/json"]);
const COMPRESSIONS: Kind = Kind::Word(&["none", "gzip"]);

settings! {
    "enabled" Kind::Boolean, "true", ["TRACING_ENABLED"], "";
        "false: nothing is loaded into the kernel, nothing is attached (also OTEL_SDK_DISABLED=true)"
    "environment" Kind::Text, "unknown", ["TRACE_ENVIRONMENT", "ENVIRONMENT"], "";
        "deployment.environment.name of every span"
    "service.name" Kind::Text, "each process's own", ["TRACE_SERVICE_NAME", "OTEL_SERVICE_NAME", "SERVICE_NAME"], "";
        "service.name of every observed process; for an agent that observes one service"
    "service.version" Kind::Text, "each process's own", ["TRACE_SERVICE_VERSION", "SERVICE_VERSION"], "";
        "service.version of every observed process"
    "resource.attributes" Kind::List(','), "none", ["OTEL_RESOURCE_ATTRIBUTES"], "";
        "Attributes of every resource, each key=value"
    "select.executable" Kind::List(','), "none", ["TRACEWIRE_EXECUTABLE"], "executable", live;
        "run: processes by the path of their program, or by its last part (globs)"
    "select.port" Kind::List(','), "none", ["TRACEWIRE_PORT"], "port", live;
        "run: processes that listen on these ports"
    "select.service" Kind::List(','), "none", ["TRACEWIRE_SERVICE"], "service", live;
        "run: processes by service.name (globs)"
    "output" Kind::Word(&["tree", "json", "none"]), "tree on a terminal, else json", ["TRACEWIRE_OUTPUT"], "output", live;
        "What standard output shows"
    "traces.exporter" Kind::Text, "otlp if an endpoint is given", ["OTEL_TRACES_EXPORTER"], "", live;
        "Which exporters run: otlp, console, none, several with commas"
    "otlp.endpoint" Kind::Text, "http://localhost:4318", ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"], "otlp-endpoint", live;
        "Where spans go: http://HOST:4318 (HTTP) or http://HOST:4317 (gRPC); several with commas"
    "otlp.protocol" PROTOCOLS, "http/protobuf", ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"], "otlp-protocol", live;
        "How OTLP is spoken"
    "otlp.headers" Kind::List(','), "none", ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"], "", secret, live;
        "Header fields of each request, each name=value, values percent-encoded"
    "otlp.compression" COMPRESSIONS, "none", ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"], "otlp-compression", live;
        "Compression of requests"
    "otlp.timeout" Kind::Milliseconds, "10000", ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"], "", live;
        "Longest wait for an answer, ms"
    "otlp.certificate" Kind::Path, "the host's and Mozilla's", ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"], "otlp-certificate", live;
        "Certificate authority to trust, PEM"
    "otlp.client_certificate" Kind::Path, "none", ["OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"], "", live;
        "The agent's own certificate for mutual TLS, PEM"
    "otlp.client_key" Kind::Path, "none", ["OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"], "", live;
        "Its private key, PEM"
    "otlp.insecure" Kind::Boolean, "false", ["OTEL_EXPORTER_OTLP_TRACES_INSECURE", "OTEL_EXPORTER_OTLP_INSECURE"], "", live;
        "Whether a gRPC endpoint without a scheme is spoken to without TLS"
    "otlp.file" Kind::Path, "none", ["TRACEWIRE_OTLP_FILE"], "otlp-file", live;
        "Also append spans to this file as OTLP JSON, a request a line"
    "otlp.file_max_size" Kind::Count, "none", ["TRACEWIRE_OTLP_FILE_MAX_SIZE"], "", live;
        "Bytes from which on that file is put aside as FILE.1; one that others move (logrotate) is made anew"
    "otlp.file_keep" Kind::Count, "3", ["TRACEWIRE_OTLP_FILE_KEEP"], "", live;
        "How many files that were put aside are kept"
    "batch.max_queue_size" Kind::Count, "2048", ["OTEL_BSP_MAX_QUEUE_SIZE"], "", live;
        "Most spans that wait for a receiver; what comes on top is dropped and counted"
    "batch.max_export_batch_size" Kind::Count, "512", ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"], "", live;
        "Most spans in one request"
    "batch.schedule_delay" Kind::Milliseconds, "5000", ["OTEL_BSP_SCHEDULE_DELAY"], "", live;
        "Longest wait for a request to fill, ms"
    "batch.export_timeout" Kind::Milliseconds, "30000", ["OTEL_BSP_EXPORT_TIMEOUT"], "", live;
        "Longest time that a request is tried for, ms"
    "metrics.exporter" Kind::Text, "otlp if an endpoint is given", ["OTEL_METRICS_EXPORTER"], "";
        "Where request metrics go beside /metrics: otlp or none"
    "metrics.endpoint" Kind::Text, "as otlp.endpoint", ["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"], "";
        "Where metrics go, used as it is"
    "metrics.protocol" PROTOCOLS, "as otlp.protocol", ["OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"], "";
        "How OTLP is spoken for metrics"
    "metrics.headers" Kind::List(','), "as otlp.headers", ["OTEL_EXPORTER_OTLP_METRICS_HEADERS"], "", secret;
        "Header fields of requests with metrics"
    "metrics.compression" COMPRESSIONS, "as otlp.compression", ["OTEL_EXPORTER_OTLP_METRICS_COMPRESSION"], "";
        "Compression of requests with metrics"
    "metrics.timeout" Kind::Milliseconds, "as otlp.timeout", ["OTEL_EXPORTER_OTLP_METRICS_TIMEOUT"], "";
        "Longest wait for an answer to metrics, ms"
    "metrics.certificate" Kind::Path, "as otlp.certificate", ["OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE"], "";
        "Certificate authority to trust with metrics, PEM"
    "metrics.client_certificate" Kind::Path, "as otlp.client_certificate", ["OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE"], "";
        "The agent's own certificate for metrics, PEM"
    "metrics.client_key" Kind::Path, "as otlp.client_key", ["OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY"], "";
        "Its private key, PEM"
    "metrics.insecure" Kind::Boolean, "as otlp.insecure", ["OTEL_EXPORTER_OTLP_METRICS_INSECURE"], "";
        "Whether a gRPC endpoint for metrics without a scheme is spoken to without TLS"
    "metrics.interval" Kind::Milliseconds, "60000", ["OTEL_METRIC_EXPORT_INTERVAL"], "";
        "Time between two exports of metrics, ms"
    "metrics.temporality" Kind::Word(&["cumulative", "delta", "lowmemory"]), "cumulative", ["OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"], "";
        "Whether OTLP metrics count from the start or from the last export"
    "sampling.ratio" Kind::Share, "0.01 for run, 1 for attach", ["TRACE_SAMPLE_RATE"], "sample-ratio", live;
        "Share of the traces that begin here that is kept; those with an error are kept all the same"
    "sampling.sampler" Kind::Text, "none", ["OTEL_TRACES_SAMPLER"], "", live;
        "The same in OpenTelemetry's words: parentbased_traceidratio and the like; wins over ratio"
    "sampling.sampler_argument" Kind::Share, "1", ["OTEL_TRACES_SAMPLER_ARG"], "", live;
        "Share of such a sampler"
    "sampling.rules" Kind::List(';'), "none", ["TRACEWIRE_SAMPLE_RULES"], "sample-rule", live;
        "Other shares for some requests: service=GLOB,route=/users/{id},method=GET,ratio=0.5"
    "sampling.limit" Kind::Number, "none", ["TRACEWIRE_SAMPLE_LIMIT"], "sample-limit", live;
        "Most traces a second that begin in one service, on average"
    "sampling.trust" Kind::Word(&["all", "private", "observed"]), "all", ["TRACEWIRE_TRUST_SAMPLING"], "trust-sampling", live;
        "Whose sampled flag is obeyed: everybody's, that of callers at private addresses, or of observed ones"
    "sampling.keep_slower_than" Kind::Milliseconds, "none", ["TRACEWIRE_KEEP_SLOWER_THAN"], "keep-slower-than", live;
        "Also keep every trace with a span of at least this length, ms"
    "sentry.dsn" Kind::Text, "none: Sentry is off", ["SENTRY_DSN"], "", secret, live;
        "Sentry project; never a flag, for command lines are public"
    "sentry.dsn_file" Kind::Path, "none", ["SENTRY_DSN_FILE"], "sentry-dsn-file", live;
        "File with the DSN, or with lines of a service name (glob) and its DSN"
    "sentry.environment" Kind::Text, "deployment.environment.name, or production", ["SENTRY_ENVIRONMENT"], "sentry-environment", live;
        "Environment that Sentry shows"
    "sentry.release" Kind::Text, "name and version of each service", ["SENTRY_RELEASE"], "sentry-release", live;
        "Release that Sentry shows"
    "sentry.traces_sample_rate" Kind::Share, "1", ["SENTRY_TRACES_SAMPLE_RATE"], "sentry-traces-sample-rate", live;
        "Share of the sampled traces that Sentry gets"
    "sentry.certificate" Kind::Path, "the host's and Mozilla's", ["TRACEWIRE_SENTRY_CERTIFICATE"], "sentry-certificate", live;
        "Certificate authority to trust, PEM"
    "sentry.traces" Kind::Word(&["envelope", "otlp", "none"]), "envelope", ["TRACEWIRE_SENTRY_TRACES"], "sentry-traces", live;
        "How traces reach Sentry; issues are always sent in envelopes"
    "propagation.propagators" Kind::List(','), "tracecontext, baggage", ["OTEL_PROPAGATORS"], "";
        "Which fields name a parent: tracecontext (traceparent), baggage (Sentry's part of it), none"
    "propagation.inject" Kind::Boolean, "false", ["TRACEWIRE_INJECT"], "inject", live;
        "Write a traceparent into requests; a running agent can turn it off, and on again if it began with it"
    "propagation.inject_to" Kind::List(','), "everywhere", ["TRACEWIRE_INJECT_TO"], "inject-to", live;
        "Only into those to these hosts and networks: api.internal:8080, 10.0.0.0/8, [fd00::]/8:443"
    "privacy.show_queries" Kind::Boolean, "false", ["TRACEWIRE_SHOW_QUERIES"], "show-queries", live;
        "Show query strings, their private values left out"
    "privacy.redact" Kind::List(';'), "none", ["TRACEWIRE_REDACT"], "redact", live;
        "Also hide what these regular expressions match"
    "privacy.capture_request_headers" Kind::List(','), "none", ["TRACEWIRE_CAPTURE_REQUEST_HEADERS"], "capture-request-header";
        "Request header fields (or gRPC metadata) that become attributes"
    "privacy.capture_response_headers" Kind::List(','), "none", ["TRACEWIRE_CAPTURE_RESPONSE_HEADERS"], "capture-response-header";
        "Response header fields that become attributes"
    "routes.patterns" Kind::List(';'), "none", ["TRACEWIRE_ROUTES"], "route", live;
        "Routes of your HTTP services: /users/{id}, GET /files/*rest"
    "routes.strict" Kind::Boolean, "false", ["TRACEWIRE_STRICT_ROUTES"], "strict-routes", live;
        "Name no route that no pattern matches"
    "conventions.opt_in" Kind::List(','), "none", ["OTEL_SEMCONV_STABILITY_OPT_IN"], "semconv";
        "rpc/dup: also the older rpc.* attributes"
    "conventions.http_known_methods" Kind::List(','), "RFC 9110's, PATCH and QUERY", ["OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS"], "";
        "HTTP methods that are named as they are; replaces the known ones"
    "limits.attribute_value_length" Kind::Count, "none", ["OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"], "";
        "Longest text of an attribute, characters"
    "limits.attribute_count" Kind::Count, "128", ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT"], "";
        "Most attributes of a span"
    "limits.event_count" Kind::Count, "128", ["OTEL_SPAN_EVENT_COUNT_LIMIT"], "";
        "Most events of a span"
    "limits.link_count" Kind::Count, "128", ["OTEL_SPAN_LINK_COUNT_LIMIT"], "";
        "Most links of a span"
    "limits.event_attribute_count" Kind::Count, "128", ["OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT"], "";
        "Most attributes of an event"
    "limits.link_attribute_count" Kind::Count, "128", ["OTEL_LINK_ATTRIBUTE_COUNT_LIMIT"], "";
        "Most attributes of a link"
    "log.level" Kind::Word(&["off", "error", "warn", "info", "debug", "trace"]), "info", ["OTEL_LOG_LEVEL"], "log-level";
        "Least severe message on standard error"
    "health.listen" Kind::Text, "none", ["TRACEWIRE_HEALTH_LISTEN"], "health-listen";
        "Address of /metrics, /healthz and /readyz, like 127.0.0.1:9464; nothing listens unless it is given"
    "kernel.ring_buffer" Kind::Count, "4096", ["TRACEWIRE_RING_BUFFER"], "ring-buffer";
        "Size of the buffer between kernel and agent, KiB, a power of two"
    "kernel.connections" Kind::Count, "16384", ["TRACEWIRE_CONNECTIONS"], "connections";
        "Connections followed at a time"
    "kernel.links" Kind::Word(&["on", "off"]), "on", ["TRACEWIRE_LINKS"], "links";
        "off: no probes that find out which calls a service makes for which request, which cost it the most"
    "kernel.node_helper" Kind::Boolean, "false", ["TRACEWIRE_NODE_HELPER"], "node-helper";
        "Put a script into Node processes, by their inspector, that tells which calls are made for which request"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_one_section_stands_together() {
        let mut sections: Vec<&str> = SETTINGS.iter().filter_map(|s| Some(s.key.split_once('.')?.0)).collect();
        sections.dedup();
        let count = sections.len();
        sections.sort_unstable();
        sections.dedup();
        assert_eq!(sections.len(), count);
    }

    #[test]
    fn no_key_variable_or_flag_stands_twice() {
        let mut names: Vec<&str> = SETTINGS.iter().map(|s| s.key).collect();
        names.extend(SETTINGS.iter().flat_map(|s| s.variables));
        names.extend(SETTINGS.iter().map(|s| s.flag).filter(|flag| flag.contains('-')));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
