//! The agent's log on standard error. A message that repeats is cut short and
//! its repeats are counted. Libraries may only warn: their lower levels print
//! header fields, and those hold tokens.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogLevel;

/// Messages from one place in the code that are shown in one [`WINDOW`].
const BURST: u32 = 5;
/// Time after which a place may speak again.
const WINDOW: Duration = Duration::from_secs(10);

/// Sends this process's log to standard error, from `level` upwards. The first call
/// wins; later ones change nothing.
pub fn init(level: LogLevel) {
    let colours = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let _ = tracing::subscriber::set_global_default(subscriber(level, colours, io::stderr));
}

fn subscriber<W>(level: LogLevel, colours: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let own = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let others = own.min(LevelFilter::WARN);
    let targets = Targets::new().with_default(others).with_target("tracewire", own);
    let repeats = Arc::new(Repeats::default());
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(colours)
        .with_writer(writer)
        .event_format(Short {
            repeats: repeats.clone(),
            inner: format(own),
        })
        .with_filter(Unrepeated(repeats))
        .with_filter(targets);
    tracing_subscriber::registry().with(layer)
}

type Inner = Format<tracing_subscriber::fmt::format::Full, tracing_subscriber::fmt::time::SystemTime>;

fn format(level: LevelFilter) -> Inner {
    tracing_subscriber::fmt::format().with_target(level >= LevelFilter::DEBUG)
}

/// What each place in the code said lately.
#[derive(Default)]
struct Repeats(Mutex<HashMap<Identifier, Place>>);

struct Place {
    since: Instant,
    shown: u32,
    hidden: u64,
    /// Hidden ones of windows gone by, not yet told.
    untold: u64,
}

impl Repeats {
    /// Whether an event of that place may be shown at `now`.
    fn admit(&self, place: Identifier, now: Instant) -> bool {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(place).or_insert(Place {
            since: now,
            shown: 0,
            hidden: 0,
            untold: 0,
        });
        if now.duration_since(place.since) >= WINDOW {
            place.untold += place.hidden;
            (place.since, place.shown, place.hidden) = (now, 0, 0);
        }
        if place.shown < BURST {
            place.shown += 1;
            true
        } else {
            place.hidden += 1;
            false
        }
    }

    /// Number of hidden events of that place that nobody was told of; tells it once.
    fn untold(&self, place: &Identifier) -> u64 {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.get_mut(place).map_or(0, |p| std::mem::take(&mut p.untold))
    }
}

struct Unrepeated(Arc<Repeats>);

impl<S> Filter<S> for Unrepeated {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.0.admit(event.metadata().callsite(), Instant::now())
    }
}

struct Short {
    repeats: Arc<Repeats>,
    inner: Inner,
}

impl<S> FormatEvent<S, DefaultFields> for Short
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    DefaultFields: for<'w> FormatFields<'w>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, DefaultFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let untold = self.repeats.untold(&event.metadata().callsite());
        if untold > 0 {
            writeln!(writer, "({untold} more like the next were not shown)")?;
        }
        self.inner.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(level: LogLevel, speak: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        tracing::subscriber::with_default(subscriber(level, false, move || writer.clone()), speak);
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_repeating_message_is_cut_short() {
        let text = said(LogLevel::Info, || {
            for i in 0..100 {
                tracing::warn!("collector unreachable, try {i}");
            }
            tracing::warn!("another matter");
        });
        assert_eq!(text.matches("collector unreachable").count(), BURST as usize);
        assert_eq!(text.matches("another matter").count(), 1);
    }

    #[test]
    fn after_a_while_the_place_speaks_again_and_tells_what_was_hidden() {
        let repeats = Repeats::default();
        struct Site;
        impl tracing::Callsite for Site {
            fn set_interest(&self, _: tracing::subscriber::Interest) {}
            fn metadata(&self) -> &Metadata<'_> {
                unreachable!("not asked for")
            }
        }
        static SITE: Site = Site;
        let place = Identifier(&SITE);
        let start = Instant::now();
        let shown = (0..20).filter(|_| repeats.admit(place.clone(), start)).count();
        assert_eq!((shown, repeats.untold(&place)), (BURST as usize, 0));
        assert!(repeats.admit(place.clone(), start + WINDOW));
        assert_eq!(repeats.untold(&place), 20 - u64::from(BURST));
        assert_eq!(repeats.untold(&place), 0);
    }

    #[test]
    fn libraries_keep_quiet_even_when_the_agent_is_debugged() {
        let text = said(LogLevel::Trace, || {
            tracing::debug!(target: "h2::codec", "authorization: Bearer secret");
            tracing::warn!(target: "hyper", "odd");
            tracing::trace!(target: "tracewire::export", "fine detail");
        });
        assert!(
            !text.contains("secret") && text.contains("odd") && text.contains("fine detail"),
            "{text}"
        );
    }

    #[test]
    fn off_is_silent() {
        assert_eq!(said(LogLevel::Off, || tracing::error!("lost")), "");
    }
}
