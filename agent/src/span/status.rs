//! gRPC status codes: their names, which of them are errors on which side,
//! and what stands in for one that never came. Gives no code rather than a
//! doubtful one.

use crate::request::{Outcome, Role};

/// Names by number (gRPC `doc/statuscodes.md`).
const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A gRPC status code, 0 to 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(u8);

impl Code {
    /// OK
    pub const OK: Code = Code(0);
    /// CANCELLED
    pub const CANCELLED: Code = Code(1);
    /// UNKNOWN
    pub const UNKNOWN: Code = Code(2);
    /// DEADLINE_EXCEEDED
    pub const DEADLINE_EXCEEDED: Code = Code(4);
    /// PERMISSION_DENIED
    pub const PERMISSION_DENIED: Code = Code(7);
    /// RESOURCE_EXHAUSTED
    pub const RESOURCE_EXHAUSTED: Code = Code(8);
    /// UNIMPLEMENTED
    pub const UNIMPLEMENTED: Code = Code(12);
    /// INTERNAL
    pub const INTERNAL: Code = Code(13);
    /// UNAVAILABLE
    pub const UNAVAILABLE: Code = Code(14);
    /// UNAUTHENTICATED
    pub const UNAUTHENTICATED: Code = Code(16);

    /// The code of a `grpc-status`; libraries read numbers that they don't know as UNKNOWN.
    pub fn from_wire(number: u32) -> Code {
        match u8::try_from(number) {
            Ok(n) if usize::from(n) < NAMES.len() => Code(n),
            _ => Code::UNKNOWN,
        }
    }

    /// The code of a response without `grpc-status`, by its HTTP status
    /// (gRPC `doc/http-grpc-status-mapping.md`).
    pub fn from_http(status: u16) -> Code {
        match status {
            400 | 431 => Code::INTERNAL,
            401 => Code::UNAUTHENTICATED,
            403 => Code::PERMISSION_DENIED,
            404 => Code::UNIMPLEMENTED,
            429 | 502 | 503 | 504 => Code::UNAVAILABLE,
            _ => Code::UNKNOWN,
        }
    }

    /// The code of a stream that was reset (gRPC `doc/PROTOCOL-HTTP2.md`,
    /// Errors), CANCEL and the deadline aside. STREAM_CLOSED has none.
    pub fn from_reset(code: u32) -> Option<Code> {
        match code {
            h2::STREAM_CLOSED => None,
            h2::REFUSED_STREAM => Some(Code::UNAVAILABLE),
            h2::CANCEL => Some(Code::CANCELLED),
            h2::ENHANCE_YOUR_CALM => Some(Code::RESOURCE_EXHAUSTED),
            h2::INADEQUATE_SECURITY => Some(Code::PERMISSION_DENIED),
            _ => Some(Code::INTERNAL),
        }
    }

    /// 0 to 16.
    pub fn number(self) -> u8 {
        self.0
    }

    /// `OK`, `CANCELLED`, …
    pub fn name(self) -> &'static str {
        NAMES.get(usize::from(self.0)).copied().unwrap_or("UNKNOWN")
    }

    /// Whether the conventions call it an error: for a client all but OK, for
    /// a server only those that are its own fault.
    pub fn is_error(self, role: Role) -> bool {
        match role {
            Role::Client => self != Code::OK,
            Role::Server => matches!(
                self.name(),
                "UNKNOWN" | "DEADLINE_EXCEEDED" | "UNIMPLEMENTED" | "INTERNAL" | "UNAVAILABLE" | "DATA_LOSS"
            ),
        }
    }
}

/// Error codes of HTTP/2, RFC 9113 §7.
pub mod h2 {
    /// RFC 9113 §7
    pub const NO_ERROR: u32 = 0x0;
    /// RFC 9113 §7
    pub const STREAM_CLOSED: u32 = 0x5;
    /// RFC 9113 §7
    pub const REFUSED_STREAM: u32 = 0x7;
    /// RFC 9113 §7
    pub const CANCEL: u32 = 0x8;
    /// RFC 9113 §7
    pub const ENHANCE_YOUR_CALM: u32 = 0xb;
    /// RFC 9113 §7
    pub const INADEQUATE_SECURITY: u32 = 0xc;
}

