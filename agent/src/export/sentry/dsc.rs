//! The dynamic sampling context of a trace (develop.sentry.dev): what the head
//! of the trace knows, sent with every envelope so that Sentry scales counts
//! by the share that was kept. Where one of Sentry's SDKs began the trace, it is what
//! that said, unchanged: it is frozen at the head.

use sentry::types::Dsn;
use serde_json::Value as Json;
use tracewire_common::sampling::{MAX, Threshold, randomness};

use super::subject::{Subject, hex};
use super::words;
use crate::export::plain::Hex;
use crate::propagation::tracestate;
use crate::span::Span;
use crate::span::conventions::key;

/// Of a trace: what its head said, or what is known here.
#[derive(Debug, serde::Serialize)]
#[serde(untagged)]
pub enum Context<'a> {
    /// By the head, unchanged.
    Frozen(Json),
    /// Where the trace begins here, or nobody said.
    Own(Own<'a>),
}

/// All values are texts by the protocol, numbers too. (The crate's type does the same by way of
/// a tree of values, for ten times the price: it goes with each transaction.)
#[derive(Debug, serde::Serialize)]
pub struct Own<'a> {
    trace_id: Hex<'a>,
    public_key: &'a str,
    sample_rate: String,
    sample_rand: String,
    sampled: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<&'a str>,
    environment: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    org_id: Option<String>,
}

/// Of a span's trace. `share` is that of Sentry alone, on top of the trace's own.
pub fn context<'a>(span: &'a Span, subject: &'a Subject, dsn: &'a Dsn, share: Threshold) -> Context<'a> {
    let said = span.sentry_head.as_deref();
    match said.and_then(|said| frozen(said, span)) {
        Some(frozen) => Context::Frozen(frozen),
        None => Context::Own(own(span, subject, dsn, share)),
    }
}

/// What the head said of this very trace; `None`: of another, or not enough to be one.
fn frozen(said: &str, span: &Span) -> Option<Json> {
    let mut context = serde_json::Map::new();
    for (name, value) in said.split(',').filter_map(|member| member.split_once('=')) {
        let value = percent_encoding::percent_decode_str(value).decode_utf8().ok()?;
        // A name may be a path with more in it than a name should say.
        let value = match name {
            "transaction" => crate::privacy::Policy::default().exact(&value).into_owned(),
            _ => value.into_owned(),
        };
        context.insert(name.to_owned(), value.into());
    }
    let id = context.get("trace_id")?.as_str()?;
    let same = id.eq_ignore_ascii_case(&hex(&span.context.trace_id));
    (same && context.contains_key("public_key")).then_some(Json::Object(context))
}

fn own<'a>(span: &'a Span, subject: &'a Subject, dsn: &'a Dsn, share: Threshold) -> Own<'a> {
    #[expect(clippy::cast_possible_truncation, reason = "the protocol's precision")]
    let rate = rate(span, share) as f32;
    Own {
        trace_id: Hex(&span.context.trace_id),
        public_key: dsn.public_key(),
        sample_rate: rate.to_string(),
        sample_rand: format!("{:.6}", rand(span)),
        sampled: "true",
        release: subject.release.as_deref(),
        environment: &subject.environment,
        transaction: (words::source(span) == "route").then_some(&*span.name),
        org_id: dsn.org_id().map(|org| org.to_string()),
    }
}

/// Share of traces like this one that reach Sentry. One that is kept for its error stands
/// for itself.
fn rate(span: &Span, share: Threshold) -> f64 {
    if kept_for_itself(span) {
        return 1.0;
    }
    let state = span.context.trace_state.as_deref();
    let trace = state.and_then(tracestate::threshold).unwrap_or(Threshold::ALWAYS);
    trace.max(share).ratio()
}

/// Whether the sampler kept it for an error or its length.
pub fn kept_for_itself(span: &Span) -> bool {
    span.attribute(key::SAMPLING_REASON).is_some()
}

/// The trace's randomness as OpenTelemetry has it, 0 to 2⁵⁶ − 1.
pub fn random(span: &Span) -> u64 {
    let state = span.context.trace_state.as_deref();
    state
        .and_then(tracestate::randomness)
        .unwrap_or_else(|| randomness(&span.context.trace_id))
}

/// The same as Sentry has it: kept if less than the rate. R ≥ T is 1 − (R + 1)/2⁵⁶ < p.
/// Cut, not rounded, to the six digits that are sent: rounding could reach the rate.
fn rand(span: &Span) -> f64 {
    let millionths = (u128::from(MAX - 1 - random(span)) * 1_000_000) / u128::from(MAX);
    u32::try_from(millionths).map_or(0.0, f64::from) / 1e6
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::export::example;

    #[test]
    fn the_random_number_is_below_the_rate_iff_the_trace_is_kept() {
        let half = Threshold::of_ratio(0.5);
        for (low, kept) in [(0, false), (MAX / 2 - 1, false), (MAX / 2, true), (MAX - 1, true)] {
            let span = example::server(u128::from(low), 1, None);
            assert_eq!(half.keeps_randomness(random(&span)), kept);
            assert_eq!(rand(&span) < 0.5, kept, "{low:x}");
            assert!((0.0..1.0).contains(&rand(&span)));
        }
    }

    #[test]
    fn the_smaller_of_both_shares_counts() {
        let mut span = example::server(u128::MAX, 1, None);
        let dsn: Dsn = "https://abc@o42.ingest.sentry.io/7".parse().unwrap();
        let subject = Subject::new(&span.resource, None, None, None);
        let mut rate = |state: Option<&str>, share| {
            span.context.trace_state = state.map(Into::into);
            let json = serde_json::to_value(context(&span, &subject, &dsn, Threshold::of_ratio(share))).unwrap();
            assert_eq!(json["org_id"], "42");
            assert_eq!(
                (json["sampled"].as_str(), json["public_key"].as_str()),
                (Some("true"), Some("abc"))
            );
            json["sample_rate"].as_str().unwrap().to_owned()
        };
        assert_eq!(rate(None, 1.0), "1");
        assert_eq!(rate(Some("ot=th:c"), 1.0), "0.25");
        assert_eq!(rate(Some("ot=th:c"), 0.5), "0.25");
        assert_eq!(rate(Some("ot=th:8"), 0.125), "0.125");
    }

    #[test]
    fn what_the_head_said_is_passed_on_unchanged() {
        let mut span = example::server(0xab, 1, None);
        let dsn: Dsn = "https://abc@o42.ingest.sentry.io/7".parse().unwrap();
        let subject = Subject::new(&span.resource, None, None, None);
        let id = format!("{:032x}", 0xab);
        let said = "public_key=other,sample_rate=0.25,transaction=GET%20%2Fa%2Fbob%40example.com";
        span.sentry_head = Some(format!("trace_id={id},{said}").into());
        let context = |span: &Span| {
            let context = super::context(span, &subject, &dsn, Threshold::of_ratio(0.5));
            serde_json::to_value(context).unwrap()
        };
        assert_eq!(
            context(&span),
            serde_json::json!({
                "trace_id": id, "public_key": "other", "sample_rate": "0.25",
                "transaction": context(&span)["transaction"],
            })
        );
        let name = context(&span)["transaction"].as_str().unwrap().to_owned();
        assert!(name.starts_with("GET /a/") && !name.contains("bob"), "{name}");
        for other in [
            format!("trace_id={id}"),
            "trace_id=0,public_key=other".into(),
            String::new(),
        ] {
            span.sentry_head = Some(other.into());
            assert_eq!(context(&span)["public_key"], "abc");
        }
    }
}
