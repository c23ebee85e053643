//! Identities of spans. A request is remembered when it begins, and its place
//! in a trace is settled when somebody needs it: its own end, a call made on its
//! behalf, or the other end of its connection.
//!
//! * A client's request that carries a `traceparent` *is* that span: its id
//!   becomes ours, so that no second tree contradicts the application's. Where
//!   the same id was seen before (a proxy that passes the header on), ours is a
//!   child of it.
//! * One that carries none is a child of the served request on whose behalf it
//!   is made, where a [`Link`] names it, else a root.
//! * A server's span hangs below the client's span of the same stream when that
//!   end is observed too, else below the `traceparent` that it received.
//!
//! Once settled it stays: whoever asks again gets the same.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tracewire_common::event::direction;
use tracewire_common::link::{Link, StreamKey};
use tracewire_common::trace::{Context, Injected, RANDOM, SAMPLED, TraceParent, mint};

use super::edge::{self, Edges};
use super::head::{Decision, Facts, Head, Services};
use super::w3c;
use crate::request::assemble::Output;
use crate::request::{Exchange, Outcome, Role, Seen, Version};
use crate::span::{SpanContext, TraceId};

/// How long a served request waits for its client's end to be reported, ns.
const PATIENCE: u64 = 60_000_000;
/// Exchanges that wait at a time.
const WAITING: usize = 16 * 1024;
/// Sent span ids remembered.
const SENT: usize = 16 * 1024;
/// Requests remembered while they are open.
const OPEN: usize = 128 * 1024;
/// Requests remembered after their end: calls made on their behalf may end later.
const ENDED: usize = 16 * 1024;
/// Traces whose head's words are remembered.
const HEADS: usize = 16 * 1024;
/// Links remembered before their request began.
const LINKS: usize = 32 * 1024;
/// Processes of this node that a trace is followed through, at most.
const DEPTH: u32 = 64;

/// An exchange with its identity.
#[derive(Debug)]
pub struct Identified {
    /// The exchange.
    pub exchange: Box<Exchange>,
    /// Its span's place.
    pub context: SpanContext,
    /// Several served requests could be the parent; none is said to be.
    pub ambiguous: bool,
    /// What Sentry's SDK at the head of the trace said of it.
    pub sentry_head: Option<Arc<str>>,
}

/// Which fields are read for a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagators {
    /// `traceparent` and `tracestate`.
    pub trace_context: bool,
    /// `sentry-trace`, where there is no `traceparent`.
    pub sentry: bool,
    /// Sentry's part of `baggage`.
    pub baggage: bool,
}

impl Default for Propagators {
    /// All.
    fn default() -> Self {
        Propagators {
            trace_context: true,
            sentry: true,
            baggage: true,
        }
    }
}

/// What was made of links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Server spans that found their client's span on this node.
    pub joined: u64,
    /// Client spans that found the served request on whose behalf they are.
    pub linked: u64,
    /// Client spans for which several served requests could be the parent.
    pub ambiguous: u64,
    /// Client spans whose served request was not seen, or was over before they began.
    pub parents_unseen: u64,
}

struct Waiting {
    exchange: Box<Exchange>,
    until_ns: u64,
}

/// A request that is open, or was lately.
struct Request {
    pid: u32,
    start_ns: u64,
    /// CLOCK_BOOTTIME, ns; 0 while it is open.
    end_ns: u64,
    /// No server sees it for the first time after this, CLOCK_BOOTTIME ns.
    over_ns: Option<u64>,
    /// Its stream's number is on the wire, not counted.
    numbered: bool,
    wire: Option<TraceParent>,
    /// `wire` leaves the head decision to us.
    undecided: bool,
    state: Option<Arc<str>>,
    method: Seen<Arc<str>>,
    path: Seen<Arc<str>>,
    /// When the other end saw it, if that was earlier: a send is seen at its end.
    earlier_ns: Option<u64>,
    ambiguous: bool,
    context: Option<SpanContext>,
}

