//! Envelopes as bytes (develop.sentry.dev, "Envelopes"): one item each, for
//! kinds of telemetry must not be mixed. Raw, since the `sentry` crate's
//! own writer knows its own transaction only.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::limits::Category;
use super::subject::{SDK, Sdk};
use crate::export::plain::Hex;

/// Largest item, bytes: Relay's limit for events is 1 MiB.
pub const LARGEST: usize = 1 << 20;

/// Writes envelopes; keeps the memory that an item is written to.
#[derive(Debug, Default)]
pub struct Sealer {
    item: Vec<u8>,
}

/// Why an envelope was not made.
#[derive(Debug, PartialEq, Eq)]
pub enum Unsealed {
    /// The item is larger than [`LARGEST`].
    TooLarge,
    /// It can't be written as JSON.
    Unwritable,
}

#[derive(Serialize)]
struct Header<'a, T: Serialize> {
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<Hex<'a>>,
    sdk: Sdk,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a T>,
}

#[derive(Serialize)]
struct Item<'a> {
    r#type: &'a str,
    length: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_count: Option<usize>,
}

impl Sealer {
    /// An envelope around one item. `spans`: number of spans below a transaction.
    ///
    /// # Errors
    /// See [`Unsealed`].
    pub fn seal(
        &mut self,
        event_id: Option<&[u8; 16]>,
        trace: Option<&impl Serialize>,
        kind: &str,
        spans: Option<usize>,
        payload: &impl Serialize,
    ) -> Result<Vec<u8>, Unsealed> {
        self.item.clear();
        serde_json::to_writer(&mut self.item, payload).map_err(|_| Unsealed::Unwritable)?;
        let length = self.item.len();
        if length > LARGEST {
            // What was that large once is not kept for all that is small.
            self.item = Vec::new();
            return Err(Unsealed::TooLarge);
        }
        let header = Header {
            event_id: event_id.map(|id| Hex(id)),
            sdk: SDK,
            trace,
        };
        let item = Item {
            r#type: kind,
            length,
            span_count: spans,
        };
        let mut bytes = Vec::with_capacity(length + 768);
        serde_json::to_writer(&mut bytes, &header).map_err(|_| Unsealed::Unwritable)?;
        bytes.push(b'\n');
        serde_json::to_writer(&mut bytes, &item).map_err(|_| Unsealed::Unwritable)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.item);
        bytes.push(b'\n');
        Ok(bytes)
    }
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
