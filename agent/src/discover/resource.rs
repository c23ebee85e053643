//! The OpenTelemetry resource of a process: what it is called and where it
//! runs, from `/proc`. Never its arguments and never its environment, but for
//! the two variables that are meant for this.
//!
//! `service.name`, the first of: the user's choice, the process's
//! `OTEL_SERVICE_NAME`, `service.name` in its `OTEL_RESOURCE_ATTRIBUTES`, its
//! systemd unit, what its interpreter runs, its executable,
//! `unknown_service:` and its name. (A process that publishes an `OTEL_CTX`
//! mapping, OTEP 4719, would come after the environment; it is not read.)

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use percent_encoding::percent_decode_str;
use rustc_hash::FxHashMap;

use super::cgroup;
use super::program::{self, Runtime};
use super::scan::{Stat, executable, read_lossy};
use super::{ENVIRONMENT, Resource};
use crate::attribute::{Key, Value};

/// How long a known process is believed to be the same without a look at `/proc`.
const BELIEF: Duration = Duration::from_secs(1);

/// Processes that are gone and still remembered, for spans that end late.
const GONE_LIMIT: usize = 1024;

/// Longest value taken from a process's environment, bytes.
const VALUE_LENGTH: usize = 1024;

/// What the user chose.
#[derive(Clone, Debug)]
pub struct Config {
    /// Root of procfs.
    pub proc: PathBuf,
    /// Root of the file system, for `/etc/machine-id` and `/etc/os-release`.
    pub root: PathBuf,
    /// `service.name` of every observed process.
    pub service_name: Option<Arc<str>>,
    /// Attributes of every resource; they win over all that is found.
    pub attributes: Vec<(String, String)>,
    /// `deployment.environment.name` of those of which nobody says it.
    pub environment: Option<Arc<str>>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            proc: "/proc".into(),
            root: "/".into(),
            service_name: None,
            attributes: Vec::new(),
            environment: None,
        }
    }
}

/// What is the same for all processes of this node.
#[derive(Debug, Default)]
struct Node {
    name: Option<Arc<str>>,
    id: Option<Arc<str>>,
    description: Option<Arc<str>>,
    /// Unix time of the boot, s.
    boot: Option<u64>,
    ticks_per_second: u64,
}

#[derive(Debug)]
struct Known {
    resource: Arc<Resource>,
    /// Ticks since boot; `None` if the process was gone before it could be read.
    start: Option<u64>,
    checked: Instant,
    gone: bool,
}

/// Resources of the observed processes, read once each.
#[derive(Debug)]
pub struct Resources {
    config: Config,
    node: Node,
    known: FxHashMap<u32, Known>,
    gone: VecDeque<u32>,
    last_id: u64,
}

impl Resources {
    /// Reads what is the same for all.
    pub fn new(config: Config) -> Self {
        let node = Node::read(&config);
        Resources {
            config,
            node,
            known: FxHashMap::default(),
            gone: VecDeque::new(),
            last_id: 0,
        }
    }

    /// The resource of a process. Of one that is gone, what was known of it;
    /// of one never seen, at least its number.
    pub fn of(&mut self, pid: u32) -> Arc<Resource> {
        self.of_named(pid, None)
    }

    /// The same, with the name (`comm`) that the kernel gave for it, in case it is gone already.
    pub fn of_named(&mut self, pid: u32, comm: Option<&str>) -> Arc<Resource> {
        let now = Instant::now();
        if let Some(known) = self.known.get_mut(&pid) {
            if now.duration_since(known.checked) < BELIEF {
                return Arc::clone(&known.resource);
            }
            known.checked = now;
            let start = Stat::read(&self.config.proc, pid).ok().map(|stat| stat.start);
            if start.is_none() || start == known.start {
                return Arc::clone(&known.resource);
            }
        }
        let (resource, start) = self.read(pid, comm);
        let resource = Arc::new(resource);
        self.known.insert(
            pid,
            Known {
                resource: Arc::clone(&resource),
                start,
                checked: now,
                gone: false,
            },
        );
        resource
    }

