//! Which processes are observed, and what they are called.

use std::sync::Arc;

use crate::attribute::{Key, Value};

pub mod cgroup;
pub mod program;
pub mod resource;
pub mod scan;
pub mod select;

/// Name of the deployment, on every resource and span.
pub const ENVIRONMENT: &str = "deployment.environment.name";

/// OpenTelemetry resource of one observed process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource {
    /// Identity of the resource within this run of the agent: spans with the same
    /// number share one resource.
    pub id: u64,
    /// `service.name`.
    pub service_name: Arc<str>,
    /// All attributes, `service.name` included, by their semantic-convention names.
    pub attributes: Vec<(Key, Value)>,
}
