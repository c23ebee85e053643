//! Envelopes as bytes (develop.sentry.dev, "Envelopes"): one item each, for
//! kinds of telemetry must not be mixed. Raw, since the `sentry` crate's
//! own writer knows its own transaction only.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::limits::Category;

/// Largest item, bytes: Relay's limit for events is 1 MiB.
pub const LARGEST: usize = 1 << 20;

/// One item on its way.
#[derive(Debug)]
pub struct Sealed {
    /// The envelope's bytes.
    pub bytes: Vec<u8>,
    /// Bytes of its item alone.
    pub item: usize,
}

/// An envelope around one item. `spans`: number of spans below a transaction.
///
/// # Errors
/// If the payload can't be written as JSON.
pub fn seal(
    event_id: Option<&str>,
    trace: Option<&Json>,
    kind: &str,
    spans: Option<usize>,
    payload: &impl Serialize,
) -> serde_json::Result<Sealed> {
    let mut header = serde_json::Map::new();
    if let Some(id) = event_id {
        header.insert("event_id".into(), id.into());
    }
    header.insert("sdk".into(), super::subject::sdk());
    if let Some(trace) = trace {
        header.insert("trace".into(), trace.clone());
    }
    let body = serde_json::to_vec(payload)?;
    let mut item = json!({"type": kind, "length": body.len()});
    if let (Some(spans), Some(item)) = (spans, item.as_object_mut()) {
        item.insert("span_count".into(), spans.into());
    }
    let mut bytes = serde_json::to_vec(&header)?;
    bytes.push(b'\n');
    serde_json::to_writer(&mut bytes, &item)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&body);
    bytes.push(b'\n');
    Ok(Sealed {
        bytes,
        item: body.len(),
    })
}

/// What an envelope carries: the category of its item, and the spans that are lost with it.
pub fn content(bytes: &[u8]) -> (Category, u64) {
    #[derive(serde::Deserialize)]
    struct Item {
        r#type: String,
        #[serde(default)]
        span_count: u64,
    }
    let item = bytes.split(|b| *b == b'\n').nth(1).unwrap_or_default();
    match serde_json::from_slice::<Item>(item) {
        Ok(item) if item.r#type == "transaction" => (Category::Transaction, item.span_count + 1),
        Ok(item) if item.r#type == "event" => (Category::Error, 0),
        _ => (Category::Report, 0),
    }
}

/// Unix time now, s.
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |passed| passed.as_secs_f64())
}
