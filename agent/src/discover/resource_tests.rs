//! Resources of made-up processes, read from a made-up `/proc`.
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
    let environment = "PASSWORD=hunter2 OTEL_RESOURCE_ATTRIBUTES=service.version=1.2,team=a%20b,telemetry.sdk.name=x";
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
