//! Rate limits that Sentry asks for (develop.sentry.dev, "Rate Limiting"): per
//! category, and of two for the same the longer. The `sentry` crate's own
//! limiter lets a later, shorter one overwrite a longer one and does not know
//! spans, so it is left without anything to do.

use std::time::{Duration, Instant, SystemTime};

/// What is sent, as far as limits and reports tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Category {
    /// Events.
    Error,
    /// Transactions.
    Transaction,
    /// Spans, those in transactions too.
    Span,
    /// Reports of what was discarded; never limited but by all.
    Report,
}

impl Category {
    /// The protocol's name.
    pub fn name(self) -> &'static str {
        match self {
            Category::Error => "error",
            Category::Transaction => "transaction",
            Category::Span => "span",
            Category::Report => "internal",
        }
    }
}

/// Wait without a number in the answer.
const DEFAULT: Duration = Duration::from_secs(60);
/// Longer waits are taken for this one.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// Until when nothing may be sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    all: Option<Instant>,
    error: Option<Instant>,
    transaction: Option<Instant>,
    span: Option<Instant>,
}

impl Limits {
    /// Whether that may be sent at `now`. A transaction is made of spans.
    pub fn allows(&self, category: Category, now: Instant) -> bool {
        let over = |until: Option<Instant>| until.is_none_or(|until| until <= now);
        over(self.all)
            && match category {
                Category::Error => over(self.error),
                Category::Transaction => over(self.transaction) && over(self.span),
                Category::Span => over(self.span),
                Category::Report => true,
            }
    }

    /// Takes over what an answer says: `X-Sentry-Rate-Limits` of any, or else what a 429 says.
    pub fn answer(
        &mut self,
        status: u16,
        limits: Option<&str>,
        retry_after: Option<&str>,
        now: Instant,
        wall: SystemTime,
    ) {
        if let Some(header) = limits {
            self.header(header, now);
        } else if let Some(text) = retry_after.filter(|_| status == 429 || status == 503) {
            let wait = seconds(text)
                .or_else(|| httpdate::parse_http_date(text.trim()).ok()?.duration_since(wall).ok())
                .unwrap_or(DEFAULT);
            extend(&mut self.all, wait, now);
        } else if status == 429 {
            extend(&mut self.all, DEFAULT, now);
        }
    }

    /// `retry_after:category;category:scope:reason:namespaces, …`
    fn header(&mut self, header: &str, now: Instant) {
        for group in header.split(',') {
            let mut parts = group.trim().split(':');
            let Some(wait) = parts.next() else { continue };
            let wait = seconds(wait).unwrap_or(DEFAULT);
            let Some(categories) = parts.next() else { continue };
            if categories.trim().is_empty() {
                extend(&mut self.all, wait, now);
                continue;
            }
            for category in categories.split(';') {
                match category.trim() {
                    "error" | "default" => extend(&mut self.error, wait, now),
                    "transaction" => extend(&mut self.transaction, wait, now),
                    "span" => extend(&mut self.span, wait, now),
                    // Unknown ones mean nothing here.
                    _ => {}
                }
            }
        }
    }
}

fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds.max(0.0).ceil())
        .ok()
        .map(|wait| wait.min(LONGEST))
}

fn extend(until: &mut Option<Instant>, wait: Duration, now: Instant) {
    let new = now + wait.min(LONGEST);
    *until = Some(until.map_or(new, |old| old.max(new)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(answers: &[(u16, Option<&str>, Option<&str>)]) -> (Limits, Instant) {
        let now = Instant::now();
        let mut limits = Limits::default();
        for (status, header, retry) in answers {
            limits.answer(*status, *header, *retry, now, SystemTime::UNIX_EPOCH);
        }
        (limits, now)
    }

    fn after(s: &(Limits, Instant), category: Category, seconds: u64) -> bool {
        s.0.allows(category, s.1 + Duration::from_secs(seconds))
    }

    #[test]
    fn a_category_is_limited_alone_and_on_any_answer() {
        let s = limits(&[(200, Some("86400:transaction;span:organization"), None)]);
        assert!(after(&s, Category::Error, 0) && after(&s, Category::Report, 0));
        assert!(!after(&s, Category::Transaction, 86_399) && after(&s, Category::Transaction, 86_400));
        // A transaction without its spans would be empty.
        let s = limits(&[(200, Some("10:span:key"), None)]);
        assert!(!after(&s, Category::Transaction, 9));
    }

    #[test]
    fn of_two_the_longer_holds() {
        let s = limits(&[(429, Some("60:error:key"), None), (200, Some("5:error:key"), None)]);
        assert!(!after(&s, Category::Error, 59) && after(&s, Category::Error, 60));
    }

    #[test]
    fn no_category_is_all_and_unknown_ones_are_none() {
        let s = limits(&[(200, Some("30::organization:quota"), None)]);
        assert!(!after(&s, Category::Error, 29) && !after(&s, Category::Report, 29));
        let s = limits(&[(200, Some("30:replay;profile:key, 7:metric_bucket:x::custom"), None)]);
        assert!(after(&s, Category::Error, 0) && after(&s, Category::Transaction, 0));
    }

    #[test]
    fn retry_after_in_seconds_as_a_date_and_missing() {
        for (retry, wait) in [
            (Some("15"), 15),
            (Some("14.2"), 15),
            (Some("Thu, 01 Jan 1970 00:02:00 GMT"), 120),
            (Some("soon"), 60),
            (None, 60),
        ] {
            let s = limits(&[(429, None, retry)]);
            assert!(
                !after(&s, Category::Error, wait - 1) && after(&s, Category::Error, wait),
                "{retry:?}"
            );
        }
        let s = limits(&[(200, None, Some("15"))]);
        assert!(after(&s, Category::Error, 0));
    }

    #[test]
    fn nonsense_does_no_harm() {
        for header in [
            "",
            ",",
            ":",
            "x",
            "x:error",
            "-5:error:key",
            "1e300:error:key",
            "nan:error",
        ] {
            let s = limits(&[(200, Some(header), None)]);
            assert!(after(&s, Category::Error, 8 * 86_400), "{header}");
        }
    }
}
