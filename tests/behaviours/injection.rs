//! Contexts that the agent writes to the wire: what unmodified services say
//! they received is exactly one `traceparent` a request, it is what the spans
//! say, and every call is what it was without.

use anyhow::{Result, ensure};
use tracewire_tests::alone;
use tracewire_tests::session::{Session, Sides};
use tracewire_tests::workload::{Language, Load};

fn loads() -> Vec<Load> {
    vec![
        Load::new("unary", 40),
        Load::new("mixed", 120).at_once(16).over(3),
        Load::new("errors", 34).at_once(4),
        Load::new("large", 6).at_once(3),
        Load::new("metadata", 20).at_once(4).over(2),
        Load::new("churn", 10),
    ]
}

/// Every request that the server got carried one context, which is its client's span and its own span's parent.
fn check(server: Language, client: Language, loads: &[Load]) -> Result<()> {
    let _turn = alone()?;
    let session = Session::run_with(server, client, loads, &["--inject"])?;
    session.assert_true(Sides::Both);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for ((side, id), call) in &session.truth {
        if side != "server" {
            continue;
        }
        seen += 1;
        let span = |side: &str| {
            let mut spans = session.report.spans.iter();
            spans.find(|span| span.side() == side && span.call_id() == Some(id))
        };
        let (Some(server), Some(client)) = (span("server"), span("client")) else {
            wrong.push(format!("{id}: a span is missing"));
            continue;
        };
        let expected = format!("00-{}-{}-01", client.trace_id, client.span_id);
        if call.traceparent != expected {
            wrong.push(format!(
                "{id}: received {:?}, the client's span is {expected}",
                call.traceparent
            ));
        }
        if server.trace_id != client.trace_id || server.parent_span_id != client.span_id {
            wrong.push(format!("{id}: the server's span hangs elsewhere"));
        }
    }
    wrong.truncate(20);
    ensure!(
        wrong.is_empty(),
        "{}: of {seen}\n{}\n{:?}\n{}",
        session.title,
        wrong.join("\n"),
        session.report.counters,
        session.report.messages
    );
    let counters = &session.report.counters;
    ensure!(!counters.contains_key("injections.rolled_back"), "{counters:?}");
    ensure!(!counters.contains_key("malformed"), "{counters:?}");
    Ok(())
}

macro_rules! languages {
    ($($name:ident: $language:ident),* $(,)?) => {$(
        #[test]
        fn $name() -> Result<()> {
            check(Language::$language, Language::$language, &loads())
        }
    )*};
}

languages! {
    go_receives_what_its_spans_say: Go,
    python_receives_what_its_spans_say: Python,
    python_aio_receives_what_its_spans_say: PythonAio,
    node_receives_what_its_spans_say: Node,
    java_receives_what_its_spans_say: Java,
    cpp_receives_what_its_spans_say: Cpp,
    rust_receives_what_its_spans_say: Rust,
}
