//! What the services themselves wrote down of their calls.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// One call as one side knows it.
#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    /// `client` or `server`.
    pub side: String,
    /// `language-scenario-number-pid`
    pub id: String,
    /// `package.Service/Method`
    pub method: String,
    /// Canonical name of the gRPC status.
    pub code: String,
    /// `grpc-message`.
    pub message: String,
    /// Unix time, ns.
    pub start_ns: u64,
    /// Unix time, ns.
    pub end_ns: u64,
    /// Messages.
    pub sent: i64,
    /// Messages.
    pub received: i64,
    /// A server: values of `traceparent` that it got, joined by commas.
    #[serde(default)]
    pub traceparent: String,
}

impl Call {
    /// The scenario that its id names.
    pub fn scenario(&self) -> &str {
        let rest = self.id.split_once('-').map_or("", |(_, rest)| rest);
        // The number and the process id stand last.
        rest.rsplitn(3, '-').nth(2).unwrap_or("")
    }

    /// The client's language.
    pub fn client_language(&self) -> &str {
        self.id.split('-').next().unwrap_or("")
    }

    /// Whether one side gives the call up, so that both race to end it.
    pub fn is_raced(&self) -> bool {
        matches!(self.scenario(), "cancel" | "deadline")
    }
}

/// All calls, by side and id.
pub type Truth = BTreeMap<(String, String), Call>;

/// Adds a log to what is known.
///
/// # Errors
/// When a line is no call, or a call was written twice.
pub fn read(path: &Path, into: &mut Truth) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    lines(&text, path, into)
}

/// The same of a log that is still written: without the line that has no end yet.
///
/// # Errors
/// As there.
pub fn read_whole_lines(path: &Path, into: &mut Truth) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    lines(whole, path, into)
}

fn lines(text: &str, path: &Path, into: &mut Truth) -> Result<()> {
    for line in text.lines() {
        let call: Call = serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?;
        let key = (call.side.clone(), call.id.clone());
        ensure!(
            into.insert(key, call).is_none(),
            "{}: written twice: {line}",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_may_have_dashes() {
        let call: Call = serde_json::from_str(
            r#"{"side":"client","id":"go-server-stream-12-345","method":"","code":"OK","message":"",
                "start_ns":0,"end_ns":0,"sent":0,"received":0}"#,
        )
        .unwrap_or_else(|error| unreachable!("{error}"));
        assert_eq!(call.scenario(), "server-stream");
        assert_eq!(call.client_language(), "go");
    }
}
