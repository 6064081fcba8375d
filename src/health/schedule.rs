//! Which target is checked when.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::checker::{Checked, Listeners, Verdict};
use super::probe::{Outcome, Plan};
use super::tls::Trust;
use super::{Change, Event, Failure, State, Stats, Target};
use crate::model::Probe;

/// Checks that are due within this begin together: fewer wake-ups, and the jitter is larger anyway.
const SLACK: Duration = Duration::from_millis(5);
/// So many checks begin at once at most, and the next ones after a pause.
const BURST: usize = 256;
const PAUSE: Duration = Duration::from_millis(10);
/// So many new targets are checked at once; of more, the first checks are spread over `SPREAD`, or their interval.
const FEW: usize = 64;
const SPREAD: Duration = Duration::from_millis(900);
/// The time from one check to the next of a target that is suspected.
const FAST: Duration = Duration::from_millis(250);
/// Two checks of a target never begin within less, whoever asks for them.
const LEAST: Duration = Duration::from_millis(200);
/// What is suspected has so many times its usual latency to answer, but no less than `LEAST`.
const PATIENCE: u32 = 4;
/// This thread did not run for longer than this, or the process was suspended: timeouts of that time prove nothing.
const STALL: Duration = Duration::from_millis(250);
/// Troubles of this host are said this often.
const WARNINGS: Duration = Duration::from_secs(10);
/// Nothing is due.
const LONG: Duration = Duration::from_secs(3600);

/// What others ask of the thread.
pub(super) enum Command {
    Set(Vec<Target>),
    CheckNow(u64),
    Stats(mpsc::Sender<Vec<(u64, Stats)>>),
    Stop,
}

/// A target and its checks.
struct Entry {
    target: Target,
    /// `None`: it is not checked.
    plan: Option<Arc<Plan>>,
    state: State,
    /// When its next check is to begin, while none runs.
    due: Instant,
    /// Tells the entry of the queue that counts from those that do not any more, and a late result from one that is awaited.
    ticket: u64,
    running: Option<AbortHandle>,
    /// When its last check began.
    began: Option<Instant>,
    /// Since when it is suspected to be down.
    suspected: Option<Instant>,
    /// Its last timeout was not counted, because this thread was held up.
    excused: bool,
}

/// A check that is over.
struct Done {
    id: u64,
    ticket: u64,
    began: Instant,
    outcome: Outcome,
}

/// All targets, and what is due.
struct Schedule {
    entries: HashMap<u64, Entry>,
    queue: BinaryHeap<Reverse<(Instant, u64, u64)>>,
    tickets: u64,
    running: usize,
    sockets: usize,
    trust: Trust,
    jitter: Jitter,
    stalled: Option<Instant>,
    warned: Option<Instant>,
    unsaid: u64,
    done: UnboundedSender<Done>,
    listeners: Listeners,
}

/// Checks until it is told to stop, or nobody can tell it any more.
pub(super) async fn work(sockets: usize, listeners: Listeners, mut commands: UnboundedReceiver<Command>) {
    let (done, mut results) = unbounded_channel();
    let mut schedule = Schedule::new(sockets, done, listeners);
    let mut sleep = pin!(sleep_until(Instant::now() + LONG));
    loop {
        let wake = schedule.begin_due(Instant::now());
        if let Some(wake) = wake.filter(|&wake| wake != sleep.deadline()) {
            sleep.as_mut().reset(wake);
        }
        tokio::select! {
            command = commands.recv() => match command {
                None | Some(Command::Stop) => return,
                Some(command) => schedule.obey(command),
            },
            Some(done) = results.recv() => {
                schedule.woke(wake);
                schedule.finish(done);
                while let Ok(done) = results.try_recv() {
                    schedule.finish(done);
                }
            }
            () = &mut sleep, if wake.is_some() => schedule.woke(wake),
        }
    }
}

