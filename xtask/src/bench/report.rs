//! The figures as a table.

use std::time::Duration;

use super::figures::{Agent, Run, median};
use super::variant::Variant;

/// Prints a load's figures: medians, and the medians of the ratios of neighbouring runs.
pub fn print(title: &str, runs: &[(Run, Run)], timed: Option<&Run>, sides: u64, variant: Variant) {
    let calls = runs.first().map_or(0, |(off, _)| off.calls);
    println!(
        "\n{title} ({} rounds of {calls} calls, {sides} observed sides)",
        runs.len()
    );
    println!("  {:<34} {:>10} {:>10} {:>8}  target", "", "off", "on", "on/off");
    let row = |name: &str, target: &str, figure: &dyn Fn(&Run) -> f64| {
        let off = median(runs.iter().map(|(off, _)| figure(off)));
        let on = median(runs.iter().map(|(_, on)| figure(on)));
        let ratio = median(runs.iter().map(|(off, on)| figure(on) / figure(off)));
        println!("  {name:<34} {off:>10.1} {on:>10.1} {ratio:>8.3}  {target}");
    };
    row("throughput, calls/s", "≥ 0.92 when saturated", &Run::throughput);
    row("latency p50, µs", "≤ 1.05 at half load", &|run| run.percentile(0.5));
    row("latency p99, µs", "≤ 1.05 at half load", &|run| run.percentile(0.99));
    row("server CPU, µs a call", "≤ 2 µs added", &|run| {
        run.per_call(run.server)
    });
    row("client CPU, µs a call", "≤ 2 µs added", &|run| {
        run.per_call(run.client)
    });

    let agents: Vec<(&Run, &Agent)> = runs
        .iter()
        .filter_map(|(_, on)| Some((on, on.agent.as_ref()?)))
        .collect();
    let line = |name: &str, target: &str, figure: &dyn Fn(&Run, &Agent) -> f64| {
        let on = median(agents.iter().map(|(run, agent)| figure(run, agent)));
        println!("  {name:<34} {:>10} {on:>10.2} {:>8}  {target}", "", "");
    };
    const MIB: f64 = (1 << 20) as f64;
    let spans = |agent: &Agent| agent.counter("spans").max(1) as f64;
    let of_calls = |run: &Run| (run.calls * sides) as f64;
    line("agent CPU, µs a span", "≤ 3", &|_, agent| {
        micros(agent.cpu) / spans(agent)
    });
    line("agent CPU, % of a core", "", &|run, agent| {
        100.0 * agent.cpu.as_secs_f64() / run.time.as_secs_f64()
    });
    line("agent memory, peak in load, MiB", "≤ 50", &|_, agent| {
        agent.peak_in_load as f64 / MIB
    });
    line("agent memory, peak of all, MiB", "≤ 50", &|_, agent| {
        agent.peak as f64 / MIB
    });
    line("kernel bytes a call and side", "", &|run, agent| {
        agent.counter("kernel_bytes") as f64 / of_calls(run)
    });
    line("kernel records a call and side", "", &|run, agent| {
        agent.counter("events") as f64 / of_calls(run)
    });
    line("spans made / calls and sides", "1", &|run, agent| {
        agent.counter("spans") as f64 / of_calls(run)
    });
    if variant.is_counted() {
        line("spans received / calls and sides", "1", &|run, agent| {
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
