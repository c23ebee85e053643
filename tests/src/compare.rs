//! Spans against the truth, call by call: none missing, none invented, none
//! wrong. Where the wire can't tell what a log says, an [`Allowance`] says so
//! and why; there are no others.

use std::collections::{BTreeMap, HashMap};

use crate::session::Sides;
use crate::span::Span;
use crate::truth::{Call, Truth};

/// Clocks: the agent's is CLOCK_BOOTTIME set against Unix time, Node's has
/// whole milliseconds.
const CLOCK_NS: u64 = 3_000_000;
/// Problems shown.
const SHOWN: usize = 12;

/// What is wrong, and what was allowed for.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// One line each.
    pub problems: Vec<String>,
    /// How often each allowance was used.
    pub allowed: BTreeMap<&'static str, usize>,
}

impl Comparison {
    /// The first problems.
    pub fn shown(&self) -> String {
        let mut text = self.problems.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
        if self.problems.len() > SHOWN {
            text += &format!("\n… and {} more", self.problems.len() - SHOWN);
        }
        text
    }
}

/// A difference between span and log that is no error of the span's.
#[derive(Clone, Copy)]
pub struct Allowance {
    /// What it is, and why.
    pub reason: &'static str,
    /// Whether it covers this status of this call.
    covers: fn(&Call, &str) -> bool,
}

/// All allowances for the status code.
pub const STATUS: [Allowance; 3] = [
    Allowance {
        reason: "deadline, server: handlers log CANCELLED for whichever way the call ended before them; \
                 the wire carries the deadline",
        covers: |call, code| call.side == "server" && call.scenario() == "deadline" && code == "DEADLINE_EXCEEDED",
    },
    Allowance {
        reason: "deadline, client: tonic reports its own timeout as CANCELLED; the wire carries \
                 `grpc-timeout` and a reset when it was over",
        covers: |call, code| {
            call.side == "client"
                && call.scenario() == "deadline"
                && call.client_language() == "rust"
                && code == "DEADLINE_EXCEEDED"
        },
    },
    Allowance {
        reason: "deadline, both sides keep the time: a server that gave up first answers CANCELLED, \
                 while the client's own clock says DEADLINE_EXCEEDED",
        covers: |call, code| call.side == "client" && call.scenario() == "deadline" && code == "CANCELLED",
    },
];

/// Why a server's span of a call that was given up may end with its connection.
const LEFT: &str = "cancel, deadline, server: the client gave up and left; its kernel reset the connection before \
                    the server read the stream's reset, so there is no status, only an error of the connection";

/// Why a call that was given up may be unfinished.
const GONE: &str = "cancel, deadline: the client closed the connection before it had sent a reset; \
                    the wire carries no end, and the span says so";

/// Why a call may have no span.
const UNSENT: &str = "deadline, client: it was over before the library had a connection; no server knows the call";

/// Why a server may have a span of a call that none of its handlers knows.
const UNHEARD: &str = "cancel, deadline, server: the request came and was given up before the library called \
                       the handler; the wire carries it and how it ended";

/// Why a method may be `_OTHER`.
const UNPROVEN: &str = "UNIMPLEMENTED before any other answer: nothing tells yet that the method exists, \
                        so it is rpc.method_original";

/// All calls, whole: the agent was there first.
pub fn whole(truth: &Truth, spans: &[Span], address: &str, sides: Sides) -> Comparison {
    let mut comparison = Comparison::default();
    let mut by_call: HashMap<(String, String), &Span> = HashMap::new();
    for span in spans {
        let Some(id) = span.call_id() else {
            comparison.problems.push(format!("a span of no call: {span:?}"));
            continue;
        };
        let key = (span.side(), id.to_owned());
        if !truth.contains_key(&key) {
            let made = truth.get(&("client".to_owned(), id.to_owned()));
            if span.side() == "server" && made.is_some_and(Call::is_raced) {
                *comparison.allowed.entry(UNHEARD).or_default() += 1;
            } else {
                comparison.problems.push(format!("invented: {span:?}"));
            }
        }
        if by_call.insert(key, span).is_some() {
            comparison.problems.push(format!("twice: {span:?}"));
        }
    }
    for (key, call) in truth {
        let observed = match sides {
            Sides::Both => true,
            Sides::Clients => call.side == "client",
            Sides::Server => call.side == "server",
        };
        if !observed {
            continue;
        }
        let Some(span) = by_call.get(key) else {
            let served = ("server".to_owned(), call.id.clone());
            if call.side == "client" && call.scenario() == "deadline" && !truth.contains_key(&served) {
                *comparison.allowed.entry(UNSENT).or_default() += 1;
            } else {
                comparison.problems.push(format!("missing: {call:?}"));
            }
            continue;
        };
        let twin = (
            if call.side == "client" { "server" } else { "client" }.to_owned(),
            call.id.clone(),
        );
        let mut judge = Judge {
            call,
            span,
            wrong: Vec::new(),
            allowed: Vec::new(),
        };
        judge.method();
        judge.status();
        judge.messages();
        judge.time(truth.get(&twin));
        judge.ends(address);
        judge.place(by_call.get(&twin).copied());
        judge.close(&mut comparison);
    }
    comparison
}

