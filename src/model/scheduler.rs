use std::fmt;

/// How a service's new connections are spread over its backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    /// Each backend in turn, weights ignored.
    RoundRobin,
    /// Each backend in turn as often as its weight says, smoothly interleaved.
    #[default]
    WeightedRoundRobin,
    /// By a hash of the client's address: a client address stays on its backend.
    IpHash,
    /// By a Maglev table (Eisenbud et al., NSDI 2016) over the client's address and port.
    Maglev,
    /// The backend with the fewest live connections for its weight; equals in turn as their weights say.
    LeastConn,
}

impl Scheduler {
    /// Every scheduler with its full and its short name, the full one first.
    pub const NAMES: [(Scheduler, &'static str, &'static str); 5] = [
        (Scheduler::RoundRobin, "round-robin", "rr"),
        (Scheduler::WeightedRoundRobin, "weighted-round-robin", "wrr"),
        (Scheduler::IpHash, "ip-hash", "sh"),
        (Scheduler::Maglev, "maglev", "mh"),
        (Scheduler::LeastConn, "least-conn", "lc"),
    ];

    /// The full name, as the command line takes it.
    pub fn name(self) -> &'static str {
        match self {
            Scheduler::RoundRobin => "round-robin",
            Scheduler::WeightedRoundRobin => "weighted-round-robin",
            Scheduler::IpHash => "ip-hash",
            Scheduler::Maglev => "maglev",
            Scheduler::LeastConn => "least-conn",
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
