//! The loads that least connections go by, and their agreement with the connection table.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use super::mapped::Rows;
use super::types::lb_backend_load;

/// The counts of each backend's load, which packets write.
#[derive(Clone, Copy)]
pub struct Loads<'a>(pub &'a Rows<lb_backend_load>);

/// A backend's counts at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reading {
    opened: u64,
    ended: u64,
}

impl Reading {
    fn load(self) -> i64 {
        self.opened.wrapping_sub(self.ended) as i64
    }
}

impl Loads<'_> {
    /// A backend's live connections, as the scheduler sees them. It may be off, below 0 too, by what is under way on other
    /// CPUs. 0 for a backend without a row.
    pub fn load(self, backend: u16) -> i64 {
        self.reading(usize::from(backend)).load()
    }

    /// One connection more.
    pub(super) fn opened(self, backend: u16) {
        self.add(usize::from(backend), offset_of!(lb_backend_load, opened), 1);
    }

    /// One connection less.
    pub(super) fn ended(self, backend: u16) {
        self.add(usize::from(backend), offset_of!(lb_backend_load, ended), 1);
    }

    /// Changes a load by atomic additions: packets change it too.
    fn change(self, backend: usize, by: i64) {
        let field =
            if by > 0 { offset_of!(lb_backend_load, opened) } else { offset_of!(lb_backend_load, ended) };
        self.add(backend, field, by.unsigned_abs());
    }

    fn reading(self, backend: usize) -> Reading {
        let count = |offset| self.0.word(backend, offset).map_or(0, |count| count.load(Ordering::SeqCst));
        Reading {
            opened: count(offset_of!(lb_backend_load, opened)),
            ended: count(offset_of!(lb_backend_load, ended)),
        }
    }

    fn readings(self) -> Vec<Reading> {
        (0..self.0.len()).map(|backend| self.reading(backend)).collect()
    }

    fn add(self, backend: usize, offset: usize, count: u64) {
        let word: Option<&AtomicU64> = self.0.word(backend, offset);
        if let Some(word) = word {
            word.fetch_add(count, Ordering::SeqCst);
        }
    }
}

/// What a walk over the table found of one backend's load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Entries with the counted bit, as the walk left them.
    pub entries: u64,
    /// Those to which the walk itself gave the bit.
    pub opened: u64,
    /// Those from which it took it.
    pub ended: u64,
}

/// How far a load is certainly off, given its counts before and after a walk: above 0 if it is too high.
///
/// While the walk lasts packets open and end connections, each before or after the walk comes to its slot; nobody knows
/// which. With `up` and `down` such events the load before, L, is that of the entries then, N, and the drift: L = N + drift;
/// and the walk counts between N - down and N + up. So the drift is within L - entries - down and L - entries + up. What the
/// walk did itself it knows.
fn certain_drift(before: Reading, counted: Counted, after: Reading) -> i64 {
    let events = |after: u64, before: u64, own: u64| after.wrapping_sub(before).saturating_sub(own) as i64;
    let up = events(after.opened, before.opened, counted.opened);
    let down = events(after.ended, before.ended, counted.ended);
    let excess = before.load() + counted.opened as i64 - counted.ended as i64 - counted.entries as i64;
    if excess > down {
        excess - down
    } else if excess < -up {
        excess + up
    } else {
        0
    }
}

/// Keeps loads in agreement with the table. They do not drift by what packets do; but a process that is killed between
/// taking an entry's bit and lowering its load leaves one behind, and so would any mistake.
#[derive(Default)]
pub struct Reconciler {
    /// By how much each backend's load was certainly off at the last walk.
    suspected: Vec<i64>,
}

impl Reconciler {
    /// Lets a walk over the table count, and corrects what was off by this walk and the last one, in the same direction: a
    /// packet that is between its swap and its addition is not there any more at the next walk. Returns how many
    /// connections the loads were corrected by.
    pub fn reconcile(&mut self, loads: Loads<'_>, walk: impl FnOnce() -> Vec<Counted>) -> u64 {
        let corrections = self.corrections(&drifts(loads, walk));
        for (backend, by) in corrections.iter().enumerate().filter(|(_, by)| **by != 0) {
            loads.change(backend, *by);
        }
        corrections.iter().map(|by| by.unsigned_abs()).sum()
    }

    /// What to add to each load, given how far each is certainly off by this walk.
    fn corrections(&mut self, drifts: &[i64]) -> Vec<i64> {
        self.suspected.resize(drifts.len(), 0);
        let correct = |(drift, last): (&i64, &mut i64)| {
            let agree = drift.signum() == last.signum();
            let by = if agree { -drift.signum() * drift.abs().min(last.abs()) } else { 0 };
            *last = drift + by;
            by
        };
        drifts.iter().zip(&mut self.suspected).map(correct).collect()
    }
}

