//! Records → spans, without clock, socket or kernel: what runs behind the ring
//! buffer and behind `tracewire replay` alike.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use tracewire_common::event::Header;
use tracewire_common::link::StreamKey;
use tracewire_common::tls;
use tracewire_common::trace::Context;

use crate::attribute::Value;
use crate::connection::closes::Followed;
use crate::connection::record::Event;
use crate::connection::waiting::{Waiting, after_a_gap};
use crate::discover::Resource;
use crate::propagation::head::{Head, Services};
use crate::propagation::identity::{self, Identified, Identities, Propagators};
use crate::protocol::fields::Allow;
use crate::request::assemble::{Assembler, Counts, Output};
use crate::request::{Exchange, Role};
use crate::span::Span;
use crate::span::build::Builder;
use crate::span::conventions::key;

#[cfg(test)]
mod secrets;

/// The rooms from connection to span, in a row.
pub struct Core {
    waiting: Waiting,
    /// TLS connections that lost pieces while they waited: by direction, the next piece begins with a gap.
    lost: FxHashMap<u64, [bool; 2]>,
    assembler: Assembler,
    identities: Identities,
    builder: Builder,
    outputs: Vec<Output>,
    own_requests: u64,
    identified: Vec<Identified>,
    /// Added to CLOCK_BOOTTIME it gives Unix time, ns.
    pub boot_to_unix_ns: i64,
}

/// Says what an observed process is called.
pub trait Processes {
    /// Its resource.
    fn resource(&mut self, pid: u32) -> Arc<Resource>;
}

/// Names of processes by their resources.
struct Named<'a, P>(&'a mut P);

impl<P: Processes> Services for Named<'_, P> {
    fn service(&mut self, pid: u32) -> Arc<str> {
        self.0.resource(pid).service_name.clone()
    }
}

impl Core {
    /// `key` decides all ids.
    pub fn new(allow: Allow, builder: Builder, key: [u64; 2], boot_to_unix_ns: i64) -> Self {
        Core {
            waiting: Waiting::default(),
            lost: FxHashMap::default(),
            assembler: Assembler::new(allow),
            identities: Identities::new(key),
            builder,
            outputs: Vec::new(),
            own_requests: 0,
            identified: Vec::new(),
            boot_to_unix_ns,
        }
    }

    /// Lets `head` decide over the traces that begin here; without it all are sampled.
    pub fn sample(&mut self, head: Head) {
        self.identities.sample(head);
    }

    /// Reads these fields and no others for a parent; without it all are read.
    pub fn read(&mut self, propagators: Propagators) {
        self.identities.read(propagators);
    }

    /// Takes other choices; what was learned of names stays.
    pub fn change(&mut self, head: Head, builder: Builder) {
        self.identities.sample(head);
        self.builder.change(builder);
    }

    /// Who decides over the traces that begin here.
    pub fn head(&mut self) -> &mut Head {
        self.identities.head()
    }

    /// The kernel writes contexts: what it can't decide is decided as early as it can be done.
    pub fn decide_early(&mut self) {
        self.identities.decide_early();
    }

    /// Served requests that the kernel could not decide over, with what was decided.
    pub fn decided(&mut self) -> impl Iterator<Item = (StreamKey, Context)> {
        self.identities.decided()
    }

    /// Takes one event.
    pub fn event(&mut self, event: Event<'_>, processes: &mut impl Processes, spans: &mut Vec<Span>) {
        if let Event::Link { link, .. } = event {
            self.identities.link(link);
            return;
        }
        if let Event::Injected { injected, .. } = event {
            self.identities.pin(&injected);
            return;
        }
        match event {
            Event::Open { header, .. } if tls::named(header.connection) => self.known(header.connection, event),
            Event::Frames { header, bytes } if tls::named(header.connection) => self.plaintext(header, bytes),
            Event::Close { header, .. } if tls::named(header.connection) => {
                self.waiting.closed(header.connection);
                self.lost.remove(&header.connection);
                self.assembler.event(event, &mut self.outputs);
            }
            _ => self.assembler.event(event, &mut self.outputs),
        }
        self.flow(processes, spans);
    }

    /// The socket of a TLS connection is known: what waited for it comes first.
    fn known(&mut self, connection: u64, event: Event<'_>) {
        let Core {
            waiting,
            assembler,
            outputs,
            ..
        } = self;
        assembler.event(event, outputs);
        let lost = waiting.release(connection, |header, bytes| {
            assembler.event(Event::Frames { header, bytes }, outputs);
        });
        if lost {
            self.lost.insert(connection, [true; 2]);
        }
    }

