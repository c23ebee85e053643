//! Records → spans, without clock, socket or kernel: what runs behind the ring
//! buffer and behind `tracewire replay` alike.

use std::sync::Arc;

use crate::attribute::Value;
use crate::connection::record::Event;
use crate::discover::Resource;
use crate::propagation::head::{Head, Services};
use crate::propagation::identity::{self, Identified, Identities};
use crate::protocol::fields::Allow;
use crate::request::assemble::{Assembler, Counts, Output};
use crate::span::Span;
use crate::span::build::Builder;
use crate::span::conventions::key;

#[cfg(test)]
mod secrets;

/// The rooms from connection to span, in a row.
pub struct Core {
    assembler: Assembler,
    identities: Identities,
    builder: Builder,
    outputs: Vec<Output>,
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
            assembler: Assembler::new(allow),
            identities: Identities::new(key),
            builder,
            outputs: Vec::new(),
            identified: Vec::new(),
            boot_to_unix_ns,
        }
    }

    /// Lets `head` decide over the traces that begin here; without it all are sampled.
    pub fn sample(&mut self, head: Head) {
        self.identities.sample(head);
    }

    /// Takes one event.
    pub fn event(&mut self, event: Event<'_>, processes: &mut impl Processes, spans: &mut Vec<Span>) {
        if let Event::Link { link, .. } = event {
            self.identities.link(link);
            return;
        }
        self.assembler.event(event, &mut self.outputs);
        self.flow(processes, spans);
    }

    /// A record that is no event.
    pub fn unknown_record(&mut self) {
        self.assembler.unknown_record();
    }

    /// A process ended some time ago.
    pub fn exited(&mut self, pid: u32, time_ns: u64, processes: &mut impl Processes, spans: &mut Vec<Span>) {
        self.assembler.exited(pid, time_ns, &mut self.outputs);
        self.flow(processes, spans);
    }

    /// Time passed: CLOCK_BOOTTIME, ns.
    pub fn tick(&mut self, now_ns: u64, processes: &mut impl Processes, spans: &mut Vec<Span>) {
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

    /// What was made of links and edges.
    pub fn propagation(&self) -> identity::Counts {
        self.identities.counts()
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
        } in self.identified.drain(..)
        {
            let resource = processes.resource(exchange.pid);
            let mut span = self.builder.build(&exchange, context, resource, self.boot_to_unix_ns);
            if ambiguous {
                let parent = Value::Str("ambiguous".into());
                span.attributes.push((key::PARENT.into(), parent));
            }
            spans.push(span);
        }
    }
}
