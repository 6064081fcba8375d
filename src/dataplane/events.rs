use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::connections::State;
use super::counters::{self, WORDS};
use super::mapped::Rows;
use super::tables::as_bytes;
use super::types::{lb_backend_counters, lb_backend_events, lb_constants, lb_histogram};

/// What became of the connections of backends, by backend index; counted while packets count too.
#[derive(Clone, Copy)]
pub struct Events<'a>(pub &'a Rows<lb_backend_events>);

impl Events<'_> {
    /// Counts what the winner of a sweep's swap has ended.
    pub(super) fn follow(self, from: State, to: State) {
        if from.is_live() && !to.is_live() {
            let how = match to.expired() {
                true => offset_of!(lb_backend_events, expired),
                // Nobody would have found it any more.
                false => offset_of!(lb_backend_events, evicted),
            };
            self.add(from.backend(), how);
        }
    }

    /// Counts an entry that was forgotten over its timeout, or with its service.
    pub(super) fn forgotten(self, state: State) {
        if state.is_live() {
            self.add(state.backend(), offset_of!(lb_backend_events, expired));
        }
    }

    /// Counts an entry for which another table had no place.
    pub(super) fn lost(self, state: State) {
        if state.is_live() {
            self.add(state.backend(), offset_of!(lb_backend_events, evicted));
        }
    }

    /// Counts a connection that an operator took from a backend and, where another one is to tell the client, gave to that.
    pub(super) fn ended(self, from: State, to: State) {
        if from.is_live() {
            self.add(from.backend(), offset_of!(lb_backend_events, reset));
        }
        if to.is_live() {
            self.add(to.backend(), offset_of!(lb_backend_events, revived));
        }
    }

    /// What a backend counted in tables that were given up.
    pub(super) fn carried(self, backend: u16) -> lb_backend_counters {
        let mut words = [0; WORDS];
        for (word, offset) in words.iter_mut().zip(carried_words()) {
            let row = self.0.word(usize::from(backend), offset);
            *word = row.map_or(0, |row| row.load(Ordering::Relaxed));
        }
        counters::of_words(words)
    }

    /// Adds to that.
    pub(super) fn carry(self, backend: u16, counters: lb_backend_counters) {
        for (word, offset) in counters::words_of(counters).into_iter().zip(carried_words()) {
            self.add_to(backend, offset, word);
        }
    }

    /// Adds what a row of tables that were given up counted between two looks at it, apart from what it carried.
    pub(super) fn catch_up(self, backend: u16, before: &lb_backend_events, now: &lb_backend_events) {
        let words = |row| as_bytes(row).chunks_exact(size_of::<u64>()).map(word_of);
        for (at, (before, now)) in words(before).zip(words(now)).enumerate() {
            self.add_to(backend, at * size_of::<u64>(), now.wrapping_sub(before));
        }
    }

    fn add(self, backend: u16, counter: usize) {
        self.add_to(backend, counter, 1);
    }

    fn add_to(self, backend: u16, counter: usize, count: u64) {
        if count == 0 {
            return;
        }
        if let Some(word) = self.0.word(usize::from(backend), counter) {
            word.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Where the words lie that are carried.
fn carried_words() -> impl Iterator<Item = usize> {
    (offset_of!(lb_backend_events, carried)..).step_by(size_of::<u64>()).take(WORDS)
}

fn word_of(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

/// What became of the connections of a backend, over the time that its tables live. Of those that were opened, and revived,
/// each ends by one of the other ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendEvents {
    /// How long the backend took from a client's first SYN to its SYN-ACK.
    pub handshakes: Histogram,
    /// FINs of both sides were seen.
    pub closed: u64,
    /// Ended by a RST of the backend, or by an operator.
    pub reset: u64,
    /// Over their timeout.
    pub expired: u64,
    /// Unconfirmed ones whose slot was needed.
    pub evicted: u64,
    /// Given to another backend, because this one takes their packets no more.
    pub moved: u64,
    /// Went on after they had counted as expired, or came from another backend to be reset.
    pub revived: u64,
    /// SYNs of connections that were not confirmed yet, beyond the first.
    pub syn_retransmits: u64,
    /// Segments of the backend with RST.
    pub rsts: u64,
}

impl From<&lb_backend_events> for BackendEvents {
    fn from(row: &lb_backend_events) -> BackendEvents {
        BackendEvents {
            handshakes: Histogram::from(&row.handshake),
            closed: row.closed,
            reset: row.reset,
            expired: row.expired,
            evicted: row.evicted,
            moved: row.moved,
            revived: row.revived,
            syn_retransmits: row.syn_retransmits,
            rsts: row.rsts,
        }
    }
}

impl BackendEvents {
    /// What became of those of two together.
    pub fn add(&mut self, other: &BackendEvents) {
        self.handshakes.add(&other.handshakes);
        self.closed += other.closed;
        self.reset += other.reset;
        self.expired += other.expired;
        self.evicted += other.evicted;
        self.moved += other.moved;
        self.revived += other.revived;
        self.syn_retransmits += other.syn_retransmits;
        self.rsts += other.rsts;
    }
}

/// How often something took how long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// How many took no longer than [`Histogram::bound`] of this index, and longer than that of the index before. The last
    /// one has no bound.
    pub buckets: [u64; Self::BUCKETS],
    /// How long all took together, in microseconds.
    pub microseconds: u64,
}

impl Histogram {
    /// How many buckets there are.
    pub const BUCKETS: usize = lb_constants::LB_HISTOGRAM_BUCKETS.0 as usize;
    const FIRST: u64 = lb_constants::LB_HISTOGRAM_FIRST.0 as u64;

    /// The upper bound of a bucket; `None` for the last.
    pub fn bound(bucket: usize) -> Option<Duration> {
        (bucket + 1 < Self::BUCKETS).then(|| Duration::from_micros(Self::FIRST << bucket))
    }

    /// The bucket of something that took so long.
    pub fn bucket_of(took: Duration) -> usize {
        (0..Self::BUCKETS).find(|at| Self::bound(*at).is_none_or(|bound| took <= bound)).unwrap_or(0)
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What a share of them (0 to 1) took at most, interpolated within a bucket; `None` without any. Beyond the last bound it
    /// is that bound.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = share * self.count() as f64;
        let (mut below, mut floor) = (0.0, Duration::ZERO);
        for (at, count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            floor = if at == 0 { Duration::ZERO } else { Self::bound(at - 1)? };
            let Some(bound) = Self::bound(at) else { return Some(floor) };
            if below + count >= rank {
                return Some(floor + (bound - floor).mul_f64(((rank - below) / count).clamp(0.0, 1.0)));
            }
            below += count;
        }
        (below > 0.0).then_some(floor)
    }

    /// Those of two together.
    pub fn add(&mut self, other: &Histogram) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(count, more)| *count += more);
        self.microseconds += other.microseconds;
    }

    /// What came since `earlier`.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut since = self.clone();
        since.buckets.iter_mut().zip(earlier.buckets).for_each(|(now, then)| *now = now.saturating_sub(then));
        since.microseconds = self.microseconds.saturating_sub(earlier.microseconds);
        since
    }
}

impl From<&lb_histogram> for Histogram {
    fn from(row: &lb_histogram) -> Histogram {
        Histogram { buckets: row.bucket, microseconds: row.microseconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_has_its_bucket() {
        let bucket = |micros| Histogram::bucket_of(Duration::from_micros(micros));
        assert_eq!([0, 64, 65, 128, 129].map(bucket), [0, 0, 1, 1, 2]);
        assert_eq!([1 << 20, (1 << 20) + 1, 60_000_000].map(bucket), [14, 15, 15]);
        assert_eq!(Histogram::bound(14), Some(Duration::from_micros(1 << 20)));
        assert_eq!(Histogram::bound(15), None);
    }

    #[test]
    fn quantiles_are_interpolated() {
        let mut all = Histogram::default();
        assert_eq!(all.quantile(0.5), None);
        all.buckets[1] = 100;
        assert_eq!(all.quantile(0.5), Some(Duration::from_micros(96)));
        assert_eq!(all.quantile(1.0), Some(Duration::from_micros(128)));
        all.buckets[15] = 100;
        assert_eq!(all.quantile(0.99), Some(Duration::from_micros(1 << 20)));
        assert_eq!(all.since(&all.clone()).count(), 0);
    }
}
