//! One line a span: what it is, when it was, how it ended. Text from the wire
//! is shown without control characters: it must not drive the terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::{Look, NARROW};
use crate::attribute::Value;
use crate::span::{Kind, Span, Status};

/// Columns of a duration.
const DURATION: usize = 8;

/// Widest bar, columns.
const MAX_BAR: usize = 60;

const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const ODD: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const CLIENT: Style = AnsiColor::Cyan.on_default();
const SERVER: Style = AnsiColor::Blue.on_default();

/// The layout of one trace.
pub struct Columns {
    label: usize,
    bar: usize,
    status: usize,
    width: usize,
    start: u64,
    length: u64,
    colours: bool,
}

impl Columns {
    /// For a trace from `start` to `end`, unix ns, whose widest label is `label` columns.
    pub fn new(look: &Look, label: usize, start: u64, end: u64) -> Self {
        let status = (look.width / 8).max(9);
        let free = look.width.saturating_sub(DURATION + status + 3);
        let bar = match look.width {
            // What it was is more than when it was.
            ..NARROW => 0,
            _ => free.saturating_sub(label).clamp((free / 4).max(8), MAX_BAR),
        };
        Columns {
            status,
            label: free.saturating_sub(bar).min(label),
            bar,
            width: look.width,
            start,
            length: end.saturating_sub(start).max(1),
            colours: look.colours,
        }
    }

    /// Appends the line of `span`: `prefix` holds the box lines left of it, `below` those
    /// of lines between it and its children.
    pub fn span(&self, out: &mut String, span: &Span, prefix: &str, below: &str) {
        let (arrow, colour) = match span.kind {
            Kind::Client => ("→", CLIENT),
            Kind::Server => ("◂", SERVER),
        };
        let service = clean(&span.resource.service_name);
        let name = clean(&span.name);
        let failed = matches!(span.status, Status::Error(_));
        let code = code(span);
        let status = match &code {
            Some(code) if width(code) <= self.status => code,
            Some(_) | None if failed => "ERROR",
            Some(code) => code,
            None => "-",
        };
        let style = match status {
            _ if failed => BAD,
            "OK" => GOOD,
            code if code.starts_with(['1', '2', '3']) => GOOD,
            "-" => DIM,
            _ => ODD,
        };

        // The service is kept longest: without it the name says little.
        let room = self.label.saturating_sub(width(prefix) + 2);
        let service = fit(&service, room);
        let name = fit(&name, room.saturating_sub(width(&service) + 1));
        let used = width(prefix) + 2 + width(&service) + 1 + width(&name);
        self.styled(out, DIM, prefix);
        self.styled(out, colour, arrow);
        let _ = write!(out, " {service} ");
        self.styled(out, Style::new().bold(), &name);
        let _ = write!(out, "{:1$}", "", self.label.saturating_sub(used));
        if self.bar > 0 {
            out.push(' ');
            self.styled(out, if failed { BAD } else { colour }, &self.bar(span));
        }
        let length = duration(span.end_unix_ns.saturating_sub(span.start_unix_ns));
        let _ = write!(out, " {length:>DURATION$} ");
        self.styled(out, style, status);
        out.push('\n');

        let detail = match (&span.status, &code) {
            (Status::Error(Some(message)), Some(code)) if !message.is_empty() && status != code => {
                format!("{code}: {message}")
            }
            (Status::Error(Some(message)), _) if !message.is_empty() => message.to_string(),
            (Status::Error(_), Some(code)) if status != code => code.to_string(),
            _ => return,
        };
        self.styled(out, DIM, below);
        let indent = (width(prefix) + 2).saturating_sub(width(below));
        let _ = write!(out, "{:indent$}", "");
        let room = self.width.saturating_sub(width(below) + indent);
        self.styled(out, BAD, &fit(&clean(&detail), room));
        out.push('\n');
    }

    /// Where the span lies in the trace, in half columns.
    fn bar(&self, span: &Span) -> String {
        let halves = 2 * self.bar as u64;
        let scale = |time: u64| {
            let part = u128::from(time.saturating_sub(self.start)) * u128::from(halves);
            // Rounded; at most `halves` since the trace spans all its spans.
            u64::try_from((part + u128::from(self.length / 2)) / u128::from(self.length)).unwrap_or(halves)
        };
        let from = scale(span.start_unix_ns).min(halves - 1);
        let to = scale(span.end_unix_ns).clamp(from + 1, halves);
        (0..halves)
            .step_by(2)
            .map(
                |half| match ((from..to).contains(&half), (from..to).contains(&(half + 1))) {
                    (true, true) => '━',
                    (true, false) => '╸',
                    (false, true) => '╺',
                    (false, false) => ' ',
                },
            )
            .collect()
    }

    fn styled(&self, out: &mut String, style: Style, text: &str) {
        if self.colours && !text.trim().is_empty() {
            let _ = write!(out, "{style}{text}{style:#}");
        } else {
            out.push_str(text);
        }
    }
}

/// Columns of a label that is not cut.
pub fn label_width(span: &Span, prefix: &str) -> usize {
    width(prefix) + 2 + width(&span.resource.service_name) + 1 + width(&span.name)
}

/// The status by its name or number, from the span's attributes.
fn code(span: &Span) -> Option<Cow<'_, str>> {
    let names = ["rpc.status_code", "http.response.status_code", "error.type"];
    names
        .into_iter()
        .find_map(|name| span.attribute(name))
        .and_then(|value| match value {
            Value::Int(n) => Some(n.to_string().into()),
            other => other.as_str().map(clean),
        })
}

/// `text` without control characters and those that turn the direction of writing.
pub fn clean(text: &str) -> Cow<'_, str> {
    let unsafe_to_show = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(unsafe_to_show) {
        text.replace(unsafe_to_show, "·").into()
    } else {
        text.into()
    }
}

/// `text` in at most `columns`, its middle left out if need be: both ends of a name tell.
pub fn fit(text: &str, columns: usize) -> Cow<'_, str> {
    let length = width(text);
    if length <= columns {
        return text.into();
    }
    let Some(kept) = columns.checked_sub(1) else {
        return "".into();
    };
    let head = kept / 2;
    let tail = kept - head;
    text.chars()
        .take(head)
        .chain(['…'])
        .chain(text.chars().skip(length - tail))
        .collect::<String>()
        .into()
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// A length of time with three digits.
pub fn duration(ns: u64) -> String {
    let decimals = |value: f64| match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..999_500 => (ns as f64 / 1e3, "µs"),
        999_500..999_500_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    format!("{value:.*} {unit}", decimals(value))
}

/// Time of day in UTC.
pub fn time_of_day(unix_ns: u64) -> String {
    let ms = unix_ns / 1_000_000 % 86_400_000;
    format!(
        "{:02}:{:02}:{:02}.{:03}Z",
        ms / 3_600_000,
        ms / 60_000 % 60,
        ms / 1000 % 60,
        ms % 1000
    )
}
