//! What the control plane counts in the tables, so that it outlives the process: one writer, by single stores and additions.

use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::events::Histogram;
use super::mapped::Rows;
use super::types::{lb_backend_checks, lb_histogram, lb_history};

/// Reloads and changes of all processes that used the tables.
#[derive(Clone, Copy)]
pub struct History<'a>(pub &'a Rows<lb_history>);

impl History<'_> {
    /// A reload was carried out, or failed and changed nothing.
    pub fn reloaded(self, done: bool) {
        self.add(if done { offset_of!(lb_history, reloads) } else { offset_of!(lb_history, reloads_failed) });
        self.set(offset_of!(lb_history, last_reload_failed), u64::from(!done));
    }

    /// What runs is what a start was asked for, by a file or not: a reload that failed before it is mended.
    pub fn started(self) {
        self.set(offset_of!(lb_history, last_reload_failed), 0);
    }

    /// What runs is something else since then, a time since 1970.
    pub fn changed(self, at: Duration) {
        self.add(offset_of!(lb_history, changes));
        self.set(offset_of!(lb_history, last_change), at.as_secs());
    }

    fn add(self, counter: usize) {
        if let Some(word) = self.0.word(0, counter) {
            word.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn set(self, field: usize, value: u64) {
        if let Some(word) = self.0.word(0, field) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// What checks of a backend found within some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckTally {
    /// Checks that it passed.
    pub passed: u64,
    /// Checks that it failed.
    pub failed: u64,
    /// Checks that this host could not make.
    pub unchecked: u64,
    /// How long the first two took.
    pub durations: Histogram,
}

impl CheckTally {
    /// One more.
    pub fn add(&mut self, passed: bool, took: Duration) {
        *(if passed { &mut self.passed } else { &mut self.failed }) += 1;
        self.durations.buckets[Histogram::bucket_of(took)] += 1;
        self.durations.microseconds += took.as_micros() as u64;
    }
}

/// What checks found, by backend index.
#[derive(Clone, Copy)]
pub struct Checks<'a>(pub &'a Rows<lb_backend_checks>);

impl Checks<'_> {
    /// Adds what was found since the last call. Of a backend that has no row any more: to row 0.
    pub fn add(self, backend: u16, tally: &CheckTally) {
        let duration = offset_of!(lb_backend_checks, duration);
        let bucket = |at: usize| duration + offset_of!(lb_histogram, bucket) + at * size_of::<u64>();
        let buckets = tally.durations.buckets.iter().enumerate().map(|(at, count)| (bucket(at), *count));
        let others = [
            (duration + offset_of!(lb_histogram, microseconds), tally.durations.microseconds),
            (offset_of!(lb_backend_checks, passed), tally.passed),
            (offset_of!(lb_backend_checks, failed), tally.failed),
            (offset_of!(lb_backend_checks, unchecked), tally.unchecked),
        ];
        for (offset, count) in buckets.chain(others).filter(|(_, count)| *count > 0) {
            if let Some(word) = self.0.word(usize::from(backend), offset) {
                word.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use libbpf_rs::{MapHandle, MapType};
    use plain::Plain;

    use super::*;

    fn rows<T: Plain + Copy>(count: u32) -> Rows<T> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            map_flags: libbpf_sys::BPF_F_MMAPABLE,
            ..Default::default()
        };
        let size = size_of::<T>() as u32;
        Rows::map(MapHandle::create(MapType::Array, Some("rows"), 4, size, count, &options).unwrap()).unwrap()
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_tallies_add_up_in_their_row() {
        let rows = rows::<lb_backend_checks>(3);
        let mut tally = CheckTally::default();
        tally.add(true, Duration::from_micros(64));
        tally.add(true, Duration::from_micros(65));
        tally.add(false, Duration::from_secs(3));
        tally.unchecked = 5;
        Checks(&rows).add(2, &tally);
        Checks(&rows).add(2, &tally);
        let row = rows.get(2).unwrap();
        assert_eq!((row.passed, row.failed, row.unchecked), (4, 2, 10));
        assert_eq!(row.duration.microseconds, 2 * 3_000_129);
        assert_eq!((row.duration.bucket[0], row.duration.bucket[1], row.duration.bucket[15]), (2, 2, 2));
        assert_eq!(Histogram::from(&row.duration).count(), 6);
        assert_eq!(rows.get(1).unwrap().passed, 0);
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_the_last_reload_tells_how_it_went() {
        let rows = rows::<lb_history>(1);
        let history = History(&rows);
        for done in [true, false, true, false] {
            history.reloaded(done);
            assert_eq!(rows.get(0).unwrap().last_reload_failed, u64::from(!done));
        }
        history.reloaded(false);
        history.started();
        history.changed(Duration::from_millis(1_700_000_000_900));
        let row = rows.get(0).unwrap();
        assert_eq!((row.reloads, row.reloads_failed, row.last_reload_failed), (2, 3, 0));
        assert_eq!((row.changes, row.last_change), (1, 1_700_000_000));
    }
}
