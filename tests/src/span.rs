//! A span as the agent's `--output json` writes it.

use std::path::Path;
use std::{fmt, fs};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::agent::CALL_ID;

/// One line.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// 32 hex digits.
    pub trace_id: String,
    /// 16 hex digits.
    pub span_id: String,
    /// 16 hex digits, empty for a root.
    pub parent_span_id: String,
    /// Name.
    pub name: String,
    /// `CLIENT` or `SERVER`.
    pub kind: String,
    /// Unix time, ns.
    #[serde(rename = "startTimeUnixNano")]
    pub start_ns: u64,
    /// Unix time, ns.
    #[serde(rename = "endTimeUnixNano")]
    pub end_ns: u64,
    /// Status.
    pub status: Status,
    /// W3C trace flags.
    #[serde(default)]
    pub flags: u8,
    /// W3C `tracestate`.
    #[serde(default)]
    pub trace_state: String,
    /// By name.
    pub attributes: Map<String, Value>,
    /// By name.
    pub resource: Map<String, Value>,
}

/// Status of a span.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Status {
    /// `UNSET` or `ERROR`.
    pub code: String,
    /// Description.
    pub message: Option<String>,
}

impl fmt::Debug for Span {
    /// Without its resource, which is long and rarely what is wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?} {} {}/{} {}..{} {:?} {}",
            self.kind,
            self.name,
            self.trace_id,
            self.parent_span_id,
            self.span_id,
            self.start_ns,
            self.end_ns,
            self.status,
            Value::Object(self.attributes.clone())
        )
    }
}

impl Span {
    /// All spans of a file.
    ///
    /// # Errors
    /// When a whole line is no span.
    pub fn read(path: &Path) -> Result<Vec<Span>> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).with_context(|| format!("not a span: {line}")))
            .collect()
    }

    /// A string attribute.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.attributes.get(name)?.as_str()
    }

    /// A number attribute.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.attributes.get(name)?.as_i64()
    }

    /// The id of the call that it is of, from the request's metadata.
    pub fn call_id(&self) -> Option<&str> {
        let captured = |prefix: &str| self.attributes.get(&format!("{prefix}{CALL_ID}"))?.get(0)?.as_str();
        captured("rpc.request.metadata.").or_else(|| captured("http.request.header."))
    }

    /// `client` or `server`, as the logs call the sides.
    pub fn side(&self) -> String {
        self.kind.to_ascii_lowercase()
    }

    /// Whether an attribute is named as one that could not be read.
    pub fn is_unseen(&self, name: &str) -> bool {
        let unseen = self.attributes.get("tracewire.unseen").and_then(Value::as_array);
        unseen.is_some_and(|list| list.iter().any(|entry| entry == name))
    }
}
