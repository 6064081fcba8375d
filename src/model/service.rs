use std::fmt;
use std::net::SocketAddrV4;
use std::time::Duration;

use super::{Backend, Health, Probe, Scheduler, Timeouts};

/// A virtual address and port of one protocol, and the backends behind it. `/any` on the command line makes two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What people call it; the two that `/any` makes have the same name.
    pub name: String,
    /// The address and port clients connect to.
    pub vip: SocketAddrV4,
    /// The protocol the service balances.
    pub protocol: Protocol,
    /// How new connections are spread.
    pub scheduler: Scheduler,
    /// How long a client's address is kept on its backend after its last connection, whatever the scheduler; `None` for
    /// not at all.
    pub sticky: Option<Duration>,
    /// When its idle connections may be evicted.
    pub timeouts: Timeouts,
    /// What becomes of a new connection that no backend takes.
    pub on_empty: OnEmpty,
    /// What becomes of live TCP connections of a backend that goes down.
    pub on_down: OnDown,
    /// How its backends are checked.
    pub health: Health,
    /// How long a backend that came back takes to get its whole share of new connections; zero: at once.
    pub slow_start: Duration,
    /// The real servers, in the order they were given.
    pub backends: Vec<Backend>,
}

impl Service {
    /// A service that is named by its VIP, whose backends are not checked, with the usual settings else.
    pub fn new(vip: SocketAddrV4, protocol: Protocol, backends: Vec<Backend>) -> Service {
        Service {
            name: vip.to_string(),
            vip,
            protocol,
            scheduler: Scheduler::default(),
            sticky: None,
            timeouts: Timeouts::default(),
            on_empty: OnEmpty::default(),
            on_down: OnDown::default(),
            health: Health::of(Probe::None),
            slow_start: Duration::ZERO,
            backends,
        }
    }

    /// What people call this one: its name, and the protocol where the name alone does not tell.
    pub fn label(&self) -> String {
        match self.protocol {
            Protocol::Tcp if self.name != self.vip.to_string() => self.name.clone(),
            protocol => format!("{}/{protocol}", self.name),
        }
    }

    /// Whether people mean this one by a word: see [`means_service`].
    pub fn is_called(&self, word: &str) -> bool {
        means_service(word, &self.name, self.vip, self.protocol)
    }

    /// How new connections are spread, for people.
    pub fn how(&self) -> String {
        match self.sticky {
            None => self.scheduler.to_string(),
            Some(time) => format!("{}, clients stay for {time:?}", self.scheduler),
        }
    }
}

/// Whether `word` means the service of this name, VIP and protocol: it is its name or its VIP, perhaps with `/PROTOCOL`.
pub fn means_service(word: &str, name: &str, vip: SocketAddrV4, protocol: Protocol) -> bool {
    let vip = vip.to_string();
    [name, vip.as_str()].iter().any(|is| word == *is || word == format!("{is}/{protocol}"))
}

/// What becomes of a new connection that no backend takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnEmpty {
    /// It is dropped: a client tries again.
    #[default]
    Drop,
    /// This host's own kernel gets it.
    Pass,
}

/// What becomes of live TCP connections of a backend that goes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDown {
    /// As the check failed: they are reset if it was refused, and kept if there was no answer or not the right one.
    #[default]
    Auto,
    /// They stay, in the hope that the backend comes back.
    Keep,
    /// Their next segment goes to another backend, whose RST tells the client at once.
    Reset,
}

impl OnEmpty {
    /// Every way, with its word in configurations.
    pub const NAMES: [(OnEmpty, &'static str); 2] = [(OnEmpty::Drop, "drop"), (OnEmpty::Pass, "pass")];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            OnEmpty::Drop => "drop",
            OnEmpty::Pass => "pass",
        }
    }
}

impl OnDown {
    /// Every way, with its word in configurations.
    pub const NAMES: [(OnDown, &'static str); 3] =
        [(OnDown::Auto, "auto"), (OnDown::Keep, "keep"), (OnDown::Reset, "reset")];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            OnDown::Auto => "auto",
            OnDown::Keep => "keep",
            OnDown::Reset => "reset",
        }
    }
}

/// A transport protocol that is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

    /// The protocol of this name, as it is displayed.
    pub fn from_name(name: &str) -> Option<Protocol> {
        [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol.to_string() == name)
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
