//! Checks over TLS: whom they trust.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType, date_time_ymd,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};
use xdp_lb::health::{Event, Failure};
use xdp_lb::model::{Health, HttpProbe, Probe, TlsProbe};

use crate::servers::{hold, request, serve, whole};
use crate::{Watched, bad, quick, target, verdict};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Answers "ok" over TLS, with a certificate of this authority.
fn server(authority: &Authority, change: impl FnOnce(&mut CertificateParams)) -> SocketAddrV4 {
    let mut params = CertificateParams::new(["shop.example".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        );
    let config = Arc::new(config.unwrap());
    serve(move |stream| {
        let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
        if request(&mut stream).ends_with("\r\n\r\n") {
            let _ = stream.write_all(whole("200 OK", "ok").as_bytes());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    })
}

fn https(host: Option<&str>, tls: TlsProbe) -> Health {
    let http = HttpProbe { host: host.map(Into::into), body: Some("ok".into()), ..HttpProbe::default() };
    quick(Probe::Https(http, tls))
}

fn trusting(ca: &Path) -> TlsProbe {
    TlsProbe { ca: Some(ca.into()), skip_verify: false }
}

fn anybody() -> TlsProbe {
    TlsProbe { ca: None, skip_verify: true }
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

#[test]
fn an_own_authority_is_trusted() {
    let (files, authority) = (Files::new(), authority("ours"));
    let tls = trusting(&files.file("ca.pem", &authority.pem()));
    let address = server(&authority, |_| ());
    assert_eq!(verdict(address, &https(None, tls.clone())), Ok(()));
    assert_eq!(verdict(address, &https(Some("shop.example"), tls.clone())), Ok(()));
    // A port in the Host header is no part of the name.
    assert_eq!(verdict(address, &https(Some("shop.example:8443"), tls.clone())), Ok(()));
    assert_eq!(bad(address, &https(Some("bank.example"), tls.clone())), "certificate not for bank.example");
    let nameless = server(&authority, |params| drop(params.subject_alt_names.pop()));
    assert_eq!(bad(nameless, &https(None, tls)), "certificate not for 127.0.0.1");
    assert_eq!(verdict(nameless, &https(None, anybody())), Ok(()));
}

#[test]
fn certificates_have_their_time() {
    let (files, authority) = (Files::new(), authority("ours"));
    let tls = trusting(&files.file("ca.pem", &authority.pem()));
    let expired = server(&authority, |params| params.not_after = date_time_ymd(2001, 1, 1));
    assert_eq!(bad(expired, &https(None, tls.clone())), "certificate expired");
    assert_eq!(verdict(expired, &https(None, anybody())), Ok(()));
    let early = server(&authority, |params| params.not_before = date_time_ymd(4000, 1, 1));
    assert_eq!(bad(early, &https(None, tls)), "certificate not valid yet");
}

#[test]
fn strangers_are_not_trusted() {
    let (files, authority) = (Files::new(), authority("ours"));
    let stranger = server(&self::authority("another"), |_| ());
    let tls = trusting(&files.file("ca.pem", &authority.pem()));
    let unknown = "certificate of an unknown authority";
    assert_eq!(bad(stranger, &https(None, tls.clone())), unknown);
    let namesake = server(&self::authority("ours"), |_| ());
    assert_eq!(
        bad(namesake, &https(None, tls.clone())),
        "certificate not signed by the authority that it names"
    );
    let by_system = bad(stranger, &https(None, TlsProbe::default()));
    // A minimal system has none.
    assert!(by_system == unknown || by_system.starts_with("no authorities on this system"), "{by_system}");
    assert_eq!(verdict(stranger, &https(None, anybody())), Ok(()));
    let plain = serve(|mut stream| {
        let _ = stream.write_all(whole("400 Bad Request", "").as_bytes());
        hold(stream);
    });
    assert_eq!(bad(plain, &https(None, anybody())), "no answer of TLS");
}

#[test]
fn a_file_without_authorities_is_named() {
    let (files, authority) = (Files::new(), authority("ours"));
    let address = server(&authority, |_| ());
    let missing = bad(address, &https(None, trusting(&files.0.path().join("none.pem"))));
    assert!(missing.starts_with("could not read /") && missing.contains("/none.pem: "), "{missing}");
    let empty = files.file("empty.pem", "no certificate\n");
    let empty = bad(address, &https(None, trusting(&empty)));
    assert!(empty.ends_with("/empty.pem: no certificate in it"), "{empty}");
    let broken = files.file("broken.pem", "-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----\n");
    let broken = bad(address, &https(None, trusting(&broken)));
    assert!(broken.contains("/broken.pem: no PEM: "), "{broken}");
}

#[test]
fn a_new_file_is_read() {
    let (files, authority) = (Files::new(), authority("ours"));
    let address = server(&authority, |_| ());
    let ca = files.file("ca.pem", &self::authority("another").pem());
    let watched = Watched::new(vec![target(1, address, &https(None, trusting(&ca)))]);
    let unknown = Failure::Bad("certificate of an unknown authority".into());
    assert!(matches!(watched.next(), Event::Change { up: false, why: Some(why), .. } if why == unknown));
    files.file("ca.pem", &authority.pem());
    assert!(matches!(watched.next(), Event::Change { up: true, .. }));
    fs::remove_file(ca).unwrap();
    assert!(matches!(watched.next(), Event::Change { up: false, .. }));
}
