//! Settings of the Sentry exporter: `SENTRY_*`, flags for all but the DSN, and a
//! file for it. Command lines are public (`/proc/PID/cmdline`), so a DSN never
//! stands in one; nor is it repeated in a message.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use globset::GlobBuilder;
use tracewire_common::sampling::Threshold;

use super::{Environment, Error, Given, LogFlags, sampling};
use crate::export::sentry::Config;
use crate::export::sentry::config::{Project, Secret};

/// How traces reach Sentry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// As transactions, in envelopes
    #[default]
    Envelope,
    /// By Sentry's OTLP endpoint
    Otlp,
    /// Not at all: issues only
    None,
}

/// Sentry, besides its DSN.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Sentry")]
pub struct SentryFlags {
    /// File with the DSN, or with lines of a service name (GLOB) and its DSN. Also
    /// SENTRY_DSN_FILE; or SENTRY_DSN with the DSN itself
    #[arg(long, value_name = "FILE")]
    pub sentry_dsn_file: Option<PathBuf>,
    /// Also SENTRY_ENVIRONMENT; default: deployment.environment.name of each process, or production
    #[arg(long, value_name = "NAME")]
    pub sentry_environment: Option<String>,
    /// Also SENTRY_RELEASE; default: name and version of each service
    #[arg(long, value_name = "RELEASE")]
    pub sentry_release: Option<String>,
    /// Share of the sampled traces that Sentry gets, 0 to 1. Also SENTRY_TRACES_SAMPLE_RATE
    #[arg(long, value_name = "SHARE")]
    pub sentry_traces_sample_rate: Option<f64>,
    /// Trust this certificate authority (PEM) instead of the well-known ones
    #[arg(long, value_name = "FILE")]
    pub sentry_certificate: Option<PathBuf>,
    /// How traces reach Sentry; issues are always sent in envelopes
    #[arg(long, value_enum, value_name = "WAY")]
    pub sentry_traces: Option<Way>,
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Sentry {
    /// The exporter's settings.
    pub config: Config,
    /// How traces go.
    pub way: Way,
    /// Authority that is trusted in place of the well-known ones.
    pub certificate: Option<Given<PathBuf>>,
}

/// Of this process's environment and `flags`, with what was ignored and why; `None`: Sentry is off.
///
/// # Errors
/// Names the flag or variable that can't be obeyed.
pub fn load(flags: &SentryFlags, common: &LogFlags) -> Result<(Option<Sentry>, Vec<String>), Error> {
    let mut env = Environment::of_process(common)?;
    let mut sentry = read(flags, &mut env)?;
    if let Some(sentry) = &mut sentry {
        sentry.config.instance = Some(instance(Path::new("/etc/machine-id")));
    }
    Ok((sentry, env.into_warnings()))
}

/// The same of an environment that `env` answers for, without the identity of this installation.
///
/// # Errors
/// As there.
pub fn read(flags: &SentryFlags, env: &mut Environment<'_>) -> Result<Option<Sentry>, Error> {
    let mut config = Config::default();
    if let Some(given) = env.text(&["SENTRY_DSN"])? {
        let secret = Secret::parse(&given.value).map_err(|problem| Error::new(given.source, problem))?;
        config.default = Some(secret);
    }
    let file = match &flags.sentry_dsn_file {
        Some(path) => Some((path.clone(), "--sentry-dsn-file")),
        None => env
            .text(&["SENTRY_DSN_FILE"])?
            .map(|g| (PathBuf::from(g.value), g.source)),
    };
    if let Some((path, source)) = file {
        dsns(&path, source, env, &mut config)?;
    }
    config.environment = match &flags.sentry_environment {
        Some(name) => Some(name.clone()),
        None => env.text(&["SENTRY_ENVIRONMENT"])?.map(|g| g.value),
    };
    config.release = match &flags.sentry_release {
        Some(name) => Some(name.clone()),
        None => env.text(&["SENTRY_RELEASE"])?.map(|g| g.value),
    };
    config.share = match flags.sentry_traces_sample_rate {
        Some(rate) => sampling::share(rate, "--sentry-traces-sample-rate")?,
        None => sampling::number(env, "SENTRY_TRACES_SAMPLE_RATE")?.unwrap_or(Threshold::ALWAYS),
    };
    let way = match flags.sentry_traces {
        Some(way) => way,
        None => env
            .word(&["TRACEWIRE_SENTRY_TRACES"], |word| Way::from_str(word, true).ok())
            .map(|g| g.value)
            .unwrap_or_default(),
    };
    config.transactions = way == Way::Envelope;
    if way == Way::Otlp && !config.projects.is_empty() {
        return Err(Error::new(
            "--sentry-traces",
            "otlp goes to one project; services with a DSN of their own need envelope",
        ));
    }
    let certificate = match &flags.sentry_certificate {
        Some(path) => Some(Given {
            value: path.clone(),
            source: "--sentry-certificate",
        }),
        None => env.text(&["TRACEWIRE_SENTRY_CERTIFICATE"])?.map(|given| Given {
            value: given.value.into(),
            source: given.source,
        }),
    };
    Ok(config.is_on().then_some(Sentry {
        config,
        way,
        certificate,
    }))
}

/// Reads a file of DSNs: `DSN`, or `GLOB DSN`, one a line, `#` begins a comment.
fn dsns(path: &Path, source: &'static str, env: &mut Environment<'_>, config: &mut Config) -> Result<(), Error> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| Error::new(source, format_args!("{shown}: {e}")))?;
    if std::fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o004 != 0) {
        env.warn(source, format_args!("{shown} can be read by everybody"));
    }
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |problem: &dyn std::fmt::Display| {
            Error::new(source, format_args!("{shown}, line {}: {problem}", number + 1))
        };
        let (services, dsn) = match line.split_once(char::is_whitespace) {
            Some((services, dsn)) => (Some(services), dsn),
            None => (None, line),
        };
        let dsn = Secret::parse(dsn).map_err(|problem| wrong(&problem))?;
        match services {
            Some(glob) => {
                let services = GlobBuilder::new(glob)
                    .literal_separator(true)
                    .build()
                    .map_err(|e| wrong(&e))?
                    .compile_matcher();
                config.projects.push(Project { services, dsn });
            }
            None => config.default = Some(dsn),
        }
    }
    Ok(())
}

