//! A call that a service makes while it serves another hangs below it: never
//! below a wrong one, and always where its runtime is followed exactly.

use anyhow::Result;
use tracewire_tests::relay::{self, Kind, Load, Relayed};
use tracewire_tests::{alone, full};

fn check(what: &str, kind: Kind, load: Load, share: f64) -> Result<()> {
    let relayed = relay::run(Kind::GO, &[kind, kind, kind], load)?;
    relayed.assert_linked(&format!("{what} {load:?}"), share);
    Ok(())
}

fn loads() -> Vec<Load> {
    let calls = if full() { 400 } else { 60 };
    let base = Load {
        calls,
        delay: 10,
        ..Load::default()
    };
    vec![
        Load { calls: 20, ..base },
        Load {
            concurrency: 16,
            connections: 3,
            fan: 2,
            ..base
        },
        Load {
            concurrency: 64,
            depth: 2,
            connections: 2,
            ..base
        },
        Load {
            calls: 10,
            concurrency: 5,
            stream: 4,
            fan: 3,
            ..base
        },
    ]
}

#[test]
fn go() -> Result<()> {
    let _turn = alone()?;
    for load in loads() {
        check("grpc-go", Kind::GO, load, 1.0)?;
    }
    Ok(())
}

#[test]
fn go_with_workers() -> Result<()> {
    let _turn = alone()?;
    // Fewer workers than calls: the rest get goroutines of their own.
    let kind = Kind::GO.serving(&["--workers", "4"]);
    check("grpc-go, NumStreamWorkers", kind, loads()[1], 1.0)
}

#[test]
fn go_stripped() -> Result<()> {
    let _turn = alone()?;
    let kind = Kind::GO.built(&["", "-ldflags=-s -w"]);
    check("grpc-go, stripped", kind, loads()[1], 1.0)
}

#[test]
fn go_older_grpc() -> Result<()> {
    let _turn = alone()?;
    const BUILDS: [&[&str]; 3] = [&["v1.60.1"], &["v1.70.0"], &["v1.80.0"]];
    for build in BUILDS {
        check(&format!("grpc-go {build:?}"), Kind::GO.built(build), loads()[1], 1.0)?;
    }
    Ok(())
}

#[test]
fn rust() -> Result<()> {
    let _turn = alone()?;
    for load in loads() {
        check("tonic", Kind::RUST, load, 1.0)?;
    }
    Ok(())
}

/// Some calls could have belonged to several requests, and that was counted.
fn assert_ambiguous(relayed: &Relayed) {
    let counters = &relayed.report.counters;
    assert!(
        counters.get("parents_ambiguous").is_some_and(|n| *n > 0),
        "{counters:?}"
    );
}

#[test]
fn rust_with_a_shared_worker() -> Result<()> {
    let _turn = alone()?;
    let kind = Kind::RUST.serving(&["--worker"]);
    let relayed = relay::run(Kind::GO, &[kind; 3], loads()[1])?;
    relayed.assert_linked("tonic, a worker that a request started", 0.0);
    assert_ambiguous(&relayed);
    Ok(())
}

#[test]
fn rust_stripped_is_not_guessed_at() -> Result<()> {
    let _turn = alone()?;
    let kind = Kind::RUST.built(&["strip"]);
    let relayed = relay::run(Kind::GO, &[kind, kind], loads()[1])?;
    let links = relayed.links();
    assert!(links.wrong.is_empty(), "{:?}", links.wrong);
    assert_eq!(links.roots, links.made, "there are no symbols to find the tasks by");
    let lacking = relayed.report.counters.get("probes_lacking");
    assert!(lacking.is_some_and(|n| *n > 0), "{:?}", relayed.report.counters);
    Ok(())
}

#[test]
fn languages_in_a_row() -> Result<()> {
    let _turn = alone()?;
    let relayed = relay::run(Kind::GO, &[Kind::GO, Kind::RUST, Kind::GO, Kind::RUST], loads()[1])?;
    relayed.assert_linked("Go, Rust, Go, Rust", 1.0);
    Ok(())
}

/// Mutual TLS on every hop, and hops without it between.
#[test]
fn encrypted() -> Result<()> {
    let _turn = alone()?;
    let (go, rust) = (Kind::GO.encrypted(), Kind::RUST.encrypted());
    let relayed = relay::run(Kind::GO, &[go, rust, go, rust], loads()[1])?;
    relayed.assert_linked("Go, Rust, Go, Rust by TLS", 1.0);
    let relayed = relay::run(Kind::GO, &[rust, Kind::RUST, go, Kind::GO, rust], loads()[1])?;
    relayed.assert_linked("some by TLS", 1.0);
    Ok(())
}

