use std::time::Duration;

/// How long an idle connection is safe from eviction. A timeout is a licence to evict, not an order to forget: an idle
/// connection is lost only when its slot in the table is needed. Each is at most two hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A confirmed TCP connection.
    pub established: Duration,
    /// A connection that has not seen packets of both sides yet.
    pub unconfirmed: Duration,
    /// A TCP connection that one side has closed; counted from the backend's last packet.
    pub closing: Duration,
    /// A confirmed UDP flow.
    pub udp: Duration,
}

impl Timeouts {
    /// The longest timeout that the table's clock can hold with a sweep every ten minutes.
    pub const MAX: Duration = Duration::from_secs(2 * 60 * 60);
    /// The shortest timeout: the table's clock ticks every quarter to half a second.
    pub const MIN: Duration = Duration::from_secs(1);
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            established: Duration::from_secs(300),
            unconfirmed: Duration::from_secs(10),
            closing: Duration::from_secs(30),
            udp: Duration::from_secs(60),
        }
    }
}
