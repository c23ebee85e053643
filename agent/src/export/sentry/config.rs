//! What the Sentry exporter is told. A DSN is a secret here: it can be used,
//! but not shown.

use std::fmt;

use globset::GlobMatcher;
use sentry::types::Dsn;
use tracewire_common::sampling::Threshold;

use super::words;
use crate::discover::Resource;

/// Where a project is, unshown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Dsn);

impl Secret {
    /// Of the text of a DSN.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.trim()
            .parse()
            .map(Secret)
            .map_err(|e: sentry::types::ParseDsnError| format!("is no DSN (https://KEY@HOST/PROJECT): {e}"))
    }

    /// To connect with.
    pub fn dsn(&self) -> &Dsn {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Services of one project.
#[derive(Clone, Debug)]
pub struct Project {
    /// Fits `service.name`, or `namespace/service.name` if it has a slash.
    pub services: GlobMatcher,
    /// Where to.
    pub dsn: Secret,
}

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The first that fits a service is its project.
    pub projects: Vec<Project>,
    /// Of all other services; `None`: nothing of them is sent.
    pub default: Option<Secret>,
    /// For all; `None`: each process's `deployment.environment.name`, or `production`.
    pub environment: Option<String>,
    /// For all; `None`: each process's `service.name@service.version`.
    pub release: Option<String>,
    /// Share of the sampled traces whose transactions are sent, besides those kept for an error.
    pub share: Threshold,
    /// Whether transactions are sent; if not, only issues.
    pub transactions: bool,
    /// Anonymous identity of this installation, for the tag `custom.instance_id`.
    pub instance: Option<String>,
    /// Most events a minute of one issue.
    pub issues_per_minute: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            projects: Vec::new(),
            default: None,
            environment: None,
            release: None,
            share: Threshold::ALWAYS,
            transactions: true,
            instance: None,
            issues_per_minute: 10,
        }
    }
}

impl Config {
    /// Whether there is anywhere to send to.
    pub fn is_on(&self) -> bool {
        self.default.is_some() || !self.projects.is_empty()
    }

    /// Project of a process.
    pub fn project(&self, resource: &Resource) -> Option<&Secret> {
        let name = &*resource.service_name;
        let namespace =
            words::text(resource, "service.namespace").or_else(|| words::text(resource, "k8s.namespace.name"));
        let full = namespace.map(|namespace| format!("{namespace}/{name}"));
        self.projects
            .iter()
            .find(|project| {
                project.services.is_match(name) || full.as_ref().is_some_and(|full| project.services.is_match(full))
            })
            .map(|project| &project.dsn)
            .or(self.default.as_ref())
    }
}
