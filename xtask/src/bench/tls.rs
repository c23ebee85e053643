//! A certificate for the workloads, made by OpenSSL's command: good for one
//! run of this task and for nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Signed by itself, so it is its own authority.
pub struct Certificate {
    folder: PathBuf,
}

impl Certificate {
    /// Makes `ca.pem`, `cert.pem` and `key.pem`.
    ///
    /// # Errors
    /// When OpenSSL's command is not there or fails.
    pub fn make(folder: &Path) -> Result<Self> {
        let file = |name: &str| folder.join(name);
        let mut make = Command::new("openssl");
        make.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ]);
        make.args(["-days", "2", "-subj", "/CN=localhost"]);
        make.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
        make.arg("-keyout")
            .arg(file("key.pem"))
            .arg("-out")
            .arg(file("cert.pem"));
        let made = make.output().context("openssl (apt-get install openssl)")?;
        ensure!(
            made.status.success(),
            "openssl made no certificate: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        std::fs::copy(file("cert.pem"), file("ca.pem")).context("certificate")?;
        Ok(Certificate {
            folder: folder.to_owned(),
        })
    }

    /// Tells a workload.
    pub fn give(&self, workload: &mut Command) {
        workload.env("EXERCISE_TLS", &self.folder);
    }
}