impl Request {
    fn of(exchange: &Exchange, propagators: Propagators) -> Self {
        let head = &exchange.request;
        let (wire, undecided) = parse(&head.traceparent, &head.sentry_trace, propagators);
        Request {
            pid: exchange.pid,
            start_ns: exchange.start_ns,
            end_ns: 0,
            over_ns: None,
            numbered: exchange.version == Version::Http2,
            wire,
            undecided,
            state: state(&exchange.request.tracestate, propagators),
            method: exchange.request.method.clone(),
            path: exchange.request.path.clone(),
            earlier_ns: None,
            ambiguous: false,
            context: None,
        }
    }
}

fn key(role: Role, connection: u64, stream: u32) -> StreamKey {
    match role {
        Role::Client => StreamKey::made(connection, stream),
        Role::Server => StreamKey::served(connection, stream),
    }
}

/// Gives identities.
pub struct Identities {
    head: Head,
    key: [u64; 2],
    edges: Edges,
    /// Boxed, so that the table is small and cheap to rebuild.
    requests: FxHashMap<StreamKey, Box<Request>>,
    ended: VecDeque<StreamKey>,
    /// By the request that is made.
    links: FxHashMap<StreamKey, Link>,
    links_order: VecDeque<StreamKey>,
    /// Contexts that were written to the wire, by the request that carries them.
    pinned: FxHashMap<StreamKey, Injected>,
    pinned_order: VecDeque<StreamKey>,
    /// Traces that contexts were written in, and their flags, by the served request on whose behalf.
    told: FxHashMap<StreamKey, (TraceId, u8)>,
    told_order: VecDeque<StreamKey>,
    /// The kernel writes contexts, and asks where it can't decide.
    asked: bool,
    /// Served requests that it waits for.
    undecided: VecDeque<StreamKey>,
    /// What was decided of them.
    decided: Vec<(StreamKey, Context)>,
    /// What Sentry's SDK at the head of a trace said of it.
    heads: FxHashMap<TraceId, Arc<str>>,
    heads_order: VecDeque<TraceId>,
    propagators: Propagators,
    sent: HashSet<[u8; 24]>,
    sent_order: VecDeque<[u8; 24]>,
    waiting: VecDeque<Waiting>,
    counts: Counts,
}

