//! The slots of a service's ring: which backend each new connection goes to.
//!
//! The control plane builds a ring, the data plane only reads a slot of it. Round robin rings are walked slot
//! by slot; the tables of ip-hash and Maglev are indexed by a hash of the client. Everything here is a pure
//! function of the backends: the same backends give the same ring in every process and every version.

mod maglev;
mod smooth;

use crate::model::{Backend, Scheduler};

/// Number of slots of a Maglev table, for [`Scheduler::IpHash`] and [`Scheduler::Maglev`].
///
/// The default of Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016).
/// It must be prime: else a backend's walk by its skip would not reach every slot.
pub const MAGLEV_SLOTS: usize = 65537;

/// How many backends a list of [`members`] may have: a scan of it for each new connection is still cheap.
pub const MAX_MEMBERS: usize = 64;

/// The backends among which a new connection's is searched for by load, each once, in the order given. Empty where the
/// scheduler does not ask for loads, and above [`MAX_MEMBERS`]: then two slots of the ring are compared instead.
pub fn members(scheduler: Scheduler, backends: &[(Backend, u16)]) -> Vec<u16> {
    match scheduler {
        Scheduler::LeastConn if backends.len() <= MAX_MEMBERS => {
            backends.iter().map(|&(_, index)| index).collect()
        }
        _ => Vec::new(),
    }
}

/// Builds the slots of a ring over `backends`, each given with its index in the data plane.
///
/// Without backends the ring is empty. The length depends on the scheduler:
///
/// - round robin: one slot per backend, weights ignored, in the order given;
/// - weighted round robin, and least connections among equals: sum of the weights / their greatest common divisor, so that one walk of the ring
///   gives each backend exactly its weight, smoothly interleaved;
/// - ip-hash and Maglev: [`MAGLEV_SLOTS`], shared in proportion to the weights. The table does not depend on
///   the order in which the backends are given, only on their addresses, ports and weights.
///
/// # Errors
///
/// None: every slice of backends has a ring. In a Maglev table a backend whose share is less than about half
/// a slot may get none; up to 1,311 backends all get one, whatever their weights.
///
/// # Examples
///
/// ```
/// use xdp_lb::model::{Backend, Scheduler, Weight};
/// use xdp_lb::ring;
///
/// let backend = |address: &str, weight| Backend::new(address.parse().unwrap(), Weight::new(weight).unwrap());
/// let (a, b, c) = (backend("10.0.0.1:80", 50), backend("10.0.0.2:80", 30), backend("10.0.0.3:80", 20));
/// let backends = [(a, 7), (b, 8), (c, 9)];
/// let slots = ring::build(Scheduler::WeightedRoundRobin, &backends);
/// assert_eq!(slots, [7, 8, 9, 7, 7, 8, 7, 9, 8, 7]);
/// ```
pub fn build(scheduler: Scheduler, backends: &[(Backend, u16)]) -> Vec<u16> {
    match scheduler {
        Scheduler::RoundRobin => backends.iter().map(|&(_, index)| index).collect(),
        Scheduler::WeightedRoundRobin | Scheduler::LeastConn => smooth::ring(backends),
        Scheduler::IpHash | Scheduler::Maglev => maglev::table(backends),
    }
}

/// The weights in the given order, divided by their greatest common divisor.
fn reduced_weights(backends: &[(Backend, u16)]) -> Vec<u32> {
    let weights = backends.iter().map(|(backend, _)| u32::from(backend.weight.get()));
    let divisor = weights.clone().fold(0, gcd).max(1);
    weights.map(|weight| weight / divisor).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use super::*;
    use crate::model::Weight;

    fn pool(weights: impl IntoIterator<Item = u8>) -> Vec<(Backend, u16)> {
        let backend = |weight, index: u16| {
            Backend::new(
                SocketAddrV4::new([10, 0, 0, 1].into(), index),
                Weight::new(weight).expect("a weight of 1 to 100"),
            )
        };
        weights.into_iter().zip(1..).map(|(weight, index)| (backend(weight, index), index)).collect()
    }

    #[test]
    fn without_backends_every_ring_is_empty() {
        for (scheduler, _, _) in Scheduler::NAMES {
            assert!(build(scheduler, &[]).is_empty());
        }
    }

    #[test]
    fn round_robin_ignores_weights() {
        assert_eq!(build(Scheduler::RoundRobin, &pool([100, 1, 50])), [1, 2, 3]);
    }

    #[test]
    fn least_connections_take_turns_as_weighted_round_robin() {
        let backends = pool([3, 1, 2]);
        assert_eq!(build(Scheduler::LeastConn, &backends), build(Scheduler::WeightedRoundRobin, &backends));
    }

    #[test]
    fn up_to_64_backends_are_members() {
        assert_eq!(members(Scheduler::LeastConn, &pool([3, 1, 2])), [1, 2, 3]);
        assert_eq!(members(Scheduler::LeastConn, &pool([1; 64])).len(), 64);
        assert!(members(Scheduler::LeastConn, &pool([1; 65])).is_empty());
        assert!(members(Scheduler::WeightedRoundRobin, &pool([3, 1, 2])).is_empty());
    }

    #[test]
    fn ip_hash_is_the_maglev_table() {
        let backends = pool([1, 2, 3]);
        assert_eq!(build(Scheduler::IpHash, &backends), build(Scheduler::Maglev, &backends));
    }

    #[test]
    fn the_smallest_of_1311_backends_has_a_slot() {
        // The last in turn among 1310 that each come fifty times before it.
        let backends = pool(std::iter::repeat_n(100, 1310).chain([1]));
        assert!(build(Scheduler::Maglev, &backends).contains(&1311));
    }
}
