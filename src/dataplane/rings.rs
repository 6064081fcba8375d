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
pub struct RingArena {
    /// (first line, number of lines), by first line, never adjacent.
    free: Vec<(usize, usize)>,
}

impl RingArena {
    /// An arena of so many free lines.
    pub fn new(lines: usize) -> RingArena {
        RingArena { free: vec![(0, lines)] }
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
    fn a_ring_of_one_slot_takes_a_line() {
        assert_eq!([lines(0), lines(1), lines(32), lines(33), lines(65537)], [0, 1, 1, 2, 2049]);
    }
}
