//! What a process's control groups tell: its container, its systemd unit.
//! Knows the layouts of docker, containerd, CRI-O, podman and ECS, cgroup v1
//! and v2, with and without systemd; anything else is no container.

/// Digits of a container id: SHA-256 in hexadecimal.
const ID_LENGTH: usize = 64;

/// The container that a process is in, by its `/proc/PID/cgroup`. In nested
/// containers it is the inner one.
pub fn container_id(cgroup: &str) -> Option<&str> {
    cgroup
        .lines()
        .filter_map(path)
        .find_map(|path| path.rsplit('/').find_map(segment_id))
}

/// The same by `/proc/PID/mountinfo`, for a process whose cgroup namespace
/// hides the path: the files that an engine mounts into each container.
pub fn container_id_of_mounts(mountinfo: &str) -> Option<&str> {
    mountinfo.lines().find_map(|line| {
        // proc_pid_mountinfo(5): the fourth field is the root of the mount, the fifth where it is.
        let mut fields = line.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        if !matches!(place, "/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf") {
            return None;
        }
        let mut segments = root.split('/');
        // docker: …/containers/ID/hostname, podman: …/overlay-containers/ID/userdata/hostname.
        segments.find(|segment| segment.ends_with("containers"))?;
        segments.find(|segment| is_id(segment))
    })
}

/// The systemd unit of a service, without `.service` and instance:
/// `/system.slice/nginx.service` → `nginx`.
pub fn unit(cgroup: &str) -> Option<&str> {
    cgroup
        .lines()
        .filter(|line| line.starts_with("0::") || line.contains(":name=systemd:"))
        .find_map(|line| {
            let name = path(line)?
                .rsplit('/')
                .find_map(|segment| segment.strip_suffix(".service"))?;
            let name = name.split_once('@').map_or(name, |(template, _)| template);
            // Under these run processes of whoever; the unit is not their name.
            let shared = matches!(
                name,
                "user"
                    | "session"
                    | "getty"
                    | "cron"
                    | "crond"
                    | "ssh"
                    | "sshd"
                    | "docker"
                    | "containerd"
                    | "kubelet"
                    | "crio"
                    | "podman"
                    | "atd"
                    | ""
            );
            (!shared).then_some(name)
        })
}

/// The path of a line `hierarchy:controllers:path`.
fn path(line: &str) -> Option<&str> {
    line.splitn(3, ':').nth(2)
}