/// The same at once, for after a take-over, when loads may have been made anew. Exact if nothing moves meanwhile; what is
/// left otherwise is less than what moved, and for [`Reconciler`] to find.
pub fn recount(loads: Loads<'_>, walk: impl FnOnce() -> Vec<Counted>) -> u64 {
    let drifts = drifts(loads, walk);
    for (backend, drift) in drifts.iter().enumerate().filter(|(_, drift)| **drift != 0) {
        loads.change(backend, -drift);
    }
    drifts.iter().map(|drift| drift.unsigned_abs()).sum()
}

fn drifts(loads: Loads<'_>, walk: impl FnOnce() -> Vec<Counted>) -> Vec<i64> {
    let before = loads.readings();
    let counted = walk();
    let after = loads.readings();
    let counted = counted.into_iter().chain(std::iter::repeat(Counted::default()));
    before.into_iter().zip(counted).zip(after).map(|((b, c), a)| certain_drift(b, c, a)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn reading(opened: u64, ended: u64) -> Reading {
        Reading { opened, ended }
    }

    const fn found(entries: u64) -> Counted {
        Counted { entries, opened: 0, ended: 0 }
    }

    #[test]
    fn what_stands_still_is_known_exactly() {
        let still = |opened, ended, entries| {
            certain_drift(reading(opened, ended), found(entries), reading(opened, ended))
        };
        assert_eq!(still(100, 60, 40), 0);
        assert_eq!(still(100, 60, 35), 5);
        assert_eq!(still(100, 60, 47), -7);
        assert_eq!(still(5, 9, 0), -4);
        assert_eq!(still(3, u64::MAX - 1, 5), 0, "counts wrap around");
    }

    /// Every interleaving of events with a walk: the drift that is certain never exceeds the one that there is.
    #[test]
    fn what_moves_during_a_walk_is_never_taken_for_a_drift() {
        const SLOTS: usize = 3;
        for drift in -2..=2_i64 {
            // Each slot is full or empty before, and turns over up to twice, before or after the walk comes to it.
            for code in 0..(2 * 3 * 3_usize).pow(SLOTS as u32) {
                let (mut before, mut up, mut down, mut seen) = (0, 0, 0, 0);
                let mut rest = code;
                for _ in 0..SLOTS {
                    let (full, early, late) = (rest % 2, rest / 2 % 3, rest / 6 % 3);
                    rest /= 18;
                    before += full as i64;
                    let mut now = full;
                    for turn in 0..early + late {
                        if turn == early {
                            seen += now as u64;
                        }
                        *(if now == 1 { &mut down } else { &mut up }) += 1;
                        now = 1 - now;
                    }
                    if late == 0 {
                        seen += now as u64;
                    }
                }
                let first = reading((before + drift + 100) as u64, 100);
                let last = reading(first.opened + up, first.ended + down);
                let certain = certain_drift(first, found(seen), last);
                assert!(
                    certain.signum() * drift.signum() >= 0 && certain.abs() <= drift.abs(),
                    "{certain} of {drift}: {first:?} {last:?} {seen}"
                );
            }
        }
    }

    #[test]
    fn only_what_two_walks_agree_on_is_corrected() {
        let mut reconciler = Reconciler::default();
        assert_eq!(reconciler.corrections(&[0, 5, -3, 1]), [0, 0, 0, 0], "once proves nothing");
        assert_eq!(reconciler.corrections(&[0, 4, -9, -1]), [0, -4, 3, 0], "the lesser of both");
        assert_eq!(reconciler.corrections(&[7, 0, -6, 0]), [0, 0, 6, 0], "what is left, at the next");
        assert_eq!(reconciler.corrections(&[7, 0, 0, -1]), [-7, 0, 0, 0]);
        assert_eq!(reconciler.corrections(&[0, 0, 0, -1]), [0, 0, 0, 1]);
        assert_eq!(reconciler.corrections(&[0, 0, 0, 0]), [0, 0, 0, 0]);
    }

    #[test]
    fn what_the_walk_did_itself_blurs_nothing() {
        let counted = Counted { entries: 30, opened: 4, ended: 10 };
        assert_eq!(certain_drift(reading(36, 0), counted, reading(40, 10)), 0);
        assert_eq!(certain_drift(reading(37, 0), counted, reading(41, 10)), 1);
        assert_eq!(certain_drift(reading(37, 0), counted, reading(42, 11)), 0, "one more may have gone");
    }
}
