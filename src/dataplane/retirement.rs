//! What a row counted before another backend has it goes to row 0, which no packet counts in: what all backends counted together
//! never goes back. Which row is being given back stands in the history, where everybody who reads the tables sees it, through
//! whatever handles; and so does the next start, if the process is killed in the middle.

use std::mem::offset_of;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapInfo};
use plain::Plain;

use super::mapped::Rows;
use super::tables::as_bytes;
use super::types::{lb_backend_checks, lb_backend_events, lb_history};

/// The low bits of `retiring`: the row that is being given back. The rest counts those that were.
const ROW_BITS: u32 = 16;

/// The tables that count by backend, and where it is noted which of their rows is being given back.
pub(super) struct Retirement<'a> {
    pub counters: &'a MapHandle,
    pub events: &'a Rows<lb_backend_events>,
    pub checks: &'a Rows<lb_backend_checks>,
    pub history: &'a Rows<lb_history>,
}

impl Retirement<'_> {
    /// Adds what a row counted to row 0. The row is to count for another backend from 0.
    pub fn retire(&self, index: u16) -> Result<()> {
        let counted = of_cpus(self.counters, index)?;
        if counted.iter().flatten().all(|byte| *byte == 0) && self.has_no_events(index) {
            return Ok(());
        }
        let sums = self.sums(&counted)?;
        self.begin(index, &sums)?;
        let retired = set_of_cpus(self.counters, 0, &sums).and_then(|()| self.clear_counters(index));
        self.end(index)?;
        retired
    }

    /// Ends what a process was killed in: `retire` of a row, at any point of it. Without effect if it was in none.
    pub fn resume(&self) -> Result<()> {
        let index = being_retired(self.word()?.load(Ordering::Acquire));
        if index == 0 {
            return Ok(());
        }
        // A start that was killed before its own tables were anybody's.
        if self.field(offset_of!(lb_history, retiring_in))?.load(Ordering::Acquire) != self.id()? {
            return self.done();
        }
        // One system call wrote row 0 for all CPUs, or did not yet.
        let noted = self.field(offset_of!(lb_history, retired_sum))?.load(Ordering::Acquire);
        if sum_of_words(&of_cpus(self.counters, 0)?) != noted {
            let sums = self.sums(&of_cpus(self.counters, index)?)?;
            self.begin(index, &sums)?;
            set_of_cpus(self.counters, 0, &sums)?;
        }
        self.clear_counters(index)?;
        self.end(index)
    }

    /// What row 0 is to count, by CPU, once it has what this row counted.
    fn sums(&self, counted: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let gone = of_cpus(self.counters, 0)?;
        Ok(gone.iter().zip(counted).map(|(gone, row)| added(gone, row)).collect())
    }

    /// Before anything of it is done.
    fn begin(&self, index: u16, sums: &[Vec<u8>]) -> Result<()> {
        self.field(offset_of!(lb_history, retired_sum))?.store(sum_of_words(sums), Ordering::Release);
        self.field(offset_of!(lb_history, retiring_in))?.store(self.id()?, Ordering::Release);
        let word = self.word()?;
        let retired = word.load(Ordering::Acquire) >> ROW_BITS;
        word.store(retired << ROW_BITS | u64::from(index), Ordering::SeqCst);
        Ok(())
    }

    fn clear_counters(&self, index: u16) -> Result<()> {
        let zeros: Vec<_> = of_cpus(self.counters, index)?.iter().map(|value| vec![0; value.len()]).collect();
        set_of_cpus(self.counters, index, &zeros)
    }

    /// Does the rest, which can be done again, and says that it is done.
    fn end(&self, index: u16) -> Result<()> {
        move_words(self.events, index);
        move_words(self.checks, index);
        self.done()
    }

    fn done(&self) -> Result<()> {
        let word = self.word()?;
        let retired = (word.load(Ordering::Acquire) >> ROW_BITS).wrapping_add(1);
        word.store(retired << ROW_BITS, Ordering::SeqCst);
        Ok(())
    }

    fn has_no_events(&self, index: u16) -> bool {
        fn is_zero<T: Plain + Copy>(rows: &Rows<T>, index: u16) -> bool {
            rows.get(usize::from(index)).is_none_or(|row| as_bytes(&row).iter().all(|byte| *byte == 0))
        }
        is_zero(self.events, index) && is_zero(self.checks, index)
    }

    fn word(&self) -> Result<&AtomicU64> {
        self.field(offset_of!(lb_history, retiring))
    }

    fn field(&self, offset: usize) -> Result<&AtomicU64> {
        self.history.word(0, offset).context("the table history is empty")
    }

    /// Which table of counters it is.
    fn id(&self) -> Result<u64> {
        let info =
            MapInfo::new(self.counters.as_fd()).context("could not look at the table backend_counters")?;
        Ok(u64::from(info.info.id))
    }
}

/// How often rows were given back; `None` while one is, and what is read meanwhile may be there twice.
pub(super) fn retirements(history: &Rows<lb_history>) -> Option<u64> {
    let word = history.word(0, offset_of!(lb_history, retiring))?.load(Ordering::SeqCst);
    (being_retired(word) == 0).then_some(word >> ROW_BITS)
}

fn being_retired(word: u64) -> u16 {
    word as u16
}

/// A backend's counters, one value for each CPU.
pub(super) fn of_cpus(counters: &MapHandle, index: u16) -> Result<Vec<Vec<u8>>> {
    counters
        .lookup_percpu(&u32::from(index).to_ne_bytes(), MapFlags::ANY)
        .with_context(|| format!("could not read the counters of backend {index}"))?
        .with_context(|| format!("there are no counters of backend {index}"))
}

/// Sets them.
pub(super) fn set_of_cpus(counters: &MapHandle, index: u16, values: &[Vec<u8>]) -> Result<()> {
    counters
        .update_percpu(&u32::from(index).to_ne_bytes(), values, MapFlags::ANY)
        .with_context(|| format!("could not set the counters of backend {index}"))
}

/// Moves what a row of counters counted to row 0. All of the row is 64-bit counters.
fn move_words<T: Plain + Copy>(rows: &Rows<T>, index: u16) {
    for offset in (0..size_of::<T>()).step_by(size_of::<u64>()) {
        let words = rows.word(usize::from(index), offset).zip(rows.word(0, offset));
        if let Some((word, gone)) = words {
            gone.fetch_add(word.swap(0, Ordering::AcqRel), Ordering::AcqRel);
        }
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(size_of::<u64>()).map(|word| word.try_into().map_or(0, u64::from_ne_bytes))
}

fn added(a: &[u8], b: &[u8]) -> Vec<u8> {
    words(a).zip(words(b)).flat_map(|(a, b)| a.wrapping_add(b).to_ne_bytes()).collect()
}

/// Another one once anything was added to a row.
fn sum_of_words(of_cpus: &[Vec<u8>]) -> u64 {
    of_cpus.iter().flat_map(|value| words(value)).fold(0, u64::wrapping_add)
}

#[cfg(test)]
#[path = "retirement_tests.rs"]
mod tests;
