//! Shows how far a task is: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Something that takes a while.
pub struct Step {
    what: String,
    since: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Starts it; `what` is a short noun phrase.
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed:.dim} {wide_msg:.dim}");
            let bar = ProgressBar::new_spinner().with_prefix(what.clone());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("{what} …");
        }
        Step {
            what,
            since: Instant::now(),
            bar,
        }
    }

    /// What it is.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The newest line of its output.
    pub fn line(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(line.trim().to_owned());
        }
    }

    /// Ends it well.
    pub fn done(self) {
        let message = format!("{}: done in {:.1} s", self.what, self.since.elapsed().as_secs_f32());
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{message}");
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