    /// A piece of plaintext.
    fn plaintext(&mut self, header: Header, bytes: &[u8]) {
        if !self.assembler.knows(header.connection) {
            self.waiting.hold(header, bytes);
            return;
        }
        let mut header = header;
        if !self.lost.is_empty()
            && let Some(lost) = self.lost.get_mut(&header.connection)
            && let Some(lost) = lost.get_mut(usize::from(header.direction & 1))
            && std::mem::take(lost)
        {
            header = after_a_gap(header);
        }
        self.assembler.event(Event::Frames { header, bytes }, &mut self.outputs);
    }

    /// A record that is no event.
    pub fn unknown_record(&mut self) {
        self.assembler.unknown_record();
    }

    /// A process ended some time ago.
    pub fn exited(&mut self, pid: u32, time_ns: u64, processes: &mut impl Processes, spans: &mut Vec<Span>) {
        self.waiting.exited(pid);
        self.assembler.exited(pid, time_ns, &mut self.outputs);
        self.flow(processes, spans);
    }

    /// Time passed: CLOCK_BOOTTIME, ns.
    pub fn tick(&mut self, now_ns: u64, processes: &mut impl Processes, spans: &mut Vec<Span>) {
        self.waiting.tick(now_ns);
        self.identities
            .tick(now_ns, &mut Named(processes), &mut self.identified);
        self.build(processes, spans);
    }

    /// The end: what is open is unfinished, what waits is let go.
    pub fn stop(&mut self, now_ns: u64, processes: &mut impl Processes, spans: &mut Vec<Span>) {
        self.assembler.stop(now_ns, &mut self.outputs);
        self.flow(processes, spans);
        self.tick(u64::MAX, processes, spans);
    }

    /// What could not be used.
    pub fn counts(&self) -> Counts {
        self.assembler.counts()
    }

    /// Unix connections that are open, as far as is known.
    pub fn unix_connections(&self) -> Vec<Followed> {
        self.assembler.unix_connections()
    }

    /// Requests that are open now, by process and side.
    pub fn open_requests(&self) -> impl Iterator<Item = (u32, Role, u64)> {
        let open = self.assembler.open_requests();
        open.into_iter().map(|((pid, role), count)| (pid, role, count))
    }

    /// Connections that are followed now.
    pub fn connections(&self) -> usize {
        self.assembler.connections()
    }

    /// Requests that carry spans, of which no span was made.
    pub fn own_requests(&self) -> u64 {
        self.own_requests
    }

    /// What was made of links and edges.
    pub fn propagation(&self) -> identity::Counts {
        self.identities.counts()
    }

    /// Pieces of TLS connections whose socket was not found in time.
    pub fn unjoined(&self) -> u64 {
        self.waiting.dropped()
    }

    fn flow(&mut self, processes: &mut impl Processes, spans: &mut Vec<Span>) {
        if self.outputs.is_empty() {
            return;
        }
        for output in self.outputs.drain(..) {
            self.identities
                .take(output, &mut Named(processes), &mut self.identified);
        }
        self.build(processes, spans);
    }

    fn build(&mut self, processes: &mut impl Processes, spans: &mut Vec<Span>) {
        for Identified {
            exchange,
            context,
            ambiguous,
            sentry_head,
        } in self.identified.drain(..)
        {
            if carries_spans(&exchange) {
                // A span of a request that carries spans would make another such request.
                self.own_requests += 1;
                continue;
            }
            let resource = processes.resource(exchange.pid);
            let mut span = self.builder.build(&exchange, context, resource, self.boot_to_unix_ns);
            span.sentry_head = sentry_head;
            if ambiguous {
                let parent = Value::Str("ambiguous".into());
                span.attributes.push((key::PARENT.into(), parent));
            }
            spans.push(span);
        }
    }
}

/// Whether the request carries spans: one of the agent's own exporters, or OTLP of anybody
/// else's, since a collector that is observed hands on what it gets of the agent.
fn carries_spans(exchange: &Exchange) -> bool {
    let request = &exchange.request;
    let own = |agent: &str| agent.starts_with(concat!("tracewire/", env!("CARGO_PKG_VERSION")));
    let otlp = |path: &str| {
        let path = path.split('?').next().unwrap_or_default();
        path == "/opentelemetry.proto.collector.trace.v1.TraceService/Export" || path.ends_with("/v1/traces")
    };
    request.user_agent.value().is_some_and(|agent| own(agent))
        || request.method.value().is_some_and(|method| &**method == "POST")
            && request.path.value().is_some_and(|path| otlp(path))
}
