use std::collections::HashMap;
use std::net::SocketAddrV4;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{Names, names_of};
use crate::dataplane::types::{
    lb_backend, lb_backend_counters, lb_backend_flags, lb_backend_state, lb_service,
};
use crate::dataplane::{
    BackendEvents, Capacity, Census, Class, Counter, Histogram, Reason, Tables, ipv4_of, scheduler_of,
};
use crate::model::{Protocol, Service};

/// Every figure of an instance at one time. Its JSON is stable: fields are added, never renamed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// The services, in the order of their indexes.
    pub services: Vec<ServiceFigures>,
    /// What became of packets: every reason, those never seen with zeros.
    pub reasons: Vec<ReasonFigures>,
    /// The connection table.
    pub table: TableFigures,
    /// What backends counted that are gone: with it, no sum over all backends ever goes back.
    #[serde(default)]
    pub gone: GoneFigures,
    /// What the process did, and those before it on the same tables.
    #[serde(default)]
    pub history: HistoryFigures,
}

/// What backends counted that are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoneFigures {
    /// Connections opened.
    pub connections: u64,
    /// What was sent to them.
    pub to_backend: Counter,
    /// What they answered.
    pub to_client: Counter,
    /// What became of their connections.
    pub events: BackendEvents,
    /// What checks of them found.
    pub checks: CheckFigures,
}

/// What checks of a backend found, over all processes that used its tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckFigures {
    /// Checks that it passed.
    pub passed: u64,
    /// Checks that it failed.
    pub failed: u64,
    /// Checks that this host could not make, as without a file to open: they say nothing about the backend.
    #[serde(default)]
    pub unchecked: u64,
    /// How long the first two took.
    pub durations: Histogram,
}

impl CheckFigures {
    /// What two of them found together.
    pub fn add(&mut self, other: &CheckFigures) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.unchecked += other.unchecked;
        self.durations.add(&other.durations);
    }
}

/// What the control plane did, over all processes that used the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryFigures {
    /// Reloads carried out.
    pub reloads: u64,
    /// Reloads that failed, and changed nothing.
    pub reloads_failed: u64,
    /// Whether the last one failed.
    pub last_reload_failed: bool,
    /// Changes of what runs: by reloads, and live ones.
    pub changes: u64,
    /// When the last of them was, in seconds since 1970.
    pub last_change: Option<u64>,
}

/// One service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceFigures {
    /// What people call it: its VIP, unless [`Snapshot::name`] was told.
    #[serde(default)]
    pub name: String,
    /// The address and port clients connect to.
    pub vip: SocketAddrV4,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// How new connections are spread.
    pub scheduler: String,
    /// Its backends.
    pub backends: Vec<BackendFigures>,
}

/// One backend of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendFigures {
    /// Where it listens.
    pub address: SocketAddrV4,
    /// `up`, `drain`, `down`, `disabled`, or `removed` while connections of one that is not configured any more go on.
    pub state: String,
    /// Whether checks find it down, whatever an operator wants of it.
    #[serde(default)]
    pub down: bool,
    /// Its share of new connections.
    pub weight: u8,
    /// Live connections, confirmed or not.
    pub active: u32,
    /// Live connections as the scheduler counts them, if it does. It may be off by a few while packets pass, and includes
    /// those over their timeout until the next sweep.
    pub load: Option<i64>,
    /// Connections since the start.
    pub connections: u64,
    /// What was sent to it.
    pub to_backend: Counter,
    /// What it answered.
    pub to_client: Counter,
    /// What became of its connections.
    #[serde(default)]
    pub events: BackendEvents,
    /// How many SYNs were sent to it since its last SYN-ACK.
    #[serde(default)]
    pub unanswered_syns: u32,
    /// How many of them it refused.
    #[serde(default)]
    pub refused_syns: u32,
    /// What checks of it found.
    #[serde(default)]
    pub checks: CheckFigures,
    /// What is known of its health, while a process runs that checks it.
    #[serde(default)]
    pub health: Option<HealthFigures>,
}

/// What is known of a backend's health.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthFigures {
    /// What is asked of it: `none`, `tcp`, `http` or `https`.
    pub check: String,
    /// What the operator wants of it: `enabled`, `drain` or `disabled`.
    pub admin: String,
    /// Its weight by the configuration; it has another one while it starts slowly.
    pub weight: u8,
    /// Whether checks find it up; `None`: it is not checked.
    pub up: Option<bool>,
    /// Checks that came to a result.
    pub checks: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Checks that this host could not make.
    #[serde(default)]
    pub unchecked: u64,
    /// Which part of the last 100 checks failed, 0 to 1.
    pub failure_rate: f64,
    /// When it last went up or down, in seconds since 1970.
    pub last_change: Option<f64>,
    /// Why a check last failed.
    pub last_error: Option<String>,
    /// When that was, in seconds since 1970.
    pub last_error_at: Option<f64>,
    /// How long the last good check took, in milliseconds.
    pub latency_ms: Option<f64>,
    /// The same, smoothed.
    pub smoothed_latency_ms: Option<f64>,
    /// When its live connections are reset, in seconds from now, if that is to be.
    pub reset_in_seconds: Option<f64>,
}

