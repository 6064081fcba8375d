//! What the rings promise: exact weights, smoothness, and few clients moved when a backend comes or goes.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use proptest::prelude::*;
use xdp_lb::model::{Backend, Scheduler, Weight};
use xdp_lb::ring::{MAGLEV_SLOTS, build};

type Pool = Vec<(Backend, u16)>;

fn backend(address: SocketAddrV4, weight: u8) -> Backend {
    Backend::new(address, Weight::new(weight).expect("a weight of 1 to 100"))
}

/// Backends 10.1.0.1:80, 10.1.0.2:80 .. with these weights and the indexes 1, 2 ..
fn pool(weights: &[u8]) -> Pool {
    pool_at(Ipv4Addr::new(10, 1, 0, 0), weights)
}

fn pool_at(base: Ipv4Addr, weights: &[u8]) -> Pool {
    let address = |n: u16| SocketAddrV4::new((base.to_bits() + u32::from(n)).into(), 80);
    weights.iter().zip(1..).map(|(&weight, n)| (backend(address(n), weight), n)).collect()
}

fn weight_of(entry: &(Backend, u16)) -> usize {
    usize::from(entry.0.weight.get())
}

fn total(pool: &Pool) -> usize {
    pool.iter().map(weight_of).sum()
}

fn count(slots: impl IntoIterator<Item = u16>) -> HashMap<u16, usize> {
    slots.into_iter().fold(HashMap::new(), |mut counts, slot| {
        *counts.entry(slot).or_default() += 1;
        counts
    })
}

fn wrr(pool: &Pool) -> Vec<u16> {
    build(Scheduler::WeightedRoundRobin, pool)
}

fn maglev(pool: &Pool) -> Vec<u16> {
    build(Scheduler::Maglev, pool)
}

/// By how many turns a backend is at most (ahead, behind) of its exact share in any prefix of the ring.
fn extremes(slots: &[u16], index: u16, share: f64) -> (f64, f64) {
    let (mut had, mut ahead, mut behind) = (0.0, 0.0_f64, 0.0_f64);
    for (n, &slot) in (1..).zip(slots) {
        had += f64::from(u8::from(slot == index));
        let lead = had - f64::from(n) * share;
        (ahead, behind) = (ahead.max(lead), behind.max(-lead));
    }
    (ahead, behind)
}

/// The longest run of one backend, the ring being walked again and again.
fn longest_run(slots: &[u16]) -> usize {
    let twice: Vec<u16> = slots.iter().chain(slots).copied().collect();
    twice.chunk_by(|a, b| a == b).map(<[u16]>::len).max().unwrap_or(0)
}

/// Slots, not of backend `gone`, whose backend differs between the two tables: clients moved without need.
fn moved_without_need(with: &[u16], without: &[u16], gone: u16) -> usize {
    with.iter().zip(without).filter(|&(&a, &b)| a != gone && a != b).count()
}

#[test]
fn the_documented_example_is_within_half_a_turn_everywhere() {
    let slots = wrr(&pool(&[50, 30, 20]));
    assert_eq!(slots, [1, 2, 3, 1, 1, 2, 1, 3, 2, 1]);
    for (index, share) in [(1, 0.5), (2, 0.3), (3, 0.2)] {
        let (ahead, behind) = extremes(&slots, index, share);
        assert!(ahead <= 0.5 + 1e-9 && behind <= 0.5 + 1e-9, "{index}: +{ahead} -{behind}");
    }
}

#[test]
fn backends_of_equal_weight_never_come_twice_in_a_row() {
    for n in 2..=64 {
        assert_eq!(longest_run(&wrr(&pool(&vec![7; n]))), 1);
    }
}

