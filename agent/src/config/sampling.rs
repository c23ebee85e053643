//! Which traces are kept: `--sample-*`, `OTEL_TRACES_SAMPLER(_ARG)`,
//! `TRACE_SAMPLE_RATE`, and else what the command says. Refuses a share that is
//! none; a sampler that this agent does not have is said and not obeyed.

use std::time::Duration;

use clap::ValueEnum as _;
use globset::{GlobBuilder, GlobMatcher};
use tracewire_common::sampling::Threshold;

use super::{Environment, Error, Given, LogFlags};
use crate::propagation::head::{self, Rule, Trust};
use crate::sampler::Config;

const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
const RATE: &str = "TRACE_SAMPLE_RATE";

/// Which traces are kept.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingFlags {
    /// Keep this share of the traces that begin here, 0 to 1; those with an error are kept all
    /// the same. Also OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG, or TRACE_SAMPLE_RATE
    #[arg(long, value_name = "SHARE")]
    pub sample_ratio: Option<f64>,
    /// Another share for some requests: service=GLOB,route=/users/{id},method=GET,ratio=0.5
    /// (any of the first three; the first rule that fits a trace's first request decides)
    #[arg(long, value_name = "RULE")]
    pub sample_rule: Vec<String>,
    /// Keep at most so many traces a second that begin in one service, on average
    #[arg(long, value_name = "N")]
    pub sample_limit: Option<f64>,
    /// Whose sampled flag is obeyed: all, private (callers at private addresses), or observed
    #[arg(long, value_enum, value_name = "WHOSE")]
    pub trust_sampling: Option<Trust>,
    /// Also keep every trace with a span of at least this length, ms
    #[arg(long, value_name = "MS")]
    pub keep_slower_than: Option<u64>,
}

/// The standard samplers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standard {
    parent_based: bool,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    On,
    Off,
    Ratio,
}

impl Standard {
    /// SPEC `sdk-environment-variables.md`, General SDK Configuration.
    fn of_word(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        let (parent_based, kind) = match word.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, word.as_str()),
        };
        let kind = match kind {
            "always_on" => Kind::On,
            "always_off" => Kind::Off,
            "traceidratio" => Kind::Ratio,
            _ => return None,
        };
        Some(Standard { parent_based, kind })
    }
}

/// Of this process's environment and `flags`, with what was ignored and why; `default` is the
/// command's own share.
///
/// # Errors
/// Names the flag or variable that can't be obeyed.
pub fn load(flags: &SamplingFlags, default: f64, common: &LogFlags) -> Result<(Config, Vec<String>), Error> {
    let mut env = Environment::of_process(common)?;
    let config = read(flags, &mut env, default)?;
    Ok((config, env.into_warnings()))
}

/// Reads all of it; `default` is the command's own share.
///
/// # Errors
/// Names the flag or variable that can't be obeyed.
pub fn read(flags: &SamplingFlags, env: &mut Environment<'_>, default: f64) -> Result<Config, Error> {
    let mut config = Config::default();
    match root(flags, env)? {
        Some((given, parent_based)) => {
            config.head.root = given.value;
            config.head.parent_based = parent_based;
            // Whoever turns sampling off by name wants nothing, not even errors.
            config.keep_errors = !(given.source == SAMPLER && given.value == Threshold::NEVER);
        }
        None => config.head.root = Threshold::of_ratio(default),
    }
    if flags.sample_rule.is_empty()
        && let Some(given) = env.list(&["TRACEWIRE_SAMPLE_RULES"])?
    {
        for text in &given.value {
            let rule = rule(text).map_err(|e| Error::new(given.source, e.problem))?;
            config.head.rules.push(rule);
        }
    }
    for text in &flags.sample_rule {
        config.head.rules.push(rule(text)?);
    }
    let limit = match flags.sample_limit {
        Some(limit) => Some(limit),
        None => real(env, "TRACEWIRE_SAMPLE_LIMIT")?,
    };
    if let Some(limit) = limit {
        if !limit.is_finite() || limit <= 0.0 {
            return Err(Error::new("--sample-limit", "must be more than 0"));
        }
        config.head.rate_limit = Some(limit);
    }
    config.head.trust = match flags.trust_sampling {
        Some(trust) => trust,
        None => env
            .word(&["TRACEWIRE_TRUST_SAMPLING"], |word| Trust::from_str(word, true).ok())
            .map_or(Trust::default(), |g| g.value),
    };
    config.keep_slower_than = match flags.keep_slower_than {
        Some(ms) => Some(Duration::from_millis(ms)),
        None => env.milliseconds(&["TRACEWIRE_KEEP_SLOWER_THAN"])?,
    };
    Ok(config)
}

