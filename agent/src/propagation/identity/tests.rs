//! What a trace looks like where calls are linked, whatever the order in which
//! the parts of it are told.
#![allow(clippy::unwrap_used, reason = "tests")]

use tracewire_common::sampling::Threshold;

use super::*;
use crate::connection::{Peer, Transport};
use crate::request::{Messages, Protocol, RequestHead, ResponseHead};

struct Nameless;

impl Services for Nameless {
    fn service(&mut self, _pid: u32) -> Arc<str> {
        Arc::from("")
    }
}

/// A node with one service: it serves on connection 1 and calls on connection 2.
struct Node {
    identities: Identities,
    out: Vec<Identified>,
}

impl Node {
    fn new() -> Self {
        Node {
            identities: Identities::new([1, 2]),
            out: Vec::new(),
        }
    }

    fn begun(&mut self, role: Role, stream: u32, start_ns: u64) {
        self.begun_below(role, stream, start_ns, None, None);
    }

    /// With the fields that name a parent.
    fn begun_below(
        &mut self,
        role: Role,
        stream: u32,
        start_ns: u64,
        traceparent: Option<&str>,
        sentry_trace: Option<&str>,
    ) {
        let seen = |value: Option<&str>| value.map_or(Seen::Absent, |v| Seen::Value(Arc::from(v)));
        let output = Output::Begun {
            connection: connection(role),
            stream,
            pid: 7,
            role,
            version: Version::Http2,
            start_ns,
            traceparent: seen(traceparent),
            tracestate: Seen::Absent,
            sentry_trace: seen(sentry_trace),
            sentry_baggage: None,
            method: Seen::Absent,
            path: Seen::Absent,
        };
        self.identities.take(output, &mut Nameless, &mut self.out);
    }

    fn ended(&mut self, role: Role, stream: u32, (start_ns, end_ns): (u64, u64)) {
        let exchange = Exchange {
            pid: 7,
            role,
            peer: Arc::new(Peer {
                connection: connection(role),
                transport: Transport::TcpIpv4,
                local: None,
                remote: None,
            }),
            stream,
            version: Version::Http2,
            protocol: Protocol::Grpc,
            start_ns,
            end_ns,
            request: RequestHead::default(),
            response: ResponseHead::default(),
            request_messages: Messages::default(),
            response_messages: Messages::default(),
            outcome: Outcome::Complete,
        };
        let output = Output::Ended(Box::new(exchange));
        self.identities.take(output, &mut Nameless, &mut self.out);
    }

    fn link(&mut self, child: u32, parent: Option<u32>) {
        self.identities.link(Link {
            child: StreamKey::made(2, child),
            parent: parent.map_or(StreamKey::NONE, |parent| StreamKey::served(1, parent)),
            ..Link::default()
        });
    }

    /// All that ended, once nothing is waited for any more.
    fn all(mut self) -> (Vec<Identified>, Counts) {
        self.identities.tick(u64::MAX, &mut Nameless, &mut self.out);
        (self.out, self.identities.counts())
    }
}

fn connection(role: Role) -> u64 {
    if role == Role::Server { 1 } else { 2 }
}

fn of(all: &[Identified], role: Role) -> &Identified {
    all.iter().find(|one| one.exchange.role == role).unwrap()
}

#[test]
fn a_call_is_a_child_of_the_request_on_whose_behalf_it_is_whichever_ends_first() {
    for call_ends_first in [true, false] {
        for told_late in [true, false] {
            let mut node = Node::new();
            node.begun(Role::Server, 5, 100);
            if !told_late {
                node.link(3, Some(5));
            }
            node.begun(Role::Client, 3, 200);
            if told_late {
                node.link(3, Some(5));
            }
            if call_ends_first {
                node.ended(Role::Client, 3, (200, 300));
                node.ended(Role::Server, 5, (100, 400));
            } else {
                node.ended(Role::Server, 5, (100, 250));
                node.ended(Role::Client, 3, (200, 300));
            }
            let (all, counts) = node.all();
            let (served, made) = (&of(&all, Role::Server).context, &of(&all, Role::Client).context);
            assert_eq!((all.len(), counts.linked), (2, 1));
            assert_eq!(made.parent, Some(served.span_id));
            assert_eq!(made.trace_id, served.trace_id);
            assert!(!made.parent_is_remote && served.parent.is_none());
        }
    }
}

