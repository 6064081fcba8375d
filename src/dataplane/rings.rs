use std::mem::offset_of;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, ensure};

use super::mapped::Rows;
use super::types::{lb_constants, lb_ring_layout as layout, lb_ring_line, lb_service};
use crate::ring::MAX_MEMBERS;

/// The data plane scans no more.
const _: () = assert!(MAX_MEMBERS == lb_constants::LB_LEAST_EXACT.0 as usize);

const SLOTS_PER_LINE: usize = lb_constants::LB_SLOTS_PER_LINE.0 as usize;

/// Lines that a ring of so many slots takes.
pub fn lines(slots: usize) -> usize {
    slots.div_ceil(SLOTS_PER_LINE)
}

/// Which lines of the ring array are free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingArena {
    /// (first line, number of lines), by first line, never adjacent.
    free: Vec<(usize, usize)>,
}

impl RingArena {
    /// An arena of so many free lines.
    pub fn new(lines: usize) -> RingArena {
        RingArena { free: vec![(0, lines)] }
    }

    /// An arena of so many lines, of which these runs (first line, number of lines) are in use.
    pub fn with_taken(lines: usize, taken: impl IntoIterator<Item = (usize, usize)>) -> RingArena {
        let mut taken: Vec<_> = taken.into_iter().filter(|&(_, count)| count > 0).collect();
        taken.sort_unstable();
        let mut free = Vec::new();
        let mut next = 0;
        for (first, count) in taken.into_iter().chain([(lines, 0)]) {
            if first > next {
                free.push((next, first - next));
            }
            next = next.max(first + count);
        }
        RingArena { free }
    }

    /// Gives lines back that no packet reads any more.
    pub fn give_back(&mut self, first: usize, count: usize) {
        if count == 0 {
            return;
        }
        self.free.push((first, count));
        self.free.sort_unstable();
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for &(first, count) in &self.free {
            match merged.last_mut() {
                Some((start, length)) if *start + *length == first => *length += count,
                _ => merged.push((first, count)),
            }
        }
        self.free = merged;
    }

    /// Takes `count` lines in a row: the first free run that is long enough. `None` if there is none.
    pub fn take(&mut self, count: usize) -> Option<usize> {
        let run = self.free.iter().position(|&(_, length)| length >= count)?;
        let (first, length) = self.free[run];
        if length == count {
            self.free.remove(run);
        } else {
            self.free[run] = (first + count, length - count);
        }
        Some(first)
    }
}

/// Writes a ring into lines of its own.
pub fn write(rows: &Rows<lb_ring_line>, first: usize, slots: &[u16]) -> Result<()> {
    for (line, chunk) in slots.chunks(SLOTS_PER_LINE).enumerate() {
        let mut row = lb_ring_line::default();
        row.backend[..chunk.len()].copy_from_slice(chunk);
        rows.set(first + line, row)?;
    }
    Ok(())
}

/// Where a published ring or list of members lies, by a service's word for it: first line, number of slots.
pub fn published(word: u64) -> (usize, usize) {
    const FIELD: u64 = (1 << 24) - 1;
    let field = |shift: layout| (word >> shift.0 & FIELD) as usize;
    (field(layout::LB_RING_OFFSET_SHIFT), field(layout::LB_RING_LENGTH_SHIFT))
}

/// The slots of a ring.
pub fn read(rows: &Rows<lb_ring_line>, first: usize, slots: usize) -> Vec<u16> {
    let mut ring: Vec<u16> = (first..first + lines(slots))
        .filter_map(|line| rows.get(line))
        .flat_map(|line| line.backend)
        .collect();
    ring.truncate(slots);
    ring
}

/// Makes packets of a service use another ring, by one store.
pub fn publish(rows: &Rows<lb_service>, service: u16, first: usize, slots: usize) -> Result<()> {
    publish_at(rows, service, offset_of!(lb_service, ring), first, slots)
}

/// The same for its list of members. Lines of ring and members may be of different times for a moment.
pub fn publish_members(rows: &Rows<lb_service>, service: u16, first: usize, slots: usize) -> Result<()> {
    publish_at(rows, service, offset_of!(lb_service, members), first, slots)
}

fn publish_at(rows: &Rows<lb_service>, service: u16, field: usize, first: usize, slots: usize) -> Result<()> {
    const FIELD: usize = 24;
    ensure!(
        first < 1 << FIELD && slots < 1 << FIELD,
        "a ring of {slots} slots at line {first} cannot be named"
    );
    let word =
        rows.word(usize::from(service), field).with_context(|| format!("there is no service {service}"))?;
    let generation =
        (word.load(Ordering::Relaxed) >> layout::LB_RING_GENERATION_SHIFT.0).wrapping_add(1) & 0xffff;
    word.store(
        (first as u64) << layout::LB_RING_OFFSET_SHIFT.0
            | (slots as u64) << layout::LB_RING_LENGTH_SHIFT.0
            | generation << layout::LB_RING_GENERATION_SHIFT.0,
        Ordering::Release,
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_in_order_until_none_are_left() {
        let mut arena = RingArena::new(10);
        assert_eq!(arena.take(4), Some(0));
        assert_eq!(arena.take(5), Some(4));
        assert_eq!(arena.take(2), None);
        assert_eq!(arena.take(1), Some(9));
        assert_eq!(arena.take(1), None);
    }

    #[test]
    fn lines_in_use_are_not_given_out_and_those_given_back_are() {
        let mut arena = RingArena::with_taken(10, [(4, 2), (0, 1), (9, 1), (3, 0)]);
        assert_eq!(arena.take(4), None);
        assert_eq!(arena.take(3), Some(1));
        arena.give_back(4, 2);
        assert_eq!(arena.take(5), Some(4));
        arena.give_back(9, 1);
        arena.give_back(4, 5);
        arena.give_back(0, 4);
        assert_eq!(arena, RingArena::new(10));
        assert_eq!(RingArena::with_taken(3, []), RingArena::new(3));
    }

    #[test]
    fn a_ring_of_one_slot_takes_a_line() {
        assert_eq!([lines(0), lines(1), lines(32), lines(33), lines(65537)], [0, 1, 1, 2, 2049]);
    }
}
