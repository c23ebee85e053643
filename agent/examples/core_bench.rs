//! Spans that the pure core makes of a recording in a second, on one core.
//! `cargo run --release -p tracewire --example core_bench -- FILE`
//! (`tracewire record` writes such a file; `cargo xtask bench` does both).
#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement, not part of the agent")]

use std::time::{Duration, Instant};

use tracewire::core::Core;
use tracewire::export::otlp::encoded;
use tracewire::protocol::fields::Allow;
use tracewire::recording::Entry;
use tracewire::recording::file::Reader;
use tracewire::recording::replay::{KEY, Replay};
use tracewire::span::conventions::Conventions;
use tracewire::span::{Builder, Span, route};

/// The recording is replayed until it took so long.
const LENGTH: Duration = Duration::from_secs(3);

/// CPU time of this thread: other work on the machine does not count.
fn cpu() -> Duration {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(statistics.split(' ').next().unwrap().parse().unwrap())
}

fn main() {
    let path = std::env::args().nth(1).expect("the file of a recording");
    let bytes = std::fs::read(path).unwrap();
    // Read beforehand: the file's decoding is not the core's work.
    let mut reader = Reader::new(bytes.as_slice()).unwrap();
    let mut entries: Vec<Vec<u8>> = Vec::new();
    while let Some(entry) = reader.bytes().unwrap() {
        entries.push(entry.to_vec());
    }
    let (mut best, mut best_encoded) = (Duration::MAX, Duration::MAX);
    let mut count = 0;
    let begin = Instant::now();
    while begin.elapsed() < LENGTH {
        let builder = Builder::new(Conventions::default(), route::Config::default());
        let mut replay = Replay::new(Core::new(Allow::default(), builder, KEY, 0));
        let mut spans: Vec<Span> = Vec::new();
        let since = cpu();
        let mut encoding = Duration::ZERO;
        count = 0;
        for entry in &entries {
            if let Some(entry) = Entry::parse(entry) {
                replay.entry(entry, &mut spans);
            }
            if spans.len() >= 512 {
                count += spans.len();
                let since = cpu();
                std::hint::black_box(encoded(&spans));
                encoding += cpu() - since;
                spans.clear();
            }
        }
        replay.end(&mut spans);
        count += spans.len();
        let took = cpu() - since;
        best = best.min(took - encoding);
        best_encoded = best_encoded.min(took);
    }
    let rate = |took: Duration| count as f64 / took.as_secs_f64();
    let each = |took: Duration| took.as_nanos() as f64 / count as f64;
    println!("{count} spans of {} entries", entries.len());
    println!(
        "core                {:9.0} spans/s, {:5.0} ns a span",
        rate(best),
        each(best)
    );
    println!(
        "core and encoding   {:9.0} spans/s, {:5.0} ns a span",
        rate(best_encoded),
        each(best_encoded)
    );
}
