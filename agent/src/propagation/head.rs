//! The head decision of a trace: made once, where the trace begins, so that the
//! sampled flag says the same to everybody. Later ones follow their parent.
//! Bias: consistent. A decision is a threshold on the trace id's randomness,
//! never a coin of its own, so that what is counted can be scaled back up.
//!
//! A rate limit is a threshold too: that at which the rate seen of late would
//! come to the limit.
//!
//! Where contexts are written, the kernel makes the decision, by the number that
//! [`Head::rule`] gives for a process. What depends on more than the process
//! is decided here alone, and the kernel waits for it.

use std::sync::Arc;

use globset::GlobMatcher;
use rustc_hash::FxHashMap;
use tracewire_common::sampling::{self, Threshold, randomness};
use tracewire_common::trace::{RANDOM, SAMPLED};

use super::tracestate;
use crate::span::TraceId;

/// Services whose rate is known at a time; more start over.
const SERVICES: usize = 1024;
/// Over how long the rate is averaged, ns.
const WINDOW: f64 = 10e9;
/// How long a threshold for a rate holds, ns.
const HOLDS: u64 = 100_000_000;

/// Whose sampled flag is obeyed. A parent's ids are carried on either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Trust {
    /// Everybody's.
    #[default]
    All,
    /// That of callers at private addresses; others, at the edge, can neither force sampling
    /// nor suppress it.
    Private,
    /// Only that of callers which are observed here.
    Observed,
}

/// How traces are chosen.
#[derive(Clone, Debug)]
pub struct Config {
    /// Share of the traces that begin here, unless a rule says another.
    pub root: Threshold,
    /// Whether the sampled flag of a parent is obeyed; if not, `root` decides for all.
    pub parent_based: bool,
    /// Whose flag that is.
    pub trust: Trust,
    /// The first that fits a trace's first request decides.
    pub rules: Vec<Rule>,
    /// Most traces a second that begin in one service, on average.
    pub rate_limit: Option<f64>,
}

impl Default for Config {
    /// Everything.
    fn default() -> Self {
        Config {
            root: Threshold::ALWAYS,
            parent_based: true,
            trust: Trust::All,
            rules: Vec::new(),
            rate_limit: None,
        }
    }
}

/// A share for some requests. What is `None` fits all.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// `service.name` of the process that the trace begins in.
    pub service: Option<GlobMatcher>,
    /// Path of the request, its query aside.
    pub route: Option<GlobMatcher>,
    /// HTTP method, or `pkg.Service/Method`.
    pub method: Option<GlobMatcher>,
    /// The share.
    pub share: Option<Threshold>,
}

/// What is known of a request when its trace begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// `service.name` of the observed process.
    pub service: &'a str,
    /// HTTP method.
    pub method: &'a str,
    /// Request target.
    pub path: &'a str,
    /// When it began, ns on any steady clock.
    pub now_ns: u64,
}

/// Says what an observed process is called.
pub trait Services {
    /// Its `service.name`.
    fn service(&mut self, pid: u32) -> Arc<str>;
}

/// What was decided for a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// W3C trace flags.
    pub flags: u8,
    /// `tracestate` with the threshold, if less than everything is kept.
    pub trace_state: Option<Arc<str>>,
}

/// Decides.
#[derive(Debug, Default)]
pub struct Head {
    config: Config,
    rates: FxHashMap<Arc<str>, Rate>,
    /// `tracestate` of the thresholds that came lately.
    states: FxHashMap<u64, Arc<str>>,
    /// A threshold for a rate is another than before.
    moved: bool,
}

impl Head {
    /// One that decides by `config`.
    pub fn new(config: Config) -> Self {
        Head {
            config,
            ..Head::default()
        }
    }

    /// Whether [`Facts`] matter; if not, they may be left empty.
    pub fn wants_facts(&self) -> bool {
        !self.config.rules.is_empty() || self.config.rate_limit.is_some()
    }

    /// Whether the flag of a caller that is not observed is obeyed; `private`: its address is,
    /// or may be one of this node.
    pub fn trusts(&self, private: bool) -> bool {
        match self.config.trust {
            Trust::All => true,
            Trust::Private => private,
            Trust::Observed => false,
        }
    }

