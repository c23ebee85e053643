//! `tracewire config`.

use std::io::Write;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::agent::{self, default_output};
use super::run::SHARE;
use super::{Failure, Selection, Shared};
use crate::config::settings::{Kind, Setting};
use crate::config::{self, Environment, LogFlags, example, show};

/// Print every setting.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print an example file with every setting instead
    #[arg(long, conflicts_with = "schema")]
    example: bool,
    /// Print the JSON schema of the file instead
    #[arg(long)]
    schema: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    shared: Shared,
}

pub(crate) fn main(args: Args, log: &LogFlags, matches: Option<&ArgMatches>) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    let failed = |e: std::io::Error| Failure::Other(format!("standard output: {e}"));
    if args.example {
        return out.write_all(example::example().as_bytes()).map_err(failed);
    }
    if args.schema {
        return writeln!(out, "{:#}", example::schema()).map_err(failed);
    }
    let usage = |e: config::Error| Failure::Usage(e.to_string());
    // Whatever `run` would refuse is refused here, too.
    args.selection.selector(log)?;
    let propagators = agent::configure(&args.shared.view, log, default_output())?.propagators();
    config::sampling::load(&args.shared.sampling, SHARE, log).map_err(usage)?;
    let injection = config::injection::load(&args.shared.injection, log).map_err(usage)?;
    config::propagation::writable(injection.on, propagators).map_err(usage)?;
    let env = Environment::of_process(log).map_err(usage)?;
    agent::kernel_side(&args.shared, &env).map_err(usage)?;
    let all = show::all(&env, |setting| given(matches?, setting)).map_err(usage)?;
    if args.json {
        let object: serde_json::Map<_, _> = all
            .iter()
            .map(|s| {
                (
                    s.key.to_owned(),
                    serde_json::json!({"value": s.value, "source": s.source}),
                )
            })
            .collect();
        return writeln!(out, "{:#}", serde_json::Value::Object(object)).map_err(failed);
    }
    let key = all.iter().map(|s| s.key.len()).max().unwrap_or(0);
    let value = all.iter().map(|s| s.value.chars().count()).max().unwrap_or(0).min(40);
    for shown in &all {
        writeln!(out, "{:key$}  {:value$}  {}", shown.key, shown.value, shown.source).map_err(failed)?;
    }
    Ok(())
}

/// What the command line says of a setting's flag, as a variable would hold it.
fn given(matches: &ArgMatches, setting: &Setting) -> Option<String> {
    let id = setting.flag.replace('-', "_");
    let by_flag = matches.try_contains_id(&id).is_ok() && matches.value_source(&id) == Some(ValueSource::CommandLine);
    if !by_flag {
        return None;
    }
    let separator = match setting.kind {
        Kind::List(separator) => separator.to_string(),
        _ => ",".to_owned(),
    };
    let values: Vec<_> = matches.get_raw(&id)?.map(|value| value.to_string_lossy()).collect();
    // A flag without a value.
    Some(if values.is_empty() {
        "true".to_owned()
    } else {
        values.join(&separator)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::settings::SETTINGS;

    #[test]
    fn every_flag_of_the_list_is_one_and_is_seen() {
        for setting in SETTINGS.iter().filter(|s| !s.flag.is_empty()) {
            let flag = format!("--{}", setting.flag);
            let value = match setting.kind {
                Kind::Boolean => None,
                Kind::Word(words) => words.first().copied(),
                _ => Some("1"),
            };
            let line = ["tracewire", "config", flag.as_str()].into_iter().chain(value);
            let matches = super::super::Cli::command().try_get_matches_from(line).unwrap();
            let matches = matches.subcommand_matches("config").unwrap();
            assert_eq!(
                given(matches, setting).as_deref(),
                Some(value.unwrap_or("true")),
                "{flag}"
            );
            let others = SETTINGS.iter().filter(|s| s.key != setting.key && !s.flag.is_empty());
            assert!(
                others.into_iter().all(|other| given(matches, other).is_none()),
                "{flag}"
            );
        }
    }

    #[test]
    fn several_of_one_flag_are_a_list() {
        let line = ["tracewire", "config", "--route", "/a/{id}", "--route", "/b"];
        let matches = super::super::Cli::command().try_get_matches_from(line).unwrap();
        let routes = SETTINGS.iter().find(|s| s.key == "routes.patterns").unwrap();
        assert_eq!(
            given(matches.subcommand_matches("config").unwrap(), routes).as_deref(),
            Some("/a/{id};/b")
        );
    }
}