#[test]
fn what_is_not_certain_begins_a_trace_and_says_so() {
    let mut node = Node::new();
    node.begun(Role::Server, 5, 100);
    node.link(3, None);
    node.begun(Role::Client, 3, 200);
    node.ended(Role::Client, 3, (200, 300));
    node.ended(Role::Server, 5, (100, 400));
    let (all, counts) = node.all();
    let made = of(&all, Role::Client);
    assert!(made.ambiguous && made.context.parent.is_none());
    assert_ne!(made.context.trace_id, of(&all, Role::Server).context.trace_id);
    assert_eq!((counts.ambiguous, counts.linked), (1, 0));
}

#[test]
fn a_call_that_begins_after_the_request_is_over_is_no_part_of_it() {
    let mut node = Node::new();
    node.begun(Role::Server, 5, 100);
    node.ended(Role::Server, 5, (100, 150));
    node.link(3, Some(5));
    node.begun(Role::Client, 3, 200);
    node.ended(Role::Client, 3, (200, 300));
    let (all, counts) = node.all();
    assert_eq!(of(&all, Role::Client).context.parent, None);
    assert_eq!(counts.parents_unseen, 1);
}

#[test]
fn a_request_that_was_never_seen_is_no_parent() {
    let mut node = Node::new();
    node.link(3, Some(5));
    node.begun(Role::Client, 3, 200);
    node.ended(Role::Client, 3, (200, 300));
    let (all, counts) = node.all();
    assert_eq!(of(&all, Role::Client).context.parent, None);
    assert_eq!(counts.parents_unseen, 1);
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// Parent and flags of a request that names one in Sentry's field, where every trace that begins
/// here is sampled, or none.
fn below(traceparent: Option<&str>, end: &str, share: Threshold) -> (String, u8) {
    let mut node = Node::new();
    node.identities.sample(Head::new(super::super::head::Config {
        root: share,
        ..super::super::head::Config::default()
    }));
    let sentry = format!("{TRACE}-{SPAN}{end}");
    node.begun_below(Role::Server, 5, 100, traceparent, Some(&sentry));
    node.ended(Role::Server, 5, (100, 400));
    let (all, _) = node.all();
    let context = &of(&all, Role::Server).context;
    let parent = context.parent.map(u64::from_be_bytes).unwrap_or_default();
    (
        format!("{:032x}-{parent:016x}", u128::from_be_bytes(context.trace_id)),
        context.flags & SAMPLED,
    )
}

#[test]
fn sentry_s_field_names_the_parent_where_there_is_no_other() {
    let named = format!("{TRACE}-{SPAN}");
    for (end, share, sampled) in [
        ("-1", Threshold::NEVER, 1),
        ("-0", Threshold::ALWAYS, 0),
        // It leaves the decision to us.
        ("", Threshold::ALWAYS, 1),
        ("", Threshold::NEVER, 0),
    ] {
        assert_eq!(below(None, end, share), (named.clone(), sampled), "`{end}`");
    }
    let other = "00-11111111111111111111111111111111-2222222222222222-01";
    let (parent, _) = below(Some(other), "-1", Threshold::ALWAYS);
    assert_eq!(parent, &other[3..52]);
}

#[test]
fn calls_follow_the_decision_for_their_request() {
    for (share, flags) in [(Threshold::ALWAYS, 3), (Threshold::NEVER, 2)] {
        let mut node = Node::new();
        node.identities.sample(Head::new(super::super::head::Config {
            root: share,
            ..super::super::head::Config::default()
        }));
        node.begun(Role::Server, 5, 100);
        node.link(3, Some(5));
        node.begun(Role::Client, 3, 200);
        node.ended(Role::Client, 3, (200, 300));
        node.ended(Role::Server, 5, (100, 400));
        let (all, _) = node.all();
        assert!(all.iter().all(|one| one.context.flags == flags), "{flags}");
    }
}

#[test]
fn who_is_not_trusted_cannot_force_sampling_but_an_observed_caller_can() {
    let flags = |trust, share| {
        let mut node = Node::new();
        node.identities.sample(Head::new(super::super::head::Config {
            root: share,
            trust,
            ..super::super::head::Config::default()
        }));
        let forced = format!("00-{TRACE}-{SPAN}-01");
        node.begun_below(Role::Server, 5, 100, Some(&forced), None);
        node.ended(Role::Server, 5, (100, 400));
        let (all, _) = node.all();
        let context = of(&all, Role::Server).context.clone();
        assert_eq!(
            context.parent.map(u64::from_be_bytes),
            u64::from_str_radix(SPAN, 16).ok()
        );
        context.flags & SAMPLED
    };
    use super::super::head::Trust;
    assert_eq!(flags(Trust::All, Threshold::NEVER), 1);
    // The other end of an unknown connection may be on this node.
    assert_eq!(flags(Trust::Private, Threshold::NEVER), 1);
    assert_eq!(flags(Trust::Observed, Threshold::NEVER), 0);
    assert_eq!(flags(Trust::Observed, Threshold::ALWAYS), 1);
}

#[test]
fn what_was_written_to_the_wire_is_the_decision() {
    for (share, told) in [(Threshold::NEVER, 1), (Threshold::ALWAYS, 0)] {
        let mut node = Node::new();
        node.identities.sample(Head::new(super::super::head::Config {
            root: share,
            ..super::super::head::Config::default()
        }));
        node.begun(Role::Server, 5, 100);
        node.begun(Role::Client, 3, 200);
        let served = mint([1, 2], 1, 5, StreamKey::served(1, 5).direction);
        node.identities.pin(&Injected {
            child: StreamKey::made(2, 3),
            parent: StreamKey::served(1, 5),
            context: Context {
                trace_id: served.trace_id,
                span_id: [7; 8],
                parent: served.span_id,
                flags: told,
                ..Context::default()
            },
        });
        node.ended(Role::Client, 3, (200, 300));
        node.ended(Role::Server, 5, (100, 400));
        let (all, _) = node.all();
        for one in &all {
            assert_eq!(one.context.flags & SAMPLED, told, "{:?}", one.exchange.role);
            assert_eq!(one.context.trace_id, served.trace_id);
            assert_eq!(one.context.trace_state, None, "at which share is not known");
        }
    }
}

#[test]
fn what_the_kernel_can_t_decide_is_decided_when_the_request_comes() {
    use super::super::head::{Config, Rule, Trust};
    let mut node = Node::new();
    let everything = globset::Glob::new("**").unwrap().compile_matcher();
    node.identities.sample(Head::new(Config {
        root: Threshold::NEVER,
        rules: vec![Rule {
            route: Some(everything),
            share: Some(Threshold::ALWAYS),
            ..Rule::default()
        }],
        trust: Trust::Observed,
        ..Config::default()
    }));
    node.begun(Role::Server, 3, 100);
    assert_eq!(node.identities.decided().count(), 0, "nobody asks");
    node.identities.decide_early();
    node.begun(Role::Server, 5, 100);
    // Its caller's flag is not obeyed.
    node.begun_below(Role::Server, 7, 100, Some(&format!("00-{TRACE}-{SPAN}-00")), None);
    node.identities.tick(u64::MAX, &mut Nameless, &mut node.out);
    let decided: Vec<_> = node.identities.decided().collect();
    assert_eq!(
        decided
            .iter()
            .map(|(key, context)| (key.stream, context.flags & SAMPLED))
            .collect::<Vec<_>>(),
        [(5, 1), (7, 1)]
    );
    node.ended(Role::Server, 5, (100, 400));
    let (all, _) = node.all();
    let (served, told) = (&of(&all, Role::Server).context, decided[0].1);
    assert_eq!((served.flags, served.trace_id), (told.flags, told.trace_id));
}
