//! Rates, the window of handshakes, trends, and who is ill.

use super::super::diagnosis::{Diagnosis, Grade, diagnose};
use super::super::figures::{History, Recent, cells, keyed};
use super::*;

fn history_of(readings: &[Snapshot]) -> (History, Reading) {
    let (mut history, mut clock) = (History::default(), Clock::new());
    let mut last = None;
    for snapshot in readings {
        let mut reading = clock.reading(snapshot);
        history.take(&mut reading);
        last = Some(reading);
    }
    (history, last.unwrap())
}

fn with(change: impl Fn(&mut BackendFigures)) -> Snapshot {
    let mut one = backend(1);
    change(&mut one);
    snapshot(vec![service("web", 1, vec![one])])
}

fn only_key(reading: &Reading) -> super::super::figures::Key {
    keyed(&reading.snapshot.services[0]).next().unwrap().0
}

#[test]
fn rates_are_of_the_last_second() {
    let at = |connections, bytes| {
        with(move |one| {
            one.connections = connections;
            one.to_backend = Counter { packets: 2 * connections, bytes };
            one.to_client = Counter { packets: connections, bytes: 2 * bytes };
            one.events.reset = connections / 10;
        })
    };
    let (history, reading) = history_of(&[at(0, 0), at(1000, 5000), at(1030, 6000)]);
    let rates = history.rates(&only_key(&reading)).unwrap();
    assert_eq!((rates.connections, rates.packets, rates.resets), (30.0, 90.0, 3.0));
    assert_eq!((rates.out, rates.back), (8_000.0, 16_000.0));
    let (history, reading) = history_of(&[at(5, 0)]);
    assert_eq!(history.rates(&only_key(&reading)), None, "one reading has no rates");
}

#[test]
fn another_instance_begins_anew() {
    let at = |connections| with(move |one| one.connections = connections);
    let (history, reading) = history_of(&[at(1000), at(1010), at(3)]);
    assert_eq!(history.rates(&only_key(&reading)), None);
    let (history, reading) = history_of(&[at(1000), at(1010), at(3), at(5)]);
    assert_eq!(history.rates(&only_key(&reading)).unwrap().connections, 2.0);
}

#[test]
fn handshakes_are_those_of_the_last_seconds() {
    // A slow second, then fast ones.
    let at = |n: u64| {
        with(move |one| {
            let mut times = handshakes(n * 10, Duration::from_micros(100));
            times.buckets[Histogram::bucket_of(Duration::from_millis(500))] = 50 * n.min(1);
            one.events.handshakes = times;
            one.events.syn_retransmits = 7 * n.min(1);
        })
    };
    let p99 = |last| {
        let (history, reading) = history_of(&(0..=last).map(at).collect::<Vec<_>>());
        let recent = history.recent(&only_key(&reading)).unwrap();
        assert!(recent.seconds <= 10.0, "{}", recent.seconds);
        (recent.handshakes.quantile(0.99).unwrap(), recent.syn_retransmits)
    };
    assert!(p99(1) > (Duration::from_millis(250), 6));
    assert!(p99(4) > (Duration::from_millis(250), 6), "it stays long enough to be read");
    assert!(p99(20) < (Duration::from_millis(1), 1), "it is forgotten");
}

#[test]
fn one_that_is_removed_and_added_again_is_two() {
    let mut old = backend(1);
    (old.state, old.connections) = ("removed".into(), 100);
    let both = snapshot(vec![service("web", 1, vec![old.clone(), backend(1), old])]);
    let keys: Vec<_> = keyed(&both.services[0]).map(|(key, _)| key).collect();
    assert!(keys[0] != keys[1] && keys[0] != keys[2] && keys[1] != keys[2]);
    let (history, _) = history_of(&[both.clone(), both]);
    assert!(keys.iter().all(|key| history.rates(key).is_some_and(|rates| rates.connections == 0.0)));
}

#[test]
fn names_outlive_their_process() {
    let (mut history, mut clock) = (History::default(), Clock::new());
    let mut known = clock.reading(&with(|_| {}));
    history.take(&mut known);
    let mut pinned = clock.reading(&snapshot(vec![service("192.0.2.1:80", 1, vec![backend(1)])]));
    pinned.running = false;
    history.take(&mut pinned);
    assert_eq!(pinned.snapshot.services[0].name, "web");
}

#[test]
fn a_trend_has_its_minute_in_any_width() {
    let now = Instant::now() + Duration::from_secs(1000);
    let at = |age: u64, rate: f64| (now - Duration::from_secs(age), rate);
    let trend = [at(50, 1.0), at(40, 2.0), at(20, 9.0), at(10, 3.0), at(0, 4.0)];
    assert_eq!(cells(&trend, now, 6), [1.0, 2.0, 9.0, 9.0, 3.0, 4.0]);
    assert_eq!(cells(&trend, now, 2), [2.0, 9.0]);
    assert_eq!(cells(&trend, now, 60).iter().filter(|cell| **cell == 9.0).count(), 20);
    assert_eq!(cells(&[], now, 3), [0.0; 3]);
    assert!(cells(&trend, now, 0).is_empty());
}