    /// For a trace that begins here.
    pub fn root(&mut self, trace_id: &TraceId, facts: &Facts<'_>) -> Decision {
        let threshold = self.threshold(facts);
        if !threshold.keeps(trace_id) {
            return Decision {
                flags: RANDOM,
                trace_state: None,
            };
        }
        Decision {
            flags: SAMPLED | RANDOM,
            trace_state: self.state(threshold),
        }
    }

    /// For a trace whose parent is not trusted with the decision: its flag and threshold are
    /// replaced, its ids and the rest of its state stay.
    pub fn untrusted(
        &mut self,
        trace_id: &TraceId,
        flags: u8,
        state: Option<&Arc<str>>,
        facts: &Facts<'_>,
    ) -> Decision {
        let threshold = self.threshold(facts);
        // An explicit randomness is the caller's word, too.
        let kept = threshold.keeps_randomness(randomness(trace_id));
        let said = (kept && threshold > Threshold::ALWAYS).then_some(threshold);
        Decision {
            flags: (flags & !SAMPLED) | u8::from(kept),
            trace_state: tracestate::with_threshold(state.map(|s| &**s), said).map(Arc::from),
        }
    }

    /// Whether a span of that trace is exported for its own sake.
    pub fn keeps(&self, trace_id: &TraceId, flags: u8, state: Option<&str>) -> bool {
        if self.config.parent_based {
            return flags & SAMPLED != 0;
        }
        let given = state.and_then(tracestate::randomness);
        self.config
            .root
            .keeps_randomness(given.unwrap_or_else(|| randomness(trace_id)))
    }

    /// How the kernel decides over traces that begin in a service, where it writes contexts.
    pub fn rule(&self, service: &str) -> sampling::Rule {
        let mut rules = self.config.rules.iter();
        let first = rules.find(|rule| rule.service.as_ref().is_none_or(|glob| glob.is_match(service)));
        let share = first.map_or(Some(self.config.root), |rule| {
            let by_service = rule.route.is_none() && rule.method.is_none();
            rule.share.filter(|_| by_service)
        });
        let limited = self.rates.get(service).map(|rate| rate.threshold);
        let threshold = share
            .unwrap_or(Threshold::NEVER)
            .max(limited.unwrap_or(Threshold::ALWAYS));
        sampling::Rule::new(threshold, share.is_none(), self.config.trust != Trust::All)
    }

    /// The same for processes whose service is not known yet.
    pub fn rule_of_strangers(&self) -> sampling::Rule {
        let depends = self.config.rate_limit.is_some() || !self.config.rules.is_empty();
        sampling::Rule::new(self.config.root, depends, self.config.trust != Trust::All)
    }

    /// Whether [`Head::rule`] may be another than when this was asked last.
    pub fn moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    fn threshold(&mut self, facts: &Facts<'_>) -> Threshold {
        let rules = &self.config.rules;
        let share = rules.iter().find(|rule| rule.fits(facts)).and_then(|rule| rule.share);
        let share = share.unwrap_or(self.config.root);
        match self.config.rate_limit {
            Some(limit) => share.max(self.limited(limit, facts)),
            None => share,
        }
    }

    fn limited(&mut self, limit: f64, facts: &Facts<'_>) -> Threshold {
        if !self.rates.contains_key(facts.service) {
            if self.rates.len() >= SERVICES {
                self.rates.clear();
            }
            self.rates.insert(facts.service.into(), Rate::default());
        }
        let Some(rate) = self.rates.get_mut(facts.service) else {
            return Threshold::ALWAYS;
        };
        let before = rate.threshold;
        rate.arrived(facts.now_ns, limit);
        self.moved |= rate.threshold != before;
        rate.threshold
    }

    fn state(&mut self, threshold: Threshold) -> Option<Arc<str>> {
        if threshold == Threshold::ALWAYS {
            return None;
        }
        if let Some(state) = self.states.get(&threshold.get()) {
            return Some(state.clone());
        }
        let state: Arc<str> = tracestate::with_threshold(None, Some(threshold))?.into();
        if self.states.len() >= SERVICES {
            self.states.clear();
        }
        self.states.insert(threshold.get(), state.clone());
        Some(state)
    }
}