/// The share of roots and whether parents are obeyed, if anybody gave it.
fn root(flags: &SamplingFlags, env: &mut Environment<'_>) -> Result<Option<(Given<Threshold>, bool)>, Error> {
    if let Some(ratio) = flags.sample_ratio {
        let value = share(ratio, "--sample-ratio")?;
        let source = "--sample-ratio";
        return Ok(Some((Given { value, source }, true)));
    }
    let standard = match env.text(&[SAMPLER])? {
        Some(given) => {
            let word = given.value.trim();
            let standard = Standard::of_word(word);
            if standard.is_none() {
                let problem = match word.to_ascii_lowercase().as_str() {
                    "jaeger_remote" | "parentbased_jaeger_remote" | "xray" => "is not supported by this agent",
                    _ => "is not known",
                };
                env.warn(SAMPLER, format_args!("`{word}` {problem} and ignored"));
            }
            standard
        }
        None => None,
    };
    if let Some(standard) = standard {
        let value = match standard.kind {
            Kind::On => Threshold::ALWAYS,
            Kind::Off => Threshold::NEVER,
            // SPEC: 1.0 if unset.
            Kind::Ratio => number(env, ARGUMENT)?.unwrap_or(Threshold::ALWAYS),
        };
        // A share of 0 keeps errors, always_off does not.
        let source = if standard.kind == Kind::Ratio {
            ARGUMENT
        } else {
            SAMPLER
        };
        return Ok(Some((Given { value, source }, standard.parent_based)));
    }
    Ok(number(env, RATE)?.map(|value| (Given { value, source: RATE }, true)))
}

/// A variable that holds a share.
pub(super) fn number(env: &Environment<'_>, name: &'static str) -> Result<Option<Threshold>, Error> {
    let Some(given) = env.text(&[name])? else {
        return Ok(None);
    };
    let ratio = given
        .value
        .trim()
        .parse()
        .map_err(|_| Error::new(name, format_args!("`{}` is not a number", given.value)))?;
    share(ratio, name).map(Some)
}

/// A variable that holds a number.
fn real(env: &Environment<'_>, name: &'static str) -> Result<Option<f64>, Error> {
    let Some(given) = env.text(&[name])? else {
        return Ok(None);
    };
    match given.value.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(Error::new(
            given.source,
            format_args!("`{}` is not a number", given.value),
        )),
    }
}

/// A share as a threshold.
pub(super) fn share(ratio: f64, source: &'static str) -> Result<Threshold, Error> {
    if !(0.0..=1.0).contains(&ratio) {
        return Err(Error::new(source, format_args!("{ratio} is not between 0 and 1")));
    }
    Ok(Threshold::of_ratio(ratio))
}

/// `service=GLOB,route=PATTERN,method=GLOB,ratio=SHARE`.
///
/// # Errors
/// What is wrong with it.
pub fn rule(text: &str) -> Result<Rule, Error> {
    const FLAG: &str = "--sample-rule";
    let wrong = |problem: &dyn std::fmt::Display| Error::new(FLAG, format_args!("`{text}`: {problem}"));
    let mut rule = head::Rule::default();
    for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| wrong(&format_args!("`{pair}` has no `=`")))?;
        match key.trim() {
            "service" => rule.service = Some(glob(value, false).map_err(|e| wrong(&e))?),
            "route" => rule.route = Some(glob(&route(value), true).map_err(|e| wrong(&e))?),
            "method" => rule.method = Some(glob(value, true).map_err(|e| wrong(&e))?),
            "ratio" => {
                let ratio = value
                    .trim()
                    .parse()
                    .map_err(|_| wrong(&format_args!("`{value}` is not a number")))?;
                rule.share = Some(share(ratio, FLAG).map_err(|e| wrong(&e.problem))?);
            }
            other => {
                return Err(wrong(&format_args!(
                    "`{other}` is not one of service, route, method, ratio"
                )));
            }
        }
    }
    if rule.share.is_none() {
        return Err(wrong(&"says no ratio"));
    }
    Ok(rule)
}

