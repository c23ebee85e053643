//! HTTP/1 in a piece: heads, ends of bodies and tunnels. Bias: what can be read
//! in two ways is believed in neither.

use tracewire_common::elided::{HEAD_TRUNCATED, Head};

use super::PIPELINE;
use super::connection::Stream;
use super::turn::Turn;
use crate::protocol::{fields, framing, http1};
use crate::request::{Outcome, Version};

impl Turn<'_> {
    pub(super) fn http1_head(&mut self, head: Head, payload: &[u8], time_ns: u64) {
        let half = &mut self.connection.halves[self.way];
        if half.head.is_empty() {
            half.head_ns = time_ns;
        }
        half.head.extend_from_slice(payload);
        half.head_truncated |= head.flags & HEAD_TRUNCATED != 0;
        if head.flags == 0 {
            return;
        }
        let bytes = std::mem::take(&mut half.head);
        let damaged = std::mem::take(&mut half.head_truncated);
        let start_ns = half.head_ns;
        if self.connection.doubtful[self.way] {
            self.counts.malformed += 1;
            return;
        }
        let plain = framing::unfold(&bytes);
        if plain.trim_ascii_start().starts_with(b"HTTP/") {
            self.http1_response(&plain, damaged);
        } else {
            self.http1_request(head.stream, &plain, damaged, start_ns);
        }
        if framing::is_doubtful(&bytes) {
            self.counts.malformed += 1;
            self.connection.doubtful[self.way] = true;
        }
    }

    pub(super) fn http1_request(&mut self, number: u32, bytes: &[u8], damaged: bool, start_ns: u64) {
        let Ok(head) = http1::parse_request(bytes) else {
            self.counts.malformed += 1;
            return;
        };
        self.role_from(true);
        if self.requests() != Some(true) || self.connection.queue.len() >= PIPELINE {
            self.counts.malformed += 1;
            return;
        }
        self.connection.http1_version = if head.minor_version == 0 {
            Version::Http10
        } else {
            Version::Http11
        };
        let mut sorted = fields::Request::default();
        sorted.line(head.method, head.target, self.interner);
        for (name, value) in head.headers() {
            sorted.field(Some(name), Some(value), self.allow, self.interner);
        }
        let request = sorted.finish(damaged || head.truncated);
        // As the kernel counted, where it says so: it has seen the heads that were lost on the way here.
        self.connection.requests = if number == 0 {
            self.connection.requests + 1
        } else {
            number
        };
        let number = self.connection.requests;
        self.begin(number, self.connection.http1_version, start_ns, &request);
        let open = Stream {
            start_ns,
            request,
            ..Stream::default()
        };
        self.connection.queue.push_back((number, open));
    }

    pub(super) fn http1_response(&mut self, bytes: &[u8], damaged: bool) {
        let Ok(head) = http1::parse_response(bytes) else {
            self.counts.malformed += 1;
            return;
        };
        self.role_from(false);
        if self.requests() != Some(false) {
            self.counts.malformed += 1;
            return;
        }
        let Some((_, open)) = self.connection.queue.front_mut() else {
            self.counts.requests_unseen += 1;
            return;
        };
        if head.status >= 100 && head.status < 200 && head.status != 101 {
            return;
        }
        let mut sorted = fields::Response::default();
        sorted.status(head.status);
        let mut framed = false;
        for (name, value) in head.headers() {
            framed |= name.eq_ignore_ascii_case(b"transfer-encoding") || name.eq_ignore_ascii_case(b"content-length");
            sorted.field(Some(name), Some(value), self.allow, self.interner);
        }
        sorted.finish(damaged || head.truncated, &mut open.response);
        open.until_close = !framed;
    }

    pub(super) fn http1_body_end(&mut self, time_ns: u64) {
        // Where a doubtful body ends is as doubtful: the close of the connection ends it.
        if self.requests() == Some(false) && !self.connection.doubtful[self.way] {
            // Only a final response ends the exchange, not 100 Continue.
            if self
                .connection
                .queue
                .front()
                .is_some_and(|(_, open)| open.response.status.value().is_some())
                && let Some((number, open)) = self.connection.queue.pop_front()
            {
                self.connection
                    .finish_http1(number, open, time_ns, Outcome::Complete, self.out);
            }
        }
    }

    pub(super) fn http1_tunnel(&mut self, time_ns: u64) {
        if let Some((number, open)) = self.connection.queue.pop_front() {
            if open.response.status.value() == Some(&101) && self.connection.queue.is_empty() {
                self.connection.upgraded = Some((number, open, time_ns));
            } else {
                self.connection
                    .finish_http1(number, open, time_ns, Outcome::Complete, self.out);
            }
        }
    }
}
