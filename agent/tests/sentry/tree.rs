//! The tree of a trace in Spotlight.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::Value as Json;
use tracewire::export::Exporter as _;

use crate::spotlight::Spotlight;
use crate::{exporter, spans};

/// Each span's parent, by span id, of transactions and the spans in them.
pub fn parents(transactions: &[Json]) -> BTreeMap<String, Option<String>> {
    let text = |v: &Json| v.as_str().map(str::to_owned);
    let mut parents = BTreeMap::new();
    for transaction in transactions {
        let trace = &transaction["contexts"]["trace"];
        parents.insert(text(&trace["span_id"]).unwrap(), text(&trace["parent_span_id"]));
        for span in transaction["spans"].as_array().unwrap() {
            parents.insert(text(&span["span_id"]).unwrap(), text(&span["parent_span_id"]));
        }
    }
    parents
}

#[test]
fn spotlight_has_the_whole_tree_and_the_error_in_it() {
    let Some(spotlight) = Spotlight::start() else { return };
    let (mut exporter, _) = exporter(&spotlight.dsn(), |_| {});
    let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
    exporter.export(&spans::trace(trace, "INTERNAL"));
    exporter.shutdown(Duration::from_secs(10));
    let transactions = spotlight.wait_for("transaction", 3);
    let parents = parents(&transactions);
    assert_eq!(parents.len(), 5);
    let roots = parents.values().filter(|p| p.is_none()).count();
    assert_eq!(roots, 1);
    assert!(
        parents.values().flatten().all(|p| parents.contains_key(p)),
        "{parents:?}"
    );
    let events = spotlight.wait_for("event", 2);
    for event in &events {
        assert_eq!(
            event["contexts"]["trace"]["trace_id"],
            "0af7651916cd43dd8448eb211c80319c"
        );
    }
    // A picture of the tree: SPOTLIGHT_PICTURE=/tmp/tree.png cargo test -p tracewire --test sentry spotlight
    if let Ok(file) = std::env::var("SPOTLIGHT_PICTURE") {
        let page = format!("http://127.0.0.1:{}/telemetry/traces/{trace:032x}", spotlight.port);
        let made = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--hide-scrollbars",
                "--window-size=1400,900",
            ])
            .arg("--virtual-time-budget=15000")
            .arg(format!("--screenshot={file}"))
            .arg(page)
            .status();
        assert!(made.unwrap().success(), "Debian: apt-get install chromium");
    }
    // To look at the page while it is there: SPOTLIGHT_KEEP=seconds.
    if let Ok(seconds) = std::env::var("SPOTLIGHT_KEEP") {
        eprintln!("http://127.0.0.1:{}/", spotlight.port);
        std::thread::sleep(Duration::from_secs(seconds.parse().unwrap()));
    }
}
