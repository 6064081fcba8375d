//! What is asked and answered. Its JSON is stable: fields are added, never renamed.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{AdminState, Service, Weight};

/// What a client asks of the running process. A service is named by its name, or by its VIP as `ADDR:PORT` or
/// `ADDR:PORT/PROTOCOL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Every figure.
    Status,
    /// The running configuration, as TOML.
    Config,
    /// Reads the configuration file once more and carries out what changed.
    Reload(Reload),
    /// Adds services.
    AddServices {
        /// The services; one of TCP and UDP is two, of one name.
        services: Vec<Service>,
        /// Whether the configuration file is changed too.
        persist: bool,
    },
    /// Removes a service, and with it its connections.
    RemoveService {
        /// Which.
        service: String,
        /// Whether the configuration file is changed too.
        persist: bool,
    },
    /// Changes one backend of a service.
    ChangeBackend {
        /// Which service.
        service: String,
        /// Which of its backends.
        address: SocketAddrV4,
        /// What becomes of it.
        change: BackendChange,
        /// Whether the configuration file is changed too.
        persist: bool,
    },
    /// Live connections.
    Connections(Filter),
    /// Ends live connections: each client's next segment is answered with a RST by another backend.
    Kill(Filter),
    /// Ends the process as SIGTERM would.
    Stop,
}

/// How the configuration file is read once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Reload {
    /// Only tells what would be done.
    pub dry_run: bool,
    /// Connections of removed backends are reset, instead of going on.
    pub now: bool,
}

/// What becomes of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChange {
    /// It is new.
    Add(Weight, AdminState),
    /// It goes: no new connections; live ones go on, or are reset at once with `now`.
    Remove {
        /// At once.
        now: bool,
    },
    /// What the operator wants of it.
    State {
        /// That.
        state: AdminState,
        /// Live connections are reset at once.
        now: bool,
        /// Live connections are reset after this time.
        deadline: Option<Duration>,
    },
    /// Its share of new connections.
    Weight(Weight),
}

/// How many connections are listed where no limit is given.
pub const LISTED: usize = 1000;

/// Which connections. What is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Filter {
    /// Of this service.
    pub service: Option<String>,
    /// Of this backend.
    pub backend: Option<SocketAddrV4>,
    /// Of this client address.
    pub client: Option<Ipv4Addr>,
    /// In this state: `unconfirmed`, `established` or `closing`.
    pub state: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
}

impl Filter {
    /// The words for states.
    pub const STATES: [&'static str; 3] = ["unconfirmed", "established", "closing"];

    /// Whether every connection is meant.
    pub fn is_empty(&self) -> bool {
        Filter { limit: None, ..self.clone() } == Filter::default()
    }
}

/// What is answered: JSON of one of the documented shapes.
pub type Answer = serde_json::Value;

/// The answer to whatever changes something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The steps, a line for people each. None: nothing had to be changed.
    pub steps: Vec<String>,
    /// Whether they were carried out; not so with a dry run.
    pub applied: bool,
    /// In how many things what runs differs from the file, by changes that were made while it ran: they stay.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub kept: usize,
    /// How many connections were ended, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
    /// The file that was changed too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persisted: Option<PathBuf>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Why something was not done. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind: `not_found`, `conflict`, `invalid` or `failed`; of the socket itself also `forbidden`, `not_allowed` (by this
    /// method), `timeout` and `stopping`.
    pub kind: String,
    /// What is wrong, where, and what to do.
    pub error: String,
}

impl Refusal {
    /// There is no such service or backend.
    pub fn not_found(error: impl Into<String>) -> Refusal {
        Refusal { kind: "not_found".into(), error: error.into() }
    }

    /// It clashes with what is there.
    pub fn conflict(error: impl Into<String>) -> Refusal {
        Refusal { kind: "conflict".into(), error: error.into() }
    }

    /// It makes no sense.
    pub fn invalid(error: impl Into<String>) -> Refusal {
        Refusal { kind: "invalid".into(), error: error.into() }
    }

    /// It was tried, and did not work.
    pub fn failed(error: &anyhow::Error) -> Refusal {
        Refusal { kind: "failed".into(), error: format!("{error:#}") }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for Refusal {}
