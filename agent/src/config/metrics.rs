//! Settings of request metrics by OTLP: `OTEL_METRICS_EXPORTER`,
//! `OTEL_EXPORTER_OTLP_METRICS_*`, `OTEL_METRIC_EXPORT_INTERVAL`.

use std::time::Duration;

use super::otlp::Signal;
use super::{Environment, Error, ExportFlags, Otlp};

/// Where metrics go, and how often.
#[derive(Clone, Debug)]
pub struct Config {
    /// The receiver.
    pub otlp: Otlp,
    /// Time between two exports.
    pub interval: Duration,
    /// Whether counts begin anew with each export.
    pub delta: bool,
}

/// None: metrics go nowhere. `by_default`: they go where spans go, if nobody says otherwise.
pub(super) fn read(flags: &ExportFlags, env: &mut Environment<'_>) -> Result<(Option<Config>, bool), Error> {
    const NAME: &str = "OTEL_METRICS_EXPORTER";
    let mut otlp = Otlp::read_signal(flags, env, Signal::Metrics)?;
    let chosen = match env.text(&[NAME])? {
        None => None,
        Some(given) => {
            let words: Vec<_> = given.value.split(',').map(|w| w.trim().to_ascii_lowercase()).collect();
            for word in words
                .iter()
                .filter(|w| !matches!(w.as_str(), "otlp" | "prometheus" | "none"))
            {
                env.warn(
                    NAME,
                    format_args!("`{word}` is ignored: not one of otlp, prometheus, none"),
                );
            }
            Some(words.iter().any(|w| w == "otlp"))
        }
    };
    let interval = env
        .milliseconds(&["OTEL_METRIC_EXPORT_INTERVAL"])?
        .unwrap_or(Duration::from_secs(60))
        .max(Duration::from_millis(100));
    let delta = env
        .word(&["OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"], |word| {
            match word.to_ascii_lowercase().as_str() {
                "cumulative" => Some(false),
                // Of a histogram, low memory is delta as well.
                "delta" | "lowmemory" => Some(true),
                _ => None,
            }
        })
        .is_some_and(|given| given.value);
    // Several endpoints are for spans.
    otlp.more.clear();
    let on = chosen.unwrap_or(otlp.endpoint.is_some());
    Ok((on.then_some(Config { otlp, interval, delta }), chosen.is_some()))
}