/// One thing that can become of a packet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReasonFigures {
    /// `sent`, `stack`, `pass`, `drop` or `error`.
    pub class: String,
    /// Its name, unique within the class.
    pub name: String,
    /// What it means.
    pub help: String,
    /// How often it happened.
    #[serde(flatten)]
    pub counter: Counter,
}

/// How full the connection table is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableFigures {
    /// Slots in all; more than the connections promised.
    pub slots: u64,
    /// Connections that it promises to hold.
    #[serde(default)]
    pub promised: u64,
    /// Confirmed connections within their timeout.
    pub confirmed: u64,
    /// Unconfirmed ones within theirs.
    pub unconfirmed: u64,
    /// Closed ones and idle ones beyond their timeout: the next that needs the slot gets it.
    pub replaceable: u64,
}

impl Snapshot {
    /// Reads an instance's tables. `census` is what a walk over its connections counted.
    pub fn take(tables: &Tables, census: &Census) -> Result<Snapshot> {
        let counters = tables.all_backend_counters()?;
        let (services, gone) = services(tables, census, &counters)?;
        Ok(Snapshot {
            services,
            reasons: reasons(tables)?,
            table: TableFigures {
                slots: census.slots,
                promised: Capacity::promised(census.slots),
                confirmed: census.confirmed,
                unconfirmed: census.unconfirmed,
                replaceable: census.replaceable,
            },
            gone,
            history: history(tables)?,
        })
    }

    /// Gives the services the names of the configuration.
    pub fn name(&mut self, configured: &[Service]) {
        self.name_by(&names_of(configured));
    }

    /// The same by names.
    pub fn name_by(&mut self, names: &Names) {
        for figures in &mut self.services {
            let key = Protocol::from_name(&figures.protocol).map(|protocol| (figures.vip, protocol));
            if let Some(name) = key.and_then(|key| names.get(&key)) {
                figures.name.clone_from(name);
            }
        }
    }

    /// Adds what is known of the health of backends, by the names of their services.
    pub fn add_health(&mut self, known: &HashMap<(String, SocketAddrV4), HealthFigures>) {
        for service in &mut self.services {
            for backend in &mut service.backends {
                backend.health = known.get(&(service.name.clone(), backend.address)).cloned();
            }
        }
    }

    /// All that a class of reasons counted.
    pub fn class(&self, class: Class) -> Counter {
        self.reasons.iter().filter(|reason| reason.class == class.name()).map(|reason| reason.counter).sum()
    }
}

/// Every service, and how many of its backends take new connections.
pub(super) fn takers(tables: &Tables) -> Vec<(SocketAddrV4, Protocol, usize)> {
    let mut takers = vec![0; tables.services.len()];
    for row in (1..tables.backends.len()).filter_map(|index| tables.backends.get(index)) {
        let up = lb_backend_state(row.state.into()) == lb_backend_state::LB_BACKEND_UP;
        if let Some(count) = takers.get_mut(usize::from(row.service)).filter(|_| up) {
            *count += 1;
        }
    }
    let rows =
        (1..tables.services.len()).filter_map(|index| Some((tables.services.get(index)?, takers[index])));
    let service =
        |(row, takers): (lb_service, usize)| Some((vip_of(&row), Protocol::from_number(row.proto)?, takers));
    rows.filter_map(service).collect()
}

fn vip_of(row: &lb_service) -> SocketAddrV4 {
    SocketAddrV4::new(ipv4_of(row.addr), u16::from_be(row.port))
}

/// Adds what a row counted that is no backend's any more.
fn add_gone(
    gone: &mut GoneFigures,
    tables: &Tables,
    index: u16,
    counters: &lb_backend_counters,
) -> Result<()> {
    gone.connections += counters.connections;
    gone.to_backend = [gone.to_backend, Counter::from(&counters.to_backend)].into_iter().sum();
    gone.to_client = [gone.to_client, Counter::from(&counters.to_client)].into_iter().sum();
    gone.events.add(&events(tables, index)?);
    gone.checks.add(&checks(tables, index)?);
    Ok(())
}

fn events(tables: &Tables, index: u16) -> Result<BackendEvents> {
    let row = tables.backend_events.get(usize::from(index));
    Ok(BackendEvents::from(&row.with_context(|| format!("there are no events of backend {index}"))?))
}

fn checks(tables: &Tables, index: u16) -> Result<CheckFigures> {
    let row = tables.backend_checks.get(usize::from(index));
    let row = row.with_context(|| format!("there are no checks of backend {index}"))?;
    Ok(CheckFigures {
        passed: row.passed,
        failed: row.failed,
        unchecked: row.unchecked,
        durations: Histogram::from(&row.duration),
    })
}

