//! "Insertion" of docs/connections.md: which slot a new entry gets.

use std::cmp::Ordering;

use crate::machine::Machine;
use crate::state::{FREE, Key, Phase, State};
use crate::table::{Rank, SLOTS, Slot, age};

/// Compared in this order: rank, age, and a number that spreads what else would be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rating {
    rank: Rank,
    age: u16,
    spread: u8,
}

type Rated = (Rating, Slot);

/// What a bucket has to offer.
struct Offer {
    /// Slots that nobody's live connection holds.
    spare: usize,
    unconfirmed: usize,
    available: Option<Rated>,
    oldest: Option<Rated>,
}

impl Offer {
    /// Slots that hold no live confirmed connection.
    fn yielding(&self) -> usize {
        self.spare + self.unconfirmed
    }
}

impl Machine {
    /// Writes a new entry. False: there is no slot for it.
    pub fn insert(&mut self, key: Key, state: State, now: u16) -> bool {
        let Some(victim) = self.victim(key, now) else {
            return false;
        };
        self.gave_way(self.state_at(victim), now);
        self.swap(victim, State { phase: Phase::Claimed, seen: now, ..FREE });
        self.connections[victim.bucket][victim.slot].key = key.pack();
        self.swap(victim, state);
        true
    }

    pub fn victim(&self, key: Key, now: u16) -> Option<Slot> {
        let candidates = self.candidates(key);
        let first = self.offer(candidates.first, candidates.tag, now);
        let second = self.offer(candidates.second, candidates.tag, now);
        let chosen = match (first.available, second.available) {
            (Some(a), Some(b)) => {
                if first.spare >= 3 {
                    a
                } else if first.spare != second.spare {
                    if first.spare > second.spare { a } else { b }
                } else {
                    higher(a, b)
                }
            }
            (Some(a), None) => a,
            (None, Some(b)) => b,
            (None, None) => match (first.oldest, second.oldest) {
                (Some(a), Some(b)) => match first.yielding().cmp(&second.yielding()) {
                    Ordering::Greater => a,
                    Ordering::Less => b,
                    Ordering::Equal => higher(a, b),
                },
                (Some(a), None) => a,
                (None, Some(b)) => b,
                (None, None) => return None,
            },
        };
        Some(chosen.1)
    }

    fn offer(&self, bucket: usize, tag: u8, now: u16) -> Offer {
        let rated: Vec<Rated> = (0..SLOTS)
            .map(|slot| {
                let at = Slot { bucket, slot };
                let state = self.state_at(at);
                let spread = slot as u8 ^ tag & 3;
                (Rating { rank: self.rank(state, now), age: age(now, state.seen), spread }, at)
            })
            .collect();
        let of_rank = |rank| rated.iter().filter(move |(rating, _)| rating.rank == rank);
        let best_available = rated.iter().copied().filter(|(rating, _)| rating.rank >= Rank::Closed).max();
        let unconfirmed = of_rank(Rank::Unconfirmed).count();
        Offer {
            spare: rated.iter().filter(|(rating, _)| rating.rank >= Rank::Closed).count(),
            unconfirmed,
            available: if unconfirmed >= 2 { None } else { best_available },
            oldest: of_rank(Rank::Unconfirmed).copied().max(),
        }
    }
}

/// Of equals the first bucket's.
fn higher(first: Rated, second: Rated) -> Rated {
    if second.0 > first.0 { second } else { first }
}
