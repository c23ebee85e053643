//! The figures as a table.

use std::time::Duration;

use super::Stage;
use super::figures::{Agent, Run, median};
use super::variant::Variant;

/// What a figure is to be; each is a target of the project's.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// Of the ratio on/off.
    RatioAtLeast(f64),
    /// As above.
    RatioAtMost(f64),
    /// Of the difference on − off.
    AddsAtMost(f64),
    /// Of the figure itself.
    AtMost(f64),
}

impl Target {
    /// The target, and whether it is met or by how much not.
    fn judge(self, off: f64, on: f64, ratio: f64) -> String {
        let (said, short) = match self {
            Target::RatioAtLeast(least) => (format!("≥ {least}"), least - ratio),
            Target::RatioAtMost(most) => (format!("≤ {most}"), ratio - most),
            Target::AddsAtMost(most) => (format!("≤ {most} added, {:.1} are", on - off), on - off - most),
            Target::AtMost(most) => (format!("≤ {most}"), on - most),
        };
        if short <= 0.0 {
            format!("{said}: met")
        } else {
            format!("{said}: MISSED by {short:.2}")
        }
    }
}

/// Prints a load's figures: medians, and the medians of the ratios of neighbouring runs.
pub fn print(title: &str, stage: Stage, runs: &[(Run, Run)], timed: Option<&Run>, sides: u64, variant: Variant) {
    let calls = runs.first().map_or(0, |(off, _)| off.calls);
    println!(
        "\n{title} ({} rounds of {calls} calls, {sides} observed sides)",
        runs.len()
    );
    println!("  {:<34} {:>10} {:>10} {:>8}  target", "", "off", "on", "on/off");
    let row = |name: &str, target: Option<Target>, figure: &dyn Fn(&Run) -> f64| {
        let off = median(runs.iter().map(|(off, _)| figure(off)));
        let on = median(runs.iter().map(|(_, on)| figure(on)));
        let ratio = median(runs.iter().map(|(off, on)| figure(on) / figure(off)));
        let target = target.map_or_else(String::new, |target| target.judge(off, on, ratio));
        println!("  {name:<34} {off:>10.1} {on:>10.1} {ratio:>8.3}  {target}");
    };
    let injects = variant == Variant::Inject;
    let least = if injects { 0.90 } else { 0.92 };
    let added = Some(Target::AddsAtMost(if injects { 3.0 } else { 2.0 }));
    let saturated = (stage == Stage::Saturated).then_some(Target::RatioAtLeast(least));
    let half = (stage == Stage::Half).then_some(Target::RatioAtMost(1.05));
    row("throughput, calls/s", saturated, &Run::throughput);
    row("latency p50, µs", half, &|run| run.percentile(0.5));
    row("latency p99, µs", half, &|run| run.percentile(0.99));
    row("server CPU, µs a call", added, &|run| run.per_call(run.server));
    row("client CPU, µs a call", added, &|run| run.per_call(run.client));

    let agents: Vec<(&Run, &Agent)> = runs
        .iter()
        .filter_map(|(_, on)| Some((on, on.agent.as_ref()?)))
        .collect();
    let line = |name: &str, target: Option<Target>, figure: &dyn Fn(&Run, &Agent) -> f64| {
        let on = median(agents.iter().map(|(run, agent)| figure(run, agent)));
        let target = target.map_or_else(String::new, |target| target.judge(0.0, on, 1.0));
        println!("  {name:<34} {:>10} {on:>10.2} {:>8}  {target}", "", "");
    };
    const MIB: f64 = (1 << 20) as f64;
    let spans = |agent: &Agent| agent.counter("spans").max(1) as f64;
    let of_calls = |run: &Run| (run.calls * sides) as f64;
    line("agent CPU, µs a span", Some(Target::AtMost(3.0)), &|_, agent| {
        micros(agent.cpu) / spans(agent)
    });
    line("agent CPU, % of a core", None, &|run, agent| {
        100.0 * agent.cpu.as_secs_f64() / run.time.as_secs_f64()
    });
    // The target is for 10,000 spans a second.
    let memory = (stage == Stage::Fixed).then_some(Target::AtMost(50.0));
    line("agent memory, peak in load, MiB", memory, &|_, agent| {
        agent.peak_in_load as f64 / MIB
    });
    line("agent memory, peak of all, MiB", memory, &|_, agent| {
        agent.peak as f64 / MIB
    });
    line("kernel bytes a call and side", None, &|run, agent| {
        agent.counter("kernel_bytes") as f64 / of_calls(run)
    });
    line("kernel records a call and side", None, &|run, agent| {
        agent.counter("events") as f64 / of_calls(run)
    });
    line("spans made / calls and sides, 1", None, &|run, agent| {
        agent.counter("spans") as f64 / of_calls(run)
    });
    if variant.is_counted() {
        line("spans received / calls and sides, 1", None, &|run, agent| {
            agent.received as f64 / of_calls(run)
        });
    }
    // Of losses the sum: one bad round must not hide behind its neighbours.
    let lost: u64 = agents.iter().map(|(_, agent)| agent.counters_of("lost_events.")).sum();
    let dropped: u64 = agents
        .iter()
        .map(|(_, agent)| agent.counters_of("spans_dropped."))
        .sum();
    println!("  {:<34} {:>10} {lost:>10} {:>8}  0", "events lost, all rounds", "", "");
    println!(
        "  {:<34} {:>10} {dropped:>10} {:>8}  0",
        "spans dropped, all rounds", "", ""
    );

    if let Some(timed) = timed
        && let Some(agent) = &timed.agent
    {
        let (programs, calls) = (agent.programs, of_calls(timed));
        let each = programs.ns as f64 / programs.runs.max(1) as f64;
        println!("  one more run, with the kernel's own clock on its programs:");
        let ns = programs.ns as f64 / calls;
        println!(
            "  {:<34} {:>10} {ns:>10.0} {:>8}  ≤ 2000",
            "in the kernel, ns a call and side", "", ""
        );
        let runs = programs.runs as f64 / calls;
        println!(
            "  {:<34} {:>10} {runs:>10.2} {:>8}",
            "  program runs a call and side", "", ""
        );
        println!("  {:<34} {:>10} {each:>10.0} {:>8}", "  ns a run", "", "");
    }
}