    /// The process ended. It is still remembered for a while: its last spans may come later.
    pub fn forget(&mut self, pid: u32) {
        let Some(known) = self.known.get_mut(&pid) else { return };
        // From now on the number may be another process's.
        known.checked = known.checked.checked_sub(BELIEF).unwrap_or(known.checked);
        if !std::mem::replace(&mut known.gone, true) {
            self.gone.push_back(pid);
        }
        while self.gone.len() > GONE_LIMIT {
            if let Some(oldest) = self.gone.pop_front()
                && self.known.get(&oldest).is_some_and(|known| known.gone)
            {
                self.known.remove(&oldest);
            }
        }
    }

    /// The process runs another program now: its resource is read anew.
    pub fn exec(&mut self, pid: u32) -> Arc<Resource> {
        let (resource, start) = self.read(pid, None);
        if start.is_none()
            && let Some(known) = self.known.get(&pid)
        {
            return Arc::clone(&known.resource);
        }
        let resource = Arc::new(resource);
        let known = Known {
            resource: Arc::clone(&resource),
            start,
            checked: Instant::now(),
            gone: false,
        };
        self.known.insert(pid, known);
        resource
    }

    /// Reads all there is.
    fn read(&mut self, pid: u32, comm: Option<&str>) -> (Resource, Option<u64>) {
        self.last_id += 1;
        let home = self.config.proc.join(pid.to_string());
        let stat = Stat::read(&self.config.proc, pid).ok();
        let path = executable(&self.config.proc, pid).ok();
        let name = path
            .as_deref()
            .and_then(|path| path.file_name()?.to_str().map(str::to_owned))
            .or_else(|| stat.as_ref().map(|stat| stat.comm.clone()))
            .or_else(|| comm.map(str::to_owned));
        let cgroup = read_lossy(&home.join("cgroup")).unwrap_or_default();
        let container = cgroup::container_id(&cgroup)
            .map(str::to_owned)
            .or_else(|| cgroup::container_id_of_mounts(&read_lossy(&home.join("mountinfo")).ok()?).map(str::to_owned));
        let runtime = name.as_deref().and_then(Runtime::of);
        let environment = Environment::read(&home);

        let mut attributes = Attributes::default();
        if let Some(path) = path.as_deref().and_then(Path::to_str) {
            attributes.text("process.executable.path", path);
        }
        if let Some(name) = &name {
            attributes.text("process.executable.name", name);
        }
        attributes.set("process.pid", Value::Int(pid.into()));
        let created = stat.as_ref().and_then(|stat| self.node.created(stat.start));
        if let Some(created) = created {
            attributes.text("process.creation.time", &created);
        }
        if let Some(runtime) = runtime.and_then(Runtime::name) {
            attributes.set("process.runtime.name", Value::Str(Cow::Borrowed(runtime)));
        }
        self.node.describe(&mut attributes);
        if let Some(container) = &container {
            attributes.text("container.id", container);
        }
        let start = stat.as_ref().map(|stat| stat.start);
        if let Some(start) = start {
            // One process of one boot of one node: no two have the same.
            let place = container
                .as_deref()
                .or(self.node.id.as_deref())
                .or(self.node.name.as_deref())
                .unwrap_or("node");
            attributes.text("service.instance.id", &format!("{place}:{pid}:{start}"));
        }
        for (key, value) in &environment.attributes {
            attributes.own(key, value);
        }
        for (key, value) in &self.config.attributes {
            attributes.own(key, value);
        }

        if let Some(name) = &self.config.environment
            && !attributes.0.iter().any(|(key, _)| key == ENVIRONMENT)
        {
            attributes.set(ENVIRONMENT, Value::Shared(Arc::clone(name)));
        }

        let configured = self
            .config
            .attributes
            .iter()
            .find(|(key, _)| key == "service.name")
            .map(|(_, name)| name);
        let service: Arc<str> = if let Some(name) = &self.config.service_name {
            Arc::clone(name)
        } else if let Some(name) = configured.or(environment.service_name.as_ref()) {
            name.as_str().into()
        } else if let Some(name) = environment.attributes.iter().find(|(key, _)| key == "service.name") {
            name.1.as_str().into()
        } else {
            self.found_name(pid, &cgroup, container.is_some(), runtime, name.as_deref())
        };
        attributes.set("service.name", Value::Shared(Arc::clone(&service)));
        attributes.set("telemetry.sdk.name", Value::Str("tracewire".into()));
        attributes.set("telemetry.sdk.language", Value::Str("rust".into()));
        attributes.set("telemetry.sdk.version", Value::Str(env!("CARGO_PKG_VERSION").into()));
        attributes.set("telemetry.distro.name", Value::Str("tracewire".into()));
        attributes.set("telemetry.distro.version", Value::Str(env!("CARGO_PKG_VERSION").into()));
        (
            Resource {
                id: self.last_id,
                service_name: service,
                attributes: attributes.0,
            },
            start,
        )
    }