/// A worker that one request started makes the calls of others too, while that one is open.
fn shared_worker(kind: Kind) -> Result<()> {
    const BARE: &[&str] = &["--worker", "bare"];
    const WITH_CONTEXT: &[&str] = &["--worker", "context"];
    // Its calls are told apart by the contexts that come with them …
    let load = loads()[1];
    let relayed = relay::run(kind, &[kind.serving(WITH_CONTEXT); 3], load)?;
    relayed.assert_linked(&format!("{}, a worker with contexts", kind.folder), 1.0);
    // … and without them by nothing.
    let relayed = relay::run(kind, &[kind.serving(BARE); 3], load)?;
    relayed.assert_linked(&format!("{}, a worker without contexts", kind.folder), 0.0);
    let links = relayed.links();
    assert_eq!(links.linked, 0, "by luck");
    assert_ambiguous(&relayed);
    Ok(())
}

#[test]
fn go_with_a_shared_worker() -> Result<()> {
    let _turn = alone()?;
    shared_worker(Kind::GO)
}

#[test]
fn go_net_http_with_a_shared_worker() -> Result<()> {
    let _turn = alone()?;
    shared_worker(Kind::HTTP)
}

/// Loads that HTTP has: no streams of messages.
fn http_loads() -> Vec<Load> {
    loads().into_iter().filter(|load| load.stream == 0).collect()
}

#[test]
fn go_net_http() -> Result<()> {
    let _turn = alone()?;
    for load in http_loads() {
        let relayed = relay::run(Kind::HTTP, &[Kind::HTTP; 3], load)?;
        relayed.assert_linked(&format!("net/http {load:?}"), 1.0);
    }
    Ok(())
}

#[test]
fn go_net_http_with_http2() -> Result<()> {
    let _turn = alone()?;
    let kind = Kind::HTTP.serving(&["--h2c"]).loading(&["--h2c"]);
    for load in http_loads() {
        let relayed = relay::run(kind, &[kind; 3], load)?;
        relayed.assert_linked(&format!("net/http HTTP/2 {load:?}"), 1.0);
    }
    Ok(())
}

/// A hop of the long relay, and the least share of its calls that hangs below the right request. Wrong is none, ever.
const LANGUAGES: [(&str, Kind, f64); 7] = [
    ("Python", Kind::PYTHON, 1.0),
    ("asyncio", Kind::PYTHON_AIO, 1.0),
    ("Node", Kind::NODE, 0.0),
    ("Rust", Kind::RUST, 1.0),
    ("C++", Kind::CPP, 0.9),
    ("Go", Kind::GO, 1.0),
    // It makes no calls: the last hop.
    ("Go", Kind::GO, 0.0),
];

/// From Go through all of them in a row: each with its own share, with and without contexts on the wire.
fn languages(load: Load, flags: &[&str]) -> Result<()> {
    let relayed = relay::run_with(Kind::GO, &LANGUAGES.map(|(_, kind, _)| kind), load, flags)?;
    relayed.assert_linked(&format!("all languages {load:?} {flags:?}"), 0.0);
    let hops = relayed.links_by_hop();
    for (n, (language, _, share)) in LANGUAGES.iter().enumerate() {
        let (linked, made) = hops.get(&n).copied().unwrap_or_default();
        println!("  {language}: {linked} of {made}");
        assert!(
            linked as f64 >= share * made as f64,
            "{language}, hop {n}: {linked} of {made} linked\ncounters: {:?}\n{}",
            relayed.report.counters,
            relayed.report.messages
        );
    }
    Ok(())
}

#[test]
fn all_languages_in_a_row() -> Result<()> {
    let _turn = alone()?;
    let [load, ..] = long_loads();
    languages(load, &[])
}

/// The same with other loads, and with contexts written.
#[test]
#[ignore = "minutes: for the long form"]
fn all_languages_in_a_row_at_length() -> Result<()> {
    let _turn = alone()?;
    for load in long_loads() {
        languages(load, &[])?;
        languages(load, &["--inject", "--inject-despite-trial"])?;
    }
    Ok(())
}

/// Sixteen at once over several connections; one at a time; 64 at once; with fan-out.
fn long_loads() -> [Load; 4] {
    let base = Load {
        calls: 48,
        concurrency: 16,
        delay: 10,
        connections: 2,
        ..Load::default()
    };
    [
        base,
        Load {
            calls: 12,
            concurrency: 1,
            ..base
        },
        Load {
            calls: 192,
            concurrency: 64,
            ..base
        },
        Load {
            calls: 4,
            concurrency: 2,
            fan: 2,
            ..base
        },
    ]
}

#[test]
fn what_the_wire_carries_is_what_the_spans_carry() -> Result<()> {
    let _turn = alone()?;
    for (what, caller, kind) in [
        ("grpc-go", Kind::GO, Kind::GO),
        ("tonic", Kind::GO, Kind::RUST),
        ("net/http", Kind::HTTP, Kind::HTTP),
    ] {
        // The load is a new file: without the second flag this kernel's FIONREAD has it wait to be looked at.
        let flags = ["--inject", "--inject-despite-trial"];
        let relayed = relay::run_with(caller, &[kind; 3], loads()[1], &flags)?;
        relayed.assert_linked(what, 1.0);
        relayed.assert_contexts(what);
    }
    Ok(())
}

