//! What every payload of one observed process says alike: release, environment,
//! host, platform, tags. No address of a person, no argument, no user: nothing
//! personal is sent unless someone named it.

use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::words;
use crate::attribute::{Key, Value};
use crate::discover::Resource;
use crate::export::plain::Plain;
use crate::span::conventions::key;

/// One observed process, as its payloads describe it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// `service.name`.
    pub service: String,
    /// `service@version`, or what was configured.
    pub release: Option<String>,
    /// `production` if nobody said another.
    pub environment: String,
    /// Host or pod.
    pub server_name: Option<String>,
    /// Runtime's family.
    pub platform: &'static str,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

impl Subject {
    /// Of a resource; what was configured for all wins.
    pub fn new(resource: &Resource, environment: Option<&str>, release: Option<&str>, instance: Option<&str>) -> Self {
        let text = |key| words::text(resource, key);
        let service = resource.service_name.to_string();
        let release = release.map(str::to_owned).or_else(|| {
            let version = text("service.version")?;
            // Sentry refuses these in a release.
            let clean: String = format!("{service}@{version}")
                .chars()
                .map(|c| {
                    if c.is_whitespace() || c == '/' || c == '\\' {
                        '-'
                    } else {
                        c
                    }
                })
                .take(200)
                .collect();
            Some(clean)
        });
        let environment = environment
            .or_else(|| text("deployment.environment.name"))
            .or_else(|| text("deployment.environment"))
            .unwrap_or("production");
        let mut tags = BTreeMap::from([("service.name".to_owned(), tag(&service))]);
        for key in [
            "service.namespace",
            "k8s.namespace.name",
            "k8s.deployment.name",
            "k8s.node.name",
        ] {
            if let Some(value) = text(key) {
                tags.insert(key.to_owned(), tag(value));
            }
        }
        if let Some(instance) = instance {
            tags.insert("custom.instance_id".to_owned(), instance.to_owned());
        }
        Subject {
            release,
            // `/` and spaces are refused in environments, and 64 characters are all there is room for.
            environment: environment
                .chars()
                .map(|c| if c.is_whitespace() || c == '/' { '-' } else { c })
                .take(64)
                .collect(),
            server_name: text("k8s.pod.name").or_else(|| text("host.name")).map(str::to_owned),
            platform: words::platform(resource),
            tags,
            service,
        }
    }
}

/// Longest value of a tag is 200 characters, without line breaks.
fn tag(value: &str) -> String {
    value.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// `sdk`: who made the payload, and that no address is to be inferred from the connection.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Sdk {
    name: &'static str,
    version: &'static str,
    settings: Settings,
}

#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Settings {
    infer_ip: &'static str,
}

/// The agent.
pub const SDK: Sdk = Sdk {
    name: "tracewire",
    version: env!("CARGO_PKG_VERSION"),
    settings: Settings { infer_ip: "never" },
};

/// Attributes as data, less what tells of persons: addresses of callers and their programs.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    /// All of a span.
    pub attributes: &'a [(Key, Value)],
    /// Its peer is a caller.
    pub server: bool,
}

impl Data<'_> {
    /// None at all.
    pub const EMPTY: Data<'static> = Data {
        attributes: &[],
        server: false,
    };
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.attributes {
            if is_personal(name, self.server) {
                continue;
            }
            map.serialize_entry(&**name, &Plain(value))?;
            if name == key::RPC_STATUS_CODE {
                // The name that Sentry's own conventions have for it.
                map.serialize_entry("rpc.response.status_code", &Plain(value))?;
            }
        }
        map.end()
    }
}

/// Whether an attribute tells of a person: who called, and with what program.
pub fn is_personal(name: &str, server: bool) -> bool {
    matches!(name, key::CLIENT_ADDRESS | key::USER_AGENT_ORIGINAL)
        || (server && matches!(name, key::NETWORK_PEER_ADDRESS | key::NETWORK_PEER_PORT))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| DIGITS.get(usize::from(digit)).map(|d| char::from(*d)))
        .collect()
}

/// Unix ns as Sentry's seconds. A double holds microseconds of this century.
#[expect(clippy::cast_precision_loss, reason = "microseconds are kept")]
pub fn seconds(unix_ns: u64) -> f64 {
    (unix_ns / 1000) as f64 / 1e6
}

/// At most so many bytes, cut between characters.
pub fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