impl Rule {
    fn fits(&self, facts: &Facts<'_>) -> bool {
        let path = facts.path.split(['?', '#']).next().unwrap_or_default();
        let is = |glob: &Option<GlobMatcher>, text: &str| glob.as_ref().is_none_or(|g| g.is_match(text));
        is(&self.service, facts.service)
            && is(&self.route, path)
            && self
                .method
                .as_ref()
                .is_none_or(|g| g.is_match(facts.method) || g.is_match(path.trim_start_matches('/')))
    }
}

/// How often something comes: exponentially weighted counts and times.
#[derive(Debug)]
struct Rate {
    count: f64,
    ns: f64,
    last_ns: Option<u64>,
    /// Keeps as many as are wanted; of `since_ns`.
    threshold: Threshold,
    since_ns: u64,
}

impl Default for Rate {
    fn default() -> Self {
        Rate {
            count: 0.0,
            ns: 0.0,
            last_ns: None,
            threshold: Threshold::ALWAYS,
            since_ns: 0,
        }
    }
}

impl Rate {
    /// One more came, of which `limit` a second are wanted.
    #[expect(clippy::cast_precision_loss, reason = "an average")]
    fn arrived(&mut self, now_ns: u64, limit: f64) {
        let passed = match self.last_ns {
            Some(last) => now_ns.saturating_sub(last) as f64,
            // Nothing is known yet: as if it came once a window.
            None => WINDOW,
        };
        self.last_ns = Some(now_ns.max(self.last_ns.unwrap_or_default()));
        let weight = (-passed / WINDOW).exp();
        self.count = self.count * weight + 1.0;
        self.ns = self.ns * weight + passed;
        // The kernel follows with a delay, so it must not move with each.
        if now_ns.saturating_sub(self.since_ns) >= HOLDS {
            self.since_ns = now_ns;
            self.threshold = Threshold::of_ratio(limit * self.ns / self.count / 1e9);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use globset::Glob;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn head(root: f64) -> Head {
        Head::new(Config {
            root: Threshold::of_ratio(root),
            ..Config::default()
        })
    }

    fn glob(text: &str) -> Option<GlobMatcher> {
        Some(Glob::new(text).unwrap().compile_matcher())
    }

    #[test]
    fn a_kept_root_says_at_which_threshold() {
        let mut head = head(0.25);
        let kept = head.root(&[0xff; 16], &Facts::default());
        assert_eq!((kept.flags, kept.trace_state.as_deref()), (3, Some("ot=th:c")));
        let dropped = head.root(&[0x01; 16], &Facts::default());
        assert_eq!((dropped.flags, dropped.trace_state), (2, None));
    }

    #[test]
    fn where_everything_is_kept_the_state_stays_empty() {
        let kept = head(1.0).root(&[1; 16], &Facts::default());
        assert_eq!((kept.flags, kept.trace_state), (3, None));
    }

    #[test]
    fn who_is_not_trusted_cannot_force_sampling() {
        let state: Arc<str> = "vendor=x,ot=th:0;rv:ffffffffffffff".into();
        let forced = head(0.01).untrusted(&[0x11; 16], 0x83, Some(&state), &Facts::default());
        assert_eq!(forced.flags, 0x82);
        assert_eq!(
            forced.trace_state.as_deref(),
            Some("ot=rv:ffffffffffffff,vendor=x"),
            "an unsampled trace has no threshold"
        );
        // Nor suppress it.
        let hidden = head(1.0).untrusted(&[0x11; 16], 0, None, &Facts::default());
        assert_eq!((hidden.flags, hidden.trace_state), (1, None));
    }

    #[test]
    fn parents_are_obeyed_or_not() {
        let obeys = head(0.0);
        assert!(obeys.keeps(&[0; 16], SAMPLED, None) && !obeys.keeps(&[0xff; 16], RANDOM, None));
        let ratio = Head::new(Config {
            root: Threshold::of_ratio(0.5),
            parent_based: false,
            ..Config::default()
        });
        assert!(!ratio.keeps(&[0x10; 16], SAMPLED, None) && ratio.keeps(&[0xf0; 16], 0, None));
        assert!(ratio.keeps(&[0x10; 16], 0, Some("ot=rv:f0000000000000")));
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rule = |service: Option<&str>, route: Option<&str>, method: Option<&str>, share: f64| Rule {
            service: service.and_then(glob),
            route: route.and_then(glob),
            method: method.and_then(glob),
            share: Some(Threshold::of_ratio(share)),
        };
        let mut head = Head::new(Config {
            root: Threshold::of_ratio(0.5),
            rules: vec![
                rule(None, Some("/healthz"), None, 0.0),
                rule(Some("pay*"), None, None, 1.0),
                rule(None, None, Some("bank.v1.Ledger/*"), 0.25),
                rule(None, None, Some("DELETE"), 1.0),
            ],
            ..Config::default()
        });
        let mut share = |service, method, path| {
            let facts = Facts {
                service,
                method,
                path,
                now_ns: 0,
            };
            head.threshold(&facts).ratio()
        };
        assert_eq!(share("payments", "GET", "/healthz?x=1"), 0.0);
        assert_eq!(share("payments", "GET", "/orders"), 1.0);
        assert_eq!(share("web", "POST", "/bank.v1.Ledger/Transfer"), 0.25);
        assert_eq!(share("web", "DELETE", "/orders/1"), 1.0);
        assert_eq!(share("web", "GET", "/orders"), 0.5);
    }

    #[test]
    fn the_kernel_decides_alike_or_not_at_all() {
        let rule = |service: Option<&str>, route: Option<&str>, share: f64| Rule {
            service: service.and_then(glob),
            route: route.and_then(glob),
            method: None,
            share: Some(Threshold::of_ratio(share)),
        };
        let mut head = Head::new(Config {
            root: Threshold::of_ratio(0.01),
            rules: vec![
                rule(Some("pay*"), None, 1.0),
                rule(Some("web"), Some("/healthz"), 0.0),
                rule(Some("quiet"), None, 0.0),
            ],
            ..Config::default()
        });
        assert!(head.rule_of_strangers().is_undecided());
        assert!(head.rule("web").is_undecided() && !head.rule("web").is_untrusted());
        let mut random = StdRng::from_seed([9; 32]);
        for service in ["payments", "quiet", "other"] {
            let rule = head.rule(service);
            assert!(!rule.is_undecided(), "{service}");
            for _ in 0..1000 {
                let id = random.random();
                let facts = Facts {
                    service,
                    ..Facts::default()
                };
                assert_eq!(
                    rule.keeps(&id),
                    head.root(&id, &facts).flags & SAMPLED != 0,
                    "{service}"
                );
            }
        }
        let untrusting = Head::new(Config {
            trust: Trust::Private,
            ..Config::default()
        });
        let rule = untrusting.rule_of_strangers();
        assert!(rule.is_untrusted() && !rule.is_undecided() && rule.keeps(&[0; 16]));
    }

    #[test]
    fn a_limit_is_kept_on_average_and_each_service_has_its_own() {
        let mut head = Head::new(Config {
            rate_limit: Some(10.0),
            ..Config::default()
        });
        let mut random = StdRng::from_seed([7; 32]);
        let (mut busy, mut weight, mut quiet) = (0, 0.0, 0);
        // A minute: 1,000 a second in one, 1 a second in the other.
        for ms in 0..60_000u64 {
            let mut ask = |service, now_ns| {
                let facts = Facts {
                    service,
                    now_ns,
                    ..Facts::default()
                };
                let decision = head.root(&random.random(), &facts);
                let th = decision.trace_state.as_deref().and_then(tracestate::threshold);
                (
                    decision.flags & 1,
                    th.and_then(Threshold::adjusted_count).unwrap_or(1.0),
                )
            };
            let (kept, count) = ask("busy", ms * 1_000_000);
            if ms >= 20_000 && kept == 1 {
                busy += 1;
                weight += count;
            }
            if ms % 1000 == 0 {
                quiet += u32::from(ask("quiet", ms * 1_000_000).0);
            }
        }
        assert!((300..=500).contains(&busy), "{busy} in 40 s at 10 a second");
        assert!((weight / 40_000.0 - 1.0).abs() < 0.25, "{weight} stand for 40,000");
        assert_eq!(quiet, 60);
    }
}
