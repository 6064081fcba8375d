//! What a service wants to know of its backends before it gives them connections.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::Protocol;

/// How the backends of a service are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is asked of a backend.
    pub probe: Probe,
    /// The time from the start of one check to the start of the next, before jitter.
    pub interval: Duration,
    /// How long a check may take in all.
    pub timeout: Duration,
    /// So many good checks in a row make a backend that is down come back.
    pub rise: u32,
    /// So many failed checks in a row take a backend down.
    pub fall: u32,
    /// The port that is checked, if it is not the one that packets are sent to.
    pub port: Option<u16>,
    /// What a backend is before its first check.
    pub initial: Initial,
    /// After so many SYNs in a row that a backend refused, or did not answer, it is checked at once; 0: never.
    pub passive: u32,
}

/// What a backend is before its first check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Initial {
    /// It takes connections until checks fail.
    #[default]
    Up,
    /// It takes none until checks have passed.
    Down,
}

/// What is asked of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Nothing: it is always up.
    None,
    /// It accepts a TCP connection.
    Tcp,
    /// It answers an HTTP/1.1 request.
    Http(HttpProbe),
    /// The same over TLS.
    Https(HttpProbe, TlsProbe),
}

/// A request, and which answer is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// The method, such as GET.
    pub method: String,
    /// Path and query, from the first / on.
    pub path: String,
    /// The Host header; `None` for the address and port that are asked.
    pub host: Option<String>,
    /// The statuses that are good.
    pub status: Vec<RangeInclusive<u16>>,
    /// What the body must contain, within its first 64 KiB.
    pub body: Option<String>,
}

/// How the certificate is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsProbe {
    /// A PEM file of the authorities that are trusted, instead of those of the system.
    pub ca: Option<PathBuf>,
    /// Whether any certificate is good.
    pub skip_verify: bool,
}

impl Health {
    /// How often a backend is checked where nothing else is said.
    pub const INTERVAL: Duration = Duration::from_secs(5);
    /// How long a check may take where nothing else is said.
    pub const TIMEOUT: Duration = Duration::from_secs(2);
    /// Good checks in a row that bring a backend back where nothing else is said.
    pub const RISE: u32 = 2;
    /// Failed checks in a row that take a backend down where nothing else is said.
    pub const FALL: u32 = 3;
    /// SYNs in a row without success after which a backend is checked at once, where nothing else is said.
    pub const PASSIVE: u32 = 3;

    /// A probe with the usual times.
    pub fn of(probe: Probe) -> Health {
        Health {
            probe,
            interval: Self::INTERVAL,
            timeout: Self::TIMEOUT,
            rise: Self::RISE,
            fall: Self::FALL,
            port: None,
            initial: Initial::Up,
            passive: Self::PASSIVE,
        }
    }

    /// What a service gets that names no check: whether TCP connections are accepted, if one of its protocols is TCP.
    pub fn usual(protocols: &[Protocol]) -> Health {
        Health::of(if protocols.contains(&Protocol::Tcp) { Probe::Tcp } else { Probe::None })
    }
}

impl Probe {
    /// The word for it, in configurations and in figures.
    pub fn name(&self) -> &'static str {
        match self {
            Probe::None => "none",
            Probe::Tcp => "tcp",
            Probe::Http(_) => "http",
            Probe::Https(..) => "https",
        }
    }
}

impl Default for HttpProbe {
    fn default() -> Self {
        HttpProbe { method: "GET".into(), path: "/".into(), host: None, status: vec![200..=399], body: None }
    }
}
