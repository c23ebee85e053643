//! The tree of one trace: who called whom, as lines.

use std::fmt::Write as _;

use rustc_hash::FxHashMap;

use super::Look;
use super::line::{self, Columns, duration};
use crate::span::{Span, SpanId};

/// Appends the tree of `spans`, which are of one trace, and an empty line.
pub fn draw(out: &mut String, spans: &[Span], look: &Look) {
    let Some(first) = spans.first() else { return };
    let start = spans.iter().map(|s| s.start_unix_ns).min().unwrap_or_default();
    let end = spans.iter().map(|s| s.end_unix_ns).max().unwrap_or_default();
    let lines = order(spans);
    let label = lines
        .iter()
        .map(|(span, prefix, _)| line::label_width(span, prefix))
        .max()
        .unwrap_or_default();
    let columns = Columns::new(look, label, start, end);
    let mut head = "trace ".to_owned();
    for byte in first.context.trace_id {
        // Writing to a string does not fail.
        let _ = write!(head, "{byte:02x}");
    }
    let count = spans.len();
    let noun = if count == 1 { "span" } else { "spans" };
    let details = [
        line::time_of_day(start),
        duration(end.saturating_sub(start)),
        format!("{count} {noun}"),
    ];
    // As much of it as there is room for: the id is what a person copies.
    for detail in details {
        if head.chars().count() + 2 + detail.chars().count() > look.width {
            break;
        }
        head.push_str("  ");
        head.push_str(&detail);
    }
    out.push_str(&head);
    out.push('\n');
    for (span, prefix, below) in lines {
        columns.span(out, span, &prefix, &below);
    }
    out.push('\n');
}

/// Spans from the top down, each with the box lines left of it and those for lines below
/// it. Loops of parents, which only broken ids make, are cut.
fn order(spans: &[Span]) -> Vec<(&Span, String, String)> {
    let mut by_id: FxHashMap<SpanId, usize> = FxHashMap::default();
    for (i, span) in spans.iter().enumerate() {
        by_id.entry(span.context.span_id).or_insert(i);
    }
    let mut children: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
    let mut tops = Vec::new();
    for (i, span) in spans.iter().enumerate() {
        match span.context.parent.and_then(|p| by_id.get(&p)) {
            Some(parent) if *parent != i => children.entry(*parent).or_default().push(i),
            _ => tops.push(i),
        }
    }
    let by_start = |i: &usize| spans.get(*i).map(|s| (s.start_unix_ns, *i));
    let mut seen = vec![false; spans.len()];
    let mut lines = Vec::with_capacity(spans.len());
    // Whatever hangs on no top is in a loop: each such span is tried as a top, too.
    tops.sort_unstable_by_key(by_start);
    let any: Vec<usize> = (0..spans.len()).collect();
    for top in tops.into_iter().chain(any) {
        // (span, what its box lines continue, whether it is its parent's last child; None for a top)
        let mut stack = vec![(top, String::new(), None)];
        while let Some((i, outer, last)) = stack.pop() {
            let (Some(span), Some(seen)) = (spans.get(i), seen.get_mut(i)) else {
                continue;
            };
            if std::mem::replace(seen, true) {
                continue;
            }
            let (prefix, mut below) = match last {
                None => (outer.clone(), outer),
                Some(false) => (format!("{outer}├─"), format!("{outer}│ ")),
                Some(true) => (format!("{outer}╰─"), format!("{outer}  ")),
            };
            let mut under = children.remove(&i).unwrap_or_default();
            under.sort_unstable_by_key(by_start);
            let inner = below.clone();
            if !under.is_empty() {
                below.push('│');
            }
            lines.push((span, prefix, below));
            for (n, child) in under.into_iter().rev().enumerate() {
                stack.push((child, inner.clone(), Some(n == 0)));
            }
        }
    }
    lines
}
