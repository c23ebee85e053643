//! Limits of spans: `OTEL_SPAN_*`, whose general forms are `OTEL_ATTRIBUTE_*`
//! (SPEC `sdk-environment-variables.md`, "Attribute Limits", "Span Limits").

use super::{Environment, Error};
use crate::span::limits::Limits;

pub(super) fn read(env: &Environment<'_>) -> Result<Limits, Error> {
    let default = Limits::default();
    let count = |names: &[&'static str], default: usize| Ok(env.count(names)?.unwrap_or(default));
    Ok(Limits {
        value_length: env.count(&[
            "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        ])?,
        attributes: count(
            &["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT"],
            default.attributes,
        )?,
        events: count(&["OTEL_SPAN_EVENT_COUNT_LIMIT"], default.events)?,
        links: count(&["OTEL_SPAN_LINK_COUNT_LIMIT"], default.links)?,
        event_attributes: count(
            &["OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT"],
            default.event_attributes,
        )?,
        link_attributes: count(
            &["OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT"],
            default.link_attributes,
        )?,
    })
}
