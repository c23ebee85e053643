//! A web server of Python's own as what is observed: each request is one span. (The test
//! itself asks for the agent's pages all the time, so it is not what is observed.)

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::folder::Folder;
use crate::otlp::get;
use crate::running::Running;

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running one.
#[derive(Debug)]
pub struct Answering {
    running: Running,
    address: String,
    _folder: Folder,
}

impl Answering {
    /// Listens on a free port.
    ///
    /// # Errors
    /// When it does not.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same, with variables of its own.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_with(variables: &[(&str, &str)]) -> Result<Self> {
        let folder = Folder::new()?;
        let log = folder.file("server.log");
        let mut command = Command::new("python3");
        command
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1"])
            .current_dir(folder.path())
            .envs(variables.iter().copied());
        let mut running = Running::start_into("http.server", &mut command, &log, &folder.file("server.err"))?;
        let line = running.wait_for_line(&log, "Serving HTTP on ", PATIENCE)?;
        let port = line.split(' ').nth(5).context("no port")?;
        Ok(Answering {
            running,
            address: format!("127.0.0.1:{port}"),
            _folder: folder,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Where it listens: HOST:PORT.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes requests that are answered with 200.
    ///
    /// # Errors
    /// When one is not.
    pub fn calls(&self, count: u64) -> Result<()> {
        for _ in 0..count {
            let (status, _) = get(&self.address, "/")?;
            ensure!(status == 200, "a call failed: {status}");
        }
        Ok(())
    }

    /// Makes requests that are answered with 501, an error of the server's: by a method that it
    /// does not know.
    ///
    /// # Errors
    /// When one is answered otherwise.
    pub fn failures(&self, count: u64) -> Result<()> {
        for _ in 0..count {
            let (status, _) = crate::otlp::ask(&self.address, "PATCH", "/")?;
            ensure!(status == 501, "a call did not fail: {status}");
        }
        Ok(())
    }
}
