//! Certificates for one test: an authority of its own and one certificate for
//! this machine, good for servers and clients.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::folder::Folder;

/// Files that the workloads are told of.
#[derive(Debug)]
pub struct Tls {
    /// Holds `ca.pem`, `cert.pem` and `key.pem`.
    pub folder: PathBuf,
    /// The client shows its certificate too.
    pub mutual: bool,
}

impl Tls {
    /// Makes them.
    ///
    /// # Errors
    /// When a key can't be made or a file not be written.
    pub fn new(folder: &Folder, mutual: bool) -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority
            .distinguished_name
            .push(DnType::CommonName, "tracewire test authority");
        let authority_key = KeyPair::generate()?;
        let ca = authority.self_signed(&authority_key)?;
        let mut own = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        own.distinguished_name.push(DnType::CommonName, "localhost");
        let key = KeyPair::generate()?;
        let cert = own.signed_by(&key, &Issuer::new(authority, authority_key))?;
        let ca_path = folder.file("ca.pem");
        fs::write(&ca_path, ca.pem())?;
        fs::write(folder.file("cert.pem"), cert.pem())?;
        fs::write(folder.file("key.pem"), key.serialize_pem())?;
        Ok(Tls {
            folder: ca_path.parent().map(PathBuf::from).unwrap_or_default(),
            mutual,
        })
    }

    /// Tells a workload.
    pub fn tell(&self, command: &mut Command) {
        command.env("EXERCISE_TLS", &self.folder);
        if self.mutual {
            command.env("EXERCISE_MUTUAL_TLS", "1");
        }
    }
}