impl Schedule {
    fn new(sockets: usize, done: UnboundedSender<Done>, listeners: Listeners) -> Schedule {
        Schedule {
            entries: HashMap::new(),
            queue: BinaryHeap::new(),
            tickets: 0,
            running: 0,
            sockets,
            trust: Trust::default(),
            jitter: Jitter::new(),
            stalled: None,
            warned: None,
            unsaid: 0,
            done,
            listeners,
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Set(targets) => self.set(targets),
            Command::CheckNow(id) => self.check_now(id),
            Command::Stats(answer) => {
                let stats = self.entries.iter().map(|(&id, entry)| (id, entry.state.stats().clone()));
                let mut stats: Vec<_> = stats.collect();
                stats.sort_unstable_by_key(|&(id, _)| id);
                // Who asked may have ended.
                let _ = answer.send(stats);
            }
            Command::Stop => {}
        }
    }

    fn set(&mut self, targets: Vec<Target>) {
        let wanted: HashSet<u64> = targets.iter().map(|target| target.id).collect();
        let gone: Vec<u64> = self.entries.keys().filter(|id| !wanted.contains(id)).copied().collect();
        for id in gone {
            self.cancel(id);
            self.entries.remove(&id);
        }
        let fresh: Vec<u64> = targets.into_iter().filter_map(|target| self.take(target)).collect();
        let entries = &self.entries;
        self.queue
            .retain(|Reverse((_, id, ticket))| entries.get(id).is_some_and(|entry| entry.ticket == *ticket));
        let (now, count) = (Instant::now(), fresh.len() as f64);
        for (n, id) in fresh.into_iter().enumerate() {
            let Some(entry) = self.entries.get(&id) else { continue };
            let spread = SPREAD.min(entry.target.health.interval.mul_f64(0.9));
            let place = if count > FEW as f64 { n as f64 / count } else { 0.0 };
            self.plan(id, now + spread.mul_f64(place));
        }
    }

    /// Takes a target in, and tells its id if it is to be checked soon.
    fn take(&mut self, target: Target) -> Option<u64> {
        let (id, rise, fall) = (target.id, target.health.rise, target.health.fall);
        let known = self.entries.get(&id).map(|entry| &entry.target);
        if known.is_some_and(|known| known.address == target.address && known.health == target.health) {
            return None;
        }
        self.cancel(id);
        let plan = Plan::of(&target, &mut self.trust).unwrap_or_else(|why| {
            tracing::warn!("backend {} is not checked: {why}", target.address);
            None
        });
        let entry = self.entries.entry(id).or_insert_with(|| Entry::new(&target));
        (entry.target, entry.plan) = (target, plan.map(Arc::new));
        (entry.suspected, entry.excused) = (None, false);
        entry.state.restart(rise, fall);
        if entry.target.health.probe == Probe::None {
            let change = entry.state.trust(SystemTime::now());
            self.tell(id, change);
            return None;
        }
        entry.plan.is_some().then_some(id)
    }

