//! The ordinary gRPC services of `tests/workloads`, in seven variants.

use std::collections::BTreeSet;
use std::fmt;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::folder::Folder;
use crate::place;
use crate::running::Running;
use crate::tls::Tls;

/// A JVM on a busy machine is the slowest to start.
const START: Duration = Duration::from_secs(60);

/// A gRPC library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Language {
    /// grpc-go.
    Go,
    /// grpcio, blocking.
    Python,
    /// grpcio, asyncio.
    PythonAio,
    /// grpc-js.
    Node,
    /// grpc-java.
    Java,
    /// grpc++.
    Cpp,
    /// tonic.
    Rust,
}

impl Language {
    /// All variants.
    pub const ALL: [Language; 7] = [
        Language::Go,
        Language::Python,
        Language::PythonAio,
        Language::Node,
        Language::Java,
        Language::Cpp,
        Language::Rust,
    ];

    fn folder(self) -> &'static str {
        match self {
            Language::Go => "go",
            Language::Python | Language::PythonAio => "python",
            Language::Node => "node",
            Language::Java => "java",
            Language::Cpp => "cpp",
            Language::Rust => "rust",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        if self == Language::PythonAio { &["--aio"] } else { &[] }
    }

    /// Builds it, once a test run.
    ///
    /// # Errors
    /// When it does not build.
    pub fn build(self) -> Result<PathBuf> {
        static BUILT: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        let out = place::workload(self.folder());
        if !built.contains(self.folder()) {
            let script = place::workload_source(self.folder()).join("build.sh");
            let output = Command::new("bash")
                .args([&script, &out])
                .stdin(Stdio::null())
                .output()
                .with_context(|| script.display().to_string())?;
            ensure!(
                output.status.success(),
                "{} failed ({}):\n{}",
                script.display(),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
            built.insert(self.folder());
        }
        Ok(out.join("run"))
    }

    /// Its command, for one side.
    ///
    /// # Errors
    /// When it does not build.
    pub fn command(self, side: &str) -> Result<Command> {
        let mut command = Command::new(self.build()?);
        command.arg(side).args(self.flags());
        Ok(command)
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Language::PythonAio => "python-aio",
            other => other.folder(),
        })
    }
}

/// Calls of one client process.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// See `tests/workloads`.
    pub scenario: &'static str,
    /// In total.
    pub calls: u32,
    /// At once.
    pub concurrency: u32,
    /// Connections they are spread over.
    pub connections: u32,
}

impl Load {
    /// Calls of a scenario, one at a time, on one connection.
    pub const fn new(scenario: &'static str, calls: u32) -> Self {
        Load {
            scenario,
            calls,
            concurrency: 1,
            connections: 1,
        }
    }

    /// So many at once.
    pub const fn at_once(self, concurrency: u32) -> Self {
        Load { concurrency, ..self }
    }

    /// Over so many connections.
    pub const fn over(self, connections: u32) -> Self {
        Load { connections, ..self }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load {
            scenario,
            calls,
            concurrency,
            connections,
        } = self;
        write!(f, "{scenario} {calls}/{concurrency}/{connections}")
    }
}

/// A TCP port of this machine that nobody listens on.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub running: Running,
    /// Where it listens, as clients name it.
    pub address: String,
    /// Its log.
    pub log: PathBuf,
}

impl Server {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn start(language: Language, folder: &Folder) -> Result<Self> {
        Self::start_on(language, &format!("127.0.0.1:{}", free_port()?), folder)
    }

    /// Starts one on `address`: `127.0.0.1:PORT` or `unix:/path`.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn start_on(language: Language, address: &str, folder: &Folder) -> Result<Self> {
        Self::start_with(language, address, folder, None)
    }

    /// The same, with TLS.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn start_with(language: Language, address: &str, folder: &Folder, tls: Option<&Tls>) -> Result<Self> {
        let log = folder.file("server.log");
        let ready = folder.file("server.out");
        let mut command = language.command("server")?;
        command.args(["--listen", address, "--log"]).arg(&log);
        if let Some(tls) = tls {
            tls.tell(&mut command);
        }
        let name = format!("{language} server");
        let mut running = Running::start_into(&name, &mut command, &ready, &folder.file("server.err"))?;
        running.wait_for_line(&ready, "listening", START)?;
        Ok(Server {
            running,
            address: address.to_owned(),
            log,
        })
    }

    /// The port, unless it is a Unix socket.
    pub fn port(&self) -> Option<u16> {
        self.address.rsplit_once(':')?.1.parse().ok()
    }
}

/// A running client.
#[derive(Debug)]
pub struct Client {
    /// The process.
    pub running: Running,
    /// Its log.
    pub log: PathBuf,
    errors: PathBuf,
}

impl Client {
    /// Starts one that makes its first call after `delay`. `number` tells it from others of the test.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(
        language: Language,
        address: &str,
        load: Load,
        delay: Duration,
        number: usize,
        folder: &Folder,
    ) -> Result<Self> {
        Self::start_with(language, address, load, delay, number, folder, |_| ())
    }

    /// The same, its command changed first.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        language: Language,
        address: &str,
        load: Load,
        delay: Duration,
        number: usize,
        folder: &Folder,
        change: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let log = folder.file(&format!("client-{number}.log"));
        let errors = folder.file(&format!("client-{number}.err"));
        let mut command = language.command("client")?;
        change(&mut command);
        arguments(&mut command, address, load, delay, &log);
        let out = folder.file(&format!("client-{number}.out"));
        let running = Running::start_into(&format!("{language} client {load}"), &mut command, &out, &errors)?;
        Ok(Client { running, log, errors })
    }

    /// Waits until all its calls are made.
    ///
    /// # Errors
    /// When it does not end, or failed.
    pub fn finish(&mut self, patience: Duration) -> Result<()> {
        let status = self.running.wait(patience);
        let said = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let status = status.with_context(|| said.clone())?;
        ensure!(status.success(), "a client failed ({status}):\n{said}");
        Ok(())
    }
}

/// Appends a client's flags.
pub fn arguments(command: &mut Command, address: &str, load: Load, delay: Duration, log: &Path) {
    command.args(["--target", address, "--scenario", load.scenario]);
    command.args([
        "--calls",
        &load.calls.to_string(),
        "--concurrency",
        &load.concurrency.to_string(),
    ]);
    command.args(["--connections", &load.connections.to_string()]);
    command
        .args(["--start-delay-ms", &delay.as_millis().to_string(), "--log"])
        .arg(log);
}
