//! What the agent is told: flags first, then the environment, then the file, then
//! defaults; all of it listed in [`settings`].
//! Environment and file are read here and nowhere else. Refuses what it can't obey
//! instead of guessing, and never shows a secret.
//!
//! Rules of the OpenTelemetry specification (`sdk-environment-variables.md`):
//! an empty variable is an unset one, an unknown word is warned about and
//! ignored, durations are milliseconds. Stricter than it in one thing: a
//! number that is none is an error, for a typing error should not silently
//! become a default.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

mod answered;
mod declarative;
mod environment;
pub mod example;
pub mod file;
mod flags;
pub mod injection;
mod limits;
pub mod metrics;
mod otlp;
pub mod propagation;
pub mod resource;
pub mod sampling;
pub mod sentry;
pub mod settings;
pub mod show;

use crate::discover::resource as discovered;
use crate::export::otlp::rotation::Rotation;
use crate::propagation::identity::Propagators;
use crate::span::limits::Limits;

pub use environment::Environment;
pub use flags::{ExportFlags, Links, LogFlags, Output};
pub use injection::InjectionFlags;
pub use otlp::{Compression, Endpoint, Headers, Otlp, Protocol};
pub use sampling::SamplingFlags;
pub use sentry::SentryFlags;

/// A setting and where it was given, for messages that name what to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given<T> {
    /// The setting.
    pub value: T,
    /// Flag or variable that gave it, or `default`.
    pub source: &'static str,
}

impl<T> Given<T> {
    /// A setting nobody gave.
    pub fn by_default(value: T) -> Self {
        Given {
            value,
            source: "default",
        }
    }

    /// Whether somebody gave it.
    pub fn is_explicit(&self) -> bool {
        self.source != "default"
    }
}

/// A setting that can't be obeyed. Its text names the flag or variable and shows no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct Error {
    /// Flag or variable.
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Error {
    /// `problem` with `setting`.
    pub fn new(setting: &'static str, problem: impl fmt::Display) -> Self {
        Error {
            setting,
            problem: problem.to_string(),
        }
    }
}

/// Everything that the exporters and the agent's own log are told.
#[derive(Clone, Debug)]
pub struct Config {
    /// What standard output shows; `None` if nobody said, then the command decides.
    pub output: Option<Output>,
    /// OTLP export, if it is on: an endpoint was given, or `OTEL_TRACES_EXPORTER` names `otlp`.
    pub otlp: Option<Otlp>,
    /// File that spans are appended to as OTLP JSON.
    pub file: Option<Given<PathBuf>>,
    /// When that file is put aside.
    pub rotation: Rotation,
    /// How spans are queued and batched for OTLP.
    pub batch: Batch,
    /// Where request metrics go by OTLP, and whether somebody asked for it in so many words.
    pub metrics: (Option<metrics::Config>, bool),
    /// Address of the health page.
    pub health: Option<Given<String>>,
    /// Whether anything is observed at all: `TRACING_ENABLED`, `OTEL_SDK_DISABLED`.
    pub enabled: Given<bool>,
    /// What all resources say.
    pub resource: discovered::Config,
    /// How much a span may hold, `OTEL_ATTRIBUTE_*` and `OTEL_SPAN_*`.
    pub limits: Limits,
    /// The least severe of the agent's own messages that is shown.
    pub log_level: LogLevel,
    /// `OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS`: replaces the known HTTP methods (case-sensitive).
    pub http_known_methods: Option<Vec<String>>,
    /// Which fields of requests are read for a parent.
    pub propagators: Propagators,
    /// What was ignored and why; to be logged once the log is set up.
    pub warnings: Vec<String>,
}

/// Batching, `OTEL_BSP_*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Most spans held; what comes on top is dropped and counted. `OTEL_BSP_MAX_QUEUE_SIZE`, 2048.
    pub max_queue_size: usize,
    /// Most spans in one request. `OTEL_BSP_MAX_EXPORT_BATCH_SIZE`, 512.
    pub max_export_batch_size: usize,
    /// Longest wait for a batch to fill. `OTEL_BSP_SCHEDULE_DELAY`, 5 s.
    pub schedule_delay: Duration,
    /// Longest time that one batch is tried for, retries included. `OTEL_BSP_EXPORT_TIMEOUT`, 30 s.
    pub export_timeout: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        Batch {
            max_queue_size: 2048,
            max_export_batch_size: 512,
            schedule_delay: Duration::from_secs(5),
            export_timeout: Duration::from_secs(30),
        }
    }
}

/// Severity of the agent's own messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// Nothing at all.
    Off,
    /// Something was lost or can't work.
    Error,
    /// Something is odd.
    Warn,
    /// What happens, in few words.
    #[default]
    Info,
    /// For those who debug the agent.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    fn of_word(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "off" | "none" => LogLevel::Off,
            "error" | "fatal" => LogLevel::Error,
            "warn" | "warning" => LogLevel::Warn,
            "info" => LogLevel::Info,
            "debug" => LogLevel::Debug,
            "trace" | "all" | "verbose" => LogLevel::Trace,
            _ => return None,
        })
    }
}

impl Config {
    /// Of this process's environment and `flags`.
    ///
    /// # Errors
    /// The first setting that can't be obeyed.
    pub fn load(export: &ExportFlags, log: &LogFlags) -> Result<Self, Error> {
        Self::of_environment(export, log, Environment::of_process(log)?)
    }

    /// Of `flags` and an environment that `read` answers for.
    ///
    /// # Errors
    /// The first setting that can't be obeyed.
    pub fn of(export: &ExportFlags, log: &LogFlags, read: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        Self::of_environment(export, log, Environment::new(read))
    }

