//! Checks of real servers on the loopback interface: what each answer means, and when a backend goes up or down.
//!
//! Times are given room to: these tests run beside others.

mod answers;
mod certificates;
mod host;
mod life;
mod servers;

use std::net::SocketAddrV4;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use xdp_lb::health::{Checker, Event, Failure, Stats, Target};
use xdp_lb::model::{Health, HttpProbe, Probe};

/// Long enough for anything that happens at all.
const LONG: Duration = Duration::from_secs(20);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One check decides, and the next one comes soon.
fn quick(probe: Probe) -> Health {
    Health { interval: ms(100), timeout: Duration::from_secs(5), rise: 1, fall: 1, ..Health::of(probe) }
}

fn http(change: impl FnOnce(&mut HttpProbe)) -> Health {
    let mut probe = HttpProbe::default();
    change(&mut probe);
    quick(Probe::Http(probe))
}

fn target(id: u64, address: SocketAddrV4, health: &Health) -> Target {
    Target { id, address, health: health.clone(), up: true }
}

/// A checker and what it tells.
struct Watched {
    checker: Checker,
    events: Receiver<Event>,
}

impl Watched {
    fn new(targets: Vec<Target>) -> Watched {
        let (sender, events) = mpsc::channel();
        let report = move |event| {
            let _ = sender.send(event);
        };
        let checker = Checker::start(report).expect("a checker");
        checker.set(targets);
        Watched { checker, events }
    }

    fn next(&self) -> Event {
        self.events.recv_timeout(LONG).expect("an event")
    }

    fn nothing_within(&self, time: Duration) {
        assert_eq!(self.events.recv_timeout(time), Err(RecvTimeoutError::Timeout));
    }

    fn stats(&self, id: u64) -> Stats {
        let stats = self.checker.stats();
        stats.into_iter().find(|(of, _)| *of == id).expect("a target").1
    }

    /// Waits until the figures of a target are as they should be.
    fn until(&self, id: u64, wanted: impl Fn(&Stats) -> bool) -> Stats {
        let end = Instant::now() + LONG;
        loop {
            let stats = self.stats(id);
            if wanted(&stats) {
                return stats;
            }
            assert!(Instant::now() < end, "still {stats:?}");
            std::thread::sleep(ms(5));
        }
    }
}

/// What one check finds: there is one target that is down until it succeeds, and one that is up until it fails.
fn verdict(address: SocketAddrV4, health: &Health) -> Result<(), Failure> {
    let down = Target { up: false, ..target(0, address, health) };
    let watched = Watched::new(vec![down, target(1, address, health)]);
    match watched.next() {
        Event::Change { id: 0, up: true, why: None, .. } => Ok(()),
        Event::Change { id: 1, up: false, why: Some(why), .. } => Err(why),
        other => panic!("{other:?}"),
    }
}

/// What is wrong with an answer.
fn bad(address: SocketAddrV4, health: &Health) -> String {
    match verdict(address, health) {
        Err(Failure::Bad(why)) => why,
        other => panic!("{other:?}"),
    }
}
