//! Which failures are worth another try, and when (OTLP specification,
//! "OTLP/gRPC Response", "OTLP/HTTP Response").

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use tonic::Code;
use tonic_types::StatusExt;

/// How one attempt ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The receiver took the request, but for `rejected` spans of it.
    Taken {
        /// Spans that it left out (partial success).
        rejected: u64,
        /// What it said of it.
        message: String,
    },
    /// It may work later, not before `after` if the receiver named a time.
    Retryable {
        /// Wait that the receiver asked for.
        after: Option<Duration>,
        /// `error.type`: a status, or what the network did.
        error: Cow<'static, str>,
        /// What happened, without anything that the receiver wrote.
        problem: String,
    },
    /// It won't ever work.
    Refused {
        /// `error.type`.
        error: Cow<'static, str>,
        /// What happened, without anything that the receiver wrote.
        problem: String,
    },
}

impl Attempt {
    /// It may work later.
    pub fn later(error: impl Into<Cow<'static, str>>, problem: String) -> Self {
        Attempt::Retryable {
            after: None,
            error: error.into(),
            problem,
        }
    }

    /// It won't ever work.
    pub fn never(error: impl Into<Cow<'static, str>>, problem: String) -> Self {
        Attempt::Refused {
            error: error.into(),
            problem,
        }
    }
}

/// What the network did, in a word: for `error.type`.
pub fn word(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() || error.to_string().contains("tls handshake") {
            return "tls";
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind as Is;
            match io.kind() {
                Is::ConnectionRefused => return "connection_refused",
                Is::TimedOut => return "timeout",
                Is::HostUnreachable | Is::NetworkUnreachable | Is::NetworkDown => return "unreachable",
                Is::ConnectionReset | Is::ConnectionAborted | Is::BrokenPipe | Is::UnexpectedEof => {
                    return "connection_closed";
                }
                _ => {}
            }
            // An error of rustls comes wrapped in one of the system's.
            if let Some(inner) = io.get_ref()
                && word(inner) != "_OTHER"
            {
                return word(inner);
            }
        }
        let text = error.to_string();
        if text.starts_with("dns error") || text.contains("failed to lookup address") {
            return "dns";
        }
        if text.contains("operation was canceled") || text.contains("connection closed") {
            return "connection_closed";
        }
        if text.contains("deadline has elapsed") || text.contains("operation timed out") {
            return "timeout";
        }
        next = error.source();
    }
    "_OTHER"
}

/// The name of a gRPC status (`rpc.status_code`).
fn status_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Exponential back-off with jitter.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// First wait.
    pub first: Duration,
    /// Longest wait of our own.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            first: Duration::from_secs(1),
            most: Duration::from_secs(16),
        }
    }
}

impl Backoff {
    /// Wait before retry number `retry`, from 0: doubles each time, then ±20 %, so that
    /// many agents don't return to a restarted receiver as one. What the receiver asked
    /// for is never undercut.
    pub fn wait(&self, retry: u32, after: Option<Duration>) -> Duration {
        let doubled = self
            .first
            .saturating_mul(1u32.checked_shl(retry).unwrap_or(u32::MAX))
            .min(self.most);
        // The hasher's keys are random: no generator is needed for spreading waits.
        let random = RandomState::new().hash_one(retry);
        let part = (random % 1000) as f64 / 1000.0;
        match after {
            None => doubled.mul_f64(0.8 + 0.4 * part),
            Some(after) => after.max(doubled) + doubled.mul_f64(0.2 * part),
        }
    }
}

/// Judges a gRPC status.
pub fn of_grpc(status: &tonic::Status) -> Attempt {
    let mut problem = format!("gRPC status {:?}", status.code());
    let mut error = Cow::Borrowed(status_name(status.code()));
    if let Some(cause) = std::error::Error::source(status) {
        // Made by the transport on this side: refused connection, unknown authority …
        problem = chain(cause);
        error = Cow::Borrowed(word(cause));
    }
    let after = || status.get_details_retry_info().and_then(|info| info.retry_delay);
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Attempt::Retryable {
            after: after(),
            error,
            problem,
        },
        Code::ResourceExhausted => match after() {
            Some(after) => Attempt::Retryable {
                after: Some(after),
                error,
                problem,
            },
            None => Attempt::Refused { error, problem },
        },
        // A broken transport is reported as UNKNOWN, but never by the receiver.
        Code::Unknown if std::error::Error::source(status).is_some() => Attempt::later(error, problem),
        _ => Attempt::Refused { error, problem },
    }
}

/// Judges an HTTP status that is not 2xx. `retry_after` is that field's text.
pub fn of_http(status: u16, retry_after: Option<&str>, now: SystemTime) -> Attempt {
    let problem = format!("HTTP status {status}");
    let error = Cow::Owned(status.to_string());
    match status {
        429 | 502 | 503 | 504 => Attempt::Retryable {
            after: retry_after.and_then(|text| delay(text.trim(), now)),
            error,
            problem,
        },
        _ => Attempt::Refused { error, problem },
    }
}

/// RFC 9110 §10.2.3: seconds or a date.
fn delay(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// An error and its causes in one line, each said once.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn retried(attempt: Attempt) -> bool {
        matches!(attempt, Attempt::Retryable { .. })
    }

    #[test]
    fn grpc_codes_are_retried_as_the_specification_lists_them() {
        let retryable: Vec<i32> = (1..=16)
            .filter(|code| retried(of_grpc(&tonic::Status::new(Code::from_i32(*code), ""))))
            .collect();
        // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS
        assert_eq!(retryable, [1, 4, 10, 11, 14, 15]);
    }

    #[test]
    fn an_exhausted_receiver_is_retried_only_when_it_says_when() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(7)));
        let status = tonic::Status::with_error_details(Code::ResourceExhausted, "", details);
        assert!(matches!(of_grpc(&status), Attempt::Retryable { after: Some(a), .. } if a.as_secs() == 7));
        assert!(!retried(of_grpc(&tonic::Status::resource_exhausted(""))));
    }

    #[test]
    fn http_codes_are_retried_as_the_specification_lists_them() {
        let now = SystemTime::now();
        let retryable: Vec<u16> = (300..600).filter(|code| retried(of_http(*code, None, now))).collect();
        assert_eq!(retryable, [429, 502, 503, 504]);
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (text, seconds) in [
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
        ] {
            let expected = seconds.map(Duration::from_secs);
            assert!(matches!(of_http(503, Some(text), now), Attempt::Retryable { after, .. } if after == expected));
        }
    }

    #[test]
    fn waits_grow_and_stay_bounded_and_never_undercut_the_receiver() {
        let backoff = Backoff {
            first: Duration::from_secs(1),
            most: Duration::from_secs(8),
        };
        for _ in 0..100 {
            for (retry, low, high) in [
                (0, 0.8, 1.2),
                (1, 1.6, 2.4),
                (2, 3.2, 4.8),
                (9, 6.4, 9.6),
                (99, 6.4, 9.6),
            ] {
                let wait = backoff.wait(retry, None).as_secs_f64();
                assert!((low..=high).contains(&wait), "retry {retry}: {wait}");
            }
            assert!(backoff.wait(0, Some(Duration::from_secs(20))) >= Duration::from_secs(20));
        }
    }

    #[test]
    fn what_the_receiver_wrote_is_not_repeated() {
        let status = tonic::Status::unauthenticated("no such token: Bearer secret");
        assert_eq!(
            of_grpc(&status),
            Attempt::never("UNAUTHENTICATED", "gRPC status Unauthenticated".into())
        );
    }
}
