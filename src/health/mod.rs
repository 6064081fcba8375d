//! Whether backends answer: probes, and the machine that makes up or down of what they find.

mod checker;
mod http;
mod probe;
mod schedule;
mod state;
mod tls;

use std::fmt;
use std::net::SocketAddrV4;
use std::time::Duration;

pub use checker::{Checked, Checker, Event, Verdict};
pub use state::{Change, State, Stats};

use crate::model::Health;

/// One backend of one service that is to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whoever asked for it recognises it by this.
    pub id: u64,
    /// Where the backend listens; [`Health::port`] may name another port.
    pub address: SocketAddrV4,
    /// How it is checked.
    pub health: Health,
    /// Whether it is taken to be up at first.
    pub up: bool,
}

/// Why a check failed. Its text is for people, as `connection refused`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Somebody there said no: a RST.
    Refused(String),
    /// No answer in time.
    Timeout(Duration),
    /// An answer that is not good: another status, another body, a certificate that is not trusted.
    Bad(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(why) | Failure::Bad(why) => f.write_str(why),
            Failure::Timeout(after) => write!(f, "timeout after {}", humantime::format_duration(*after)),
        }
    }
}
