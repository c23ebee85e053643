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

/// Loads every program that works here, prints what each took and compares it with the budget.
///
/// # Errors
/// When the agent can't load them, or one takes more.
pub fn check(tally: &mut Tally) -> Result<()> {
    let report = output(command(place::agent()).args(["check", "--json"]))
        .context("`tracewire check` says that nothing can be traced here")?;
    let report: Value = serde_json::from_str(&report).context("`tracewire check --json`")?;
    let programs = programs(&report);
    if programs.is_empty() {
        eprintln!("left out: this kernel does not say how much it verified (5.16 and up do)");
        tally.skipped += 1;
        return Ok(());
    }
    let mut over = Vec::new();
    for (name, count) in programs {
        println!("{name:<24} {count:>7} instructions verified");
        if count > BUDGET {
            over.push(format!("{name}: {count}"));
        }
    }
    ensure!(over.is_empty(), "over the budget of {BUDGET}: {}", over.join(", "));
    Ok(())
}

/// Each program once, with the most that it took in any combination.
fn programs(report: &Value) -> Vec<(String, u64)> {
    let mut programs: Vec<(String, u64)> = Vec::new();
    let items = report["items"].as_array().into_iter().flatten();
    for pair in items.filter_map(|item| item["programs"].as_array()).flatten() {
        let (Some(name), Some(count)) = (pair[0].as_str(), pair[1].as_u64()) else {
            continue;
        };
        match programs.iter_mut().find(|(known, _)| known == name) {
            Some((_, most)) => *most = count.max(*most),
            None => programs.push((name.to_owned(), count)),
        }
    }
    programs.sort();
    programs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_counted_once_with_its_most() {
        let report = serde_json::json!({"items": [
            {"name": "a", "programs": [["send", 10], ["exit", 1]]},
            {"name": "b"},
            {"name": "c", "programs": [["send", 12]]},
        ]});
        assert_eq!(programs(&report), [("exit".to_owned(), 1), ("send".to_owned(), 12)]);
    }
}
