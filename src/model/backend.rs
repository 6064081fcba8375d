use std::fmt;
use std::net::SocketAddrV4;

/// A real server of a service: where it listens and its share of new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Address and port the packets are translated to.
    pub address: SocketAddrV4,
    /// Share of new connections relative to the service's other backends.
    pub weight: Weight,
    /// What the operator wants of it, whatever its health.
    pub state: AdminState,
}

impl Backend {
    /// An enabled one.
    pub fn new(address: SocketAddrV4, weight: Weight) -> Backend {
        Backend { address, weight, state: AdminState::Enabled }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.weight.get())?;
        match self.state {
            AdminState::Enabled => Ok(()),
            state => write!(f, " ({state})"),
        }
    }
}

/// What an operator wants of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AdminState {
    /// It takes new connections while it is healthy.
    #[default]
    Enabled,
    /// It takes no new connections; live ones go on.
    Drain,
    /// It takes no new connections and is not checked; UDP flows move to other backends, live TCP connections go on.
    Disabled,
}

impl AdminState {
    /// Every state.
    pub const ALL: [AdminState; 3] = [AdminState::Enabled, AdminState::Drain, AdminState::Disabled];

    /// The word for it, in configurations and in figures.
    pub fn name(self) -> &'static str {
        match self {
            AdminState::Enabled => "enabled",
            AdminState::Drain => "drain",
            AdminState::Disabled => "disabled",
        }
    }
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A backend's weight, 1 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Weight(u8);

impl Weight {
    /// The smallest weight, and the one of a backend that names none.
    pub const MIN: Weight = Weight(1);
    /// The largest weight.
    pub const MAX: Weight = Weight(100);

    /// `None` outside 1 to 100.
    pub fn new(value: u8) -> Option<Weight> {
        let weight = Weight(value);
        (Self::MIN..=Self::MAX).contains(&weight).then_some(weight)
    }

    /// The weight as a number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::MIN
    }
}
