//! What the results of checks make of a backend. It has no clock of its own and does no I/O.

use std::time::{Duration, SystemTime};

use super::Failure;

/// Of so many checks the recent rate of failures is.
const RECENT: u32 = 100;
const RECENT_MASK: u128 = (1 << RECENT) - 1;
/// A new latency changes the smoothed one by this part of their difference, as TCP smooths its round trips.
const SMOOTHING: u32 = 8;

/// Whether a backend is up, and what its checks have found so far.
#[derive(Clone, Debug)]
pub struct State {
    rise: u32,
    fall: u32,
    /// Checks in a row with the result of the last one.
    run: u32,
    last_failed: bool,
    /// One bit for each of the last checks, the newest lowest: whether it failed.
    recent: u128,
    stats: Stats,
}

/// What is known of one backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Whether it is taken to be up.
    pub up: bool,
    /// Checks that came to a result.
    pub checks: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Checks that this host could not do: neither good nor bad.
    pub unchecked: u64,
    /// Of the last 100 checks, those there were.
    pub recent_checks: u32,
    /// Those of them that failed.
    pub recent_failures: u32,
    /// When it last went up or down.
    pub changed: Option<SystemTime>,
    /// Why a check last failed, and when.
    pub last_error: Option<(Failure, SystemTime)>,
    /// How long the last good check took.
    pub latency: Option<Duration>,
    /// The same, smoothed over the last good checks.
    pub smoothed: Option<Duration>,
    /// By how much a check has begun too late at worst.
    pub late: Duration,
}

/// A backend went up or down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is now.
    pub up: bool,
    /// What the deciding check met, if it went down.
    pub why: Option<Failure>,
    /// So many checks in a row decided it.
    pub run: u32,
}

impl State {
    /// No check so far. Where `rise` or `fall` is 0, it is taken for 1.
    pub fn new(up: bool, rise: u32, fall: u32) -> State {
        State {
            rise: rise.max(1),
            fall: fall.max(1),
            run: 0,
            last_failed: false,
            recent: 0,
            stats: Stats { up, ..Stats::default() },
        }
    }

    /// Other rules, or another way to check: what was found so far no longer counts towards a change.
    pub fn restart(&mut self, rise: u32, fall: u32) {
        (self.rise, self.fall, self.run) = (rise.max(1), fall.max(1), 0);
    }

    /// Whether the backend is taken to be up.
    pub fn up(&self) -> bool {
        self.stats.up
    }

    /// What is known so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// A check came to a result: how long it took, or why it failed.
    pub fn record(&mut self, result: Result<Duration, Failure>, at: SystemTime) -> Option<Change> {
        self.count(result.is_err());
        let why = match result {
            Ok(latency) => {
                self.took(latency);
                None
            }
            Err(failure) => {
                self.stats.last_error = Some((failure.clone(), at));
                Some(failure)
            }
        };
        let decided = match self.stats.up {
            true => self.last_failed && self.run >= self.fall,
            false => !self.last_failed && self.run >= self.rise,
        };
        decided.then(|| self.change(why, at))
    }

    /// A check could not be done.
    pub fn unchecked(&mut self) {
        self.stats.unchecked += 1;
    }

    /// Nobody checks it any more: it is up.
    pub fn trust(&mut self, at: SystemTime) -> Option<Change> {
        self.run = 0;
        (!self.stats.up).then(|| self.change(None, at))
    }

    /// A check began so much after its time.
    pub fn began_late(&mut self, by: Duration) {
        self.stats.late = self.stats.late.max(by);
    }

    fn change(&mut self, why: Option<Failure>, at: SystemTime) -> Change {
        self.stats.up = !self.stats.up;
        self.stats.changed = Some(at);
        Change { up: self.stats.up, why, run: self.run }
    }

    fn count(&mut self, failed: bool) {
        self.run = if self.run > 0 && failed == self.last_failed { self.run.saturating_add(1) } else { 1 };
        self.last_failed = failed;
        self.recent = (self.recent << 1 | u128::from(failed)) & RECENT_MASK;
        let stats = &mut self.stats;
        stats.checks += 1;
        stats.failures += u64::from(failed);
        stats.recent_checks = (stats.recent_checks + 1).min(RECENT);
        stats.recent_failures = self.recent.count_ones();
    }

    fn took(&mut self, latency: Duration) {
        let smoothed = self.stats.smoothed.unwrap_or(latency);
        self.stats.smoothed = Some((smoothed * (SMOOTHING - 1) + latency) / SMOOTHING);
        self.stats.latency = Some(latency);
    }
}

