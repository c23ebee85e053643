//! Manual pages, one a command, made of the same words as `--help`.

use std::io::Write;

use super::Failure;

/// What stands below the flags in the help and in the page of the whole program.
pub(super) const MORE: &str = "\
Exit status:
  0  it ran to its end, or was told to end
  1  the kernel, a file or a receiver refused something; nothing stays attached
  2  usage or configuration: what was given can't be obeyed; nothing was attached

Examples:
  tracewire attach --pid 1234                   trees of what process 1234 serves and calls
  tracewire attach --pid 1234 --output json     one span a line
  tracewire run --executable '/srv/**' --sample-ratio 0.1 --otlp-endpoint http://127.0.0.1:4317
  tracewire record --pid 1234 --out bug.rec     what to send with a report of a wrong span
  tracewire check --pid 1234                    what is seen of it, what is not, and why

Each command says more by `tracewire COMMAND --help`, and by `tracewire manual COMMAND | man -l -`.";

/// Prints the page of `command`, or of the whole.
pub(super) fn print(whole: clap::Command, command: Option<&str>, out: &mut impl Write) -> Result<(), Failure> {
    let page = match command {
        None => whole,
        Some(name) => page_of(whole, name)?,
    };
    clap_mangen::Man::new(page)
        .render(out)
        .map_err(|e| Failure::Other(format!("standard output: {e}")))
}

/// A command with the names that it has within the whole: `tracewire-run`, as its page is called.
fn page_of(mut whole: clap::Command, name: &str) -> Result<clap::Command, Failure> {
    whole.build();
    let found = whole.find_subcommand(name).filter(|found| found.get_name() != "help");
    let Some(found) = found.cloned() else {
        let names = whole.get_subcommands().map(clap::Command::get_name);
        let names = names.filter(|name| *name != "help").collect::<Vec<_>>().join(", ");
        return Err(Failure::Usage(format!(
            "manual: there is no command `{name}`, but {names}"
        )));
    };
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    fn page(command: Option<&str>) -> String {
        let mut out = Vec::new();
        print(Cli::command(), command, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn names() -> Vec<String> {
        let cli = Cli::command();
        cli.get_subcommands()
            .map(|command| command.get_name().to_owned())
            .collect()
    }

    /// As roff writes a word with hyphens.
    fn roff(word: &str) -> String {
        word.replace('-', "\\-")
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_the_page_that_the_first_one_names() {
        let first = page(None);
        assert!(first.contains("Exit status"), "{first}");
        for name in names() {
            assert!(first.contains(&roff(&format!("tracewire-{name}"))), "{name}");
            let page = page(Some(&name));
            assert!(page.contains(&format!(".TH tracewire-{name}")), "{name}: {page}");
            for flag in Cli::command().find_subcommand(&name).unwrap().get_arguments() {
                if let Some(long) = flag.get_long().filter(|_| !flag.is_hide_set()) {
                    assert!(page.contains(&roff(&format!("--{long}"))), "{name}: --{long}");
                }
            }
        }
    }

    #[test]
    fn a_command_that_is_none_is_a_wrong_usage() {
        let error = print(Cli::command(), Some("trace"), &mut Vec::new()).unwrap_err();
        assert!(matches!(error, Failure::Usage(_)));
        assert!(error.to_string().contains("attach, run, record"), "{error}");
    }

    #[test]
    fn every_flag_of_every_command_says_what_it_does() {
        let mut cli = Cli::command();
        cli.build();
        for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.len() > 3, "{} {}", command.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn every_shell_completes_every_command_and_flag() {
        use clap::ValueEnum as _;
        for shell in clap_complete::Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tracewire", &mut script);
            let script = String::from_utf8(script).unwrap();
            for name in names() {
                assert!(script.contains(&name), "{shell}: {name}");
            }
            for flag in ["otlp-endpoint", "executable", "sample-ratio", "log-level"] {
                assert!(script.contains(flag), "{shell}: {flag}");
            }
        }
    }
}