fn grade(one: &BackendFigures, recent: &Recent, usual: Option<Duration>) -> Diagnosis {
    diagnose(one, Some(recent), usual, WALL)
}

#[test]
fn who_is_ill_and_why() {
    let (one, quiet) = (backend(1), Recent { seconds: 10.0, ..Recent::default() });
    assert_eq!(grade(&one, &quiet, None).grade, Grade::Well);
    let mut fallen = backend(1);
    down(&mut fallen);
    let said = grade(&fallen, &quiet, None);
    assert_eq!((said.grade, said.why.as_str()), (Grade::Ill, "down for 12 s: connection refused (3 s ago)"));
    let silent = Recent { syn_retransmits: 3, connections: 3, ..quiet.clone() };
    assert_eq!(grade(&one, &silent, None).grade, Grade::Ill);
    assert!(grade(&one, &silent, None).why.starts_with("silent: 3 SYNs repeated"));
    let refuses = Recent { rsts: 3, connections: 3, ..quiet.clone() };
    assert!(grade(&one, &refuses, None).why.starts_with("refuses: 3 RSTs"));
    let unanswered = Recent { unanswered: 2, ..quiet.clone() };
    assert_eq!(grade(&one, &unanswered, None).why, "silent: 2 SYNs since its last SYN-ACK");
    let refused = Recent { unanswered: 2, refused: 2, ..quiet.clone() };
    assert!(grade(&one, &refused, None).why.starts_with("refuses: 2 connections"));
    let under_way = Recent { unanswered: 1, ..quiet.clone() };
    assert_eq!(grade(&one, &under_way, None).grade, Grade::Well);
    // A new process does not know what was before it, nor does nobody.
    if let Some(health) = &mut fallen.health {
        health.last_change = None;
    }
    let why = grade(&fallen, &quiet, None).why;
    assert!(why.starts_with("down since this process began, or longer: "), "{why}");
    fallen.health = None;
    let why = grade(&fallen, &quiet, None).why;
    assert_eq!(why, "down since nobody knows when: no check has said why");
    let failing = Recent { checks_failed: 1, ..quiet.clone() };
    assert_eq!(grade(&one, &failing, None).grade, Grade::Suspect);
    let mut drained = backend(1);
    drained.state = "drain".into();
    assert_eq!(grade(&drained, &silent, None).grade, Grade::Off, "an operator knows");

    let fast = |count| Recent {
        connections: count,
        handshakes: handshakes(count, Duration::from_micros(100)),
        ..quiet.clone()
    };
    let some = Recent { syn_retransmits: 10, rsts: 0, ..fast(100) };
    assert_eq!(grade(&one, &some, None).grade, Grade::Suspect);
    let few = Recent { syn_retransmits: 4, rsts: 24, ..fast(100) };
    assert_eq!(grade(&one, &few, None).grade, Grade::Well, "{few:?}");
}

#[test]
fn slow_is_slower_than_the_others() {
    let of = |each| BackendFigures {
        events: BackendEvents { handshakes: handshakes(100, each), ..BackendEvents::default() },
        ..backend(1)
    };
    let grades = |times: &[u64]| -> Vec<Grade> {
        let services = |all: Vec<BackendFigures>| snapshot(vec![service("web", 1, all)]);
        let (mut top, mut clock) = (Top::new(String::new()), Clock::new());
        top.take(clock.reading(&services(times.iter().map(|_| backend(1)).collect())));
        top.take(clock.reading(&services(times.iter().map(|ms| of(Duration::from_millis(*ms))).collect())));
        top.view.unwrap().services[0].backends.iter().map(|one| one.diagnosis.grade).collect()
    };
    use Grade::{Suspect, Well};
    assert_eq!(grades(&[1, 1, 60]), [Well, Well, Suspect]);
    assert_eq!(grades(&[1, 60]), [Well, Suspect]);
    assert_eq!(grades(&[60]), [Well], "there is none to compare it with");
    assert_eq!(grades(&[60, 60, 60]), [Well; 3], "the network is slow");
    assert_eq!(grades(&[20, 20, 60]), [Well; 3]);
}

/// Two readings are enough: what waits since the first for an answer is not under way.
#[test]
fn a_second_is_enough_to_find_the_silent_one() {
    let of = |unanswered| BackendFigures { unanswered_syns: unanswered, ..backend(1) };
    let grade = |before, now, answered| {
        let services = |one| snapshot(vec![service("web", 1, vec![one])]);
        let (mut top, mut clock) = (Top::new(String::new()), Clock::new());
        top.take(clock.reading(&services(of(before))));
        let mut one = of(now);
        one.events.handshakes = handshakes(answered, Duration::from_millis(1));
        top.take(clock.reading(&services(one)));
        top.view.unwrap().services[0].backends[0].diagnosis.grade
    };
    assert_eq!(grade(2, 3, 0), Grade::Ill);
    assert_eq!(grade(0, 100, 0), Grade::Well, "they may be answered yet");
    assert_eq!(grade(2, 3, 1), Grade::Well);
}
