//! Whom the agent trusts and who it is, for both protocols alike: a given
//! certificate authority or else the host's and Mozilla's, and a client
//! certificate if one is given.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Error, Given, Otlp};

/// What TLS needs to know, read and checked.
pub struct Tls {
    /// Trusted authorities.
    pub roots: RootCertStore,
    /// Own certificate chain and private key, PEM.
    pub identity: Option<Identity>,
}

/// A client certificate as it was read.
pub struct Identity {
    /// Certificate chain, PEM.
    pub certificate: Vec<u8>,
    /// Private key, PEM.
    pub key: Vec<u8>,
    /// Who gave the certificate.
    pub source: &'static str,
}

impl Tls {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// Names the flag or variable whose file can't be read or holds nothing usable.
    pub fn read(otlp: &Otlp) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        match &otlp.certificate {
            Some(given) => {
                for certificate in certificates(&read(given)?, given)? {
                    roots.add(certificate).map_err(|e| unusable(given, e))?;
                }
            }
            None => {
                roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
                // A host without a store is ordinary in containers: Mozilla's list remains.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let identity = match (&otlp.client_certificate, &otlp.client_key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                let identity = Identity {
                    certificate: read(certificate)?,
                    key: read(key)?,
                    source: certificate.source,
                };
                certificates(&identity.certificate, certificate)?;
                PrivateKeyDer::from_pem_slice(&identity.key).map_err(|e| unusable(key, e))?;
                Some(identity)
            }
            (Some(alone), None) | (None, Some(alone)) => {
                return Err(Error::new(
                    alone.source,
                    "a client certificate and its key are needed together",
                ));
            }
        };
        Ok(Tls { roots, identity })
    }

    /// For the HTTP client.
    ///
    /// # Errors
    /// If key and certificate don't belong together.
    pub fn client_config(&self) -> Result<rustls::ClientConfig, Error> {
        let setting = self.identity.as_ref().map_or("default", |i| i.source);
        let error = |e: rustls::Error| Error::new(setting, format_args!("does not work for TLS: {e}"));
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(error)?
            .with_root_certificates(self.roots.clone());
        let Some(identity) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let pem = |e: rustls::pki_types::pem::Error| Error::new(setting, format_args!("is no usable PEM file: {e}"));
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&identity.certificate).collect();
        let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(pem)?;
        builder.with_client_auth_cert(chain.map_err(pem)?, key).map_err(error)
    }
}

fn read(given: &Given<impl AsRef<Path>>) -> Result<Vec<u8>, Error> {
    let path = given.value.as_ref();
    std::fs::read(path).map_err(|e| Error::new(given.source, format_args!("{}: {e}", path.display())))
}

fn certificates(pem: &[u8], given: &Given<impl AsRef<Path>>) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|e| unusable(given, e))?;
    if found.is_empty() {
        Err(unusable(given, "no certificate in it"))
    } else {
        Ok(found)
    }
}

fn unusable(given: &Given<impl AsRef<Path>>, problem: impl std::fmt::Display) -> Error {
    Error::new(
        given.source,
        format_args!("{}: {problem}", given.value.as_ref().display()),
    )
}