/// Prints what each exporter costs: medians of its runs.
pub fn exporters(runs: &[(Variant, Vec<Run>)]) {
    let figure = |runs: &[Run], figure: &dyn Fn(&Agent) -> f64| {
        median(runs.iter().filter_map(|run| run.agent.as_ref()).map(figure))
    };
    let cost = |runs: &[Run]| figure(runs, &|agent| micros(agent.cpu) / agent.counter("spans").max(1) as f64);
    let none = runs.first().map_or(0.0, |(_, runs)| cost(runs));
    println!(
        "\n  {:<12} {:>14} {:>14} {:>14} {:>10} {:>10}",
        "exporter", "CPU, µs a span", "of it, export", "peak, MiB ≤ 50", "spans", "dropped"
    );
    for (variant, runs) in runs {
        let dropped: u64 = runs
            .iter()
            .filter_map(|run| run.agent.as_ref())
            .map(|agent| {
                ["spans_dropped.", "sentry_dropped.", "lost_events."]
                    .map(|name| agent.counters_of(name))
                    .iter()
                    .sum::<u64>()
            })
            .sum();
        println!(
            "  {:<12} {:>14.2} {:>14.2} {:>14.1} {:>10.0} {dropped:>10}",
            variant.name(),
            cost(runs),
            cost(runs) - none,
            figure(runs, &|agent| agent.peak_in_load as f64 / f64::from(1 << 20)),
            figure(runs, &|agent| agent.counter("spans") as f64),
        );
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_says_by_how_much_it_is_missed() {
        assert_eq!(Target::RatioAtLeast(0.92).judge(1.0, 1.0, 0.95), "≥ 0.92: met");
        assert_eq!(
            Target::RatioAtMost(1.05).judge(1.0, 1.0, 1.55),
            "≤ 1.05: MISSED by 0.50"
        );
        assert_eq!(
            Target::AddsAtMost(2.0).judge(30.0, 35.5, 1.0),
            "≤ 2 added, 5.5 are: MISSED by 3.50"
        );
        assert_eq!(Target::AtMost(3.0).judge(0.0, 2.5, 1.0), "≤ 3: met");
    }
}
