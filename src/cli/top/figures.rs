//! Figures as they come in, and what the time between them makes of them.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use crate::dataplane::{Class, Counter, Histogram};
use crate::metrics::{BackendFigures, ServiceFigures, Snapshot};

/// What is rare, and handshakes, are looked at over this time: a second has too few of them.
const WINDOW: Duration = Duration::from_secs(10);
/// How far back the trend goes.
pub(super) const TREND: Duration = Duration::from_secs(60);

/// Figures of one time.
pub(super) struct Reading {
    pub snapshot: Snapshot,
    /// Whether a process answered; else this is what is pinned.
    pub running: bool,
    /// One runs, and does not answer.
    pub silent: bool,
    pub version: Option<String>,
    pub at: Instant,
    /// The same in seconds since 1970.
    pub wall: f64,
}

/// Which backend of which service. One that was removed and added again is there twice while its connections go on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub vip: SocketAddrV4,
    pub protocol: String,
    pub address: SocketAddrV4,
    removed: bool,
    nth: usize,
}

/// The backends of a service with their keys.
pub(super) fn keyed(service: &ServiceFigures) -> impl Iterator<Item = (Key, &BackendFigures)> {
    let mut seen: HashMap<(SocketAddrV4, bool), usize> = HashMap::new();
    service.backends.iter().map(move |backend| {
        let removed = backend.state == "removed";
        let nth = seen.entry((backend.address, removed)).or_default();
        let key = Key {
            vip: service.vip,
            protocol: service.protocol.clone(),
            address: backend.address,
            removed,
            nth: *nth,
        };
        *nth += 1;
        (key, backend)
    })
}

/// What happened in a second, between the last two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub connections: f64,
    pub packets: f64,
    /// Bits to the backend.
    pub out: f64,
    /// Bits from it.
    pub back: f64,
    pub resets: f64,
}

impl Rates {
    pub fn add(&mut self, other: &Rates) {
        self.connections += other.connections;
        self.packets += other.packets;
        self.out += other.out;
        self.back += other.back;
        self.resets += other.resets;
    }
}

/// What happened in the last seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Recent {
    pub seconds: f64,
    pub connections: u64,
    pub handshakes: Histogram,
    pub syn_retransmits: u64,
    pub rsts: u64,
    pub checks_failed: u64,
    /// SYNs that have waited since before that time for the backend's next SYN-ACK, and those of them that it refused.
    pub unanswered: u32,
    pub refused: u32,
}

impl Recent {
    pub fn add(&mut self, other: &Recent) {
        self.seconds = self.seconds.max(other.seconds);
        self.connections += other.connections;
        self.handshakes.microseconds += other.handshakes.microseconds;
        let buckets = self.handshakes.buckets.iter_mut().zip(other.handshakes.buckets);
        buckets.for_each(|(sum, more)| *sum += more);
        self.syn_retransmits += other.syn_retransmits;
        self.rsts += other.rsts;
        self.checks_failed += other.checks_failed;
        self.unanswered += other.unanswered;
        self.refused += other.refused;
    }

    pub fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds.max(1e-3)
    }
}

/// What a backend had counted at a time.
#[derive(Clone)]
struct Mark {
    at: Instant,
    connections: u64,
    handshakes: Histogram,
    syn_retransmits: u64,
    rsts: u64,
    checks_failed: u64,
    unanswered: u32,
    refused: u32,
}

impl Mark {
    fn of(backend: &BackendFigures, at: Instant) -> Mark {
        Mark {
            at,
            connections: backend.connections,
            handshakes: backend.events.handshakes.clone(),
            syn_retransmits: backend.events.syn_retransmits,
            rsts: backend.events.rsts,
            checks_failed: backend.health.as_ref().map_or(0, |health| health.failures),
            unanswered: backend.unanswered_syns,
            refused: backend.refused_syns,
        }
    }

    fn since(&self, earlier: &Mark) -> Recent {
        Recent {
            seconds: (self.at - earlier.at).as_secs_f64(),
            connections: self.connections.saturating_sub(earlier.connections),
            handshakes: self.handshakes.since(&earlier.handshakes),
            syn_retransmits: self.syn_retransmits.saturating_sub(earlier.syn_retransmits),
            rsts: self.rsts.saturating_sub(earlier.rsts),
            checks_failed: self.checks_failed.saturating_sub(earlier.checks_failed),
            // What was sent a moment ago may be answered yet.
            unanswered: self.unanswered.min(earlier.unanswered),
            refused: self.refused.min(earlier.refused),
        }
    }
}

/// One backend over time.
struct Track {
    last: BackendFigures,
    at: Instant,
    /// Where the window begins, and where it will begin next.
    older: Mark,
    newer: Mark,
    rates: Option<Rates>,
    recent: Option<Recent>,
    trend: VecDeque<(Instant, f64)>,
}

impl Track {
    fn new(backend: &BackendFigures, at: Instant) -> Track {
        let mark = Mark::of(backend, at);
        Track {
            last: backend.clone(),
            at,
            older: mark.clone(),
            newer: mark,
            rates: None,
            recent: None,
            trend: VecDeque::new(),
        }
    }

