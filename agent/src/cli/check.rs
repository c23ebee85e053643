//! `tracewire check`: a line an item for people, one object for programs.

use std::io::Write;

use anstyle::{AnsiColor, Style};

use super::Failure;
use crate::bpf::check::{self, Item, Report, State};
use crate::bpf::{probe, verified};

/// Say what works here.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Say what can be followed inside this process, and why something can't; nothing is attached
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Say how many instructions the kernel's verifier goes through for each program, in each way in which it is
    /// loaded; nothing is attached
    #[arg(long, conflicts_with = "pid")]
    programs: bool,
}

/// What the verifier goes through, or why it refuses.
fn programs(json: bool) -> Result<(), Failure> {
    let programs = verified::all().map_err(|error| Failure::Other(error.to_string()))?;
    let mut stdout = anstream::stdout().lock();
    let written = if json {
        serde_json::to_string_pretty(&programs)
            .map_err(std::io::Error::from)
            .and_then(|text| writeln!(stdout, "{text}"))
    } else {
        programs.iter().try_for_each(|program| {
            let found = match (program.instructions, &program.refused) {
                (_, Some(reason)) => reason.clone(),
                (Some(count), None) => count.to_string(),
                (None, None) => "accepted".to_owned(),
            };
            writeln!(stdout, "{:<34} {:<24} {found}", program.name, program.way)
        })
    };
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Other(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// What can be followed inside one process.
fn process(pid: u32, json: bool) -> Result<(), Failure> {
    let reports = probe::look(pid).map_err(|error| Failure::Usage(format!("--pid {pid}: {error}")))?;
    let mut stdout = anstream::stdout().lock();
    let written = if json {
        let lines: Vec<_> = reports.iter().flat_map(abilities).collect();
        serde_json::to_string_pretty(&lines)
            .map_err(std::io::Error::from)
            .and_then(|text| writeln!(stdout, "{text}"))
    } else {
        inside(&reports, &mut stdout)
    };
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Other(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// An object for each ability.
fn abilities(report: &probe::Report) -> Vec<serde_json::Value> {
    let each = |ability: &probe::Ability| {
        serde_json::json!({
            "file": report.file,
            "runtime": report.found.what,
            "ability": ability.name,
            "works": ability.points.is_ok(),
            "probes": ability.points.as_ref().map_or(0, Vec::len),
            "reason": ability.points.as_ref().err(),
        })
    };
    report.found.abilities.iter().map(each).collect()
}

fn inside(reports: &[probe::Report], to: &mut impl Write) -> std::io::Result<()> {
    for report in reports {
        writeln!(to, "{}: {}", report.file.display(), report.found.what)?;
        for ability in &report.found.abilities {
            let (state, text) = match &ability.points {
                Ok(points) => (State::Ok, format!("{} probes", points.len())),
                Err(reason) => (State::Reduced, reason.clone()),
            };
            let (mark, style) = look(state);
            writeln!(to, "{style}{mark}{style:#} {}  {text}", ability.name)?;
        }
    }
    if reports.is_empty() {
        writeln!(
            to,
            "no runtime that is known: calls are traced, but not which one is made on behalf of which"
        )?;
    }
    Ok(())
}

pub(crate) fn main(args: &Args) -> Result<(), Failure> {
    if let Some(pid) = args.pid {
        return process(pid, args.json);
    }
    if args.programs {
        return programs(args.json);
    }
    let report = check::report();
    let mut stdout = anstream::stdout().lock();
    let written = if args.json {
        serde_json::to_string_pretty(&report)
            .map_err(std::io::Error::from)
            .and_then(|text| writeln!(stdout, "{text}"))
    } else {
        table(&report, &mut stdout)
    };
    // Whoever stopped reading has seen enough.
    if let Err(error) = written
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(Failure::Other(format!("standard output: {error}")));
    }
    if report.works {
        return Ok(());
    }
    let first = report.items.iter().find(|item| item.state == State::Fatal);
    let why = first.map_or_else(String::new, |item| format!(": {}: {}", item.name, item.found));
    Err(Failure::Other(format!("nothing can be traced here{why}")))
}

fn look(state: State) -> (&'static str, Style) {
    let colour = |colour: AnsiColor| colour.on_default();
    match state {
        State::Ok => ("✓", colour(AnsiColor::Green)),
        State::Fatal => ("✗", colour(AnsiColor::Red).bold()),
        State::Reduced => ("✗", colour(AnsiColor::Yellow)),
        State::Unneeded => ("✗", Style::new().dimmed()),
        State::Unknown => ("?", Style::new().dimmed()),
    }
}

fn line(item: &Item) -> String {
    let mut line = item.found.clone();
    if !item.without.is_empty() {
        line.push_str(" — ");
        line.push_str(&item.without);
    }
    if !item.remedy.is_empty() {
        line.push_str("; remedy: ");
        line.push_str(&item.remedy);
    }
    line
}

fn table(report: &Report, to: &mut impl Write) -> std::io::Result<()> {
    let width = report.items.iter().map(|item| item.name.len()).max().unwrap_or(0);
    for item in &report.items {
        let (mark, style) = look(item.state);
        writeln!(to, "{style}{mark}{style:#} {:width$}  {}", item.name, line(item))?;
    }
    match report.rung {
        Some(rung) => writeln!(to, "tracing works here, by {rung}"),
        None => writeln!(to, "nothing can be traced here"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_missing_thing_says_its_cost_and_its_remedy_on_one_line() {
        let item = Item {
            name: "BTF",
            state: State::Fatal,
            found: "missing".into(),
            without: "nothing can be traced".into(),
            remedy: "another kernel".into(),
        };
        let report = Report {
            version: "0",
            kernel: "5.4".into(),
            works: false,
            rung: None,
            items: vec![item],
        };
        let mut text = anstream::StripStream::new(Vec::new());
        table(&report, &mut text).unwrap();
        assert_eq!(
            String::from_utf8(text.into_inner()).unwrap(),
            "✗ BTF  missing — nothing can be traced; remedy: another kernel\nnothing can be traced here\n"
        );
    }
}