    /// The running check of a target is dropped, and the planned one does not take place.
    fn cancel(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            self.tickets += 1;
            entry.ticket = self.tickets;
            if let Some(running) = entry.running.take() {
                running.abort();
                self.running -= 1;
            }
        }
    }

    /// The next check of a target that has none running.
    fn plan(&mut self, id: u64, due: Instant) {
        if let Some(entry) = self.entries.get_mut(&id) {
            self.tickets += 1;
            (entry.ticket, entry.due) = (self.tickets, due);
            self.queue.push(Reverse((due, id, entry.ticket)));
        }
    }

    fn check_now(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.plan.is_some()) else { return };
        let now = Instant::now();
        if entry.state.up() {
            // A later suspicion is no news: a success since the first has told that all is well.
            entry.suspected.get_or_insert(now);
        }
        if entry.running.is_none() {
            let soon = entry.began.map_or(now, |began| now.max(began + LEAST + SLACK));
            if soon < entry.due {
                self.plan(id, soon);
            }
        }
    }

    /// Begins what is due and tells when to look again; `None`: when a check has ended.
    fn begin_due(&mut self, now: Instant) -> Option<Instant> {
        let mut begun = 0;
        while begun < BURST {
            let Some(&Reverse((due, id, ticket))) = self.queue.peek() else { return Some(now + LONG) };
            if self.entries.get(&id).is_some_and(|entry| entry.ticket == ticket) {
                if due > now + SLACK {
                    return Some(due);
                }
                if self.running >= self.sockets {
                    return None;
                }
                self.begin(id, now);
                begun += 1;
            }
            self.queue.pop();
        }
        Some(now + PAUSE)
    }

    fn begin(&mut self, id: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(plan) = entry.plan.clone() else { return };
        entry.state.began_late(now.saturating_duration_since(entry.due));
        entry.began = Some(now);
        let (ticket, limit, done) = (entry.ticket, entry.limit(), self.done.clone());
        let check = async move {
            let outcome = plan.check(limit).await;
            // Nobody hears it when everything ends.
            let _ = done.send(Done { id, ticket, began: now, outcome });
        };
        entry.running = Some(tokio::spawn(check).abort_handle());
        self.running += 1;
    }

    fn finish(&mut self, done: Done) {
        let Done { id, ticket, began, outcome } = done;
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.ticket == ticket) else { return };
        entry.running = None;
        self.running -= 1;
        let now = Instant::now();
        if let Outcome::Failed(Failure::Timeout(limit)) = outcome {
            let held_up = self.stalled.is_some_and(|stalled| stalled > began);
            let late = now.duration_since(began) > limit + STALL;
            if (held_up || late) && !std::mem::replace(&mut entry.excused, true) {
                return self.plan(id, now.max(began + LEAST));
            }
        }
        entry.excused = false;
        let result = match &outcome {
            Outcome::Good(latency) => Verdict::Passed(*latency),
            Outcome::Failed(_) => Verdict::Failed(now.duration_since(began)),
            Outcome::Unchecked(_) => Verdict::Unchecked,
        };
        (self.listeners.checks)(Checked { id, result });
        let mut local = None;
        let change = match outcome {
            Outcome::Good(latency) => {
                // One that began before the trouble tells nothing about it.
                entry.suspected = entry.suspected.filter(|&since| began < since);
                entry.state.record(Ok(latency), SystemTime::now())
            }
            Outcome::Failed(failure) => entry.state.record(Err(failure), SystemTime::now()),
            Outcome::Unchecked(why) => {
                entry.state.unchecked();
                local = entry.plan.as_ref().map(|plan| (plan.address(), why));
                None
            }
        };
        if !entry.state.up() {
            entry.suspected = None;
        }
        let due = now.max(began + entry.gap(began, &mut self.jitter));
        self.tell(id, change);
        self.plan(id, due);
        if let Some((address, why)) = local {
            self.warn(now, format_args!("could not check {address}: {why}"));
        }
    }

    fn tell(&self, id: u64, change: Option<Change>) {
        let Some(Change { up, why, run }) = change else { return };
        let checks = self.entries.get(&id).map_or(0, |entry| entry.state.stats().checks);
        (self.listeners.changes)(Event::Change { id, up, why, run, checks });
    }

    /// It was to sleep until `wake`; where it slept much longer, timeouts prove nothing.
    fn woke(&mut self, wake: Option<Instant>) {
        let now = Instant::now();
        if wake.is_some_and(|wake| now > wake + STALL) {
            self.stalled = Some(now);
        }
    }

    fn warn(&mut self, now: Instant, text: std::fmt::Arguments<'_>) {
        if self.warned.is_some_and(|last| now.duration_since(last) < WARNINGS) {
            self.unsaid += 1;
            return;
        }
        let more = match std::mem::take(&mut self.unsaid) {
            0 => String::new(),
            n => format!(" (and {n} more since the last such warning)"),
        };
        self.warned = Some(now);
        tracing::warn!("{text}{more}: nothing is held against backends for that");
    }
}

impl Entry {
    fn new(target: &Target) -> Entry {
        let health = &target.health;
        Entry {
            target: target.clone(),
            plan: None,
            state: State::new(target.up, health.rise, health.fall),
            due: Instant::now(),
            ticket: 0,
            running: None,
            began: None,
            suspected: None,
            excused: false,
        }
    }