/// `error.type` of a stream reset, by its code; one name for all codes that RFC 9113 does not list.
pub fn reset_type(code: u32) -> &'static str {
    const TYPES: [&str; 14] = [
        "stream_reset_0",
        "stream_reset_1",
        "stream_reset_2",
        "stream_reset_3",
        "stream_reset_4",
        "stream_reset_5",
        "stream_reset_6",
        "stream_reset_7",
        "stream_reset_8",
        "stream_reset_9",
        "stream_reset_10",
        "stream_reset_11",
        "stream_reset_12",
        "stream_reset_13",
    ];
    usize::try_from(code)
        .ok()
        .and_then(|i| TYPES.get(i))
        .copied()
        .unwrap_or("stream_reset")
}

/// `error.type` of a lost connection, by the socket's errno.
pub fn connection_type(errno: u32) -> &'static str {
    match i32::try_from(errno) {
        Ok(0 | libc::EPIPE) => "connection_closed",
        Ok(libc::ECONNRESET) => "connection_reset",
        Ok(libc::ETIMEDOUT) => "connection_timed_out",
        Ok(libc::ECONNREFUSED) => "connection_refused",
        Ok(libc::EHOSTUNREACH | libc::ENETUNREACH) => "host_unreachable",
        _ => "connection_error",
    }
}

/// `error.type` of a request that a GOAWAY said was not processed (RFC 9113 §6.8).
pub const GOAWAY: &str = "goaway";

/// Nanoseconds of a `grpc-timeout` (gRPC `doc/PROTOCOL-HTTP2.md`, Timeout:
/// at most 8 digits and a unit), `None` if it is none.
pub fn timeout_ns(value: &str) -> Option<u64> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
    let scale: u64 = match unit {
        b'H' => 3_600_000_000_000,
        b'M' => 60_000_000_000,
        b'S' => 1_000_000_000,
        b'm' => 1_000_000,
        b'u' => 1_000,
        b'n' => 1,
        _ => return None,
    };
    number.checked_mul(scale)
}

/// Whether a cancel after `elapsed_ns` is the deadline's: encoders round the
/// timeout (up to 2 %, or to the next millisecond).
pub fn is_deadline(elapsed_ns: u64, timeout_ns: u64) -> bool {
    let slack = timeout_ns / 50 + 1_000_000;
    elapsed_ns.saturating_add(slack) >= timeout_ns
}

/// Whether the client ended it.
pub fn by_client(role: Role, outcome: Outcome) -> bool {
    match outcome {
        Outcome::Reset { local, .. } => local == (role == Role::Client),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn timeouts() {
        for (text, ns) in [
            ("1S", Some(1_000_000_000)),
            ("250m", Some(250_000_000)),
            ("99999999n", Some(99_999_999)),
            ("99999999H", None),
            ("100000000n", None),
            ("5", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1s", None),
        ] {
            assert_eq!(timeout_ns(text), ns, "{text}");
        }
    }

    #[test]
    fn deadline_allows_for_rounding_only() {
        assert!(is_deadline(250_000_000, 250_000_000));
        assert!(is_deadline(245_000_000, 250_000_000));
        assert!(!is_deadline(200_000_000, 250_000_000));
        assert!(is_deadline(u64::MAX, 1));
    }

    #[test]
    fn server_errors_are_the_server_s_own() {
        let errors: Vec<&str> = (0..17)
            .map(Code)
            .filter(|c| c.is_error(Role::Server))
            .map(Code::name)
            .collect();
        assert_eq!(
            errors,
            [
                "UNKNOWN",
                "DEADLINE_EXCEEDED",
                "UNIMPLEMENTED",
                "INTERNAL",
                "UNAVAILABLE",
                "DATA_LOSS"
            ]
        );
        assert_eq!((0..17).map(Code).filter(|c| c.is_error(Role::Client)).count(), 16);
    }

    #[test]
    fn numbers_outside_the_list_are_unknown() {
        assert_eq!(Code::from_wire(16).name(), "UNAUTHENTICATED");
        assert_eq!(Code::from_wire(17), Code::UNKNOWN);
        assert_eq!(Code::from_wire(u32::MAX), Code::UNKNOWN);
    }
}