#[test]
fn the_largest_ring_of_64_backends_has_6399_slots() {
    let mut weights = [100; 64];
    weights[10] = 99;
    assert_eq!(wrr(&pool(&weights)).len(), 6399);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whole_walks_from_anywhere_give_exactly_the_weights(
        weights in prop::collection::vec(1u8..=100, 1..=64),
        start in any::<prop::sample::Index>(),
        walks in 1usize..4,
    ) {
        let pool = pool(&weights);
        let slots = wrr(&pool);
        let start = start.index(slots.len());
        let counts = count(slots.iter().copied().cycle().skip(start).take(walks * slots.len()));
        for entry in &pool {
            prop_assert_eq!(counts[&entry.1] * total(&pool), walks * slots.len() * weight_of(entry));
        }
    }

    #[test]
    fn the_length_is_the_shortest_that_can_be_exact(weights in prop::collection::vec(1u8..=100, 1..=64)) {
        let slots = wrr(&pool(&weights));
        let gcd = (1..=100).rev().find(|d| weights.iter().all(|w| w % d == 0)).unwrap_or(1);
        prop_assert_eq!(slots.len() * usize::from(gcd), total(&pool(&weights)));
    }

    /// The bounds proven in `src/ring/smooth.rs`. Less than one turn off follows for up to three backends
    /// only.
    #[test]
    fn no_prefix_is_off_by_more_than_proven(weights in prop::collection::vec(1u8..=100, 1..=64)) {
        let pool = pool(&weights);
        let slots = wrr(&pool);
        let most_ahead = 1.0 - 1.0 / pool.len() as f64;
        let most_behind: f64 = (2..=pool.len()).map(|k| 1.0 / k as f64).sum();
        for entry in &pool {
            let share = weight_of(entry) as f64 / total(&pool) as f64;
            let (ahead, behind) = extremes(&slots, entry.1, share);
            prop_assert!(ahead <= most_ahead + 1e-6, "{} ahead {}", entry.0, ahead);
            prop_assert!(behind <= most_behind + 1e-6, "{} behind {}", entry.0, behind);
        }
    }

    #[test]
    fn at_most_half_of_the_total_means_at_most_two_in_a_row(a in 1u8..=100, b in 1u8..=100, c in 1u8..=100) {
        let largest = a.max(b).max(c);
        let sum = u32::from(a) + u32::from(b) + u32::from(c);
        prop_assume!(2 * u32::from(largest) <= sum);
        prop_assert!(longest_run(&wrr(&pool(&[a, b, c]))) <= 2);
    }

    #[test]
    fn round_robin_is_each_once(weights in prop::collection::vec(1u8..=100, 0..=64)) {
        let slots = build(Scheduler::RoundRobin, &pool(&weights));
        prop_assert_eq!(slots, (1..=weights.len() as u16).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// |count - M * w / W| <= 1/2 + k * w / (2 * W), in whole numbers; proven in `src/ring/maglev.rs`.
    #[test]
    fn maglev_honours_weights(weights in prop::collection::vec(1u8..=100, 1..=64), base in any::<[u8; 3]>()) {
        let pool = pool_at(Ipv4Addr::new(10, base[0], base[1], base[2]), &weights);
        let slots = maglev(&pool);
        prop_assert_eq!(slots.len(), MAGLEV_SLOTS);
        let counts = count(slots);
        for entry in &pool {
            let (weight, sum) = (weight_of(entry), total(&pool));
            let off = (2 * sum * counts[&entry.1]).abs_diff(2 * MAGLEV_SLOTS * weight);
            prop_assert!(off <= sum + pool.len() * weight, "{} has {}", entry.0, counts[&entry.1]);
        }
    }

    #[test]
    fn maglev_does_not_depend_on_the_order_of_backends(
        (pool, shuffled) in prop::collection::vec(1u8..=100, 1..=32)
            .prop_map(|weights| pool(&weights))
            .prop_flat_map(|pool| (Just(pool.clone()), Just(pool).prop_shuffle())),
    ) {
        let slots = maglev(&pool);
        prop_assert_eq!(&slots, &maglev(&shuffled));
        prop_assert_eq!(&slots, &build(Scheduler::IpHash, &shuffled));
    }

    /// New data-plane indexes must not move clients: a slot belongs to an address, whatever its index.
    #[test]
    fn maglev_does_not_depend_on_the_indexes(weights in prop::collection::vec(1u8..=100, 1..=32)) {
        let pool = pool(&weights);
        let renumbered = pool.iter().map(|&(backend, index)| (backend, 1000 - index)).collect();
        let back: Vec<u16> = maglev(&renumbered).into_iter().map(|index| 1000 - index).collect();
        prop_assert_eq!(maglev(&pool), back);
    }
}

#[test]
fn maglev_with_equal_weights_differs_by_at_most_one_slot() {
    for n in [1, 2, 3, 7, 10, 64, 100, 655] {
        let counts = count(maglev(&pool(&vec![3; n])));
        let (most, least) = (counts.values().max(), counts.values().min());
        assert_eq!(counts.len(), n);
        assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{n}: {most:?} {least:?}");
    }
}

#[test]
fn maglev_shares_of_one_percent_and_more_are_right_to_two_per_mille() {
    let pool = pool(&[100, 50, 30, 20, 10, 5, 3, 2]);
    let counts = count(maglev(&pool));
    for entry in pool.iter().filter(|entry| weight_of(entry) * 100 >= total(&pool)) {
        let exact = (MAGLEV_SLOTS * weight_of(entry)) as f64 / total(&pool) as f64;
        assert!((counts[&entry.1] as f64 / exact - 1.0).abs() < 0.002, "{}", entry.0);
    }
}

/// Removes each backend in turn and returns the parts of the table that moved without need.
fn removals(pool: &Pool) -> Vec<f64> {
    let with = maglev(pool);
    let part = |gone: &(Backend, u16)| {
        let rest: Pool = pool.iter().filter(|entry| entry.1 != gone.1).copied().collect();
        let without = maglev(&rest);
        assert_eq!(without.len(), MAGLEV_SLOTS);
        assert!(!without.contains(&gone.1), "all slots of {} are reassigned", gone.0);
        moved_without_need(&with, &without, gone.1) as f64 / MAGLEV_SLOTS as f64
    };
    pool.iter().map(part).collect()
}

/// Measured over 89,000 random pools of 3 to 64 backends: the medians are 0.02 to 0.5 %, less than one
/// removal in a hundred is above 0.7 %, less than one in a thousand above 2 %. These pools are fixed: the
/// bounds need no luck.
#[test]
fn removing_a_backend_moves_few_other_clients() {
    let uneven = [(1..=40).collect(), vec![100, 1, 50, 25, 99, 2]];
    for weights in [3, 8, 16, 64].map(|n| vec![1; n]).into_iter().chain(uneven) {
        let moved = removals(&pool(&weights));
        let mean = moved.iter().sum::<f64>() / moved.len() as f64;
        let worst = moved.iter().copied().fold(0.0, f64::max);
        println!("{} backends: mean {:.3} %, worst {:.3} %", weights.len(), 100.0 * mean, 100.0 * worst);
        assert!(mean <= 0.008, "{weights:?}: {mean}");
        assert!(worst <= 0.02, "{weights:?}: {worst}");
    }
}

#[test]
fn a_backend_that_comes_takes_its_share_and_moves_few_others() {
    for n in [2_u8, 9, 31] {
        let weights: Vec<u8> = (0..=n).map(|i| 10 + i).collect();
        let all = pool(&weights);
        let new = all[usize::from(n / 2)];
        let old: Pool = all.iter().filter(|entry| entry.1 != new.1).copied().collect();
        let (before, after) = (maglev(&old), maglev(&all));
        let taken = after.iter().filter(|&&slot| slot == new.1).count();
        let share = MAGLEV_SLOTS * weight_of(&new) / total(&all);
        assert!(taken.abs_diff(share) <= 2, "{n}: {taken} of {share}");
        let moved = moved_without_need(&after, &before, new.1);
        assert!(moved <= MAGLEV_SLOTS / 50, "{n}: {moved}");
    }
}

/// A backend that goes and comes back finds its clients: the table has no memory.
#[test]
fn the_table_depends_on_the_present_backends_only() {
    let all = pool(&[5, 4, 3, 2, 1]);
    let before = maglev(&all);
    assert_ne!(before, maglev(&all[1..].to_vec()));
    assert_eq!(before, maglev(&all));
}
