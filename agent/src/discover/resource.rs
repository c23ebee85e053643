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

use super::Resource;
use super::cgroup;
use super::program::{self, Runtime};
use super::scan::{Stat, executable, read_lossy};
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
}

impl Default for Config {
    fn default() -> Self {
        Config {
            proc: "/proc".into(),
            root: "/".into(),
            service_name: None,
            attributes: Vec::new(),
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
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A node in a directory.
    struct Fake {
        directory: tempfile::TempDir,
    }

    impl Fake {
        fn new() -> Self {
            let fake = Fake {
                directory: tempfile::tempdir().unwrap(),
            };
            fake.write("proc/stat", "cpu 1\nbtime 1700000000\n");
            fake.write("proc/sys/kernel/hostname", "node-1\n");
            fake.write("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
            fake.write("etc/os-release", "NAME=X\nPRETTY_NAME=\"Debian 13\"\n");
            fake
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// A process: executable, arguments and environment separated by spaces.
        fn process(&self, pid: u32, parent: u32, executable: &str, arguments: &str, environment: &str) {
            let home = self.directory.path().join("proc").join(pid.to_string());
            let _ = fs::remove_dir_all(&home);
            let comm = executable.rsplit('/').next().unwrap();
            let flags = "1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0";
            self.write(
                &format!("proc/{pid}/stat"),
                &format!("{pid} ({comm}) S {parent} {flags} 250 0 0"),
            );
            self.write(&format!("proc/{pid}/cmdline"), &(arguments.replace(' ', "\0") + "\0"));
            self.write(&format!("proc/{pid}/environ"), &environment.replace(' ', "\0"));
            self.write(&format!("proc/{pid}/cgroup"), "0::/\n");
            std::os::unix::fs::symlink(executable, home.join("exe")).unwrap();
            std::os::unix::fs::symlink("/srv/cart", home.join("cwd")).unwrap();
        }

        fn resources(&self) -> Resources {
            let root = self.directory.path().to_path_buf();
            Resources::new(Config {
                proc: root.join("proc"),
                root,
                ..Config::default()
            })
        }
    }

    fn text(resource: &Resource, key: &str) -> String {
        match resource
            .attributes
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value)
        {
            None => "-".into(),
            Some(Value::Int(n)) => n.to_string(),
            Some(value) => value.as_str().unwrap().to_owned(),
        }
    }

    #[test]
    fn a_process_is_described() {
        let fake = Fake::new();
        let environment =
            "PASSWORD=hunter2 OTEL_RESOURCE_ATTRIBUTES=service.version=1.2,team=a%20b,telemetry.sdk.name=x";
        fake.process(
            7,
            1,
            "/usr/bin/python3.12",
            "python3 app.py --token=hunter2",
            environment,
        );
        let id = "3d1f4bf24a0ab1e1dc57b2b4c2be8a5bd0a2a6a8df5a1e4bb0d1c9a3f5e7b901";
        fake.write("proc/7/cgroup", &format!("0::/system.slice/docker-{id}.scope\n"));
        let resource = fake.resources().of(7);
        for (key, value) in [
            ("service.name", "app"),
            ("service.version", "1.2"),
            ("team", "a b"),
            ("process.pid", "7"),
            ("process.executable.name", "python3.12"),
            ("process.executable.path", "/usr/bin/python3.12"),
            ("process.runtime.name", "cpython"),
            ("process.creation.time", "2023-11-14T22:13:22.500Z"),
            ("host.name", "node-1"),
            ("host.id", "0123456789abcdef0123456789abcdef"),
            ("os.type", "linux"),
            ("os.description", "Debian 13"),
            ("container.id", id),
            ("service.instance.id", &format!("{id}:7:250")),
            ("telemetry.sdk.name", "tracewire"),
            ("telemetry.sdk.language", "rust"),
            ("telemetry.distro.name", "tracewire"),
        ] {
            assert_eq!(text(&resource, key), value, "{key}");
        }
        assert!(
            !format!("{resource:?}").contains("hunter2"),
            "neither arguments nor environment leave"
        );
        let mut keys: Vec<_> = resource.attributes.iter().map(|(key, _)| key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), resource.attributes.len(), "no attribute twice");
    }

    #[test]
    fn the_name_s_first_source_wins() {
        let fake = Fake::new();
        let both = "OTEL_SERVICE_NAME=named OTEL_RESOURCE_ATTRIBUTES=service.name=by%2Dattribute";
        for (executable, arguments, environment, unit, expected) in [
            ("/usr/bin/nginx", "nginx", both, "web", "named"),
            (
                "/usr/bin/nginx",
                "nginx",
                "OTEL_RESOURCE_ATTRIBUTES=service.name=by%2Dattribute",
                "web",
                "by-attribute",
            ),
            (
                "/usr/bin/nginx",
                "nginx",
                "OTEL_SERVICE_NAME= OTEL_RESOURCE_ATTRIBUTES=service.name=,=",
                "web",
                "web",
            ),
            ("/usr/bin/nginx", "nginx", "", "web", "web"),
            ("/usr/bin/nginx", "nginx", "", "", "nginx"),
            ("/usr/bin/nginx (deleted)", "nginx", "", "", "nginx"),
            ("/usr/bin/node", "node index.js", "", "", "cart"),
            ("/usr/bin/java", "java -jar x-1.2.jar", "", "", "x"),
            (
                "/usr/bin/python3",
                "python3 -c secret",
                "",
                "",
                "unknown_service:python3",
            ),
        ] {
            fake.process(7, 1, executable, arguments, environment);
            if !unit.is_empty() {
                fake.write("proc/7/cgroup", &format!("0::/system.slice/{unit}.service\n"));
            }
            assert_eq!(
                &*fake.resources().of(7).service_name,
                expected,
                "{executable} {arguments} {environment} {unit}"
            );
        }
        fake.process(7, 1, "/usr/bin/nginx", "nginx", both);
        let mut resources = fake.resources();
        resources.config.service_name = Some("chosen".into());
        resources.config.attributes = vec![("service.name".into(), "other".into()), ("env".into(), "prod".into())];
        let resource = resources.of(7);
        assert_eq!(
            (&*text(&resource, "service.name"), &*text(&resource, "env")),
            ("chosen", "prod")
        );
    }

    #[test]
    fn a_unit_names_its_own_program_and_no_other() {
        let fake = Fake::new();
        for (pid, parent, executable) in [
            (10, 1, "/usr/sbin/nginx"),
            (11, 10, "/usr/sbin/nginx"),
            (20, 1, "/bin/bash"),
            (21, 20, "/usr/bin/greeter"),
        ] {
            fake.process(pid, parent, executable, "x", "");
            fake.write(&format!("proc/{pid}/cgroup"), "0::/system.slice/front.service\n");
        }
        let mut resources = fake.resources();
        for (pid, name) in [(10, "front"), (11, "front"), (21, "greeter")] {
            assert_eq!(&*resources.of(pid).service_name, name);
        }
    }

    #[test]
    fn survives_its_process() {
        let fake = Fake::new();
        fake.process(7, 1, "/usr/bin/greeter", "greeter", "");
        let mut resources = fake.resources();
        let before = resources.of(7);
        fs::remove_dir_all(fake.directory.path().join("proc/7")).unwrap();
        assert_eq!(resources.of(7), before);
        resources.forget(7);
        assert_eq!(resources.of(7), before, "late spans");
        assert_eq!(resources.exec(7), before, "gone before it could be read");

        // The number is given again.
        fake.process(7, 1, "/usr/bin/other", "other", "");
        fake.write(
            "proc/7/stat",
            "7 (other) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 999 0 0",
        );
        resources.forget(7);
        let after = resources.of(7);
        assert_eq!(&*after.service_name, "other");
        assert_ne!(after.id, before.id);

        assert_eq!(
            &*resources.of_named(99, Some("curl")).service_name,
            "unknown_service:curl"
        );
        assert_eq!(&*resources.of(98).service_name, "unknown_service");
        assert_eq!(text(&resources.of(98), "process.pid"), "98");
    }

    #[test]
    fn another_program_in_the_same_process_is_another_resource() {
        let fake = Fake::new();
        fake.process(7, 1, "/bin/sh", "sh", "");
        let mut resources = fake.resources();
        let before = resources.of(7);
        fake.process(7, 1, "/usr/bin/greeter", "greeter", "");
        assert_eq!(&*resources.of(7).service_name, "sh");
        assert_eq!(&*resources.exec(7).service_name, "greeter");
        assert_ne!(resources.of(7).id, before.id);
    }

    #[test]
    fn memory_of_gone_processes_is_bounded() {
        let fake = Fake::new();
        let mut resources = fake.resources();
        for pid in 1..5000 {
            resources.of_named(pid, Some("x"));
            resources.forget(pid);
        }
        assert!(resources.known.len() <= GONE_LIMIT);
    }

    #[test]
    fn resource_attributes_are_all_right_or_nothing() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            attributes("a=1, b = x%2Cy ,c="),
            Some(vec![pair("a", "1"), pair("b", "x,y"), pair("c", "")])
        );
        assert_eq!(attributes(""), Some(Vec::new()));
        for bad in ["a", "a=1,b", "=1", "a=%FF"] {
            assert_eq!(attributes(bad), None, "{bad}");
        }
    }

    #[test]
    fn dates() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_827_696_007, "2000-02-29T12:34:56.007Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }

    #[test]
    fn reads_a_real_process() {
        let mut resources = Resources::new(Config::default());
        let resource = resources.of(std::process::id());
        assert_eq!(text(&resource, "process.pid"), std::process::id().to_string());
        assert!(text(&resource, "process.executable.path").starts_with('/'));
        assert!(text(&resource, "process.creation.time").starts_with("20"));
    }
}