impl Stats {
    /// The part of all checks that failed, 0 to 1.
    pub fn failure_rate(&self) -> f64 {
        rate(self.failures, self.checks)
    }

    /// The part of the last 100 checks that failed, 0 to 1.
    pub fn recent_failure_rate(&self) -> f64 {
        rate(self.recent_failures.into(), self.recent_checks.into())
    }
}

fn rate(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn at(n: usize) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(n as u64)
    }

    fn result(good: bool, n: usize) -> Result<Duration, Failure> {
        if good { Ok(Duration::from_millis(n as u64 % 50)) } else { Err(Failure::Bad(format!("{n}"))) }
    }

    /// Results that come in runs: plain coins would seldom make a change where `rise` or `fall` is high.
    fn results() -> impl Strategy<Value = Vec<bool>> {
        let runs = prop::collection::vec((any::<bool>(), 1..12_usize), 0..40);
        runs.prop_map(|runs| runs.into_iter().flat_map(|(good, n)| vec![good; n]).collect())
    }

    /// The last results in a row that were the same as the last.
    fn run(results: &[bool]) -> usize {
        results.iter().rev().take_while(|&result| Some(result) == results.last()).count()
    }

    proptest! {
        /// It changes exactly when enough results in a row speak against what it is, however they came before.
        #[test]
        fn changes_need_a_run(up: bool, rise in 1..8_u32, fall in 1..8_u32, results in results()) {
            let mut state = State::new(up, rise, fall);
            let mut is_up = up;
            for (n, &good) in results.iter().enumerate() {
                let change = state.record(result(good, n), at(n));
                let needed = if is_up { fall } else { rise };
                let expected = good != is_up && run(&results[..=n]) >= needed as usize;
                prop_assert_eq!(change.is_some(), expected);
                if let Some(change) = change {
                    is_up = !is_up;
                    prop_assert_eq!(change.up, is_up);
                    prop_assert_eq!(change.run, needed);
                    prop_assert_eq!(change.why, result(good, n).err());
                    prop_assert_eq!(state.stats().changed, Some(at(n)));
                }
                prop_assert_eq!(state.up(), is_up);
            }
        }

        /// What is neither good nor bad changes nothing and breaks no run.
        #[test]
        fn what_could_not_be_checked_does_not_count(results in results(), gaps in results()) {
            let (mut with, mut without) = (State::new(true, 2, 3), State::new(true, 2, 3));
            for (n, &good) in results.iter().enumerate() {
                if gaps.get(n) == Some(&true) {
                    with.unchecked();
                }
                prop_assert_eq!(with.record(result(good, n), at(n)), without.record(result(good, n), at(n)));
            }
            prop_assert_eq!(with.stats().checks, without.stats().checks);
        }

        #[test]
        fn the_figures_add_up(results in results()) {
            let mut state = State::new(true, 2, 3);
            for (n, &good) in results.iter().enumerate() {
                state.record(result(good, n), at(n));
            }
            let stats = state.stats();
            let failed = |results: &[bool]| results.iter().filter(|&&good| !good).count();
            let recent = &results[results.len().saturating_sub(100)..];
            prop_assert_eq!(stats.checks, results.len() as u64);
            prop_assert_eq!(stats.failures, failed(&results) as u64);
            prop_assert_eq!(stats.recent_checks as usize, recent.len());
            prop_assert_eq!(stats.recent_failures as usize, failed(recent));
            prop_assert!((0.0..=1.0).contains(&stats.failure_rate()));
            let last = |wanted: bool| results.iter().rposition(|&good| good == wanted);
            prop_assert_eq!(stats.latency, last(true).map(|n| Duration::from_millis(n as u64 % 50)));
            prop_assert_eq!(stats.last_error.as_ref().map(|error| error.1), last(false).map(at));
            prop_assert!(stats.smoothed <= Some(Duration::from_millis(50)));
        }

        /// After a restart as many are needed as at first, whatever was found before.
        #[test]
        fn a_restart_forgets_the_run(results in results(), fall in 1..8_u32) {
            let mut state = State::new(true, 1, 8);
            for (n, &good) in results.iter().enumerate() {
                state.record(result(good, n), at(n));
            }
            prop_assume!(state.up());
            state.restart(1, fall);
            for n in 1..=fall {
                prop_assert_eq!(state.record(result(false, 0), at(0)).is_some(), n == fall);
            }
        }
    }

    #[test]
    fn trusted_means_up() {
        let mut state = State::new(false, 3, 3);
        assert_eq!(state.trust(at(1)), Some(Change { up: true, why: None, run: 0 }));
        assert_eq!(state.trust(at(2)), None);
        assert!(state.up());
    }
}
