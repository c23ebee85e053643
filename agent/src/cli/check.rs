//! `tracewire check`: a line an item for people, one object for programs.

use std::io::Write;

use anstyle::{AnsiColor, Style};

use super::Failure;
use crate::bpf::check::{self, Item, Report, State};

/// Say what works here.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn main(args: &Args) -> Result<(), Failure> {
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
            programs: Vec::new(),
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
