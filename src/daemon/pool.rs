//! What is known of the backends beside their configuration: whether they answer, the deadlines of drains, and how much of
//! their share those get that just came back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::ramp;
use crate::config::Config;
use crate::dataplane::{BackendId, CheckTally, Condition, Plane};
use crate::health::{Checked, Checker, Event, Failure, Stats, Target, Verdict};
use crate::model::{AdminState, OnDown, Probe, Weight};

/// How often [`Pool::tick`] should be called.
pub const TICK: Duration = Duration::from_millis(100);

/// A backend of a service, as people name the two; one of TCP and UDP is checked once.
type Key = (String, SocketAddrV4);

/// What checks found since they were last counted, by the targets' ids.
type Tallies = Arc<Mutex<HashMap<u64, CheckTally>>>;

/// SYNs that a backend left unanswered since its last SYN-ACK, and those of them that it refused.
type Answers = (u32, u32);

/// All backends that are configured.
pub struct Pool {
    checker: Checker,
    tallies: Tallies,
    members: BTreeMap<Key, Member>,
    ids: HashMap<u64, Key>,
    next_id: u64,
    /// Rows whose SYNs went unanswered at the last look.
    suspects: HashSet<u16>,
    /// What was unanswered and refused at the last check that was made for it.
    looked_into: HashMap<u16, Answers>,
    /// By row: a backend that is removed, or whose service gets another name, keeps its own.
    deadlines: HashMap<BackendId, Deadline>,
}

struct Member {
    id: u64,
    /// Whether it is up, and what follows from that for its connections.
    condition: Condition,
    /// Its rows: one, or two of TCP and UDP.
    rows: Vec<u16>,
    weight: Weight,
    admin: AdminState,
    on_down: OnDown,
    slow_start: Duration,
    /// After so many SYNs without success it is checked at once; 0: never.
    passive: u32,
    /// When it came back, while it starts slowly.
    rises: Option<Instant>,
}

/// When the live connections of a backend that takes no more are reset.
struct Deadline {
    at: Instant,
    /// For the log.
    service: String,
}

impl Pool {
    /// Knows nobody yet. `report` is told of each change, on another thread.
    pub fn new(report: impl Fn(Event) + Send + 'static) -> Result<Pool> {
        let tallies = Tallies::default();
        let told = tallies.clone();
        let count = move |Checked { id, result }| {
            let mut tallies = told.lock().unwrap_or_else(PoisonError::into_inner);
            let tally = tallies.entry(id).or_default();
            match result {
                Verdict::Passed(took) => tally.add(true, took),
                Verdict::Failed(took) => tally.add(false, took),
                Verdict::Unchecked => tally.unchecked += 1,
            }
        };
        Ok(Pool {
            checker: Checker::start_counted(report, count)?,
            tallies,
            members: BTreeMap::new(),
            ids: HashMap::new(),
            next_id: 1,
            suspects: HashSet::new(),
            looked_into: HashMap::new(),
            deadlines: HashMap::new(),
        })
    }

    /// Brings the members in line with a configuration that is in the tables. Those that are known keep what is known of
    /// them; others are what their rows say: an instance before may have found them down.
    pub fn follow(&mut self, config: &Config, plane: &mut Plane) {
        // While it is known whose they are.
        self.count_checks(plane);
        let mut before = std::mem::take(&mut self.members);
        let mut targets = Vec::new();
        for service in &config.services {
            for backend in &service.backends {
                let key = (service.name.clone(), backend.address);
                let row = plane.find(service.vip, service.protocol, backend.address).map(|row| row.index);
                if let Some(member) = self.members.get_mut(&key) {
                    member.rows.extend(row);
                    continue;
                }
                let known = before.remove(&key);
                let of_row = || row.and_then(|row| plane.condition(row)).unwrap_or_default();
                let condition = known.as_ref().map_or_else(of_row, |one| one.condition);
                let up = condition == Condition::Up;
                let id = known.as_ref().map_or(self.next_id, |one| one.id);
                self.next_id = self.next_id.max(id + 1);
                let rises = known.and_then(|one| one.rises).filter(|_| backend.state == AdminState::Enabled);
                if backend.state != AdminState::Disabled {
                    let health = service.health.clone();
                    targets.push(Target { id, address: backend.address, health, up });
                }
                let member = Member {
                    id,
                    condition,
                    rows: row.into_iter().collect(),
                    weight: backend.weight,
                    admin: backend.state,
                    on_down: service.on_down,
                    slow_start: service.slow_start,
                    passive: if service.health.probe == Probe::None { 0 } else { service.health.passive },
                    rises,
                };
                self.members.insert(key, member);
            }
        }
        self.ids = self.members.iter().map(|(key, member)| (member.id, key.clone())).collect();
        self.checker.set(targets);
        // Rows may be new, or read by a plane that did not see what the operator's will hides; shares may be of another time.
        for member in self.members.values() {
            member.rows.iter().for_each(|row| plane.set_condition(*row, member.condition));
        }
        let services: BTreeSet<String> = self.members.keys().map(|(service, _)| service.clone()).collect();
        for service in services {
            self.ramp(&service, Instant::now(), plane);
        }
    }

