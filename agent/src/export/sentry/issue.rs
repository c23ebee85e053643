//! A failed request as a Sentry event, which Sentry makes an Issue of. Grouped
//! by transaction and status, never by text: texts hold ids. Each group may
//! send a few a minute; what is suppressed is counted in the next that goes.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use rustc_hash::FxHashMap;
use sentry::protocol::{
    Breadcrumb, ClientSdkInfo, Context, Event, Exception, Level, Map, Mechanism, TraceContext, Uuid, Values,
};
use serde_json::{Value as Json, json};

use super::family::Family;
use super::subject::{Data, SDK, Subject, cut, hex, seconds};
use super::{transaction, words};
use crate::span::{Span, Status};

/// Groups whose rate is known at a time; more start over.
const GROUPS: usize = 4096;
/// Longest text of an error, bytes.
const TEXT: usize = 1024;
/// Most breadcrumbs, the last ones.
const CRUMBS: usize = 50;

/// How often each group may speak.
#[derive(Debug)]
pub struct Caps {
    per_minute: u32,
    groups: FxHashMap<u64, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at_ns: u64,
    suppressed: u64,
}

impl Caps {
    /// So many a minute and group, and as many at once.
    pub fn new(per_minute: u32) -> Self {
        Caps {
            per_minute: per_minute.max(1),
            groups: FxHashMap::default(),
        }
    }

    /// Whether one more may go at `now_ns`; if so, how many of its group were suppressed
    /// since the last.
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub fn admit(&mut self, group: u64, now_ns: u64) -> Option<u64> {
        let most = f64::from(self.per_minute);
        if self.groups.len() >= GROUPS && !self.groups.contains_key(&group) {
            self.groups.clear();
        }
        let bucket = self.groups.entry(group).or_insert(Bucket {
            tokens: most,
            at_ns: now_ns,
            suppressed: 0,
        });
        let passed = now_ns.saturating_sub(bucket.at_ns) as f64 / 60e9;
        bucket.tokens = (bucket.tokens + passed * most).min(most);
        bucket.at_ns = bucket.at_ns.max(now_ns);
        if bucket.tokens < 1.0 {
            bucket.suppressed += 1;
            return None;
        }
        bucket.tokens -= 1.0;
        Some(std::mem::take(&mut bucket.suppressed))
    }
}

/// What makes two failures one issue.
pub fn fingerprint(span: &Span, service: &str) -> [String; 4] {
    [
        "tracewire".into(),
        service.into(),
        "{{ transaction }}".into(),
        words::fault(span),
    ]
}

/// The same as a number, for [`Caps`].
pub fn group(span: &Span, service: &str) -> u64 {
    use std::hash::{Hash, Hasher};
    let mut hasher = rustc_hash::FxHasher::default();
    (service, &span.name, words::fault(span)).hash(&mut hasher);
    hasher.finish()
}

/// The event of a failed request; `suppressed`: such failures not sent since the last one.
pub fn event(family: &Family, subject: &Subject, id: Uuid, suppressed: u64) -> Event<'static> {
    let root = &family.root;
    let fault = words::fault(root);
    let protocol = words::protocol(root);
    let value = match &root.status {
        Status::Error(Some(text)) => cut(text, TEXT).to_owned(),
        _ => format!("{} failed: {fault}", root.name),
    };
    let mut contexts = Map::new();
    contexts.insert("trace".into(), Context::Trace(Box::new(context(root))));
    let mut tags: Map<String, String> = subject.tags.clone().into_iter().collect();
    tags.insert("error.type".into(), cut(&fault, 200).to_owned());
    let mut extra: Map<String, Json> = Map::new();
    if suppressed > 0 {
        extra.insert("tracewire.suppressed".into(), suppressed.into());
    }
    let length = root.end_unix_ns.saturating_sub(root.start_unix_ns);
    extra.insert("duration_ms".into(), json!(seconds(length) * 1e3));
    let first = family.calls.len().saturating_sub(CRUMBS);
    Event {
        event_id: id,
        level: Level::Error,
        fingerprint: fingerprint(root, &subject.service).map(Cow::Owned).to_vec().into(),
        transaction: Some(cut(&root.name, transaction::NAME).to_owned()),
        logger: Some("tracewire".into()),
        platform: Cow::Borrowed(subject.platform),
        timestamp: time(root.end_unix_ns),
        server_name: subject.server_name.clone().map(Cow::Owned),
        release: subject.release.clone().map(Cow::Owned),
        environment: Some(Cow::Owned(subject.environment.clone())),
        request: transaction::request(root).and_then(|r| serde_json::from_value(r).ok()),
        contexts,
        breadcrumbs: Values {
            values: family.calls.iter().skip(first).map(crumb).collect(),
        },
        exception: Values {
            values: vec![Exception {
                ty: format!("{protocol} {fault}"),
                value: Some(value),
                mechanism: Some(Mechanism {
                    ty: format!("ebpf.{}", protocol.to_ascii_lowercase()),
                    handled: Some(false),
                    ..Mechanism::default()
                }),
                ..Exception::default()
            }],
        },
        tags,
        extra,
        sdk: to::<ClientSdkInfo>(SDK).map(Cow::Owned),
        ..Event::default()
    }
}

fn context(span: &Span) -> TraceContext {
    let data = to::<Map<String, Json>>(Data {
        attributes: &span.attributes,
        server: true,
    });
    TraceContext {
        span_id: span.context.span_id.into(),
        trace_id: span.context.trace_id.into(),
        parent_span_id: span.context.parent.map(Into::into),
        op: Some(words::op(span).into()),
        status: words::status(span).and_then(|s| s.parse().ok()),
        origin: Some(words::origin(span).into()),
        data: data.unwrap_or_default(),
        ..TraceContext::default()
    }
}

/// The crate's form of one of ours; errors are few, so it may cost a little.
fn to<T: serde::de::DeserializeOwned>(ours: impl serde::Serialize) -> Option<T> {
    serde_json::to_value(ours).and_then(serde_json::from_value).ok()
}

/// A call that the request made.
fn crumb(span: &Span) -> Breadcrumb {
    let failed = matches!(span.status, Status::Error(_));
    let length = span.end_unix_ns.saturating_sub(span.start_unix_ns);
    let mut data: Map<String, Json> = Map::new();
    data.insert("span_id".into(), hex(&span.context.span_id).into());
    data.insert("duration_ms".into(), json!(seconds(length) * 1e3));
    if let Some(status) = words::status(span) {
        data.insert("status".into(), status.into());
    }
    Breadcrumb {
        timestamp: time(span.end_unix_ns),
        ty: "http".into(),
        category: Some(words::op(span).into()),
        level: if failed { Level::Error } else { Level::Info },
        message: Some(match failed {
            true => format!("{}: {}", span.name, words::fault(span)),
            false => span.name.to_string(),
        }),
        data,
    }
}

fn time(unix_ns: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_ns)
}