fn history(tables: &Tables) -> Result<HistoryFigures> {
    let row = tables.history.get(0).context("the table history is empty")?;
    Ok(HistoryFigures {
        reloads: row.reloads,
        reloads_failed: row.reloads_failed,
        last_reload_failed: row.last_reload_failed != 0,
        changes: row.changes,
        last_change: (row.last_change != 0).then_some(row.last_change),
    })
}

fn reasons(tables: &Tables) -> Result<Vec<ReasonFigures>> {
    let figures = |reason: &Reason| {
        Ok(ReasonFigures {
            class: reason.class.name().to_owned(),
            name: reason.name.to_owned(),
            help: reason.help.to_owned(),
            counter: tables.reason_counter(reason.code())?,
        })
    };
    Reason::ALL.iter().map(figures).collect()
}

/// The services with their backends; and what rows counted that belong to none of them: row 0, and those that were given
/// back and are still met by packets, or by the sweep that forgets their connections.
fn services(
    tables: &Tables,
    census: &Census,
    counters: &[lb_backend_counters],
) -> Result<(Vec<ServiceFigures>, GoneFigures)> {
    let (mut services, mut places) = (Vec::new(), HashMap::new());
    for index in 1..tables.services.len() {
        let row = tables.services.get(index).context("the table of services has fewer rows than it says")?;
        let Some(protocol) = Protocol::from_number(row.proto) else { continue };
        places.insert(index, services.len());
        services.push(figures_of(&row, protocol));
    }
    let mut gone = GoneFigures::default();
    for (index, counters) in counters.iter().enumerate().take(tables.backends.len()) {
        let row = tables.backends.get(index).context("the table of backends has fewer rows than it says")?;
        let place = places.get(&usize::from(row.service)).filter(|_| index > 0);
        match (state_name(&row), place) {
            (Some(state), Some(place)) => {
                let backend = backend(tables, census, index as u16, &row, state, counters)?;
                services[*place].backends.push(backend);
            }
            _ => add_gone(&mut gone, tables, index as u16, counters)?,
        }
    }
    Ok((services, gone))
}

fn figures_of(row: &lb_service, protocol: Protocol) -> ServiceFigures {
    let vip = vip_of(row);
    ServiceFigures {
        name: vip.to_string(),
        vip,
        protocol: protocol.to_string(),
        scheduler: scheduler_of(row.scheduler).map_or("unknown", |scheduler| scheduler.name()).to_owned(),
        backends: Vec::new(),
    }
}

fn backend(
    tables: &Tables,
    census: &Census,
    index: u16,
    row: &lb_backend,
    state: &'static str,
    counters: &lb_backend_counters,
) -> Result<BackendFigures> {
    let answers = tables.backend_answers.get(usize::from(index)).unwrap_or_default();
    Ok(BackendFigures {
        address: SocketAddrV4::new(ipv4_of(row.addr), u16::from_be(row.port)),
        state: state.to_owned(),
        down: is_down(row),
        weight: row.weight,
        active: census.active.get(usize::from(index)).copied().unwrap_or(0),
        load: is_counted(row).then(|| tables.loads().load(index)),
        connections: counters.connections,
        to_backend: Counter::from(&counters.to_backend),
        to_client: Counter::from(&counters.to_client),
        events: events(tables, index)?,
        unanswered_syns: answers.unanswered,
        refused_syns: answers.refused,
        checks: checks(tables, index)?,
        health: None,
    })
}

fn is_counted(row: &lb_backend) -> bool {
    u32::from(row.flags) & lb_backend_flags::LB_BACKEND_COUNTED.0 != 0
}

/// One whose connections an operator has reset cannot be told from one that is down too: it is taken to be up.
fn is_down(row: &lb_backend) -> bool {
    let leaves = lb_backend_flags::LB_BACKEND_REMOVED.0
        | lb_backend_flags::LB_BACKEND_DISABLES.0
        | lb_backend_flags::LB_BACKEND_DRAINS.0;
    match lb_backend_state(row.state.into()) {
        lb_backend_state::LB_BACKEND_DOWN => true,
        lb_backend_state::LB_BACKEND_RESET => u32::from(row.flags) & leaves == 0,
        _ => false,
    }
}

/// `None` for a free row.
fn state_name(row: &lb_backend) -> Option<&'static str> {
    let has = |flag: lb_backend_flags| u32::from(row.flags) & flag.0 != 0;
    match lb_backend_state(u32::from(row.state)) {
        lb_backend_state::LB_BACKEND_NONE => None,
        _ if has(lb_backend_flags::LB_BACKEND_REMOVED) => Some("removed"),
        _ if has(lb_backend_flags::LB_BACKEND_DISABLES) => Some("disabled"),
        _ if has(lb_backend_flags::LB_BACKEND_DRAINS) => Some("drain"),
        lb_backend_state::LB_BACKEND_UP => Some("up"),
        lb_backend_state::LB_BACKEND_DRAIN => Some("drain"),
        lb_backend_state::LB_BACKEND_DOWN | lb_backend_state::LB_BACKEND_RESET => Some("down"),
        lb_backend_state::LB_BACKEND_DISABLED => Some("disabled"),
        _ => None,
    }
}
