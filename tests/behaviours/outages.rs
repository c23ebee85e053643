//! Receivers that are gone, slow, refuse, hang, speak wrong TLS or have no name, a disk
//! that is full, a reader that does not read: the agent's memory stays bounded, what was
//! lost is counted by its cause and said, and all goes on without a restart.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracewire_tests::agent::{self, Agent};
use tracewire_tests::alone;
use tracewire_tests::answering::Answering;
use tracewire_tests::folder::Folder;
use tracewire_tests::otlp::{Manner, Receiver, get};
use tracewire_tests::prometheus::sum;
use tracewire_tests::running::Running;

const PATIENCE: Duration = Duration::from_secs(30);
const EXPORTED: &str = "otel_sdk_exporter_span_exported_total";
const PROCESSED: &str = "otel_sdk_processor_span_processed_total";
const ATTEMPTS: &str = "tracewire_exporter_attempts_failed_total";
/// Spans that may wait, in these tests.
const QUEUE: &str = "100";
/// Bytes in a pipe that is as good as full: it has 64 KiB, of which pages may be half empty.
const PIPE: libc::c_int = 48 << 10;

/// It, and an agent that observes it.
struct Observed {
    agent: Agent,
    health: String,
    answering: Answering,
    _folder: Folder,
}

impl Observed {
    /// One that exports to `endpoint` and gives a batch up after half a second.
    fn start(endpoint: &str, flags: &[&str], more: &[(&str, &str)]) -> Result<Self> {
        let folder = Folder::new()?;
        let answering = Answering::start()?;
        let common = [
            "attach",
            "--pid",
            &answering.pid().to_string(),
            "--health-listen",
            "127.0.0.1:0",
        ];
        let mut agent = Agent::start_changed(&[&common[..], flags].concat(), &folder, |command| {
            if !endpoint.is_empty() {
                command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
            }
            command
                .env("OTEL_BSP_SCHEDULE_DELAY", "50")
                .env("OTEL_BSP_EXPORT_TIMEOUT", "500")
                .env("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE)
                .env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "50")
                .env("OTEL_EXPORTER_OTLP_TIMEOUT", "200")
                .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2-token")
                .envs(more.iter().copied());
        })?;
        agent.wait_attached()?;
        let health = agent.health()?;
        Ok(Observed {
            agent,
            health,
            answering,
            _folder: folder,
        })
    }

    /// Makes calls; each is a span.
    fn calls(&self, count: u64) -> Result<()> {
        self.answering.calls(count)
    }

    /// Waits until a number of the agent's is this, or more.
    fn counts(&self, name: &str, labels: &[&str], least: f64) -> Result<f64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, page) = get(&self.health, "/metrics")?;
            let found = sum(&page, name, labels);
            if found >= least {
                return Ok(found);
            }
            ensure!(
                Instant::now() < deadline,
                "{name} {labels:?} is {found}, {least} was expected:\n{}\n{}",
                page.lines()
                    .filter(|l| l.contains("_sdk_") && !l.contains("_bucket"))
                    .collect::<Vec<_>>()
                    .join("\n"),
                self.agent.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it; what it said. Its secrets are not among that.
    fn end(self) -> Result<String> {
        let began = Instant::now();
        let report = self.agent.interrupt()?;
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "the end took {:?}",
            began.elapsed()
        );
        assert!(
            !report.messages.contains("hunter2"),
            "a secret is logged:\n{}",
            report.messages
        );
        Ok(report.messages)
    }
}