impl Identities {
    /// `key` decides all ids: random for an agent, fixed for a replay.
    pub fn new(key: [u64; 2]) -> Self {
        Identities {
            head: Head::default(),
            key,
            edges: Edges::default(),
            requests: FxHashMap::default(),
            ended: VecDeque::new(),
            links: FxHashMap::default(),
            links_order: VecDeque::new(),
            pinned: FxHashMap::default(),
            pinned_order: VecDeque::new(),
            told: FxHashMap::default(),
            told_order: VecDeque::new(),
            asked: false,
            undecided: VecDeque::new(),
            decided: Vec::new(),
            heads: FxHashMap::default(),
            heads_order: VecDeque::new(),
            propagators: Propagators::default(),
            sent: HashSet::new(),
            sent_order: VecDeque::new(),
            waiting: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Lets `head` decide over the traces that begin here; without it all are sampled.
    pub fn sample(&mut self, head: Head) {
        self.head = head;
    }

    /// Reads these fields and no others for a parent; without it all are read.
    pub fn read(&mut self, propagators: Propagators) {
        self.propagators = propagators;
    }

    /// Who decides over the traces that begin here.
    pub fn head(&mut self) -> &mut Head {
        &mut self.head
    }

    /// The kernel writes contexts: decides over served requests as early as it can be done.
    pub fn decide_early(&mut self) {
        self.asked = true;
    }

    /// Served requests that the kernel could not decide over, with what was decided.
    pub fn decided(&mut self) -> std::vec::Drain<'_, (StreamKey, Context)> {
        self.decided.drain(..)
    }

    /// What was made of links and edges so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// On whose behalf a request is made; it comes before or shortly after the request itself.
    pub fn link(&mut self, link: Link) {
        remember(&mut self.links, &mut self.links_order, LINKS, link.child, link);
    }

    /// A context was written to the wire: what the wire carries is what the span carries.
    pub fn pin(&mut self, injected: &Injected) {
        let context = injected.context;
        remember(
            &mut self.pinned,
            &mut self.pinned_order,
            LINKS,
            injected.child,
            *injected,
        );
        if injected.parent.is_some() {
            let told = (context.trace_id, context.flags);
            remember(&mut self.told, &mut self.told_order, LINKS, injected.parent, told);
        }
    }

    /// Takes what the assembler found; finished exchanges go to `out` as soon as their identity is sure.
    pub fn take(&mut self, output: Output, services: &mut impl Services, out: &mut Vec<Identified>) {
        match output {
            Output::Opened {
                opened,
                origin,
                time_ns,
            } => self.edges.opened(&opened, origin, time_ns),
            Output::Closed { connection } => self.edges.closed(connection),
            Output::Begun {
                connection,
                stream,
                pid,
                role,
                version,
                start_ns,
                traceparent,
                tracestate,
                sentry_trace,
                sentry_baggage,
                method,
                path,
            } => {
                let (wire, undecided) = parse(&traceparent, &sentry_trace, self.propagators);
                if let (Some(wire), Some(said)) = (&wire, sentry_baggage)
                    && self.propagators.baggage
                {
                    remember(&mut self.heads, &mut self.heads_order, HEADS, wire.trace_id, said);
                }
                let request = Request {
                    pid,
                    start_ns,
                    end_ns: 0,
                    over_ns: None,
                    numbered: version == Version::Http2,
                    wire,
                    undecided,
                    state: state(&tracestate, self.propagators),
                    method,
                    path,
                    earlier_ns: None,
                    ambiguous: false,
                    context: None,
                };
                if self.requests.len() < OPEN + ENDED {
                    let key = key(role, connection, stream);
                    self.requests.insert(key, Box::new(request));
                    if self.asked && role == Role::Server {
                        self.ask(key, start_ns, services);
                    }
                }
            }
            Output::Ended(exchange) => self.ended(exchange, services, out),
        }
    }

    /// A request is served: decides over its trace if the kernel can't.
    fn ask(&mut self, key: StreamKey, now_ns: u64, services: &mut impl Services) {
        let Some(request) = self.requests.get(&key) else { return };
        let rule = self.head.rule(&services.service(request.pid));
        let asks = match request.wire {
            Some(_) => rule.is_untrusted() || request.undecided,
            None => rule.is_undecided(),
        };
        if asks && self.undecided.len() < WAITING {
            self.undecided.push_back(key);
            self.decide_settled(now_ns, services);
        }
    }

    /// Decides over those whose place is certain by now.
    fn decide_settled(&mut self, now_ns: u64, services: &mut impl Services) {
        for _ in 0..self.undecided.len() {
            let Some(key) = self.undecided.pop_front() else { return };
            if !self.settled(key, now_ns, 0) {
                self.undecided.push_back(key);
            } else if let Some(context) = self.context(key, services, 0) {
                let context = Context {
                    trace_id: context.trace_id,
                    span_id: context.span_id,
                    parent: context.parent.unwrap_or_default(),
                    flags: context.flags,
                    ..Context::default()
                };
                self.decided.push((key, context));
            }
        }
    }

    /// Lets go what waited long enough.
    pub fn tick(&mut self, now_ns: u64, services: &mut impl Services, out: &mut Vec<Identified>) {
        self.decide_settled(now_ns, services);
        // Those that found their caller meanwhile, and those whose time is over. Time only
        // moves forward, so the first that still waits keeps the rest waiting too.
        while let Some(first) = self.waiting.pop_front() {
            let exchange = &first.exchange;
            let key = key(exchange.role, exchange.peer.connection, exchange.stream);
            if first.until_ns > now_ns && !self.settled(key, now_ns, 0) {
                self.waiting.push_front(first);
                break;
            }
            self.finish(first.exchange, services, out);
        }
    }

    fn ended(&mut self, exchange: Box<Exchange>, services: &mut impl Services, out: &mut Vec<Identified>) {
        let key = key(exchange.role, exchange.peer.connection, exchange.stream);
        let propagators = self.propagators;
        let request = self
            .requests
            .entry(key)
            .or_insert_with(|| Box::new(Request::of(&exchange, propagators)));
        request.end_ns = exchange.end_ns.max(1);
        request.over_ns = Some(edge::over_ns(exchange.end_ns, exchange.outcome == Outcome::Complete));
        self.ended.push_back(key);
        if self.ended.len() > ENDED
            && let Some(old) = self.ended.pop_front()
        {
            self.requests.remove(&old);
        }
        if self.waiting.len() >= WAITING || self.settled(key, exchange.end_ns, 0) {
            self.finish(exchange, services, out);
        } else {
            // What decides its place may be reported a little later: a send is seen at its end.
            let until_ns = exchange.end_ns + PATIENCE;
            self.waiting.push_back(Waiting { exchange, until_ns });
        }
    }

    fn finish(&mut self, mut exchange: Box<Exchange>, services: &mut impl Services, out: &mut Vec<Identified>) {
        let key = key(exchange.role, exchange.peer.connection, exchange.stream);
        let propagators = self.propagators;
        self.requests
            .entry(key)
            .or_insert_with(|| Box::new(Request::of(&exchange, propagators)));
        let context = self.context(key, services, 0).unwrap_or_default();
        let mut ambiguous = false;
        if let Some(request) = self.requests.get(&key) {
            ambiguous = request.ambiguous;
            if let Some(earlier) = request.earlier_ns {
                exchange.start_ns = exchange.start_ns.min(earlier);
            }
        }
        exchange.start_ns = exchange.start_ns.min(exchange.end_ns);
        if let Some(request) = self.requests.get_mut(&key) {
            // Its place is settled: what decided over it is not needed any more.
            request.method = Seen::Absent;
            request.path = Seen::Absent;
            request.state = None;
        }
        out.push(Identified {
            sentry_head: self.heads.get(&context.trace_id).cloned(),
            exchange,
            context,
            ambiguous,
        });
    }

    /// Whether all that decides over a request's place has been reported.
    fn settled(&self, key: StreamKey, now_ns: u64, depth: u32) -> bool {
        let Some(request) = self.requests.get(&key) else {
            return true;
        };
        if request.context.is_some() || depth > DEPTH {
            return true;
        }
        if key.direction == u32::from(direction::SEND) {
            let parent = match self.pinned.get(&key) {
                Some(pinned) => Some(pinned.parent),
                None => self.links.get(&key).map(|link| link.parent),
            };
            return request.wire.is_some() || parent.is_none_or(|parent| self.settled(parent, now_ns, depth + 1));
        }
        match self.caller(key, request) {
            Some(caller) => self.settled(caller, now_ns, depth + 1),
            None => !self.edges.local(key.connection) || request.start_ns + PATIENCE <= now_ns,
        }
    }

    /// The client's end of a stream that is served here.
    fn caller(&self, key: StreamKey, request: &Request) -> Option<StreamKey> {
        let other = self.edges.other_end(key.connection)?;
        let caller = StreamKey::made(other, key.stream);
        let known = self.requests.get(&caller)?;
        (self.edges.comparable(key.connection, other, request.numbered)
            && self.edges.fits(other, known.start_ns, known.over_ns, request.start_ns))
        .then_some(caller)
    }

    /// The place of a request, settled now if it was not. None: it is not remembered.
    fn context(&mut self, key: StreamKey, services: &mut impl Services, depth: u32) -> Option<SpanContext> {
        let request = self.requests.get(&key)?;
        if let Some(context) = &request.context {
            return Some(context.clone());
        }
        if depth > DEPTH {
            return None;
        }
        let (mut wire, mut state) = (request.wire, request.state.clone());
        let served = key.direction == u32::from(direction::RECEIVE);
        let trusted = !served || self.head.trusts(self.edges.local(key.connection));
        if (request.undecided || !trusted)
            && let Some(parent) = &mut wire
        {
            let (trace_id, flags) = (parent.trace_id, parent.flags);
            let decision = self.decide(key, services, |head, facts| {
                head.untrusted(&trace_id, flags, state.as_ref(), facts)
            });
            (parent.flags, state) = (decision.flags, decision.trace_state);
        }
        let context = if key.direction == u32::from(direction::SEND) {
            self.made(key, wire, state, services, depth)
        } else {
            self.served(key, wire, state, services, depth)
        };
        if let Some(request) = self.requests.get_mut(&key) {
            request.context = Some(context.clone());
        }
        Some(context)
    }

    /// The server's side: below its client's span, below what the wire says, or a root.
    fn served(
        &mut self,
        key: StreamKey,
        wire: Option<TraceParent>,
        state: Option<Arc<str>>,
        services: &mut impl Services,
        depth: u32,
    ) -> SpanContext {
        let span_id = mint(self.key, key.connection, key.stream, key.direction).span_id;
        let caller = self.requests.get(&key).and_then(|request| self.caller(key, request));
        if let Some(caller) = caller
            && let Some(context) = self.context(caller, services, depth + 1)
            && wire.is_none_or(|w| w.trace_id == context.trace_id)
            && self.told.get(&key).is_none_or(|(trace, _)| *trace == context.trace_id)
        {
            let start_ns = self.requests.get(&key).map_or(u64::MAX, |r| r.start_ns);
            if let Some(caller) = self.requests.get_mut(&caller)
                && start_ns < caller.start_ns
            {
                caller.earlier_ns = Some(start_ns);
            }
            self.counts.joined += 1;
            return SpanContext {
                span_id,
                parent: Some(context.span_id),
                parent_is_remote: true,
                trace_id: context.trace_id,
                flags: context.flags,
                trace_state: state.or(context.trace_state),
            };
        }
        match wire {
            Some(wire) => SpanContext {
                trace_id: wire.trace_id,
                span_id,
                parent: Some(wire.span_id),
                parent_is_remote: true,
                flags: wire.flags,
                trace_state: state,
            },
            None => self.root(key, services),
        }
    }

    /// The client's side: what it sent, below the request on whose behalf it is made, or a root.
    fn made(
        &mut self,
        key: StreamKey,
        wire: Option<TraceParent>,
        state: Option<Arc<str>>,
        services: &mut impl Services,
        depth: u32,
    ) -> SpanContext {
        let link = self.links.remove(&key);
        if let Some(pinned) = self.pinned.remove(&key) {
            self.counts.linked += u64::from(pinned.parent.is_some());
            return self.injected(key, &pinned, services, depth);
        }
        let Some(wire) = wire else {
            if let Some(link) = link
                && let Some(parent) = self.parent(key, &link, services, depth)
            {
                return parent;
            }
            return self.root(key, services);
        };
        let mut sent = [0; 24];
        sent[..16].copy_from_slice(&wire.trace_id);
        sent[16..].copy_from_slice(&wire.span_id);
        if self.sent.insert(sent) {
            self.sent_order.push_back(sent);
            if self.sent_order.len() > SENT
                && let Some(old) = self.sent_order.pop_front()
            {
                self.sent.remove(&old);
            }
            return SpanContext {
                trace_id: wire.trace_id,
                span_id: wire.span_id,
                parent: None,
                parent_is_remote: false,
                flags: wire.flags,
                trace_state: state,
            };
        }
        SpanContext {
            trace_id: wire.trace_id,
            span_id: mint(self.key, key.connection, key.stream, key.direction).span_id,
            parent: Some(wire.span_id),
            parent_is_remote: true,
            flags: wire.flags,
            trace_state: state,
        }
    }

    /// The identity that was written to the wire.
    fn injected(&mut self, key: StreamKey, pinned: &Injected, services: &mut impl Services, depth: u32) -> SpanContext {
        let written = pinned.context;
        let above = if pinned.parent.is_some() {
            self.context(pinned.parent, services, depth + 1)
        } else {
            Some(self.root(key, services))
        };
        SpanContext {
            trace_id: written.trace_id,
            span_id: written.span_id,
            parent: (written.parent != [0; 8]).then_some(written.parent),
            parent_is_remote: false,
            flags: written.flags & SAMPLED | RANDOM,
            // What it says of the probability holds only if the kernel decided alike.
            trace_state: above
                .filter(|above| above.trace_id == written.trace_id && (above.flags ^ written.flags) & SAMPLED == 0)
                .and_then(|above| above.trace_state),
        }
    }

    /// A child of the served request that a link names.
    fn parent(&mut self, key: StreamKey, link: &Link, services: &mut impl Services, depth: u32) -> Option<SpanContext> {
        let child = self.requests.get_mut(&key)?;
        if !link.parent.is_some() {
            child.ambiguous = true;
            self.counts.ambiguous += 1;
            return None;
        }
        let start_ns = child.start_ns;
        // What was over before the call began had ended its work: the call is not part of it.
        let over = |parent: &Request| parent.end_ns != 0 && parent.end_ns < start_ns;
        if self.requests.get(&link.parent).is_none_or(|parent| over(parent)) {
            self.counts.parents_unseen += 1;
            return None;
        }
        let parent = self.context(link.parent, services, depth + 1)?;
        self.counts.linked += 1;
        Some(SpanContext {
            trace_id: parent.trace_id,
            span_id: mint(self.key, key.connection, key.stream, key.direction).span_id,
            parent: Some(parent.span_id),
            parent_is_remote: false,
            flags: parent.flags,
            trace_state: parent.trace_state,
        })
    }

    /// Asks for a head decision with the facts that it wants.
    fn decide(
        &mut self,
        key: StreamKey,
        services: &mut impl Services,
        ask: impl FnOnce(&mut Head, &Facts<'_>) -> Decision,
    ) -> Decision {
        match self.requests.get(&key) {
            Some(request) if self.head.wants_facts() => {
                let text = |seen: &Seen<Arc<str>>| seen.value().cloned().unwrap_or_default();
                let facts = Facts {
                    service: &services.service(request.pid),
                    method: &text(&request.method),
                    path: &text(&request.path),
                    now_ns: request.start_ns,
                };
                ask(&mut self.head, &facts)
            }
            _ => ask(&mut self.head, &Facts::default()),
        }
    }

    fn root(&mut self, key: StreamKey, services: &mut impl Services) -> SpanContext {
        let minted = mint(self.key, key.connection, key.stream, key.direction);
        let mut decision = self.decide(key, services, |head, facts| head.root(&minted.trace_id, facts));
        // What the kernel wrote below it is the decision: others obey it by now.
        if let Some((_, told)) = self.told.get(&key)
            && (told ^ decision.flags) & SAMPLED != 0
        {
            decision.flags ^= SAMPLED;
            decision.trace_state = None;
        }
        SpanContext {
            trace_id: minted.trace_id,
            span_id: minted.span_id,
            flags: decision.flags,
            trace_state: decision.trace_state,
            ..SpanContext::default()
        }
    }
}

/// Keeps at most so many entries, the latest.
fn remember<K, V>(map: &mut FxHashMap<K, V>, order: &mut VecDeque<K>, most: usize, key: K, value: V)
where
    K: Copy + Eq + std::hash::Hash,
{
    if map.insert(key, value).is_none() {
        order.push_back(key);
    }
    if order.len() > most
        && let Some(old) = order.pop_front()
    {
        map.remove(&old);
    }
}

/// The parent that a request names: `traceparent`, or else Sentry's own field; and whether that
/// leaves the head decision to whoever comes next.
fn parse(
    traceparent: &Seen<Arc<str>>,
    sentry: &Seen<Arc<str>>,
    propagators: Propagators,
) -> (Option<TraceParent>, bool) {
    let traceparent = if propagators.trace_context {
        traceparent
    } else {
        &Seen::Absent
    };
    match (traceparent, sentry) {
        (Seen::Value(value), _) => (w3c::trace_parent(value), false),
        (Seen::Absent, Seen::Value(value)) if propagators.sentry => {
            w3c::sentry_trace(value).map_or((None, false), |(parent, undecided)| (Some(parent), undecided))
        }
        _ => (None, false),
    }
}

fn state(value: &Seen<Arc<str>>, propagators: Propagators) -> Option<Arc<str>> {
    let value = value.value().filter(|_| propagators.trace_context)?;
    let kept = w3c::trace_state(value)?;
    Some(if kept.len() == value.len() {
        value.clone()
    } else {
        Arc::from(kept)
    })
}

#[cfg(test)]
mod tests;
