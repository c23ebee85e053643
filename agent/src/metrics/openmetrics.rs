//! Histograms in OpenMetrics text with their exemplars (OpenMetrics 1.0, "Histogram",
//! "Exemplars"). prometheus-client writes all else: it lets nobody make an exemplar but
//! its own histograms, which would count each request a second time.

use std::fmt::{self, Write};

use super::{BOUNDS, Exemplar, Histogram};

/// A histogram's series, written one after another.
pub(super) struct Family<'t> {
    text: &'t mut String,
    name: &'t str,
}

impl<'t> Family<'t> {
    /// Writes what stands above all series; `name` ends in its unit, `_seconds`.
    ///
    /// # Errors
    /// Writing to a string does not fail.
    pub(super) fn begin(text: &'t mut String, name: &'t str, about: &str) -> Result<Self, fmt::Error> {
        writeln!(
            text,
            "# HELP {name} {about}.\n# TYPE {name} histogram\n# UNIT {name} seconds"
        )?;
        Ok(Family { text, name })
    }

    /// Writes one series.
    ///
    /// # Errors
    /// As there.
    pub(super) fn series(&mut self, labels: &[(String, String)], histogram: &Histogram) -> Result<(), fmt::Error> {
        let mut set = String::new();
        for (name, value) in labels {
            write!(set, "{name}=\"")?;
            escape(&mut set, value);
            set.push_str("\",");
        }
        let (text, name) = (&mut *self.text, self.name);
        let mut below = 0;
        for (i, (count, exemplar)) in histogram.counts.iter().zip(&histogram.exemplars).enumerate() {
            below += count;
            match BOUNDS.get(i) {
                Some(bound) => write!(text, "{name}_bucket{{{set}le=\"{bound:?}\"}} {below}")?,
                None => write!(text, "{name}_bucket{{{set}le=\"+Inf\"}} {below}")?,
            }
            if let Some(exemplar) = exemplar {
                write_exemplar(text, exemplar)?;
            }
            text.push('\n');
        }
        let set = set.trim_end_matches(',');
        writeln!(text, "{name}_count{{{set}}} {below}")?;
        writeln!(text, "{name}_sum{{{set}}} {:?}", histogram.sum)
    }
}

/// Label names as OpenTelemetry gives them (SPEC `compatibility/prometheus_and_openmetrics.md`, "Exemplars").
fn write_exemplar(text: &mut String, exemplar: &Exemplar) -> Result<(), fmt::Error> {
    text.push_str(" # {trace_id=\"");
    hex(text, &exemplar.trace_id)?;
    text.push_str("\",span_id=\"");
    hex(text, &exemplar.span_id)?;
    let (seconds, rest) = (
        exemplar.time_unix_ns / 1_000_000_000,
        exemplar.time_unix_ns / 1_000_000 % 1000,
    );
    write!(text, "\"}} {:?} {seconds}.{rest:03}", exemplar.value)
}

fn hex(text: &mut String, bytes: &[u8]) -> Result<(), fmt::Error> {
    bytes.iter().try_for_each(|byte| write!(text, "{byte:02x}"))
}

fn escape(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_series_is_as_the_specification_writes_it() {
        let mut histogram = Histogram::default();
        let exemplar = Exemplar {
            value: 0.07,
            time_unix_ns: 1_790_000_000_012_345_678,
            trace_id: 0xabcu128.to_be_bytes(),
            span_id: 7u64.to_be_bytes(),
        };
        histogram.record(0.07, Some(exemplar));
        histogram.record(11.0, None);
        let mut text = String::new();
        let labels = [("service_name".to_owned(), "a\"b\\c\nd".to_owned())];
        let mut family = Family::begin(&mut text, "x_seconds", "About it").unwrap();
        family.series(&labels, &histogram).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let set = r#"service_name="a\"b\\c\nd""#;
        assert_eq!(lines[2], "# UNIT x_seconds seconds");
        assert_eq!(lines[3], format!("x_seconds_bucket{{{set},le=\"0.005\"}} 0"));
        assert_eq!(
            lines[7],
            format!(
                "x_seconds_bucket{{{set},le=\"0.075\"}} 1 # {{trace_id=\"00000000000000000000000000000abc\",\
                 span_id=\"0000000000000007\"}} 0.07 1790000000.012"
            )
        );
        assert_eq!(lines[17], format!("x_seconds_bucket{{{set},le=\"+Inf\"}} 2"));
        assert_eq!(lines[18], format!("x_seconds_count{{{set}}} 2"));
        assert_eq!(lines[19], format!("x_seconds_sum{{{set}}} 11.07"));
    }
}
