use std::fmt;
use std::net::SocketAddrV4;
use std::time::Duration;

use super::{Backend, Scheduler};

/// A virtual address and port of one protocol, and the backends behind it. `/any` on the command line makes two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The address and port clients connect to.
    pub vip: SocketAddrV4,
    /// The protocol the service balances.
    pub protocol: Protocol,
    /// How new connections are spread.
    pub scheduler: Scheduler,
    /// How long a client's address is kept on its backend after its last connection, whatever the scheduler; `None` for
    /// not at all.
    pub sticky: Option<Duration>,
    /// The real servers, in the order they were given.
    pub backends: Vec<Backend>,
}

impl Service {
    /// How new connections are spread, for people.
    pub fn how(&self) -> String {
        match self.sticky {
            None => self.scheduler.to_string(),
            Some(time) => format!("{}, clients stay for {time:?}", self.scheduler),
        }
    }
}

/// A transport protocol that is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Protocol {
    /// The protocol's number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }

    /// The protocol with this number in the IP header, if it is one that is balanced.
    pub fn from_number(number: u8) -> Option<Protocol> {
        [Protocol::Tcp, Protocol::Udp].into_iter().find(|p| p.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}
