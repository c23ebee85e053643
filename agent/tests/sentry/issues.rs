//! Issues in Bugsink.

use std::time::Duration;

use tracewire::export::Exporter as _;

use crate::bugsink::Bugsink;
use crate::{exporter, spans};

#[test]
fn two_failures_are_one_issue_and_a_limit_on_transactions_does_not_stop_them() {
    let Some(bugsink) = Bugsink::start() else { return };
    let (mut exporter, counters) = exporter(&bugsink.dsn, |_| {});
    exporter.export(&spans::trace(1, "INTERNAL"));
    bugsink_takes(&mut exporter);
    // By now it has said that it wants no transactions for a day.
    exporter.export(&spans::trace(2, "INTERNAL"));
    exporter.export(&spans::trace(3, "UNAVAILABLE"));
    exporter.shutdown(Duration::from_secs(20));
    assert_eq!(counters.sentry_issues.get(), 6);
    assert!(
        counters.sentry_transactions.get() < 9 && counters.sentry_rate_limited.get() > 0,
        "{} transactions in spite of the limit",
        counters.sentry_transactions.get()
    );
    // The ledger and the treasury, each with two codes.
    let issues = bugsink.wait_for(6);
    assert_eq!(issues.len(), 4, "{issues:#?}");
    let ledger = issues
        .iter()
        .find(|i| i["transaction"] == "bank.v1.Ledger/Transfer" && i["calculated_type"] == "gRPC INTERNAL")
        .unwrap();
    assert_eq!(ledger["digested_event_count"], 2);
    assert_eq!(ledger["calculated_value"], "no vault is open");
    let events = bugsink.events(ledger);
    assert_eq!(events.len(), 2);
    let traces: Vec<_> = events
        .iter()
        .map(|e| e["contexts"]["trace"]["trace_id"].as_str().unwrap())
        .collect();
    assert_ne!(traces[0], traces[1]);
    assert_eq!(events[0]["release"], "ledger@1.2.3");
    assert_eq!(events[0]["breadcrumbs"]["values"].as_array().unwrap().len(), 2);
}

/// Waits until what was exported has been sent.
fn bugsink_takes(exporter: &mut impl tracewire::export::Exporter) {
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(100));
        exporter.tick();
    }
}
