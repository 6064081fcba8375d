//! What is to be seen: figures and rates by service and backend, in the order and choice of the operator.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::columns::{Column, Figures};
use super::diagnosis::{Diagnosis, Grade, diagnose, usual_handshake};
use super::figures::{History, Key, Reading, keyed};
use super::text;
use crate::dataplane::Class;
use crate::metrics::{BackendFigures, ReasonFigures, ServiceFigures};

/// One reading, ready to be shown.
pub(super) struct View {
    pub version: Option<String>,
    pub running: bool,
    pub silent: bool,
    pub at: Instant,
    pub wall: f64,
    pub overview: Overview,
    pub services: Vec<ServiceRow>,
    /// Packets that were dropped, or may have been by the kernel, most frequent now first.
    pub drops: Vec<DropRow>,
}

/// The instance as a whole.
#[derive(Default)]
pub(super) struct Overview {
    pub backends: usize,
    pub ill: usize,
    pub suspect: usize,
    /// Services that no backend takes connections for.
    pub dead: usize,
    pub live: u64,
    pub promised: u64,
    /// Connections since the tables were made, those of backends that are gone too.
    pub total: u64,
    pub connections: Option<f64>,
    pub packets: Option<f64>,
    pub bits: Option<f64>,
    pub drops: Option<f64>,
}

pub(super) struct ServiceRow {
    pub name: String,
    pub vip: SocketAddrV4,
    pub protocol: String,
    pub scheduler: String,
    pub up: usize,
    pub grade: Grade,
    pub sum: Figures,
    pub backends: Vec<BackendRow>,
}

pub(super) struct BackendRow {
    pub key: Key,
    pub counted: BackendFigures,
    pub figures: Figures,
    pub diagnosis: Diagnosis,
    pub trend: Vec<(Instant, f64)>,
}

pub(super) struct DropRow {
    pub class: String,
    pub name: String,
    pub help: String,
    pub packets: u64,
    pub rate: Option<f64>,
}

/// One line of the list: indexes into services and their backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Service(usize),
    Backend(usize, usize),
    /// Why that backend is not well.
    Why(usize, usize),
}

impl View {
    pub fn of(reading: &Reading, history: &History) -> View {
        let services: Vec<ServiceRow> = reading
            .snapshot
            .services
            .iter()
            .map(|service| ServiceRow::of(service, history, reading.wall))
            .collect();
        View {
            version: reading.version.clone(),
            running: reading.running,
            silent: reading.silent,
            at: reading.at,
            wall: reading.wall,
            overview: Overview::of(reading, history, &services),
            drops: drops(reading, history),
            services,
        }
    }

    pub fn find(&self, key: &Key) -> Option<(&ServiceRow, &BackendRow)> {
        self.services.iter().find_map(|service| {
            let backend = service.backends.iter().find(|backend| backend.key == *key)?;
            Some((service, backend))
        })
    }

    /// The lines that a filter leaves, in an order. Backends stay with their service.
    pub fn lines(&self, sort: Column, reverse: bool, filter: &str) -> Vec<Line> {
        let words: Vec<String> = filter.split_whitespace().map(str::to_lowercase).collect();
        let direction = |order: Ordering| if reverse { order.reverse() } else { order };
        let by_name = sort == Column::Name;
        let mut services: Vec<(usize, &ServiceRow)> = self.services.iter().enumerate().collect();
        services.sort_by(|(_, a), (_, b)| {
            direction(match by_name {
                true => (&a.name, a.vip).cmp(&(&b.name, b.vip)),
                false => compare(sort, (&a.sum, a.grade), (&b.sum, b.grade)),
            })
        });
        let mut lines = Vec::new();
        for (at, service) in services {
            let mut backends: Vec<(usize, &BackendRow)> = service.backends.iter().enumerate().collect();
            backends.retain(|(_, backend)| words.iter().all(|word| is_about(service, backend, word)));
            if backends.is_empty() && !(words.is_empty() && service.backends.is_empty()) {
                continue;
            }
            backends.sort_by(|(_, a), (_, b)| {
                direction(match by_name {
                    true => a.key.address.cmp(&b.key.address),
                    false => compare(sort, (&a.figures, a.diagnosis.grade), (&b.figures, b.diagnosis.grade)),
                })
            });
            lines.push(Line::Service(at));
            for (n, backend) in backends {
                lines.push(Line::Backend(at, n));
                if !backend.diagnosis.why.is_empty() {
                    lines.push(Line::Why(at, n));
                }
            }
        }
        lines
    }
}

/// Unknown values come last, unless the order is reversed.
fn compare(sort: Column, a: (&Figures, Grade), b: (&Figures, Grade)) -> Ordering {
    let [a, b] = [a, b].map(|(figures, grade)| sort.value(figures, grade).unwrap_or(-1.0));
    if sort.ascends() { a.total_cmp(&b) } else { b.total_cmp(&a) }
}

