//! The figures of one run, and what the client's log says of latency.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::process::Programs;

/// One run of the load.
#[derive(Clone, Debug)]
pub struct Run {
    /// Calls that ended well.
    pub calls: u64,
    /// From the first call's start to the last call's end.
    pub time: Duration,
    /// Latencies of the calls, sorted.
    pub latencies: Vec<Duration>,
    /// CPU time of the server during the load.
    pub server: Duration,
    /// CPU time of the client, its start and end included.
    pub client: Duration,
    /// The agent's part, if it ran.
    pub agent: Option<Agent>,
}

/// What the agent took and did.
#[derive(Clone, Debug, Default)]
pub struct Agent {
    /// CPU time from the first call to its end.
    pub cpu: Duration,
    /// Highest memory since its start, bytes.
    pub peak: u64,
    /// Highest memory during the load, bytes.
    pub peak_in_load: u64,
    /// Its counters at the end.
    pub counters: HashMap<String, u64>,
    /// Spans that reached the receiver.
    pub received: u64,
    /// Its kernel programs during the load.
    pub programs: Programs,
}

impl Agent {
    /// A counter; 0 if the agent has none of that name.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// Sum of the counters whose name begins so.
    pub fn counters_of(&self, prefix: &str) -> u64 {
        self.counters
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(_, n)| n)
            .sum()
    }
}

impl Run {
    /// Takes the calls from the client's log.
    ///
    /// # Errors
    /// When a call failed or the log is not whole: the run is then no measure.
    pub fn of_log(log: &str, calls: u64) -> Result<Self> {
        let mut latencies = Vec::with_capacity(calls as usize);
        let (mut first, mut last) = (u64::MAX, 0);
        for line in log.lines() {
            if let (Some(start), Some(end)) = (number(line, "\"start_ns\":"), number(line, "\"end_ns\":"))
                && line.contains("\"code\":\"OK\"")
            {
                first = first.min(start);
                last = last.max(end);
                latencies.push(Duration::from_nanos(end.saturating_sub(start)));
            }
        }
        let good = latencies.len() as u64;
        ensure!(good == calls, "{good} of {calls} calls went well");
        latencies.sort_unstable();
        Ok(Run {
            calls,
            time: Duration::from_nanos(last.saturating_sub(first)),
            latencies,
            server: Duration::ZERO,
            client: Duration::ZERO,
            agent: None,
        })
    }

    /// Calls a second.
    pub fn throughput(&self) -> f64 {
        self.calls as f64 / self.time.as_secs_f64()
    }

    /// Latency that a share of the calls do not exceed, µs.
    pub fn percentile(&self, share: f64) -> f64 {
        let at = (self.latencies.len() as f64 * share) as usize;
        let latency = self.latencies.get(at.min(self.latencies.len().saturating_sub(1)));
        latency.map_or(f64::NAN, |l| l.as_secs_f64() * 1e6)
    }

    /// µs a call.
    pub fn per_call(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.calls as f64
    }
}

/// The number behind a key of a JSON line.
fn number(line: &str, key: &str) -> Option<u64> {
    let (_, rest) = line.split_once(key)?;
    let digits = rest.trim_start();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

/// The middle of some figures.
pub fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.into_iter().filter(|f| !f.is_nan()).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    match (
        sorted.get(sorted.len().saturating_sub(1) / 2),
        sorted.get(sorted.len() / 2),
    ) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const LOG: &str = r#"{"code":"OK","end_ns":3000,"side":"client","start_ns":1000}
{"side":"client","code":"OK","start_ns": 2000,"end_ns": 6000}
"#;

    #[test]
    fn the_order_of_keys_does_not_matter() {
        let run = Run::of_log(LOG, 2).unwrap();
        assert_eq!(run.time, Duration::from_nanos(5000));
        assert_eq!(run.latencies, [Duration::from_nanos(2000), Duration::from_nanos(4000)]);
        assert_eq!((run.percentile(0.0), run.percentile(0.99)), (2.0, 4.0));
    }

    #[test]
    fn a_run_with_failed_calls_is_no_measure() {
        assert!(
            Run::of_log(
                &LOG.replace(
                    "\"code\":\"OK\",\"start_ns\": 2",
                    "\"code\":\"UNKNOWN\",\"start_ns\": 2"
                ),
                2
            )
            .is_err()
        );
        assert!(Run::of_log("", 1).is_err());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median([4.0, 1.0, 2.0, 100.0]), 3.0);
        assert_eq!(median([5.0, f64::NAN, 1.0, 9.0]), 5.0);
        assert!(median([]).is_nan());
    }
}
