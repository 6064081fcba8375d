//! When backends go up and down, and how what is checked may change.

use std::net::TcpListener;
use std::thread::sleep;
use std::time::{Duration, Instant};

use xdp_lb::health::{Event, Failure, Target};
use xdp_lb::model::{Health, Probe};

use crate::servers::{answer, fill, listener, whole};
use crate::{Watched, http, ms, quick, target};

/// The defaults, but checked often.
fn often() -> Health {
    Health { rise: 2, fall: 3, ..quick(Probe::Tcp) }
}

/// Checked once at the beginning, and not again while a test runs.
fn seldom() -> Health {
    Health { interval: Duration::from_secs(3600), ..often() }
}

#[test]
fn a_server_dies_and_comes_back() {
    let (kept, address) = listener();
    let watched = Watched::new(vec![target(7, address, &often())]);
    watched.until(7, |stats| stats.checks >= 3);
    drop(kept);
    let Event::Change { id, up, why, run, checks } = watched.next();
    assert_eq!((id, up, run), (7, false, 3));
    assert_eq!(why, Some(Failure::Refused("connection refused".into())));
    let stats = watched.stats(7);
    assert!(stats.failures >= 3 && stats.checks - stats.failures == checks - 3, "{checks}, {stats:?}");
    assert!(!stats.up && stats.changed.is_some());
    let good = checks - 3;
    let _again = TcpListener::bind(address).unwrap();
    let Event::Change { id, up, why, run, checks } = watched.next();
    assert_eq!((id, up, why, run), (7, true, None, 2));
    let stats = watched.stats(7);
    assert!(stats.up && stats.checks >= checks);
    assert_eq!(stats.checks - stats.failures, good + 2 + (stats.checks - checks));
    assert!(stats.last_error.is_some() && stats.latency.is_some() && stats.smoothed.is_some());
    assert!(stats.failure_rate() > 0.0 && stats.failure_rate() < 1.0);
    watched.nothing_within(ms(300));
}

#[test]
fn what_does_not_change_goes_on_undisturbed() {
    let (_kept, address) = listener();
    let first = target(1, address, &seldom());
    let watched = Watched::new(vec![first.clone()]);
    watched.until(1, |stats| stats.checks == 1);
    // What it is taken to be at first does not matter any more.
    watched.checker.set(vec![Target { up: false, ..first.clone() }, target(2, address, &seldom())]);
    watched.until(2, |stats| stats.checks == 1);
    assert_eq!(watched.stats(1).checks, 1);
    assert!(watched.stats(1).up);
    // What changes is checked at once, and its past stays.
    let changed = Target { health: Health { timeout: ms(1234), ..seldom() }, ..first };
    watched.checker.set(vec![changed]);
    watched.until(1, |stats| stats.checks == 2);
    assert_eq!(watched.checker.stats().len(), 1);
    watched.checker.set(vec![]);
    assert_eq!(watched.checker.stats(), []);
    watched.nothing_within(ms(100));
}

#[test]
fn what_changes_stays_down_until_checks_pass() {
    let (kept, address) = listener();
    drop(kept);
    let watched = Watched::new(vec![target(1, address, &often())]);
    assert!(matches!(watched.next(), Event::Change { id: 1, up: false, run: 3, .. }));
    let (_other, other) = listener();
    let patient = Health { rise: 4, ..often() };
    watched.checker.set(vec![target(1, other, &patient)]);
    assert!(matches!(watched.next(), Event::Change { id: 1, up: true, run: 4, .. }));
}

#[test]
fn a_removed_check_is_dropped() {
    let (listener, address) = listener();
    let _full = fill(&listener);
    let health = Health { fall: 1, timeout: ms(400), ..seldom() };
    let watched = Watched::new(vec![target(1, address, &health)]);
    sleep(ms(100));
    watched.checker.set(vec![]);
    // The same again has nothing to do with the check before.
    sleep(ms(100));
    watched.checker.set(vec![target(1, address, &health)]);
    assert!(matches!(watched.next(), Event::Change { id: 1, up: false, checks: 1, .. }));
    watched.nothing_within(ms(500));
}

#[test]
fn what_is_not_checked_is_up() {
    let (kept, address) = listener();
    drop(kept);
    let none = Health::of(Probe::None);
    let down = Target { up: false, ..target(1, address, &none) };
    let watched = Watched::new(vec![down, target(2, address, &often())]);
    assert!(matches!(watched.next(), Event::Change { id: 1, up: true, run: 0, checks: 0, .. }));
    assert!(matches!(watched.next(), Event::Change { id: 2, up: false, .. }));
    watched.checker.set(vec![target(1, address, &none), target(2, address, &none)]);
    assert!(matches!(watched.next(), Event::Change { id: 2, up: true, run: 0, .. }));
    watched.checker.check_now(1);
    sleep(ms(100));
    assert_eq!(watched.stats(1).checks, 0);
}

#[test]
fn who_is_down_at_first_comes_by_checks() {
    let (_kept, address) = listener();
    let watched = Watched::new(vec![Target { up: false, ..target(1, address, &often()) }]);
    assert!(matches!(watched.next(), Event::Change { id: 1, up: true, run: 2, checks: 2, .. }));
}

#[test]
fn a_suspicion_is_followed_fast() {
    let usual = Health::of(Probe::Tcp);
    let (refusing, address) = listener();
    let (silent, other) = listener();
    let watched = Watched::new(vec![target(1, address, &usual), target(2, other, &usual)]);
    watched.until(1, |stats| stats.checks == 1);
    watched.until(2, |stats| stats.checks == 1);
    drop(refusing);
    let _full = fill(&silent);
    let start = Instant::now();
    watched.checker.check_now(1);
    watched.checker.check_now(2);
    for _ in 0..2 {
        assert!(matches!(watched.next(), Event::Change { up: false, run: 3, .. }));
    }
    // Two intervals, or three timeouts, would take longer.
    let took = start.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    println!("down {took:?} after the suspicion");
}

#[test]
fn a_wrong_suspicion_costs_one_check() {
    let (_kept, address) = listener();
    let watched = Watched::new(vec![target(1, address, &seldom())]);
    watched.until(1, |stats| stats.checks == 1);
    sleep(ms(250));
    watched.checker.check_now(1);
    watched.until(1, |stats| stats.checks == 2);
    sleep(ms(600));
    assert_eq!(watched.stats(1).checks, 2);
    assert_eq!(watched.stats(1).failures, 0);
    // However often it is asked.
    let start = Instant::now();
    while start.elapsed() < ms(1000) {
        watched.checker.check_now(1);
        watched.checker.check_now(99);
        sleep(ms(1));
    }
    sleep(ms(300));
    let (checks, most) = (watched.stats(1).checks - 2, start.elapsed().as_millis() as u64 / 200 + 1);
    assert!(checks >= 1 && checks <= most, "{checks} of {most}");
}

#[test]
fn slow_checks_delay_no_others() {
    let (listener, silent) = listener();
    let _full = fill(&listener);
    let slow = Health { timeout: Duration::from_secs(2), ..often() };
    let good = answer(whole("200 OK", ""));
    let mut targets: Vec<Target> = (0..50).map(|id| target(id, silent, &slow)).collect();
    targets.push(target(99, good, &http(|_| ())));
    let watched = Watched::new(targets);
    let stats = watched.until(99, |stats| stats.checks >= 10);
    assert_eq!(stats.failures, 0);
    assert!(stats.late < ms(500), "{stats:?}");
}