/// An identity of this installation that tells nothing of the machine: a digest of its id.
/// Where there is none, random for this run.
fn instance(machine_id: &Path) -> String {
    let id = std::fs::read(machine_id).unwrap_or_default();
    let id = id.trim_ascii();
    let digest = (!id.is_empty()).then(|| {
        let rustls::SupportedCipherSuite::Tls13(suite) = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256
        else {
            return None;
        };
        let text = [b"tracewire instance ".as_slice(), id].concat();
        let digest = suite.common.hash_provider.hash(&text);
        digest.as_ref().first_chunk::<16>().copied()
    });
    let bytes: [u8; 16] = digest.flatten().unwrap_or_else(rand::random);
    format!("{:032x}", u128::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::discover::Resource;

    const DSN: &str = "https://0123456789abcdef@o1.ingest.sentry.io/42";

    fn given(flags: &SentryFlags, env: &[(&str, &str)]) -> (Result<Option<Sentry>, Error>, Vec<String>) {
        let mut environment = Environment::new(|name| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into()));
        let sentry = read(flags, &mut environment);
        (sentry, environment.into_warnings())
    }

    fn of_env(env: &[(&str, &str)]) -> Option<Sentry> {
        given(&SentryFlags::default(), env).0.unwrap()
    }

    #[test]
    fn without_a_dsn_sentry_is_off_and_the_rest_is_not_an_error() {
        assert!(of_env(&[]).is_none());
        assert!(of_env(&[("SENTRY_DSN", ""), ("SENTRY_ENVIRONMENT", "prod")]).is_none());
    }

    #[test]
    fn the_standard_variables() {
        let sentry = of_env(&[
            ("SENTRY_DSN", DSN),
            ("SENTRY_ENVIRONMENT", "prod"),
            ("SENTRY_RELEASE", "shop@1.2.3"),
            ("SENTRY_TRACES_SAMPLE_RATE", "0.25"),
        ])
        .unwrap();
        assert_eq!(sentry.config.environment.as_deref(), Some("prod"));
        assert_eq!(sentry.config.release.as_deref(), Some("shop@1.2.3"));
        assert_eq!(sentry.config.share.ratio(), 0.25);
        assert!(sentry.config.transactions);
    }

    #[test]
    fn a_dsn_is_never_shown() {
        let sentry = of_env(&[("SENTRY_DSN", DSN)]).unwrap();
        assert!(!format!("{sentry:?}").contains("0123456789abcdef"));
        for bad in [
            "https://0123456789abcdef@o1.ingest.sentry.io",
            "0123456789abcdef",
            "ftp://0123456789abcdef@h/1",
        ] {
            let error = given(&SentryFlags::default(), &[("SENTRY_DSN", bad)]).0.unwrap_err();
            assert_eq!(error.setting, "SENTRY_DSN");
            assert!(!error.to_string().contains("0123456789abcdef"), "{error}");
        }
    }

    #[test]
    fn a_file_may_name_a_project_for_each_service() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dsn");
        let text = "# ours\npay* https://a@h/1\nshop/* https://b@h/2\n\nhttps://c@h/3\n";
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let flags = SentryFlags {
            sentry_dsn_file: Some(file.clone()),
            ..SentryFlags::default()
        };
        let (sentry, warnings) = given(&flags, &[]);
        let config = sentry.unwrap().unwrap().config;
        assert!(warnings.is_empty());
        let project = |name: &str, namespace: Option<&str>| {
            let resource = Resource {
                service_name: name.into(),
                attributes: namespace
                    .map(|n| ("service.namespace".into(), crate::attribute::Value::Shared(n.into())))
                    .into_iter()
                    .collect(),
                ..Resource::default()
            };
            config.project(&resource).unwrap().dsn().public_key().to_owned()
        };
        assert_eq!(project("payments", None), "a");
        assert_eq!(project("cart", Some("shop")), "b");
        assert_eq!(project("cart", None), "c");

        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let (_, warnings) = given(&flags, &[]);
        assert!(warnings[0].contains("everybody"), "{warnings:?}");
        std::fs::write(&file, "pay* https://a@h/1\nnonsense-secret").unwrap();
        let error = given(&flags, &[]).0.unwrap_err().to_string();
        assert!(
            error.contains("line 2") && !error.contains("nonsense-secret"),
            "{error}"
        );
    }

    #[test]
    fn an_installation_is_the_same_each_time_and_tells_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("machine-id");
        std::fs::write(&file, "deadbeefdeadbeefdeadbeefdeadbeef\n").unwrap();
        let first = instance(&file);
        assert_eq!(first, instance(&file));
        assert!(first.len() == 32 && !first.contains("deadbeef"), "{first}");
        let missing = folder.path().join("none");
        assert_ne!(instance(&missing), instance(&missing));
    }
}
