use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

use crate::dataplane::{Entry, Listing};
use crate::model::Protocol;

/// Live connections. Its JSON is stable: fields are added, never renamed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connections {
    /// Those that are meant, in no order.
    pub connections: Vec<ConnectionFigures>,
    /// Whether there are more of them than were asked for.
    pub more: bool,
}

/// One live connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectionFigures {
    /// Its service's name.
    pub service: String,
    /// Its service's address and port.
    pub vip: SocketAddrV4,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Who connected.
    pub client: SocketAddrV4,
    /// To whom it was given.
    pub backend: SocketAddrV4,
    /// `unconfirmed`, `established` or `closing`.
    pub state: String,
    /// How long ago its last packet passed.
    pub idle_seconds: f64,
}

impl Connections {
    /// What was found, with the services' names as `name` knows them.
    pub fn of(listing: &Listing, name: impl Fn(SocketAddrV4, Protocol) -> String) -> Connections {
        let figures = |entry: &Entry| ConnectionFigures {
            service: name(entry.vip, entry.protocol),
            vip: entry.vip,
            protocol: entry.protocol.to_string(),
            client: entry.client,
            backend: entry.backend,
            state: entry.state.name().to_owned(),
            idle_seconds: entry.idle.as_millis() as f64 / 1000.0,
        };
        Connections { connections: listing.entries.iter().map(figures).collect(), more: listing.more }
    }
}