#[test]
fn a_receiver_in_trouble_costs_what_is_counted_and_nothing_more() -> Result<()> {
    let _turn = alone()?;
    let receiver = Receiver::start()?;
    let observed = Observed::start(&receiver.url(), &[], &[])?;
    observed.calls(5)?;
    observed.counts(EXPORTED, &["otlp_http"], 5.0)?;
    let mut sent = 5.0;
    for (manner, error) in [
        (Manner::Says("429 Slow Down"), "429"),
        (Manner::Says("503 Service Unavailable\r\nretry-after: 1"), "503"),
        (Manner::Says("500 Oops"), "500"),
        (Manner::Mute, "timeout"),
        (Manner::Torn, "connection_closed"),
        // It takes what it answers too late; that it is sent again is the protocol's way.
        (Manner::Slow(Duration::from_millis(400)), "timeout"),
    ] {
        let what = format!("{manner:?}");
        let error = format!("error_type=\"{error}\"");
        let (_, page) = get(&observed.health, "/metrics")?;
        let (before, tried) = (failed(&page), sum(&page, ATTEMPTS, &[&error]));
        receiver.be(manner);
        observed.calls(2)?;
        observed
            .counts(EXPORTED, &["error_type="], before + 2.0)
            .with_context(|| what.clone())?;
        observed
            .counts(ATTEMPTS, &[&error], tried + 1.0)
            .with_context(|| what.clone())?;
        receiver.be(Manner::Good);
        observed.calls(2)?;
        sent += 4.0;
        observed
            .counts(EXPORTED, &["otlp_http"], sent)
            .with_context(|| what.clone())?;
        let (_, page) = get(&observed.health, "/metrics")?;
        let errors = page.lines().filter(|line| line.contains("error_type=\""));
        let errors = errors.collect::<Vec<_>>().join("\n");
        assert_eq!(
            failed(&page),
            before + 2.0,
            "{what}: after it all is well again:\n{errors}\n{}",
            observed.agent.said()
        );
    }
    // More than the queue takes while nobody answers: the rest is dropped, and the memory bounded.
    receiver.be(Manner::Mute);
    observed.calls(200)?;
    let full = observed.counts(PROCESSED, &["error_type=\"queue_full\""], 1.0)?;
    let (_, page) = get(&observed.health, "/metrics")?;
    assert!(sum(&page, "otel_sdk_processor_span_queue_size", &[]) <= 100.0);
    assert_eq!(sum(&page, "otel_sdk_processor_span_queue_capacity", &[]), 100.0);
    assert!(sum(&page, "tracewire_memory_usage_bytes", &["export_queues"]) < 1e6);
    receiver.be(Manner::Good);
    observed.calls(1)?;
    let deadline = Instant::now() + PATIENCE;
    let well = |page: &str| sum(page, EXPORTED, &["otlp_http"]) - failed(page);
    while well(&get(&observed.health, "/metrics")?.1) <= well(&page) {
        ensure!(
            Instant::now() < deadline,
            "it does not come back:\n{}",
            observed.agent.said()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = observed.end()?;
    assert!(full > 0.0 && said.contains("queue_full"), "{said}");
    for words in ["HTTP status 500", "no answer within"] {
        assert!(said.contains(words), "{words}:\n{said}");
    }
    // One line a failure at most, and of many alike five in ten seconds.
    let repeats = said.matches("next try in").count();
    assert!(repeats < 40, "{repeats} lines:\n{said}");
    Ok(())
}

/// Spans whose export failed, of a page.
fn failed(page: &str) -> f64 {
    sum(page, EXPORTED, &["error_type="])
}

#[test]
fn a_receiver_that_is_not_there_has_no_name_or_wrong_tls_is_waited_for() -> Result<()> {
    let _turn = alone()?;
    // Nobody listens at the first, until somebody does.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let plain = Receiver::start()?;
    for (protocol, kind) in [
        ("http/protobuf", "otlp_http_span_exporter"),
        ("grpc", "otlp_grpc_span_exporter"),
    ] {
        let all = format!(
            "http://{address}, https://{}, http://nobody.invalid:43180",
            plain.address
        );
        let observed = Observed::start(&all, &[], &[("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)])?;
        observed.calls(3)?;
        for (number, error) in ["connection_refused", "tls", "dns"].into_iter().enumerate() {
            let (name, error) = (format!("\"{kind}/{number}\""), format!("error_type=\"{error}\""));
            observed
                .counts(ATTEMPTS, &[&name, &error], 1.0)
                .with_context(|| format!("{protocol} {number}"))?;
            observed.counts(EXPORTED, &[&name, "error_type="], 3.0)?;
        }
        if protocol == "http/protobuf" {
            let receiver = Receiver::start_on(address)?;
            observed.calls(2)?;
            let received = receiver.wait(PATIENCE, "it is there again", |r| r.spans.len() >= 2)?;
            assert_eq!(received.spans.len(), 2);
        }
        let said = observed.end()?;
        assert!(said.contains("dropped"), "{said}");
    }
    Ok(())
}

/// A small file system of its own, gone with the test.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn new(path: &'a Path, bytes: u32) -> Result<Self> {
        fs::create_dir_all(path)?;
        let size = format!("size={bytes}");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(path)
            .status()?;
        ensure!(status.success(), "no tmpfs at {}", path.display());
        Ok(Disk(path))
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_costs_the_spans_of_that_time() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let mount = folder.file("disk");
    let disk = Disk::new(&mount, 128 << 10)?;
    let (file, ballast) = (mount.join("spans.jsonl"), mount.join("ballast"));
    fs::write(&ballast, vec![0; 96 << 10])?;
    let observed = Observed::start("", &["--otlp-file", &file.to_string_lossy()], &[])?;
    let full = ["otlp_file_span_exporter/0", "error_type=\"storage_full\""];
    // A span reaches the file a while after its call, and is counted there, written or lost.
    let mut made = 0;
    let settled = |made: u64| observed.counts(EXPORTED, &["otlp_file"], made as f64);
    let lost = || Ok::<_, anyhow::Error>(sum(&get(&observed.health, "/metrics")?.1, EXPORTED, &full));
    let deadline = Instant::now() + PATIENCE;
    while lost()? < 4.0 {
        ensure!(Instant::now() < deadline, "the disk is never full");
        observed.calls(5)?;
        made += 5;
        settled(made)?;
    }
    fs::remove_file(&ballast)?;
    let before = lost()?;
    observed.calls(3)?;
    made += 3;
    assert_eq!(settled(made)?, made as f64, "a call is a span");
    assert_eq!(lost()?, before, "it went on losing spans");
    let said = observed.end()?;
    let text = fs::read_to_string(&file)?;
    drop(disk);
    // Each line but those that were torn is whole, and has what was counted.
    let whole = text
        .lines()
        .filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
    let written: usize = whole.map(|line| line.matches("\"spanId\"").count()).sum();
    assert_eq!(written as f64, made as f64 - before, "{said}");
    assert!(said.contains("writing again") && said.contains("(file "), "{said}");
    Ok(())
}

/// Spans in the files of a folder.
fn written(folder: &Path) -> Result<usize> {
    let mut spans = 0;
    for entry in fs::read_dir(folder)? {
        spans += fs::read_to_string(entry?.path())?.matches("\"spanId\"").count();
    }
    Ok(spans)
}

#[test]
fn a_file_is_put_aside_at_its_size_and_made_anew_when_others_move_it() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let home = folder.file("spans");
    fs::create_dir_all(&home)?;
    let file = home.join("spans.jsonl");
    let limits = [
        ("TRACEWIRE_OTLP_FILE_MAX_SIZE", "10000"),
        ("TRACEWIRE_OTLP_FILE_KEEP", "50"),
    ];
    let observed = Observed::start("", &["--otlp-file", &file.to_string_lossy()], &limits)?;
    // A line is what came at once: a few.
    for made in (5..=40).step_by(5) {
        observed.calls(5)?;
        observed.counts(EXPORTED, &["otlp_file"], f64::from(made))?;
    }
    assert_eq!(written(&home)?, 40, "nothing is lost between two files");
    let rotated = observed.counts("tracewire_files_rotated_total", &[], 2.0)?;
    for entry in fs::read_dir(&home)? {
        let data = entry?.metadata()?;
        assert!(data.len() <= 10_000, "a file of {} bytes", data.len());
    }
    // As logrotate does it.
    fs::rename(&file, home.join("moved"))?;
    let deadline = Instant::now() + PATIENCE;
    let mut made = 40;
    while !file.exists() {
        ensure!(Instant::now() < deadline, "the file is not made anew");
        observed.calls(1)?;
        made += 1;
        observed.counts(EXPORTED, &["otlp_file"], made as f64)?;
    }
    observed.counts("tracewire_files_rotated_total", &[], rotated + 1.0)?;
    observed.end()?;
    assert_eq!(written(&home)?, made);
    // Of a few that are kept the oldest go, and are counted.
    let limits = [
        ("TRACEWIRE_OTLP_FILE_MAX_SIZE", "5000"),
        ("TRACEWIRE_OTLP_FILE_KEEP", "1"),
    ];
    let home = folder.file("few");
    fs::create_dir_all(&home)?;
    let file = home.join("spans.jsonl");
    let observed = Observed::start("", &["--otlp-file", &file.to_string_lossy()], &limits)?;
    for made in (5..=20).step_by(5) {
        observed.calls(5)?;
        observed.counts(EXPORTED, &["otlp_file"], f64::from(made))?;
    }
    observed.counts("tracewire_files_discarded_total", &[], 1.0)?;
    observed.end()?;
    assert_eq!(fs::read_dir(&home)?.count(), 2);
    Ok(())
}

#[test]
fn an_output_that_nobody_reads_does_not_hold_up_the_end() -> Result<()> {
    let _turn = alone()?;
    let folder = Folder::new()?;
    let answering = Answering::start()?;
    let (read, write) = std::io::pipe()?;
    let said = folder.file("agent.err");
    let mut command = agent::command(&["attach", "--output", "json", "--pid", &answering.pid().to_string()])?;
    command.stdout(OwnedFd::from(write)).stderr(fs::File::create(&said)?);
    let mut running = Running::start("tracewire", &mut command)?;
    drop(command);
    running.wait_for_line(&said, "attached ", PATIENCE)?;
    // More than a pipe holds; once it is full, the output hangs.
    answering.calls(250)?;
    let deadline = Instant::now() + PATIENCE;
    let mut held = 0;
    while held < PIPE {
        // SAFETY: the pipe is open, and the answer is an int of this function's.
        let asked = unsafe { libc::ioctl(read.as_raw_fd(), libc::FIONREAD, &raw mut held) };
        ensure!(asked == 0 && Instant::now() < deadline, "{held} bytes in the pipe");
        std::thread::sleep(Duration::from_millis(20));
    }
    running.signal(libc::SIGTERM);
    let began = Instant::now();
    running.wait(PATIENCE)?;
    let text = fs::read_to_string(&said)?;
    drop(read);
    assert!(
        began.elapsed() < Duration::from_secs(9),
        "{:?}\n{text}",
        began.elapsed()
    );
    assert!(
        text.contains("an exporter hangs") && text.contains("(pipeline "),
        "{text}"
    );
    Ok(())
}