    /// Of `flags`, an environment and the files below it.
    ///
    /// # Errors
    /// The first setting that can't be obeyed.
    pub fn of_environment(export: &ExportFlags, log: &LogFlags, mut env: Environment<'_>) -> Result<Self, Error> {
        let chosen = Chosen::read(&mut env);
        let batch = Batch::read(&mut env)?;
        let otlp = Otlp::read(export, &mut env)?;
        let log_level = match log.log_level {
            Some(level) => level,
            None => env
                .word(&["OTEL_LOG_LEVEL"], LogLevel::of_word)
                .map(|g| g.value)
                .unwrap_or_default(),
        };
        let limits = limits::read(&env)?;
        let http_known_methods = env.text(&["OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS"])?.map(|g| {
            g.value
                .split(',')
                .map(|m| m.trim().to_owned())
                .filter(|m| !m.is_empty())
                .collect()
        });

        let by_flag = otlp.endpoint.as_ref().is_some_and(|e| e.source == "--otlp-endpoint");
        let otlp_on = match &chosen {
            _ if by_flag => true,
            Some(chosen) => chosen.otlp,
            None => otlp.endpoint.is_some(),
        };
        let output = export
            .output
            .or(env.word(&["TRACEWIRE_OUTPUT"], Output::of_word).map(|g| g.value))
            .or(chosen.map(|c| if c.console { Output::Tree } else { Output::None }));
        let propagators = propagation::read(&mut env)?;
        answered::warn(&mut env);
        Ok(Config {
            output,
            otlp: otlp_on.then_some(otlp),
            batch,
            metrics: self::metrics::read(export, &mut env)?,
            health: match &export.health_listen {
                Some(address) => Some(Given {
                    value: address.clone(),
                    source: "--health-listen",
                }),
                None => env.text(&["TRACEWIRE_HEALTH_LISTEN"])?,
            },
            file: match &export.otlp_file {
                Some(path) => Some(Given {
                    value: path.clone(),
                    source: "--otlp-file",
                }),
                None => env.text(&["TRACEWIRE_OTLP_FILE"])?.map(|g| Given {
                    value: g.value.into(),
                    source: g.source,
                }),
            },
            rotation: Rotation {
                size: env.size("TRACEWIRE_OTLP_FILE_MAX_SIZE")?.map(|size| size as u64),
                keep: env
                    .count(&["TRACEWIRE_OTLP_FILE_KEEP"])?
                    .unwrap_or(Rotation::default().keep),
            },
            enabled: enabled(&mut env)?,
            resource: self::resource::read(&env)?,
            limits,
            log_level,
            http_known_methods,
            propagators,
            warnings: env.into_warnings(),
        })
    }
}

/// `TRACING_ENABLED` and, of less weight, `OTEL_SDK_DISABLED`.
fn enabled(env: &mut Environment<'_>) -> Result<Given<bool>, Error> {
    const NAME: &str = "TRACING_ENABLED";
    if let Some(Given { value, source }) = env.text(&[NAME])? {
        // Not `true if true`: who mistypes it must not lose all traces, or get them against their will.
        return match value.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Given { value: true, source }),
            "false" | "0" | "no" | "off" => Ok(Given { value: false, source }),
            _ => Err(Error::new(source, format_args!("`{value}` is not true or false"))),
        };
    }
    Ok(match env.boolean(&["OTEL_SDK_DISABLED"]) {
        Some(disabled) => Given {
            value: !disabled.value,
            source: disabled.source,
        },
        None => Given::by_default(true),
    })
}

/// `OTEL_TRACES_EXPORTER`, a list as the specification allows.
struct Chosen {
    otlp: bool,
    console: bool,
}

impl Chosen {
    fn read(env: &mut Environment<'_>) -> Option<Self> {
        const NAME: &str = "OTEL_TRACES_EXPORTER";
        let given = env.text(&[NAME]).ok().flatten()?;
        let mut chosen = Chosen {
            otlp: false,
            console: false,
        };
        let mut known = false;
        for word in given.value.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match word.to_ascii_lowercase().as_str() {
                "otlp" => chosen.otlp = true,
                "console" => chosen.console = true,
                "none" => {}
                _ => {
                    env.warn(
                        NAME,
                        format_args!("`{word}` is ignored: not one of otlp, console, none"),
                    );
                    continue;
                }
            }
            known = true;
        }
        known.then_some(chosen)
    }
}

impl Batch {
    fn read(env: &mut Environment<'_>) -> Result<Self, Error> {
        let default = Batch::default();
        let max_queue_size = env.size("OTEL_BSP_MAX_QUEUE_SIZE")?.unwrap_or(default.max_queue_size);
        let mut max_export_batch_size = env
            .size("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")?
            .unwrap_or(default.max_export_batch_size);
        if max_export_batch_size > max_queue_size {
            env.warn(
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
                format_args!("{max_export_batch_size} is more than the queue holds; {max_queue_size} is used"),
            );
            max_export_batch_size = max_queue_size;
        }
        Ok(Batch {
            max_queue_size,
            max_export_batch_size,
            schedule_delay: env
                .milliseconds(&["OTEL_BSP_SCHEDULE_DELAY"])?
                .unwrap_or(default.schedule_delay),
            export_timeout: env
                .milliseconds(&["OTEL_BSP_EXPORT_TIMEOUT"])?
                .unwrap_or(default.export_timeout),
        })
    }
}

#[cfg(test)]
mod tests;
