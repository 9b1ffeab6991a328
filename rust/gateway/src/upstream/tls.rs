//! TLS towards upstreams: whose certificates the gateway believes, and under which name.
//!
//! The roots are those of the system, or those of one file. They are read once, when the first `https://` upstream joins. A certificate
//! must be valid, must lead to a root, and must name the host of the URL.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::ServiceError;

/// Roots of all upstreams, and the count of handshakes that failed.
#[derive(Default)]
pub struct Tls {
    /// PEM file with the roots; `None` for the roots of the system.
    ca_file: Option<PathBuf>,
    /// Settings of the sessions, made with the first upstream.
    connector: Mutex<Option<TlsConnector>>,
    /// Handshakes that failed.
    failures: OnceLock<IntCounter>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

/// How one upstream is reached with TLS.
#[derive(Clone)]
pub struct TlsUpstream {
    /// Settings of the sessions.
    connector: TlsConnector,
    /// Name that the certificate must have.
    name: ServerName<'static>,
}

impl std::fmt::Debug for TlsUpstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsUpstream")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Roots of a file, or of the system without one.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for a file that cannot be read, or that holds no certificate.
    pub fn new(ca_file: Option<PathBuf>, failures: IntCounter) -> Result<Self, ServiceError> {
        let tls = Self {
            ca_file,
            connector: Mutex::default(),
            failures: OnceLock::from(failures),
        };
        if tls.ca_file.is_some() {
            tls.connector()?;
        }
        Ok(tls)
    }

    /// The way to an upstream whose certificate has this name.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for a name that no certificate can have, or without roots.
    pub fn upstream(&self, name: &str) -> Result<TlsUpstream, ServiceError> {
        let server = ServerName::try_from(name.to_owned()).map_err(|_| {
            ServiceError::Config(format!(
                "upstreams: got the host {name:?}, expected a DNS name or an IP address that a certificate can have"
            ))
        })?;
        Ok(TlsUpstream {
            connector: self.connector()?,
            name: server,
        })
    }

    /// Counts a handshake that failed.
    pub fn count_failure(&self) {
        if let Some(failures) = self.failures.get() {
            failures.inc();
        }
    }

    /// The settings of the sessions, made at the first call.
    ///
    /// # Errors
    /// As [`Tls::new`], and [`ServiceError::Config`] for a system without roots.
    fn connector(&self) -> Result<TlsConnector, ServiceError> {
        let mut known = self.connector.lock();
        if let Some(connector) = &*known {
            return Ok(connector.clone());
        }
        let roots = match &self.ca_file {
            Some(file) => roots_of_file(file)?,
            None => roots_of_system()?,
        };
        // Named, because the default of the process is ambiguous where a second provider is linked.
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| ServiceError::Config(format!("TLS towards upstreams: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        *known = Some(connector.clone());
        Ok(connector)
    }
}

impl TlsUpstream {
    /// Begins a session on a connection.
    ///
    /// # Errors
    /// The upstream speaks no TLS, or its certificate is not believed.
    pub async fn connect(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), socket).await
    }

    /// Whether the certificate must have this name.
    pub fn has_name(&self, name: &str) -> bool {
        ServerName::try_from(name).is_ok_and(|name| name == self.name)
    }
}

/// The certificates of a PEM file.
///
/// # Errors
/// As [`Tls::new`].
fn roots_of_file(file: &Path) -> Result<RootCertStore, ServiceError> {
    let wrong = |why: String| {
        ServiceError::Config(format!(
            "upstream.ca_file: got {}, {why}; expected a PEM file with the certificates of the authorities",
            file.display()
        ))
    };
    let found = CertificateDer::pem_file_iter(file)
        .map_err(|error| wrong(format!("which cannot be read: {error}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in found {
        let certificate = certificate.map_err(|error| wrong(format!("which is damaged: {error}")))?;
        roots
            .add(certificate)
            .map_err(|error| wrong(format!("with a certificate that is no authority: {error}")))?;
    }
    if roots.is_empty() {
        return Err(wrong("which holds no certificate".into()));
    }
    Ok(roots)
}

/// The certificates that the system believes. Damaged ones among them are left out.
///
/// # Errors
/// [`ServiceError::Config`] for a system without any.
fn roots_of_system() -> Result<RootCertStore, ServiceError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(ServiceError::Config(
            "upstreams: got an https:// address, but the system has no certificates of authorities; name a PEM file with \
             --upstream-ca"
                .into(),
        ));
    }
    Ok(roots)
}
