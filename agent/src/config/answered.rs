//! Variables of the OpenTelemetry specification that this agent does not obey:
//! whoever sets one is told, and told what to do instead. Bias: no setting is
//! ignored in silence.

use super::Environment;

/// A variable, the values that say what happens anyway, and the answer to others.
struct Variable(&'static str, &'static [&'static str], &'static str);

const NO_LOGS: &str = "no logs are exported";
const NO_ZIPKIN: &str = "there is no Zipkin exporter: give an OTLP endpoint";
const NO_PULL: &str = "give the address with --health-listen or TRACEWIRE_HEALTH_LISTEN";

const VARIABLES: &[Variable] = &[
    Variable("OTEL_LOGS_EXPORTER", &["none"], NO_LOGS),
    Variable("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", &[], NO_LOGS),
    Variable("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", &[], NO_LOGS),
    Variable("OTEL_EXPORTER_OTLP_LOGS_HEADERS", &[], NO_LOGS),
    Variable("OTEL_BLRP_SCHEDULE_DELAY", &[], NO_LOGS),
    Variable("OTEL_BLRP_EXPORT_TIMEOUT", &[], NO_LOGS),
    Variable("OTEL_BLRP_MAX_QUEUE_SIZE", &[], NO_LOGS),
    Variable("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", &[], NO_LOGS),
    Variable("OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT", &[], NO_LOGS),
    Variable("OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT", &[], NO_LOGS),
    Variable("OTEL_EXPORTER_ZIPKIN_ENDPOINT", &[], NO_ZIPKIN),
    Variable("OTEL_EXPORTER_ZIPKIN_TIMEOUT", &[], NO_ZIPKIN),
    Variable("OTEL_EXPORTER_PROMETHEUS_HOST", &[], NO_PULL),
    Variable("OTEL_EXPORTER_PROMETHEUS_PORT", &[], NO_PULL),
    Variable(
        "OTEL_METRICS_EXEMPLAR_FILTER",
        &["trace_based"],
        "exemplars are those of sampled traces",
    ),
    Variable(
        "OTEL_METRIC_EXPORT_TIMEOUT",
        &[],
        "OTEL_EXPORTER_OTLP_TIMEOUT bounds each request",
    ),
    Variable(
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
        &["explicit_bucket_histogram"],
        "histograms have the conventions' buckets",
    ),
    Variable(
        "OTEL_ENTITIES",
        &[],
        "each observed process has its own resource: OTEL_RESOURCE_ATTRIBUTES adds to all",
    ),
    Variable("OTEL_EXPERIMENTAL_CONFIG_FILE", &[], "its name is OTEL_CONFIG_FILE"),
];

/// Warns of those that are set.
pub(super) fn warn(env: &mut Environment<'_>) {
    for Variable(name, same, answer) in VARIABLES {
        let given = env.text(&[name]).ok().flatten();
        if given.is_some_and(|given| !same.contains(&given.value.trim().to_ascii_lowercase().as_str())) {
            env.warn(name, format_args!("is not obeyed: {answer}"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::settings::of_variable;
    use super::*;

    #[test]
    fn every_variable_of_the_specification_is_obeyed_or_answered() {
        // SPEC sdk-environment-variables.md, protocol/exporter.md, metrics/sdk_exporters/otlp.md.
        let mut all: Vec<String> = "OTEL_ENTITIES OTEL_RESOURCE_ATTRIBUTES OTEL_SERVICE_NAME OTEL_LOG_LEVEL \
             OTEL_PROPAGATORS OTEL_TRACES_SAMPLER OTEL_TRACES_SAMPLER_ARG OTEL_TRACES_EXPORTER \
             OTEL_METRICS_EXPORTER OTEL_LOGS_EXPORTER OTEL_BSP_SCHEDULE_DELAY OTEL_BSP_EXPORT_TIMEOUT \
             OTEL_BSP_MAX_QUEUE_SIZE OTEL_BSP_MAX_EXPORT_BATCH_SIZE OTEL_BLRP_SCHEDULE_DELAY \
             OTEL_BLRP_EXPORT_TIMEOUT OTEL_BLRP_MAX_QUEUE_SIZE OTEL_BLRP_MAX_EXPORT_BATCH_SIZE \
             OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT OTEL_ATTRIBUTE_COUNT_LIMIT \
             OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT \
             OTEL_SPAN_EVENT_COUNT_LIMIT OTEL_SPAN_LINK_COUNT_LIMIT OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT \
             OTEL_LINK_ATTRIBUTE_COUNT_LIMIT OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT \
             OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT OTEL_METRICS_EXEMPLAR_FILTER OTEL_METRIC_EXPORT_INTERVAL \
             OTEL_METRIC_EXPORT_TIMEOUT OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE \
             OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION OTEL_EXPORTER_PROMETHEUS_HOST \
             OTEL_EXPORTER_PROMETHEUS_PORT OTEL_EXPORTER_ZIPKIN_ENDPOINT OTEL_EXPORTER_ZIPKIN_TIMEOUT \
             OTEL_EXPORTER_OTLP_METRICS_ENDPOINT OTEL_SEMCONV_STABILITY_OPT_IN \
             OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS OTEL_EXPERIMENTAL_CONFIG_FILE"
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        for name in [
            "ENDPOINT",
            "INSECURE",
            "CERTIFICATE",
            "CLIENT_KEY",
            "CLIENT_CERTIFICATE",
            "HEADERS",
            "COMPRESSION",
            "TIMEOUT",
            "PROTOCOL",
        ] {
            all.push(format!("OTEL_EXPORTER_OTLP_{name}"));
            all.push(format!("OTEL_EXPORTER_OTLP_TRACES_{name}"));
        }
        let answered = |name: &str| VARIABLES.iter().any(|Variable(known, ..)| *known == name);
        for name in &all {
            assert!(of_variable(name).is_some() != answered(name), "{name}");
        }
    }

    #[test]
    fn who_sets_one_is_told_what_to_do() {
        let mut env = Environment::new(|name| match name {
            "OTEL_EXPORTER_PROMETHEUS_PORT" => Some("9464".into()),
            "OTEL_LOGS_EXPORTER" => Some("none".into()),
            "OTEL_METRICS_EXEMPLAR_FILTER" => Some("always_on".into()),
            _ => None,
        });
        warn(&mut env);
        let said = env.into_warnings();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said.iter().any(|w| w.contains("--health-listen")), "{said:?}");
    }
}