    fn follow(&mut self, backend: &BackendFigures, at: Instant) {
        let seconds = (at - self.at).as_secs_f64().max(1e-3);
        let rate = |count: fn(&BackendFigures) -> u64| {
            count(backend).saturating_sub(count(&self.last)) as f64 / seconds
        };
        let rates = Rates {
            connections: rate(|one| one.connections),
            packets: rate(|one| one.to_backend.packets + one.to_client.packets),
            out: rate(|one| one.to_backend.bytes) * 8.0,
            back: rate(|one| one.to_client.bytes) * 8.0,
            resets: rate(|one| one.events.reset),
        };
        let mark = Mark::of(backend, at);
        self.recent = Some(mark.since(&self.older));
        if at - self.newer.at >= WINDOW / 2 {
            self.older = std::mem::replace(&mut self.newer, mark);
        }
        self.trend.push_back((at, rates.connections));
        while self.trend.front().is_some_and(|(then, _)| at - *then > TREND) {
            self.trend.pop_front();
        }
        (self.rates, self.last, self.at) = (Some(rates), backend.clone(), at);
    }
}

/// Class and name of a reason, and what it counted.
type Counted = (String, String, Counter);

/// Every reading so far, as far as it still matters.
#[derive(Default)]
pub(super) struct History {
    tracks: HashMap<Key, Track>,
    names: HashMap<(SocketAddrV4, String), String>,
    last: Option<(Instant, Vec<Counted>)>,
    reasons: HashMap<(String, String), (f64, f64)>,
}

impl History {
    /// Takes a reading, and gives its services the names that they had while a process knew them.
    pub fn take(&mut self, reading: &mut Reading) {
        for service in &mut reading.snapshot.services {
            let vip = (service.vip, service.protocol.clone());
            if reading.running {
                self.names.insert(vip, service.name.clone());
            } else if let Some(name) = self.names.get(&vip) {
                service.name.clone_from(name);
            }
        }
        let mut tracks = HashMap::new();
        for (key, backend) in reading.snapshot.services.iter().flat_map(keyed) {
            let known = self.tracks.remove(&key);
            // Counters that went back are those of another instance.
            let track = match known.filter(|track| track.last.connections <= backend.connections) {
                Some(mut track) if reading.at > track.at => {
                    track.follow(backend, reading.at);
                    track
                }
                _ => Track::new(backend, reading.at),
            };
            tracks.insert(key, track);
        }
        self.tracks = tracks;
        self.take_reasons(reading);
    }

    fn take_reasons(&mut self, reading: &Reading) {
        let counters = reading.snapshot.reasons.iter();
        let now: Vec<Counted> =
            counters.map(|one| (one.class.clone(), one.name.clone(), one.counter)).collect();
        self.reasons.clear();
        if let Some((at, before)) = &self.last {
            let seconds = (reading.at - *at).as_secs_f64().max(1e-3);
            let before: HashMap<_, _> =
                before.iter().map(|(class, name, counter)| ((class, name), counter)).collect();
            for (class, name, counter) in &now {
                let Some(old) = before.get(&(class, name)) else { continue };
                let rate = |now: u64, old: u64| now.saturating_sub(old) as f64 / seconds;
                let rates = (rate(counter.packets, old.packets), rate(counter.bytes, old.bytes) * 8.0);
                self.reasons.insert((class.clone(), name.clone()), rates);
            }
        }
        self.last = Some((reading.at, now));
    }

    pub fn rates(&self, key: &Key) -> Option<Rates> {
        self.tracks.get(key)?.rates
    }

    pub fn recent(&self, key: &Key) -> Option<Recent> {
        self.tracks.get(key)?.recent.clone()
    }

    /// New connections a second over the last minute, oldest first.
    pub fn trend(&self, key: &Key) -> Vec<(Instant, f64)> {
        self.tracks.get(key).map(|track| track.trend.iter().copied().collect()).unwrap_or_default()
    }

    /// Packets a second of a reason.
    pub fn reason(&self, class: &str, name: &str) -> Option<f64> {
        Some(self.reasons.get(&(class.to_owned(), name.to_owned()))?.0)
    }

    /// Packets and bits a second of classes.
    pub fn classes(&self, classes: &[Class]) -> Option<(f64, f64)> {
        let is_meant = |class: &str| classes.iter().any(|one| one.name() == class);
        let meant = self.reasons.iter().filter(|((class, _), _)| is_meant(class));
        let sum = meant.fold((0.0, 0.0), |sum, (_, rates)| (sum.0 + rates.0, sum.1 + rates.1));
        (!self.reasons.is_empty()).then_some(sum)
    }
}

/// A trend in so many cells, each with the most that it had; what was before the first reading has nothing.
pub(super) fn cells(trend: &[(Instant, f64)], now: Instant, count: usize) -> Vec<f64> {
    let cell = TREND.as_secs_f64() / count.max(1) as f64;
    let age = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
    let value = |n: usize| {
        let (old, young) = (cell * (count - n) as f64, cell * (count - n - 1) as f64);
        let inside = trend.iter().filter(|(at, _)| (young..old).contains(&age(*at)));
        let most = inside
            .map(|(_, rate)| *rate)
            .fold(None, |most: Option<f64>, rate| Some(most.map_or(rate, |most| most.max(rate))));
        // A reading is about the time before it.
        let spanning = || {
            let begun = trend.first().is_some_and(|(at, _)| age(*at) >= old);
            trend.iter().find(|(at, _)| age(*at) < young).filter(|_| begun).map(|(_, rate)| *rate)
        };
        most.or_else(spanning).unwrap_or(0.0)
    };
    (0..count).map(value).collect()
}