/// Calls of a client that makes one at a time, of which the agent saw the later ones: what it says
/// must be right, what it could not read it must say, and nothing more is asked. The name of the field
/// that has a call's id may be one of the things it could not read, so calls are told by their time.
pub fn late(truth: &Truth, spans: &[Span], attached_ns: u64, address: &str) -> Comparison {
    let mut comparison = Comparison::default();
    let mut spans_of: HashMap<(String, &str), Vec<&Span>> = HashMap::new();
    for span in spans {
        let middle = span.start_ns.midpoint(span.end_ns);
        let within = |call: &&Call| call.side == "client" && (call.start_ns..=call.end_ns).contains(&middle);
        match truth.values().find(within) {
            Some(call) => spans_of.entry((span.side(), &call.id)).or_default().push(span),
            None => comparison.problems.push(format!("of no call: {span:?}")),
        }
    }
    for call in truth.values().filter(|call| call.start_ns > attached_ns + CLOCK_NS) {
        let key = (call.side.clone(), call.id.as_str());
        let span = match spans_of.get(&key).map(Vec::as_slice) {
            None => {
                *comparison.allowed.entry("missing").or_default() += 1;
                continue;
            }
            Some([span]) => span,
            Some(several) => {
                comparison.problems.push(format!("several of {call:?}: {several:?}"));
                continue;
            }
        };
        let mut judge = Judge {
            call,
            span,
            wrong: Vec::new(),
            allowed: Vec::new(),
        };
        if let Some(id) = span.call_id() {
            judge.expect("call", id, call.id.as_str());
        }
        if span.text("rpc.method") == Some("_OTHER") && span.is_unseen("rpc.method") {
            judge
                .allowed
                .push("rpc.method was an index into a table from before the attach, and is said to be unseen");
        } else {
            judge.method();
        }
        if span.text("rpc.status_code").is_none() && span.is_unseen("rpc.status_code") {
            judge
                .allowed
                .push("grpc-status was an index from before the attach, and is said to be unseen");
        } else {
            judge.status();
        }
        if span.is_unseen("server.address") {
            judge
                .allowed
                .push(":authority was an index from before the attach, and is said to be unseen");
        } else {
            judge.ends(address);
        }
        let twin = truth.get(&("server".to_owned(), call.id.clone()));
        judge.time(twin.filter(|_| call.side == "client"));
        judge.messages();
        judge.close(&mut comparison);
    }
    comparison
}

struct Judge<'a> {
    call: &'a Call,
    span: &'a Span,
    wrong: Vec<String>,
    allowed: Vec<&'static str>,
}

