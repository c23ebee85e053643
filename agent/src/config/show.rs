//! Every setting with its value and who gave it, for `tracewire config`.
//! Secrets are masked.

use super::settings::{SETTINGS, Setting};
use super::{Environment, Error};

/// One setting as it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The setting.
    pub key: &'static str,
    /// Its value as a variable would hold it, masked if it is a secret.
    pub value: String,
    /// Flag, variable, `FILE:LINE`, or `default`.
    pub source: String,
}

/// All settings as they hold; `flag` gives what the command line says of one that has a flag.
///
/// # Errors
/// A variable that is no text.
pub fn all(env: &Environment<'_>, flag: impl Fn(&Setting) -> Option<String>) -> Result<Vec<Shown>, Error> {
    SETTINGS.iter().map(|setting| one(setting, env, &flag)).collect()
}

fn one(
    setting: &'static Setting,
    env: &Environment<'_>,
    flag: &impl Fn(&Setting) -> Option<String>,
) -> Result<Shown, Error> {
    let by_flag = (!setting.flag.is_empty()).then(|| flag(setting)).flatten();
    let (value, source) = match (by_flag, env.text(setting.variables)?) {
        (Some(value), _) => (value, format!("--{}", setting.flag)),
        (None, Some(given)) if given.source == setting.in_file => {
            (given.value, env.file().place(setting.key).unwrap_or_default())
        }
        (None, Some(given)) => (given.value, given.source.to_owned()),
        (None, None) => (setting.default.to_owned(), "default".to_owned()),
    };
    // The standard's word for it is the opposite one.
    let (value, source) = match env.text(&["OTEL_SDK_DISABLED"])? {
        Some(given) if setting.key == "enabled" && source == "default" => {
            let disabled = given.value.trim().eq_ignore_ascii_case("true");
            ((!disabled).to_string(), given.source.to_owned())
        }
        _ => (value, source),
    };
    let value = if setting.secret && source != "default" {
        mask(&value)
    } else {
        crate::privacy::Policy::default().exact(&value).into_owned()
    };
    Ok(Shown {
        key: setting.key,
        value,
        source,
    })
}

/// Names of header fields stay, values don't; of other secrets nothing stays.
fn mask(value: &str) -> String {
    let masked: Vec<String> = value
        .split(',')
        .map(|item| match item.split_once('=') {
            Some((name, _)) if !name.contains(':') => format!("{}=…", name.trim()),
            _ => "…".to_owned(),
        })
        .collect();
    masked.join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::ffi::OsString;

    use super::*;

    fn shown(env: &[(&str, &str)], flags: &[(&str, &str)], file: Option<&str>) -> Vec<Shown> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tw.yaml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let find =
            |list: &[(&str, &str)], name: &str| list.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let read = |name: &str| find(env, name).map(OsString::from);
        let environment = Environment::layered(read, file.map(|_| path.as_path())).unwrap();
        all(&environment, |setting| find(flags, setting.flag)).unwrap()
    }

    fn of<'s>(shown: &'s [Shown], key: &str) -> (&'s str, &'s str) {
        let found = shown.iter().find(|s| s.key == key).unwrap();
        let source = found.source.rsplit('/').next().unwrap();
        (&found.value, source)
    }

    #[test]
    fn a_flag_wins_over_a_variable_over_the_file_and_the_more_specific_name_over_the_other() {
        let all = shown(
            &[
                ("OTEL_LOG_LEVEL", "debug"),
                ("TRACE_ENVIRONMENT", "staging"),
                ("ENVIRONMENT", "production"),
                ("SERVICE_NAME", "shop"),
                ("OTEL_BSP_SCHEDULE_DELAY", ""),
            ],
            &[("log-level", "error")],
            Some("log:\n  level: trace\nbatch:\n  schedule_delay: 7\nenvironment: test\n"),
        );
        for (key, value, source) in [
            ("log.level", "error", "--log-level"),
            ("environment", "staging", "TRACE_ENVIRONMENT"),
            ("service.name", "shop", "SERVICE_NAME"),
            ("batch.schedule_delay", "7", "tw.yaml:4"),
            ("batch.export_timeout", "30000", "default"),
        ] {
            assert_eq!(of(&all, key), (value, source), "{key}");
        }
    }

    #[test]
    fn secrets_are_masked_wherever_they_come_from() {
        let all = shown(
            &[
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2,x=hunter2"),
                ("SENTRY_DSN", "https://hunter2@o1.ingest.sentry.io/7?a=hunter2"),
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://me:hunter2@host"),
            ],
            &[],
            None,
        );
        assert!(all.iter().all(|s| !s.value.contains("hunter2")), "{all:?}");
        assert_eq!(
            of(&all, "otlp.headers"),
            ("authorization=…,x=…", "OTEL_EXPORTER_OTLP_HEADERS")
        );
    }

    #[test]
    fn a_declared_configuration_silences_the_standard_variables_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("otel.yaml");
        std::fs::write(&path, "file_format: 1.0\nlog_level: debug\n").unwrap();
        let read = |name: &str| match name {
            "OTEL_CONFIG_FILE" => Some(path.clone().into_os_string()),
            "OTEL_LOG_LEVEL" | "OTEL_BSP_SCHEDULE_DELAY" => Some("9".into()),
            "TRACE_ENVIRONMENT" => Some("staging".into()),
            _ => None,
        };
        let environment = Environment::layered(read, None).unwrap();
        let all = all(&environment, |_| None).unwrap();
        assert_eq!(of(&all, "log.level").0, "debug");
        assert_eq!(of(&all, "batch.schedule_delay").1, "default");
        assert_eq!(of(&all, "environment").0, "staging");
    }
}
