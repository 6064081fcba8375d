mod figures;
mod keys;
mod screens;

use std::time::{Duration, Instant};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::figures::Reading;
use super::input;
use super::state::{Action, READING, Top};
use crate::dataplane::{BackendEvents, Class, Counter, Histogram, Reason};
use crate::metrics::{BackendFigures, HealthFigures, ReasonFigures, ServiceFigures, Snapshot, TableFigures};

/// Seconds since 1970, more or less.
const WALL: f64 = 1e9;

fn backend(n: usize) -> BackendFigures {
    let [.., high, low] = n.to_be_bytes();
    BackendFigures {
        address: std::net::SocketAddrV4::new([10, 0, high, low].into(), 8080),
        state: "up".into(),
        down: false,
        weight: 1,
        active: 0,
        load: None,
        connections: 0,
        to_backend: Counter::default(),
        to_client: Counter::default(),
        events: BackendEvents::default(),
        unanswered_syns: 0,
        refused_syns: 0,
        checks: Default::default(),
        health: Some(HealthFigures {
            check: "tcp".into(),
            admin: "enabled".into(),
            weight: 1,
            up: Some(true),
            ..HealthFigures::default()
        }),
    }
}

fn down(backend: &mut BackendFigures) {
    backend.state = "down".into();
    if let Some(health) = &mut backend.health {
        health.up = Some(false);
        health.last_change = Some(WALL - 12.0);
        health.last_error = Some("connection refused".into());
        health.last_error_at = Some(WALL - 3.0);
    }
}

fn service(name: &str, last: u8, backends: Vec<BackendFigures>) -> ServiceFigures {
    let vip = std::net::SocketAddrV4::new([192, 0, 2, last].into(), 80);
    ServiceFigures { name: name.into(), vip, protocol: "tcp".into(), scheduler: "maglev".into(), backends }
}

fn snapshot(services: Vec<ServiceFigures>) -> Snapshot {
    let reason = |one: &Reason| ReasonFigures {
        class: one.class.name().into(),
        name: one.name.into(),
        help: one.help.into(),
        counter: Counter::default(),
    };
    Snapshot {
        services,
        reasons: Reason::ALL.iter().map(reason).collect(),
        table: TableFigures { slots: 3500, promised: 1000, confirmed: 0, unconfirmed: 0, replaceable: 0 },
        gone: Default::default(),
        history: Default::default(),
    }
}

fn count(snapshot: &mut Snapshot, class: Class, name: &str, packets: u64) {
    let reasons = &mut snapshot.reasons;
    let reason = reasons.iter_mut().find(|one| one.class == class.name() && one.name == name).unwrap();
    reason.counter = Counter { packets, bytes: 100 * packets };
}

fn handshakes(count: u64, each: Duration) -> Histogram {
    let mut times = Histogram::default();
    times.buckets[Histogram::bucket_of(each)] = count;
    times
}

/// Readings, each a second after the one before.
struct Clock(Instant);

impl Clock {
    fn new() -> Clock {
        Clock(Instant::now())
    }

    fn reading(&mut self, snapshot: &Snapshot) -> Reading {
        self.0 += Duration::from_secs(1);
        Reading {
            snapshot: snapshot.clone(),
            running: true,
            silent: false,
            version: Some("1.2.3".into()),
            at: self.0,
            wall: WALL,
        }
    }
}

/// After two readings of the same.
fn top_of(snapshot: &Snapshot) -> Top {
    let (mut top, mut clock) = (Top::new("/run/x.sock".into()), Clock::new());
    top.take(clock.reading(snapshot));
    top.take(clock.reading(snapshot));
    top
}

fn press(top: &mut Top, keys: &str) -> Action {
    let mut action = Action::Nothing;
    for c in keys.chars() {
        action = press_code(top, KeyCode::Char(c));
    }
    action
}

/// By somebody who reads what is asked.
fn press_code(top: &mut Top, code: KeyCode) -> Action {
    let action = type_ahead(top, code);
    top.drawn(Instant::now().checked_sub(READING).unwrap());
    action
}

/// By somebody who does not wait for the screen.
fn type_ahead(top: &mut Top, code: KeyCode) -> Action {
    type_at(top, code, Instant::now())
}

fn type_at(top: &mut Top, code: KeyCode, now: Instant) -> Action {
    input::key(top, KeyEvent::new(code, KeyModifiers::NONE), now)
}

/// The last number of the addresses in the list.
fn order(top: &Top) -> Vec<usize> {
    let view = top.view.as_ref().unwrap();
    let backend = |line: &super::view::Line| match *line {
        super::view::Line::Backend(service, backend) => {
            Some(usize::from(view.services[service].backends[backend].key.address.ip().octets()[3]))
        }
        _ => None,
    };
    top.lines.iter().filter_map(backend).collect()
}