/// `{id}` is one segment, `*rest` at the end is all that follows.
fn route(pattern: &str) -> String {
    let mut glob = Vec::new();
    for segment in pattern.trim().split('/') {
        glob.push(if segment.starts_with('{') && segment.ends_with('}') {
            "*"
        } else if segment.starts_with('*') {
            "**"
        } else {
            segment
        });
    }
    glob.join("/")
}

fn glob(text: &str, by_segment: bool) -> Result<GlobMatcher, globset::Error> {
    GlobBuilder::new(text.trim())
        .literal_separator(by_segment)
        .build()
        .map(|glob| glob.compile_matcher())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn given(flags: &SamplingFlags, env: &[(&str, &str)]) -> (Result<Config, Error>, Vec<String>) {
        let mut environment = Environment::new(|name| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into()));
        let config = read(flags, &mut environment, 0.01);
        (config, environment.into_warnings())
    }

    fn of_env(env: &[(&str, &str)]) -> Config {
        given(&SamplingFlags::default(), env).0.unwrap()
    }

    #[test]
    fn the_standard_samplers() {
        for (word, argument, ratio, parent_based, errors) in [
            ("always_on", "", 1.0, false, true),
            ("always_off", "", 0.0, false, false),
            ("traceidratio", "0.25", 0.25, false, true),
            ("traceidratio", "", 1.0, false, true),
            ("parentbased_always_on", "0.5", 1.0, true, true),
            ("ParentBased_Always_Off", "", 0.0, true, false),
            ("parentbased_traceidratio", "0.5", 0.5, true, true),
            ("parentbased_traceidratio", "0", 0.0, true, true),
        ] {
            let config = of_env(&[(SAMPLER, word), (ARGUMENT, argument), (RATE, "0.75")]);
            assert_eq!(config.head.root.ratio(), ratio, "{word}");
            assert_eq!(
                (config.head.parent_based, config.keep_errors),
                (parent_based, errors),
                "{word}"
            );
        }
    }

    #[test]
    fn what_this_agent_does_not_have_is_said_and_ignored() {
        for word in ["jaeger_remote", "parentbased_jaeger_remote", "xray", "sometimes"] {
            let (config, warnings) = given(&SamplingFlags::default(), &[(SAMPLER, word)]);
            assert_eq!(config.unwrap().head.root, Threshold::of_ratio(0.01));
            assert!(warnings.len() == 1 && warnings[0].contains(word), "{warnings:?}");
        }
    }

    #[test]
    fn flags_win_over_the_sampler_and_it_over_the_rate() {
        let flags = SamplingFlags {
            sample_ratio: Some(0.5),
            ..SamplingFlags::default()
        };
        let config = given(&flags, &[(SAMPLER, "always_off")]).0.unwrap();
        assert_eq!((config.head.root.ratio(), config.keep_errors), (0.5, true));
        assert_eq!(of_env(&[(RATE, "0.75")]).head.root.ratio(), 0.75);
        assert_eq!(of_env(&[]).head.root, Threshold::of_ratio(0.01));
    }

    #[test]
    fn what_is_no_share_is_refused() {
        for env in [
            [(SAMPLER, "traceidratio"), (ARGUMENT, "2")],
            [(SAMPLER, "traceidratio"), (ARGUMENT, "half")],
            [(RATE, "-0.1"), ("", "")],
            [(RATE, "nan"), ("", "")],
        ] {
            let error = given(&SamplingFlags::default(), &env).0.unwrap_err();
            assert!([ARGUMENT, RATE].contains(&error.setting), "{error}");
        }
    }

    #[test]
    fn rules_by_service_route_and_method() {
        let rule = super::rule("service=pay*, route=/users/{id}/*rest, method=GET, ratio=0.5").unwrap();
        assert!(rule.service.unwrap().is_match("payments/eu"));
        let route = rule.route.unwrap();
        assert!(route.is_match("/users/7/a/b") && !route.is_match("/users/7"));
        let method = super::rule("method=bank.v1.Ledger/*,ratio=1").unwrap().method.unwrap();
        assert!(method.is_match("bank.v1.Ledger/Transfer") && !method.is_match("bank.v1.Treasury/Get"));
        for bad in ["ratio", "ratio=2", "route=/x", "rout=/x,ratio=1", "service=[,ratio=1"] {
            assert_eq!(super::rule(bad).unwrap_err().setting, "--sample-rule", "{bad}");
        }
    }
}