    /// A name that nobody gave: the unit's, the program's, the executable's.
    fn found_name(
        &self,
        pid: u32,
        cgroup: &str,
        contained: bool,
        runtime: Option<Runtime>,
        executable: Option<&str>,
    ) -> Arc<str> {
        let Some(executable) = executable else {
            return "unknown_service".into();
        };
        if !contained
            && let Some(unit) = cgroup::unit(cgroup)
            && self.leads_unit(pid)
        {
            return unit.into();
        }
        let home = self.config.proc.join(pid.to_string());
        if let Some(runtime) = runtime {
            let command = read_lossy(&home.join("cmdline")).unwrap_or_default();
            let arguments: Vec<&str> = command.split_terminator('\0').collect();
            let directory = fs::read_link(home.join("cwd")).ok();
            if let Some(name) = program::interpreted(runtime, &arguments, directory.as_deref()) {
                return name.into();
            }
            // What an interpreter runs without a name is not a service called `python3`.
            return format!("unknown_service:{executable}").into();
        }
        if home.join("exe").symlink_metadata().is_ok() {
            return executable.into();
        }
        format!("unknown_service:{executable}").into()
    }

    /// Whether the process is its unit's own: started by init, or of the same
    /// program as the one that was. A unit is no name for what a shell in it runs.
    fn leads_unit(&self, pid: u32) -> bool {
        let program = executable(&self.config.proc, pid).ok();
        let mut at = pid;
        for _ in 0..8 {
            let Ok(stat) = Stat::read(&self.config.proc, at) else {
                return false;
            };
            let parent_is_init = stat.parent == 1
                || Stat::read(&self.config.proc, stat.parent).is_ok_and(|parent| parent.comm == "systemd");
            if parent_is_init {
                return at == pid || (program.is_some() && executable(&self.config.proc, at).ok() == program);
            }
            at = stat.parent;
        }
        false
    }
}