impl Judge<'_> {
    fn close(self, into: &mut Comparison) {
        for reason in self.allowed {
            *into.allowed.entry(reason).or_default() += 1;
        }
        if !self.wrong.is_empty() {
            into.problems.push(format!(
                "wrong: {}\n    {:?}\n    {:?}",
                self.wrong.join("; "),
                self.call,
                self.span
            ));
        }
    }

    fn expect<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, is: T, wanted: T) {
        if is != wanted {
            self.wrong.push(format!("{what} is {is:?}, not {wanted:?}"));
        }
    }

    fn is_client(&self) -> bool {
        self.call.side == "client"
    }

    fn method(&mut self) {
        let (call, span) = (self.call, self.span);
        self.expect("rpc.system.name", span.text("rpc.system.name"), Some("grpc"));
        let original = span.text("rpc.method_original");
        if call.code == "UNIMPLEMENTED" && span.text("rpc.method") == Some("_OTHER") && original == Some(&call.method) {
            self.allowed.push(UNPROVEN);
            self.expect("name", span.name.as_str(), "grpc");
            return;
        }
        self.expect("rpc.method", span.text("rpc.method"), Some(call.method.as_str()));
        self.expect("name", span.name.as_str(), call.method.as_str());
    }

    fn status(&mut self) {
        let (call, span) = (self.call, self.span);
        let code = span.text("rpc.status_code").unwrap_or("absent");
        let is_lost = span
            .text("error.type")
            .is_some_and(|kind| kind.starts_with("connection_"));
        if code == "absent" && is_lost && call.is_raced() && !self.is_client() && call.code == "CANCELLED" {
            self.allowed.push(LEFT);
            self.expect("status", span.status.code.as_str(), "ERROR");
            return;
        }
        if code == "absent" && call.is_raced() && span.attributes.contains_key("tracewire.unfinished") {
            self.allowed.push(GONE);
            self.expect("status", span.status.code.as_str(), "UNSET");
            return;
        }
        if code != call.code {
            let covers = |allowance: &&Allowance| (allowance.covers)(call, code);
            match STATUS.iter().find(covers) {
                Some(allowance) => self.allowed.push(allowance.reason),
                None => self.wrong.push(format!("rpc.status_code is {code}, not {}", call.code)),
            }
        }
        // Semantic conventions 1.45, gRPC: for a server only what is its own fault.
        let is_error = match code {
            "OK" => false,
            "UNKNOWN" | "DEADLINE_EXCEEDED" | "UNIMPLEMENTED" | "INTERNAL" | "UNAVAILABLE" | "DATA_LOSS" => true,
            _ => self.is_client(),
        };
        self.expect(
            "status",
            span.status.code.as_str(),
            if is_error { "ERROR" } else { "UNSET" },
        );
        self.expect("error.type", span.text("error.type"), is_error.then_some(code));
        // What a library says when it gives up is its own text, not the wire's.
        if !call.is_raced() {
            let message = (is_error && !call.message.is_empty()).then_some(call.message.as_str());
            self.expect("description", span.status.message.as_deref(), message);
        }
        self.expect(
            "tracewire.unfinished",
            span.attributes.contains_key("tracewire.unfinished"),
            false,
        );
    }

    fn messages(&mut self) {
        if self.call.is_raced() {
            return;
        }
        let (call, span) = (self.call, self.span);
        let (request, response) = if self.is_client() {
            (call.sent, call.received)
        } else {
            (call.received, call.sent)
        };
        self.expect(
            "request messages",
            span.number("tracewire.request.messages"),
            Some(request),
        );
        self.expect(
            "response messages",
            span.number("tracewire.response.messages"),
            Some(response),
        );
    }

    /// A client's span lies within its call as the application knew it and
    /// around its server's handler; a server's around its own handler.
    fn time(&mut self, twin: Option<&Call>) {
        let (call, span) = (self.call, self.span);
        let mut order = |what: &str, first: u64, then: u64| {
            if first > then + CLOCK_NS {
                self.wrong
                    .push(format!("{what}: {:.1} ms off", (first - then) as f64 / 1e6));
            }
        };
        order("ends before it starts", span.start_ns, span.end_ns);
        if call.side == "client" {
            order("starts before the call", call.start_ns, span.start_ns);
            if !call.is_raced() {
                order("ends after the call", span.end_ns, call.end_ns);
            }
        }
        let handler = if call.side == "client" { twin } else { Some(call) };
        if let Some(handler) = handler {
            order("starts after the handler", span.start_ns, handler.start_ns);
            // One that was given up may end any time later.
            if !call.is_raced() {
                order("ends before the handler", handler.end_ns, span.end_ns);
            }
        }
    }

    /// Who is at the other end.
    fn ends(&mut self, address: &str) {
        let span = self.span;
        let Some((host, port)) = address.rsplit_once(':').filter(|_| !address.starts_with("unix:")) else {
            self.expect("network.peer.address", span.text("network.peer.address"), None);
            return;
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = port.parse::<i64>().ok();
        self.expect("server.address", span.text("server.address"), Some(host));
        self.expect("server.port", span.number("server.port"), port);
        self.expect("network.peer.address", span.text("network.peer.address"), Some(host));
        if self.is_client() {
            self.expect("network.peer.port", span.number("network.peer.port"), port);
        } else {
            self.expect(
                "has network.peer.port",
                span.number("network.peer.port").is_some(),
                true,
            );
        }
    }

    /// A client's span begins its trace, its server's hangs below it.
    fn place(&mut self, twin: Option<&Span>) {
        let span = self.span;
        if self.is_client() {
            self.expect("parent", span.parent_span_id.as_str(), "");
        } else if let Some(client) = twin {
            self.expect("parent", span.parent_span_id.as_str(), client.span_id.as_str());
            self.expect("trace", span.trace_id.as_str(), client.trace_id.as_str());
        } else {
            self.expect("parent", span.parent_span_id.as_str(), "");
        }
    }
}
