//! What the kernel's verifier has to walk of each program. Bias: a program that
//! grows is stopped here, long before a kernel refuses it; the kernel's own limit
//! is a million, and older ones walk more than newer ones.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::{command, output};
use crate::place;
use crate::tally::Tally;

/// Instructions that one program may take.
const BUDGET: u64 = 100_000;

/// Programs on trampolines, which lockdown and some kernels forbid. They walk the same functions as the others.
const TRAMPOLINES: [&str; 6] = [
    "tcp_sendmsg",
    "tcp_recvmsg",
    "tcp_recvmsg_nonblock",
    "tcp_recvmsg_flags",
    "unix_stream_sendmsg",
    "unix_stream_recvmsg",
];

/// Loads every program in every way in which an agent loads it, prints what each took at most and
/// compares it with the budget.
///
/// # Errors
/// When one is refused that this kernel has the hook for, or one takes more.
pub fn check(tally: &mut Tally) -> Result<()> {
    let report = output(command(place::agent()).args(["check", "--programs", "--json"]))
        .context("`tracewire check --programs` says that nothing can be loaded here")?;
    let report: Value = serde_json::from_str(&report).context("`tracewire check --programs --json`")?;
    let (mut over, mut refused, mut counted) = (Vec::new(), Vec::new(), false);
    for program in programs(&report) {
        let Program {
            name,
            way,
            most,
            reason,
        } = program;
        match (most, reason) {
            (_, Some(reason)) if TRAMPOLINES.contains(&name.as_str()) => {
                println!("{name:<34} not loaded here ({reason}): `cargo xtask kernels` does it");
            }
            (_, Some(reason)) => refused.push(format!("{name} ({way}): {reason}")),
            (Some(count), None) => {
                counted = true;
                println!("{name:<34} {count:>7} instructions verified, most of them: {way}");
                if count > BUDGET {
                    over.push(format!("{name} ({way}): {count}"));
                }
            }
            (None, None) => {}
        }
    }
    ensure!(refused.is_empty(), "refused: {}", refused.join("; "));
    ensure!(over.is_empty(), "over the budget of {BUDGET}: {}", over.join(", "));
    if !counted {
        eprintln!("left out: this kernel does not say how much it verified (5.16 and up do)");
        tally.skipped += 1;
    }
    Ok(())
}

/// A program with what it took in the way in which it took most, or why it was refused.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    name: String,
    way: String,
    most: Option<u64>,
    reason: Option<String>,
}

/// Each program once.
fn programs(report: &Value) -> Vec<Program> {
    let mut programs: Vec<Program> = Vec::new();
    for item in report.as_array().into_iter().flatten() {
        let word = |key: &str| item[key].as_str().map(ToOwned::to_owned);
        let program = Program {
            name: word("name").unwrap_or_default(),
            way: word("way").unwrap_or_default(),
            most: item["instructions"].as_u64(),
            reason: word("refused"),
        };
        match programs.iter_mut().find(|known| known.name == program.name) {
            Some(known) if known.reason.is_some() => {}
            Some(known) if program.reason.is_some() || program.most > known.most => *known = program,
            Some(_) => {}
            None => programs.push(program),
        }
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    programs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_counted_once_with_its_most_and_a_refusal_outweighs_it() {
        let report = serde_json::json!([
            {"name": "send", "way": "plain", "instructions": 10, "refused": null},
            {"name": "exit", "way": "plain", "instructions": 1, "refused": null},
            {"name": "send", "way": "inject", "instructions": 12, "refused": null},
            {"name": "exit", "way": "inject", "instructions": null, "refused": "too large"},
            {"name": "exit", "way": "log", "instructions": 2, "refused": null},
        ]);
        let [exit, send] = programs(&report).try_into().expect("two programs");
        assert_eq!(
            (exit.way.as_str(), exit.reason.as_deref()),
            ("inject", Some("too large"))
        );
        assert_eq!((send.way.as_str(), send.most), ("inject", Some(12)));
    }
}