    /// How long its next check may take.
    fn limit(&self) -> Duration {
        let timeout = self.target.health.timeout;
        if self.suspected.is_none() {
            return timeout;
        }
        // People read it: no fractions of a millisecond.
        let usual = self.state.stats().smoothed.unwrap_or_default().as_millis() as u64;
        timeout.min(LEAST.max(Duration::from_millis(usual) * PATIENCE))
    }

    /// The time from the check that began at `began` to the next.
    fn gap(&self, began: Instant, jitter: &mut Jitter) -> Duration {
        let interval = jitter.of(self.target.health.interval);
        match self.suspected {
            None => interval,
            Some(since) if began < since => interval.min(LEAST + SLACK),
            Some(_) => interval.min(FAST),
        }
    }
}

/// Makes intervals differ by up to a tenth, so that targets that began together do not stay together.
struct Jitter(u64);

impl Jitter {
    fn new() -> Jitter {
        Jitter(RandomState::new().hash_one(0))
    }

    fn of(&mut self, interval: Duration) -> Duration {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        interval.mul_f64(0.9 + 0.2 * ((mixed >> 11) as f64 / (1_u64 << 53) as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Health;

    #[test]
    fn intervals_differ_by_a_tenth_at_most() {
        let (mut jitter, second) = (Jitter::new(), Duration::from_secs(1));
        let intervals: Vec<Duration> = (0..10_000).map(|_| jitter.of(second)).collect();
        let (least, most) = (intervals.iter().min().unwrap(), intervals.iter().max().unwrap());
        assert!(*least >= second.mul_f64(0.9) && *least < second.mul_f64(0.91), "{least:?}");
        assert!(*most <= second.mul_f64(1.1) && *most > second.mul_f64(1.09), "{most:?}");
        let mean = intervals.iter().sum::<Duration>() / 10_000;
        assert!(mean.abs_diff(second) < Duration::from_millis(5), "{mean:?}");
    }

    /// Runs `test` with 1,000 new targets that nothing answers for: their checks begin, but none is looked at.
    fn with_targets(sockets: usize, test: impl FnOnce(Schedule)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (done, _results) = unbounded_channel();
            let listeners = Listeners {
                changes: Box::new(|event| panic!("{event:?}")),
                checks: Box::new(|check| panic!("{check:?}")),
            };
            let mut schedule = Schedule::new(sockets, done, listeners);
            let address = std::net::SocketAddrV4::new([127, 0, 0, 1].into(), 9);
            let target = |id| Target { id, address, health: Health::of(Probe::Tcp), up: true };
            schedule.set((0..1000).map(target).collect());
            test(schedule);
        });
    }

    #[test]
    fn first_checks_are_spread() {
        with_targets(4096, |mut schedule| {
            let now = Instant::now();
            schedule.begin_due(now + Duration::from_millis(100));
            assert!((50..200).contains(&schedule.running), "{}", schedule.running);
            schedule.begin_due(now + Duration::from_millis(300));
            assert!((250..450).contains(&schedule.running), "{}", schedule.running);
        });
    }

    #[test]
    fn what_is_overdue_does_not_burst() {
        with_targets(4096, |mut schedule| {
            let mut now = Instant::now() + Duration::from_secs(60);
            for begun in [256, 512, 768, 1000] {
                let next = schedule.begin_due(now).unwrap();
                assert_eq!(schedule.running, begun);
                assert!(begun == 1000 || next == now + PAUSE);
                now = next;
            }
        });
    }

    #[test]
    fn sockets_are_limited() {
        with_targets(10, |mut schedule| {
            let now = Instant::now() + Duration::from_secs(60);
            assert_eq!(schedule.begin_due(now), None);
            assert_eq!(schedule.running, 10);
            // A check that is dropped makes room, and what is removed is forgotten.
            let left = schedule.entries.values().filter(|entry| entry.running.is_some());
            let left: Vec<Target> = left.map(|entry| entry.target.clone()).take(4).collect();
            schedule.set(left);
            assert_eq!(schedule.running, 4);
            assert!(schedule.queue.is_empty());
            assert_eq!(schedule.begin_due(now), Some(now + LONG));
        });
    }
}
