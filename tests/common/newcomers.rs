//! Real clients that come one after the other, each with a connection and a request of its own.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::echo::{ask, connect_from};
use super::netns::Lab;

/// Their kernels send a SYN, or a request, that nobody answers again after 1 s.
const AT_ONCE: Duration = Duration::from_millis(950);
const LIMIT: Duration = Duration::from_secs(5);

/// What became of some of them.
#[derive(Clone, Debug, Default)]
pub struct Newcomers {
    /// How long each took that was answered.
    took: Vec<Duration>,
    errors: BTreeMap<String, usize>,
}

impl Newcomers {
    /// Has them come from the namespace `client`, one of some addresses after the other, at fixed times: one that waits
    /// keeps no other from coming. `next` is asked before each, with how many there were.
    pub fn come(
        lab: &Lab,
        from: &[Ipv4Addr],
        to: SocketAddrV4,
        every: Duration,
        mut next: impl FnMut(u32) -> bool + Send,
    ) -> Result<Newcomers> {
        // Threads are in the network namespace of the one that starts them.
        let outcomes = lab.within("client", || {
            thread::scope(|scope| {
                let (mut threads, started) = (Vec::new(), Instant::now());
                for (n, address) in (0..).zip(from.iter().cycle()) {
                    thread::sleep((n * every).saturating_sub(started.elapsed()));
                    if !next(n) {
                        break;
                    }
                    threads.push(scope.spawn(move || come_once(*address, to)));
                }
                threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
            })
        })?;
        let mut all = Newcomers::default();
        for outcome in outcomes {
            match outcome.map_err(|_| anyhow!("a client panicked"))? {
                Ok(took) => all.took.push(took),
                Err(error) => *all.errors.entry(error.root_cause().to_string()).or_default() += 1,
            }
        }
        all.took.sort();
        Ok(all)
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.took.len() + self.errors.values().sum::<usize>()
    }

    /// How many were answered.
    pub fn answered(&self) -> usize {
        self.took.len()
    }

    /// How many were answered before anything had to be sent again.
    pub fn at_once(&self) -> usize {
        self.took.partition_point(|took| *took < AT_ONCE)
    }

    /// For people.
    pub fn summary(&self) -> String {
        let share = 100.0 * self.at_once() as f64 / self.count().max(1) as f64;
        let errors: Vec<_> = self.errors.iter().map(|(error, count)| format!(", {count} {error}")).collect();
        let later = self.answered() - self.at_once();
        format!(
            "{} of {} at once ({share:.1} %), {later} later{}",
            self.at_once(),
            self.count(),
            errors.concat()
        )
    }
}

fn come_once(from: Ipv4Addr, to: SocketAddrV4) -> Result<Duration> {
    let started = Instant::now();
    let mut stream = connect_from(from, to, LIMIT)?;
    ask(&mut stream, 1)?;
    Ok(started.elapsed())
}