    /// Carries out what a check has decided.
    pub fn note(&mut self, event: Event, plane: &mut Plane) {
        let Event::Change { id, up, why, run, .. } = event;
        let Some(key) = self.ids.get(&id) else { return };
        let Some(member) = self.members.get_mut(key) else { return };
        let condition = member.follows(up, why.as_ref());
        member.condition = condition;
        member.rows.iter().for_each(|row| plane.set_condition(*row, condition));
        member.rises = (up && !member.slow_start.is_zero()).then(Instant::now);
        let (service, address) = key;
        match (up, why) {
            (true, _) if run == 0 => tracing::info!(
                service, %address, by = "configuration", from = "down", to = "up",
                "service {service}: backend {address} is up: it is not checked any more"
            ),
            (true, _) => tracing::info!(
                service, %address, by = "health check", from = "down", to = "up", checks = run,
                "service {service}: backend {address} is up after {run} good checks"
            ),
            (false, why) => {
                let why = why.map_or("no answer".to_owned(), |why| why.to_string());
                let kept = match condition {
                    Condition::Gone => "its live TCP connections are reset",
                    _ => "its live TCP connections go on",
                };
                tracing::warn!(
                    service, %address, by = "health check", from = "up", to = "down", why, checks = run,
                    "service {service}: backend {address} is down after {run} failed checks: {why}; {kept}"
                );
            }
        }
        let name = service.clone();
        self.ramp(&name, Instant::now(), plane);
    }

    /// Resets the live TCP connections of backends that take no new ones after a time.
    pub fn reset_after(&mut self, service: &str, backends: &[BackendId], after: Duration) {
        for backend in backends {
            let deadline = Deadline { at: Instant::now() + after, service: service.to_owned() };
            self.deadlines.insert(*backend, deadline);
        }
    }

    /// Lets the live connections of backends go on for as long as they will. `true`: there was a deadline.
    pub fn keep(&mut self, backends: &[BackendId]) -> bool {
        backends.iter().filter(|backend| self.deadlines.remove(backend).is_some()).count() > 0
    }

    /// Has suspicious backends checked, and carries out what is due: deadlines, and slow starts. Call it every [`TICK`].
    pub fn tick(&mut self, now: Instant, plane: &mut Plane) {
        self.count_checks(plane);
        self.check_suspects(plane);
        self.meet_deadlines(now, plane);
        let mut rising = Vec::new();
        for ((service, _), member) in &self.members {
            if member.rises.is_some() && rising.last() != Some(service) {
                rising.push(service.clone());
            }
        }
        for service in rising {
            self.ramp(&service, now, plane);
        }
    }

    /// Writes down what checks found: each once, in the row of its backend. One of TCP and UDP is checked for both and counts as
    /// its first row's. What was found of a backend that is gone counts with the rest of those.
    pub fn count_checks(&self, plane: &Plane) {
        let tallies = std::mem::take(&mut *self.tallies.lock().unwrap_or_else(PoisonError::into_inner));
        let row = |id: &u64| {
            let key = self.ids.get(id)?;
            let row = self.members.get(key)?.rows.first()?;
            plane.has(BackendId { index: *row, address: key.1 }).then_some(*row)
        };
        for (id, tally) in &tallies {
            plane.tables().checks().add(row(id).unwrap_or(0), tally);
        }
    }