impl Node {
    fn read(config: &Config) -> Node {
        let line = |path: PathBuf| -> Option<Arc<str>> {
            let text = fs::read_to_string(path).ok()?;
            Some(text.trim()).filter(|text| !text.is_empty()).map(Arc::from)
        };
        let id = ["etc/machine-id", "var/lib/dbus/machine-id"]
            .iter()
            .find_map(|path| line(config.root.join(path)));
        let release = fs::read_to_string(config.root.join("etc/os-release")).unwrap_or_default();
        let description = release
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))
            .map(|name| name.trim_matches(['"', '\'']).into());
        let boot = fs::read_to_string(config.proc.join("stat")).ok().and_then(|stat| {
            stat.lines()
                .find_map(|line| line.strip_prefix("btime "))?
                .trim()
                .parse()
                .ok()
        });
        Node {
            name: line(config.proc.join("sys/kernel/hostname")),
            id,
            description,
            boot,
            ticks_per_second: procfs::ticks_per_second(),
        }
    }

    fn describe(&self, attributes: &mut Attributes) {
        let found = [
            ("host.name", &self.name),
            ("host.id", &self.id),
            ("os.description", &self.description),
        ];
        for (key, value) in found {
            if let Some(value) = value {
                attributes.set(key, Value::Shared(Arc::clone(value)));
            }
        }
        attributes.set("os.type", Value::Str("linux".into()));
    }

    /// RFC 3339 time of a start given in ticks since boot.
    fn created(&self, start: u64) -> Option<String> {
        let ticks = self.ticks_per_second.max(1);
        let unix_ms = self
            .boot?
            .checked_mul(1000)?
            .checked_add(start.checked_mul(1000)? / ticks)?;
        Some(rfc3339(unix_ms))
    }
}

/// A Unix time in ms as RFC 3339 (days to date after the proleptic Gregorian calendar).
fn rfc3339(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Counted from 1 March of year 0, so that the leap day is a year's last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[derive(Debug, Default)]
struct Attributes(Vec<(Key, Value)>);

impl Attributes {
    fn set(&mut self, key: &'static str, value: Value) {
        match self.0.iter_mut().find(|(k, _)| k == key) {
            Some((_, place)) => *place = value,
            None => self.0.push((Cow::Borrowed(key), value)),
        }
    }

    fn text(&mut self, key: &'static str, text: &str) {
        self.set(key, Value::Shared(text.into()));
    }

    /// An attribute that somebody gave; what the agent says of itself stays.
    fn own(&mut self, key: &str, text: &str) {
        if key.starts_with("telemetry.sdk.") || key.starts_with("telemetry.distro.") {
            return;
        }
        match self.0.iter_mut().find(|(k, _)| k == key) {
            Some((_, place)) => *place = Value::Shared(text.into()),
            None => self.0.push((Cow::Owned(key.to_owned()), Value::Shared(text.into()))),
        }
    }
}

/// What a process's environment says of its resource.
#[derive(Debug, Default, PartialEq, Eq)]
struct Environment {
    service_name: Option<String>,
    attributes: Vec<(String, String)>,
}

impl Environment {
    fn read(home: &Path) -> Environment {
        let mut found = Environment::default();
        let Ok(bytes) = fs::read(home.join("environ")) else {
            return found;
        };
        for entry in bytes.split(|b| *b == 0) {
            if let Some(value) = entry.strip_prefix(b"OTEL_SERVICE_NAME=") {
                found.service_name = std::str::from_utf8(value)
                    .ok()
                    .map(str::trim)
                    .filter(|name| !name.is_empty() && name.len() <= VALUE_LENGTH)
                    .map(str::to_owned);
            } else if let Some(value) = entry.strip_prefix(b"OTEL_RESOURCE_ATTRIBUTES=") {
                found.attributes = std::str::from_utf8(value).ok().and_then(attributes).unwrap_or_default();
            }
        }
        found
    }
}

/// Reads `OTEL_RESOURCE_ATTRIBUTES`: `key=value` pairs between commas, percent-encoded.
/// `None` on any error: the specification has the whole value discarded then.
pub fn attributes(text: &str) -> Option<Vec<(String, String)>> {
    let decode = |text: &str| percent_decode_str(text.trim()).decode_utf8().ok().map(Cow::into_owned);
    let mut pairs = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let (key, value) = pair.split_once('=')?;
        let (key, value) = (decode(key)?, decode(value)?);
        if key.is_empty() || key.len() > 255 || value.len() > VALUE_LENGTH {
            return None;
        }
        if !value.is_empty() || key != "service.name" {
            pairs.push((key, value));
        }
    }
    Some(pairs)
}

#[cfg(test)]
#[path = "resource_tests.rs"]
mod tests;
