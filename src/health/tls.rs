//! Whom checks over TLS trust.

use std::fs::{self, Metadata};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::probe::Trouble;
use crate::model::TlsProbe;

/// A file of authorities is looked at no more often: one look serves the checks of a whole pool.
const FILE_AGE: Duration = Duration::from_secs(1);
/// Those of the system change seldom, and they are many.
const SYSTEM_AGE: Duration = Duration::from_secs(3600);
/// Whoever needs longer to read a file has lost its file system.
const READING: Duration = Duration::from_secs(10);

/// Whom all checks trust: each way is kept once, however many backends use it.
#[derive(Default)]
pub(super) struct Trust(Vec<Weak<Anchor>>);

/// One way to trust, and what it was found to be.
pub(super) struct Anchor {
    probe: TlsProbe,
    kept: Mutex<Option<Kept>>,
}

#[derive(Clone)]
struct Kept {
    config: Result<Arc<ClientConfig>, String>,
    stamp: Option<Stamp>,
    looked: Instant,
}

/// What changes when a file changes: device, inode, size, and time in two parts.
type Stamp = (u64, u64, u64, i64, i64);

/// The TLS part of one backend's checks.
pub(super) struct Tls {
    name: ServerName<'static>,
    anchor: Arc<Anchor>,
}

/// The same with the certificates at hand.
pub(super) struct Ready<'a> {
    config: Arc<ClientConfig>,
    name: &'a ServerName<'static>,
}

impl Trust {
    /// The anchor for `probe`.
    pub fn anchor(&mut self, probe: &TlsProbe) -> Arc<Anchor> {
        self.0.retain(|anchor| anchor.strong_count() > 0);
        let known = self.0.iter().filter_map(Weak::upgrade).find(|anchor| anchor.probe == *probe);
        known.unwrap_or_else(|| {
            let anchor = Arc::new(Anchor { probe: probe.clone(), kept: Mutex::new(None) });
            self.0.push(Arc::downgrade(&anchor));
            anchor
        })
    }
}

impl Tls {
    /// The name in the certificate is to be that of `host`, which may have a port, or else `ip`.
    pub fn new(host: Option<&str>, ip: Ipv4Addr, anchor: Arc<Anchor>) -> Result<Tls, String> {
        let name = match host {
            None => ServerName::IpAddress(std::net::IpAddr::V4(ip).into()),
            Some(host) => {
                let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
                let parsed = ServerName::try_from(name.to_owned());
                parsed.map_err(|_| format!("the host {host:?} cannot be the name in a certificate"))?
            }
        };
        Ok(Tls { name, anchor })
    }

    /// Reads the certificates if that has to be.
    pub async fn ready(&self) -> Result<Ready<'_>, Trouble> {
        let config = timeout(READING, self.anchor.config()).await;
        let config = config.map_err(|_| Trouble::Local("reading the certificates takes too long".into()))?;
        Ok(Ready { config: config.map_err(Trouble::bad)?, name: &self.name })
    }
}

impl Ready<'_> {
    /// The connection after the handshake, if the other side may be trusted.
    pub async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Trouble> {
        let connector = TlsConnector::from(self.config.clone());
        connector.connect(self.name.clone(), stream).await.map_err(|error| self.trouble(error))
    }

    fn trouble(&self, error: io::Error) -> Trouble {
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Trouble::bad("the connection was closed in the TLS handshake")
                }
                _ => error.into(),
            };
        };
        use CertificateError::*;
        Trouble::bad(match tls {
            Error::InvalidCertificate(Expired | ExpiredContext { .. }) => "certificate expired".into(),
            Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
                "certificate not valid yet".into()
            }
            Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
                format!("certificate not for {}", self.name.to_str())
            }
            Error::InvalidCertificate(UnknownIssuer) => "certificate of an unknown authority".into(),
            Error::InvalidCertificate(BadSignature) => {
                "certificate not signed by the authority that it names".into()
            }
            Error::InvalidMessage(_) => "no answer of TLS".into(),
            other => format!("TLS: {other}"),
        })
    }
}

impl Anchor {
    async fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let mut kept = self.kept.lock().await;
        let age = match &self.probe {
            TlsProbe { skip_verify: true, .. } => Duration::MAX,
            TlsProbe { ca: Some(_), .. } => FILE_AGE,
            TlsProbe { ca: None, .. } => SYSTEM_AGE,
        };
        if let Some(fresh) = kept.as_ref().filter(|kept| kept.looked.elapsed() < age) {
            return fresh.config.clone();
        }
        let (probe, old) = (self.probe.clone(), kept.clone());
        // Files are read on another thread: no other check waits for a disk.
        let read = tokio::task::spawn_blocking(move || Kept::read(&probe, old)).await;
        let read = read.map_err(|_| "could not read the certificates".to_owned())?;
        let config = read.config.clone();
        *kept = Some(read);
        config
    }
}

impl Kept {
    fn read(probe: &TlsProbe, old: Option<Kept>) -> Kept {
        let (config, stamp) = match &probe.ca {
            _ if probe.skip_verify => (anybody(), None),
            None => (system(), None),
            Some(ca) => {
                // Before the file itself: one that changes meanwhile is read again.
                let stamp = fs::metadata(ca).ok().as_ref().map(stamp);
                match old.filter(|old| stamp.is_some() && old.stamp == stamp) {
                    Some(old) => (old.config, stamp),
                    None => (own(ca), stamp),
                }
            }
        };
        Kept { config, stamp, looked: Instant::now() }
    }
}

fn stamp(file: &Metadata) -> Stamp {
    (file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn config(verifier: Arc<dyn ServerCertVerifier>) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("TLS: {error}"))?.dangerous();
    let mut config = builder.with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session that is resumed shows no certificate: one that has expired would go unnoticed.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn authorities(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider()).build();
    config(verifier.map_err(|error| format!("TLS: {error}"))?)
}

fn system() -> Result<Arc<ClientConfig>, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Of those of a system some are always odd.
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    match (usable, found.errors.first()) {
        (0, Some(error)) => Err(format!("no authorities on this system: {error}")),
        (0, None) => Err("no authorities on this system".into()),
        _ => authorities(roots),
    }
}

fn own(ca: &Path) -> Result<Arc<ClientConfig>, String> {
    let wrong = |why: String| format!("{}: {why}", ca.display());
    let text = fs::read(ca).map_err(|error| format!("could not read {}: {error}", ca.display()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| wrong(format!("no PEM: {error}")))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("no certificate in it".into()));
    }
    authorities(roots)
}

fn anybody() -> Result<Arc<ClientConfig>, String> {
    config(Arc::new(Anybody(provider())))
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