    fn meet_deadlines(&mut self, now: Instant, plane: &mut Plane) {
        // One that was enabled again, or is free by now, has none any more.
        self.deadlines.retain(|backend, _| plane.leaves(*backend));
        let due = |(backend, deadline): (&BackendId, &Deadline)| (now >= deadline.at).then_some(*backend);
        let due: Vec<BackendId> = self.deadlines.iter().filter_map(due).collect();
        for backend in due {
            let Some(Deadline { service, .. }) = self.deadlines.remove(&backend) else { continue };
            plane.reset_connections(backend.index);
            let address = backend.address;
            tracing::info!(
                service, %address, by = "deadline",
                "service {service}: the deadline of backend {address} has passed: its live TCP connections are reset"
            );
        }
    }

    /// Gives the backends of a service their weights for now, while one of them starts slowly.
    fn ramp(&mut self, service: &str, now: Instant, plane: &mut Plane) {
        let first = (service.to_owned(), SocketAddrV4::new(0.into(), 0));
        let mut members: Vec<_> =
            self.members.range_mut(first..).take_while(|((name, _), _)| name == service).collect();
        let ramps: Vec<ramp::Ramp> = members
            .iter()
            .map(|(_, member)| ramp::Ramp {
                weight: member.weight,
                done: member
                    .rises
                    .map(|since| now.saturating_duration_since(since).div_duration_f64(member.slow_start)),
            })
            .collect();
        for ((_, member), share) in members.iter_mut().zip(ramp::shares(&ramps)) {
            member.rows.iter().for_each(|row| plane.set_share(*row, share));
            if share.is_none() {
                member.rises = None;
            }
        }
    }

    /// Passive checks: a backend that refuses connections, or does not answer them, is checked at once.
    fn check_suspects(&mut self, plane: &Plane) {
        let (mut suspects, mut looked_into) = (HashSet::new(), HashMap::new());
        for member in self.members.values() {
            let is_asked = member.condition == Condition::Up
                && member.passive > 0
                && member.admin != AdminState::Disabled;
            for row in &member.rows {
                let answers = plane.answers(*row);
                // An answer since then has set them to 0.
                let goes_on = |known: &&Answers| known.0 <= answers.0 && known.1 <= answers.1;
                let known = self.looked_into.get(row).filter(goes_on).copied().unwrap_or_default();
                let (unanswered, refused) = (answers.0 - known.0, answers.1 - known.1);
                // What was sent a moment ago may be answered yet.
                let silent = unanswered >= member.passive && self.suspects.contains(row);
                let suspicious = is_asked && (refused >= member.passive || silent);
                if suspicious {
                    self.checker.check_now(member.id);
                } else if is_asked && unanswered >= member.passive {
                    suspects.insert(*row);
                }
                // Whatever a backend does that is down or disabled is no news when it is back.
                looked_into.insert(*row, if suspicious || !is_asked { answers } else { known });
            }
        }
        (self.suspects, self.looked_into) = (suspects, looked_into);
    }

    /// What checks have found, by service and backend.
    pub fn stats(&self) -> HashMap<Key, Stats> {
        let stats = self.checker.stats().into_iter();
        stats.filter_map(|(id, stats)| Some((self.ids.get(&id)?.clone(), stats))).collect()
    }

    /// How long the live connections of a backend may still go on, if that is limited.
    pub fn time_left(&self, backend: BackendId) -> Option<Duration> {
        Some(self.deadlines.get(&backend)?.at.saturating_duration_since(Instant::now()))
    }
}

impl Member {
    fn follows(&self, up: bool, why: Option<&Failure>) -> Condition {
        let refused = matches!(why, Some(Failure::Refused(_)));
        match (up, self.on_down) {
            (true, _) => Condition::Up,
            (false, OnDown::Reset) => Condition::Gone,
            (false, OnDown::Auto) if refused => Condition::Gone,
            (false, OnDown::Auto | OnDown::Keep) => Condition::Down,
        }
    }
}