fn segment_id(segment: &str) -> Option<&str> {
    if is_id(segment) || is_ecs(segment) {
        return Some(segment);
    }
    // kubelet without systemd: `kubepods-besteffort-pod….slice:cri-containerd:ID`.
    if let Some((_, id)) = segment.rsplit_once(":cri-containerd:") {
        return Some(id).filter(|id| is_id(id));
    }
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let (engine, id) = name.rsplit_once('-')?;
    // `crio-conmon-ID` and `libpod-conmon-ID` are the container's monitor, not the container.
    let known = matches!(
        engine,
        "docker" | "cri-containerd" | "containerd" | "nerdctl" | "crio" | "libpod"
    );
    (known && is_id(id)).then_some(id)
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// ECS on Fargate: `TASK-RUNTIME`, 32 hexadecimal digits and up to ten decimal ones.
fn is_ecs(text: &str) -> bool {
    text.split_once('-').is_some_and(|(task, runtime)| {
        task.len() == 32
            && is_hex(task)
            && (6..=10).contains(&runtime.len())
            && runtime.bytes().all(|b| b.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "3d1f4bf24a0ab1e1dc57b2b4c2be8a5bd0a2a6a8df5a1e4bb0d1c9a3f5e7b901";
    const B: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn containers() {
        for (name, line) in [
            ("docker v1", "12:pids:/docker/{A}"),
            ("docker v1, systemd", "1:name=systemd:/system.slice/docker-{A}.scope"),
            ("docker v2", "0::/system.slice/docker-{A}.scope"),
            ("docker v2, cgroupfs", "0::/docker/{A}"),
            ("docker v2, its init scope", "0::/docker/{A}/init.scope"),
            (
                "containerd v1",
                "8:cpu,cpuacct:/kubepods/burstable/pod2c48913c-b29f-11e7-9350-020968147796/{A}",
            ),
            (
                "containerd v2",
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2c48913c_b29f.slice/cri-containerd-{A}.scope",
            ),
            (
                "containerd, no systemd",
                "0::/kubepods-besteffort-pod2c48913c.slice:cri-containerd:{A}",
            ),
            ("containerd seen from another namespace", "0::/../../pod2c48913c/{A}"),
            ("nerdctl", "0::/system.slice/nerdctl-{A}.scope"),
            ("cri-o", "0::/kubepods.slice/kubepods-pod9b2c.slice/crio-{A}.scope"),
            (
                "cri-o, inner",
                "0::/kubepods.slice/kubepods-pod9b2c.slice/crio-{A}.scope/container",
            ),
            ("podman", "0::/machine.slice/libpod-{A}.scope"),
            (
                "podman, rootless",
                "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
            ),
            ("podman v1", "4:devices:/libpod_parent/libpod-{A}"),
            ("docker in docker", "0::/docker/{B}/docker/{A}"),
        ] {
            let line = line.replace("{A}", A).replace("{B}", B);
            assert_eq!(container_id(&format!("11:misc:/\n{line}\n")), Some(A), "{name}");
        }
        let ecs = "9:perf_event:/ecs/34dc0b5e626f2c5c4c5170e34b10e765/34dc0b5e626f2c5c4c5170e34b10e765-1234567890";
        assert_eq!(container_id(ecs), Some("34dc0b5e626f2c5c4c5170e34b10e765-1234567890"));
    }

    #[test]
    fn no_container() {
        for line in [
            "",
            "0::/",
            "0::/init.scope",
            "0::/user.slice/user-1000.slice/session-3.scope",
            "0::/system.slice/nginx.service",
            "0::/system.slice/docker.service",
            "0::/system.slice/var-lib-docker-overlay2-{A}-merged.mount",
            "0::/machine.slice/libpod-conmon-{A}.scope",
            "0::/kubepods.slice/crio-conmon-{A}.scope",
            "0::/system.slice/backup-{A}.service",
            "0::/user.slice/app-{A}.scope",
            "0::/kubepods.slice/kubepods-pod2c48913c_b29f_11e7_9350_020968147796.slice",
            "0::/docker/3d1f4bf24a0a",
            "garbage",
        ] {
            assert_eq!(container_id(&line.replace("{A}", A)), None, "{line}");
        }
    }

    #[test]
    fn containers_by_their_mounts() {
        for (line, id) in [
            (
                "1 2 8:1 /var/lib/docker/containers/{A}/hostname /etc/hostname rw - ext4 /dev/sda1 rw",
                Some(A),
            ),
            (
                "1 2 0:25 /containers/storage/overlay-containers/{A}/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw",
                Some(A),
            ),
            (
                "1 2 8:1 /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{A}/hostname /etc/hostname rw - ext4 x rw",
                None,
            ),
            (
                "1 2 8:1 /var/lib/docker/containers/{A}/data /data rw - ext4 /dev/sda1 rw",
                None,
            ),
        ] {
            let line = line.replace("{A}", A);
            assert_eq!(container_id_of_mounts(&line), id, "{line}");
        }
    }

    #[test]
    fn units() {
        for (line, expected) in [
            ("0::/system.slice/nginx.service", Some("nginx")),
            (
                "1:name=systemd:/system.slice/postgresql@15-main.service",
                Some("postgresql"),
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service",
                Some("shop"),
            ),
            ("0::/user.slice/user-1000.slice/user@1000.service/init.scope", None),
            ("0::/system.slice/ssh.service", None),
            ("0::/user.slice/user-0.slice/session-1.scope", None),
            ("5:memory:/system.slice/nginx.service", None),
            ("0::/", None),
        ] {
            assert_eq!(unit(line), expected, "{line}");
        }
    }
}