#[test]
fn python() -> Result<()> {
    let _turn = alone()?;
    for load in loads() {
        check("grpcio", Kind::PYTHON, load, 1.0)?;
    }
    Ok(())
}

#[test]
fn python_aio() -> Result<()> {
    let _turn = alone()?;
    for load in loads() {
        check("grpcio, asyncio", Kind::PYTHON_AIO, load, 1.0)?;
    }
    Ok(())
}

#[test]
fn python_aio_with_a_shared_worker() -> Result<()> {
    let _turn = alone()?;
    let kind = Kind::PYTHON_AIO.serving(&["--aio", "--worker"]);
    let relayed = relay::run(Kind::GO, &[kind; 3], loads()[1])?;
    relayed.assert_linked("asyncio, a worker that a request started", 0.0);
    assert_eq!(relayed.links().linked, 0, "by luck");
    assert_ambiguous(&relayed);
    Ok(())
}

#[test]
fn python_older_grpcio() -> Result<()> {
    let _turn = alone()?;
    const BUILDS: [&[&str]; 3] = [&["1.60.1"], &["1.70.0"], &["1.80.0"]];
    for build in BUILDS {
        check(&format!("grpcio {build:?}"), Kind::PYTHON.built(build), loads()[1], 1.0)?;
        let what = format!("grpcio, asyncio {build:?}");
        check(&what, Kind::PYTHON_AIO.built(build), loads()[1], 1.0)?;
    }
    Ok(())
}

#[test]
fn cpp() -> Result<()> {
    let _turn = alone()?;
    for load in loads() {
        // A thread that already waits for work when the agent comes is ambiguous for its first call.
        check("grpc++", Kind::CPP, load, 0.9)?;
    }
    Ok(())
}

/// Without the helper nothing is known of it from outside: no link is right as well.
#[test]
fn node() -> Result<()> {
    let _turn = alone()?;
    check("grpc-js", Kind::NODE, loads()[1], 0.0)
}

/// Awaits, timers, promises; several connections, and calls that wait for one. (Streams in which
/// each hop waits for its next one stand still in this relay, observed or not.)
#[test]
fn node_with_its_helper() -> Result<()> {
    let _turn = alone()?;
    let relayed = relay::run_with(Kind::GO, &[Kind::NODE; 3], loads()[1], &["--node-helper"])?;
    relayed.assert_linked("grpc-js with its helper", 1.0);
    Ok(())
}

/// `http` with an agent's few connections, and `fetch`.
#[test]
fn node_over_http_with_its_helper() -> Result<()> {
    let _turn = alone()?;
    let kind = Kind::NODE.serving(&["--http"]);
    let relayed = relay::run_with(Kind::HTTP, &[kind; 3], loads()[1], &["--node-helper"])?;
    relayed.assert_linked("Node over HTTP/1 with its helper", 1.0);
    Ok(())
}

/// Python over HTTP/1, built in several ways.
const fn way(flags: &'static [&'static str]) -> Kind {
    Kind::THREADS.serving(flags)
}

/// The thread that reads a request, calls, and answers: certain once the process was seen to work like that.
#[test]
fn threads_that_serve_one_request_at_a_time() -> Result<()> {
    let _turn = alone()?;
    const WAYS: [Kind; 4] = [
        way(&["--way", "threads"]),
        way(&["--way", "wsgi", "--timeout", "30"]),
        way(&["--way", "single"]),
        way(&["--way", "threads"]),
    ];
    let load = Load {
        concurrency: 8,
        fan: 2,
        ..loads()[0]
    };
    let load = Load { calls: 60, ..load };
    let relayed = relay::run(Kind::HTTP, &WAYS, load)?;
    relayed.assert_linked("threads", 0.7);
    // Those before it was certain are said to be ambiguous, none is silent.
    let doubts = relayed.report.counters.get("parents_ambiguous").copied();
    assert_eq!(doubts, Some(relayed.links().roots), "{:?}", relayed.report.counters);
    Ok(())
}

/// Loops, and threads that hand on what they have read: nothing may be concluded from their threads.
#[test]
fn threads_that_say_nothing() -> Result<()> {
    let _turn = alone()?;
    const WAYS: [Kind; 4] = [
        way(&["--way", "tasks"]),
        way(&["--way", "loop"]),
        way(&["--way", "pool"]),
        way(&["--way", "swap"]),
    ];
    let load = Load {
        calls: 200,
        concurrency: 16,
        ..loads()[0]
    };
    let relayed = relay::run(Kind::HTTP, &WAYS, load)?;
    relayed.assert_linked("loops and pools", 0.0);
    Ok(())
}