fn is_about(service: &ServiceRow, backend: &BackendRow, word: &str) -> bool {
    let service_word = format!("{}/{} {}/{}", service.name, service.protocol, service.vip, service.protocol);
    let grade = backend.diagnosis.grade.word();
    let address = backend.key.address.to_string();
    service_word.to_lowercase().contains(word)
        || address.contains(word)
        // As a whole: else "down" and "up" would be in half of all words, and "ill" in "still".
        || backend.counted.state == word
        || grade == word
}

impl ServiceRow {
    fn of(service: &ServiceFigures, history: &History, wall: f64) -> ServiceRow {
        let recents: HashMap<Key, _> =
            keyed(service).filter_map(|(key, _)| Some((key.clone(), history.recent(&key)?))).collect();
        let usual = median(recents.values().filter_map(usual_handshake).collect());
        let mut sum = Figures::default();
        let backends: Vec<BackendRow> = keyed(service)
            .map(|(key, counted)| {
                let recent = recents.get(&key).cloned();
                let diagnosis = diagnose(counted, recent.as_ref(), usual, wall);
                let figures = Figures {
                    weight: counted.weight.into(),
                    live: counted.active.into(),
                    total: counted.connections,
                    rates: history.rates(&key),
                    recent,
                    check: counted.health.as_ref().and_then(|health| health.latency_ms),
                };
                sum.add(&figures);
                BackendRow { trend: history.trend(&key), key, counted: counted.clone(), figures, diagnosis }
            })
            .collect();
        let up = backends.iter().filter(|backend| backend.counted.state == "up").count();
        let worst = backends.iter().map(|backend| backend.diagnosis.grade).min();
        ServiceRow {
            name: text::plain(&service.name),
            vip: service.vip,
            protocol: service.protocol.clone(),
            scheduler: service.scheduler.clone(),
            up,
            grade: if up == 0 { Grade::Ill } else { worst.unwrap_or(Grade::Well) },
            sum,
            backends,
        }
    }

    /// What it is called, and where that says less, its address.
    pub fn title(&self) -> String {
        let vip = format!("{}/{}", self.vip, self.protocol);
        if self.name == self.vip.to_string() { vip } else { format!("{} {vip}", self.name) }
    }

    /// The service without its address, for sentences.
    pub fn short(&self) -> String {
        format!("{}/{}", self.name, self.protocol)
    }
}

/// The lower one of two in the middle: of two backends the faster one says what is usual.
fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) / 2).copied()
}

impl Overview {
    fn of(reading: &Reading, history: &History, services: &[ServiceRow]) -> Overview {
        let snapshot = &reading.snapshot;
        let backends = || services.iter().flat_map(|service| &service.backends);
        // One that serves several services is one, and as ill as it is for any of them.
        let mut grades: HashMap<(SocketAddrV4, &str), Grade> = HashMap::new();
        for one in backends() {
            let grade = grades.entry((one.key.address, &one.key.protocol)).or_insert(one.diagnosis.grade);
            *grade = one.diagnosis.grade.min(*grade);
        }
        let of_grade = |grade| grades.values().filter(|one| **one == grade).count();
        let balanced = history.classes(&[Class::Sent, Class::Stack]);
        let mut rates = backends().filter_map(|backend| backend.figures.rates);
        let first = rates.next().map(|rates| rates.connections);
        Overview {
            backends: grades.len(),
            ill: of_grade(Grade::Ill),
            suspect: of_grade(Grade::Suspect),
            dead: services.iter().filter(|service| service.up == 0).count(),
            live: snapshot.table.confirmed + snapshot.table.unconfirmed,
            promised: snapshot.table.promised,
            total: snapshot.gone.connections + backends().map(|backend| backend.figures.total).sum::<u64>(),
            connections: first.map(|first| first + rates.map(|rates| rates.connections).sum::<f64>()),
            packets: balanced.map(|(packets, _)| packets),
            bits: balanced.map(|(_, bits)| bits),
            drops: history.classes(&[Class::Drop, Class::Error]).map(|(packets, _)| packets),
        }
    }
}

fn drops(reading: &Reading, history: &History) -> Vec<DropRow> {
    let dropped = [Class::Drop.name(), Class::Error.name()];
    // Replies that the kernel may have no route for are as good as dropped where it has none.
    let is_lost = |one: &ReasonFigures| {
        dropped.contains(&one.class.as_str())
            || (one.class == Class::Stack.name() && one.name == "route_by_kernel")
    };
    let reasons = reading.snapshot.reasons.iter();
    let seen = reasons.filter(|one| is_lost(one) && one.counter.packets > 0);
    let mut rows: Vec<DropRow> = seen
        .map(|one| DropRow {
            class: one.class.clone(),
            name: one.name.clone(),
            help: one.help.clone(),
            packets: one.counter.packets,
            rate: history.reason(&one.class, &one.name),
        })
        .collect();
    rows.sort_by(|a, b| {
        let rate = |row: &DropRow| row.rate.unwrap_or(0.0);
        rate(b).total_cmp(&rate(a)).then(b.packets.cmp(&a.packets))
    });
    rows
}
