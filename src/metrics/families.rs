//! Which figures become which series. docs/metrics.md tells the same to people.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddrV4;
use std::time::Duration;

use super::exposition::{Exposition, Kind, Labels};
use super::{BackendFigures, CheckFigures, GoneFigures, ServiceFigures, Snapshot};
use crate::dataplane::{BackendEvents, Class, Counter, Histogram};

/// What does not change while a process runs.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Of the program.
    pub version: String,
    /// Of its tables.
    pub abi: u32,
    /// Of the kernel that it runs on.
    pub kernel: String,
    /// When it was started, since 1970.
    pub started: Duration,
}

/// All rows of a backend of a service, and of what is gone: removed and added again it may have two.
struct Row {
    labels: Labels,
    figures: GoneFigures,
    /// `None` for what is gone.
    now: Option<Now>,
}

/// How a backend is now.
#[derive(Clone, Copy, Default)]
struct Now {
    up: bool,
    disabled: bool,
    weight: u8,
    active: u32,
}

/// A backend's address over all services.
#[derive(Default)]
struct Place {
    active: u64,
    /// `None`: it is configured nowhere any more.
    healthy: Option<bool>,
}

/// The text of a snapshot; `length` is what the one before took.
pub fn expose(snapshot: &Snapshot, about: &About, length: usize) -> String {
    let mut out = Exposition::new(length);
    let rows = rows(snapshot);
    traffic(&mut out, &rows);
    reasons(&mut out, snapshot);
    places(&mut out, snapshot);
    states(&mut out, &rows);
    events(&mut out, &rows);
    checks(&mut out, snapshot, &rows);
    services(&mut out, snapshot);
    table(&mut out, snapshot);
    history(&mut out, snapshot, about);
    out.finish()
}

fn labels_of(service: &str, protocol: &str, ip: &str, port: &str) -> Labels {
    let pairs = [("service", service), ("protocol", protocol), ("backend_ip", ip), ("backend_port", port)];
    Labels::new(&pairs)
}

/// Sums up what has the same labels: a series stands in the text once.
fn rows(snapshot: &Snapshot) -> Vec<Row> {
    let gone = Row { labels: labels_of("", "", "", ""), figures: snapshot.gone.clone(), now: None };
    let (mut rows, mut places) = (vec![gone], HashMap::new());
    for service in &snapshot.services {
        for backend in &service.backends {
            let address = backend.address;
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            let labels = labels_of(&service.name, &service.protocol, &ip, &port);
            let at = *places.entry(labels.clone()).or_insert(rows.len());
            if at == rows.len() {
                rows.push(Row { labels, figures: GoneFigures::default(), now: Some(Now::default()) });
            }
            rows[at].add(backend);
        }
    }
    rows
}

impl Row {
    fn add(&mut self, backend: &BackendFigures) {
        let figures = &mut self.figures;
        figures.connections += backend.connections;
        figures.to_backend = [figures.to_backend, backend.to_backend].into_iter().sum();
        figures.to_client = [figures.to_client, backend.to_client].into_iter().sum();
        figures.events.add(&backend.events);
        figures.checks.add(&backend.checks);
        let now = self.now.get_or_insert_default();
        now.active += backend.active;
        if backend.state != "removed" {
            now.up = backend.state == "up";
            now.disabled = matches!(backend.state.as_str(), "drain" | "disabled");
            now.weight = backend.weight;
        }
    }
}

type Of<T> = fn(&T) -> u64;

fn traffic(out: &mut Exposition, rows: &[Row]) {
    let families: [(&str, &str, Of<Counter>); 2] = [
        ("xdp_lb_packets_total", "Packets of services that were translated and sent on.", |counter| {
            counter.packets
        }),
        ("xdp_lb_bytes_total", "Bytes of the whole frames of these packets.", |counter| counter.bytes),
    ];
    for (name, help, of) in families {
        let mut family = out.family(name, Kind::Counter, help);
        for row in rows {
            family.sample_with(&row.labels, ("direction", "to_backend"), of(&row.figures.to_backend));
            family.sample_with(&row.labels, ("direction", "to_client"), of(&row.figures.to_client));
        }
    }
}

fn reasons(out: &mut Exposition, snapshot: &Snapshot) {
    let families = [
        ("xdp_lb_drops_total", Class::Drop, "Packets that were dropped."),
        ("xdp_lb_errors_total", Class::Error, "Packets that were dropped over a bug or a broken table."),
        ("xdp_lb_passed_total", Class::Pass, "Packets that were left to the kernel as they came."),
        (
            "xdp_lb_stack_total",
            Class::Stack,
            "Packets that were translated and left to the kernel to deliver.",
        ),
    ];
    for (name, class, help) in families {
        let mut family = out.family(name, Kind::Counter, help);
        for reason in snapshot.reasons.iter().filter(|reason| reason.class == class.name()) {
            family.sample_with(&Labels::default(), ("reason", &reason.name), reason.counter.packets);
        }
    }
}

fn places(out: &mut Exposition, snapshot: &Snapshot) {
    let mut places: BTreeMap<SocketAddrV4, Place> = BTreeMap::new();
    for backend in snapshot.services.iter().flat_map(|service| &service.backends) {
        let place = places.entry(backend.address).or_default();
        place.active += u64::from(backend.active);
        if backend.state != "removed" {
            place.healthy = Some(place.healthy.unwrap_or(true) && is_healthy(backend));
        }
    }
    let labels = |address: &SocketAddrV4| {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        Labels::new(&[("backend_ip", ip.as_str()), ("backend_port", port.as_str())])
    };
    let places: Vec<(Labels, Place)> =
        places.into_iter().map(|(address, place)| (labels(&address), place)).collect();
    let help = "Live connections of a backend, over all services.";
    let mut family = out.family("xdp_lb_backend_connections", Kind::Gauge, help);
    places.iter().for_each(|(labels, place)| family.sample(labels, place.active));
    let help = "Whether a backend is well (1), or down or disabled in one of its services (0).";
    let mut family = out.family("xdp_lb_backend_health", Kind::Gauge, help);
    for (labels, place) in &places {
        if let Some(healthy) = place.healthy {
            family.sample(labels, u64::from(healthy));
        }
    }
    let live = snapshot.table.confirmed + snapshot.table.unconfirmed;
    let help = "Live connections, confirmed or not.";
    out.family("xdp_lb_active_connections", Kind::Gauge, help).sample(&Labels::default(), live);
}

fn is_healthy(backend: &BackendFigures) -> bool {
    !backend.down && !matches!(backend.state.as_str(), "down" | "disabled")
}

fn states(out: &mut Exposition, rows: &[Row]) {
    let families: [(&str, &str, Of<Now>); 4] = [
        ("xdp_lb_backend_up", "Whether a backend takes new connections of a service (1 or 0).", |now| {
            now.up.into()
        }),
        (
            "xdp_lb_backend_disabled",
            "Whether an operator drains a backend or has it disabled (1 or 0).",
            |now| now.disabled.into(),
        ),
        ("xdp_lb_backend_weight", "A backend's share of new connections now.", |now| now.weight.into()),
        ("xdp_lb_connections", "Live connections of a backend of a service.", |now| now.active.into()),
    ];
    for (name, help, of) in families {
        let mut family = out.family(name, Kind::Gauge, help);
        for row in rows {
            if let Some(now) = &row.now {
                family.sample(&row.labels, of(now));
            }
        }
    }
}

fn events(out: &mut Exposition, rows: &[Row]) {
    let help = "Connections that were given to a backend.";
    let mut family = out.family("xdp_lb_connections_opened_total", Kind::Counter, help);
    rows.iter().for_each(|row| family.sample(&row.labels, row.figures.connections));
    let families: [(&str, &str, Of<BackendEvents>); 8] = [
        ("xdp_lb_connections_closed_total", "Connections that both sides closed.", |of| of.closed),
        ("xdp_lb_connections_reset_total", "Connections that the backend or an operator reset.", |of| {
            of.reset
        }),
        ("xdp_lb_connections_expired_total", "Connections that were idle beyond their timeout.", |of| {
            of.expired
        }),
        ("xdp_lb_connections_evicted_total", "Unconfirmed connections whose slot was needed.", |of| {
            of.evicted
        }),
        ("xdp_lb_connections_moved_total", "Connections that were given to another backend.", |of| of.moved),
        (
            "xdp_lb_connections_revived_total",
            "Connections that went on after they had expired, or came from another backend to be reset.",
            |of| of.revived,
        ),
        ("xdp_lb_syn_retransmits_total", "SYNs of unconfirmed connections beyond the first.", |of| {
            of.syn_retransmits
        }),
        ("xdp_lb_backend_rsts_total", "Segments with RST that a backend sent.", |of| of.rsts),
    ];
    for (name, help, of) in families {
        let mut family = out.family(name, Kind::Counter, help);
        rows.iter().for_each(|row| family.sample(&row.labels, of(&row.figures.events)));
    }
    let help = "From a client's first SYN to the backend's SYN-ACK, as they passed this host.";
    let mut family = out.family("xdp_lb_handshake_seconds", Kind::Histogram, help);
    rows.iter().for_each(|row| family.histogram(&row.labels, &row.figures.events.handshakes));
}

fn checks(out: &mut Exposition, snapshot: &Snapshot, rows: &[Row]) {
    let help = "Health checks by their result; unchecked are those that this host could not make.";
    let mut family = out.family("xdp_lb_health_checks_total", Kind::Counter, help);
    for Row { labels, figures, .. } in rows {
        let CheckFigures { passed, failed, unchecked, .. } = figures.checks;
        for (result, count) in [("passed", passed), ("failed", failed), ("unchecked", unchecked)] {
            family.sample_with(labels, ("result", result), count);
        }
    }
    let labels = |service: &str, protocol: &str| Labels::new(&[("service", service), ("protocol", protocol)]);
    let mut durations: Vec<(Labels, Histogram)> =
        vec![(labels("", ""), snapshot.gone.checks.durations.clone())];
    for service in &snapshot.services {
        let mut all = Histogram::default();
        service.backends.iter().for_each(|backend| all.add(&backend.checks.durations));
        durations.push((labels(&service.name, &service.protocol), all));
    }
    let help = "How long health checks of a service took.";
    let mut family = out.family("xdp_lb_health_check_duration_seconds", Kind::Histogram, help);
    durations.iter().for_each(|(labels, histogram)| family.histogram(labels, histogram));
}

fn services(out: &mut Exposition, snapshot: &Snapshot) {
    let help = "A service that is balanced; always 1.";
    let mut family = out.family("xdp_lb_service_info", Kind::Gauge, help);
    for ServiceFigures { name, protocol, vip, scheduler, .. } in &snapshot.services {
        let vip = vip.to_string();
        let pairs =
            [("service", name.as_str()), ("protocol", protocol), ("vip", &vip), ("scheduler", scheduler)];
        family.sample(&Labels::new(&pairs), 1);
    }
}

fn table(out: &mut Exposition, snapshot: &Snapshot) {
    let table = &snapshot.table;
    let used = table.confirmed + table.unconfirmed;
    let families = [
        ("xdp_lb_table_slots", "Slots of the connection table.", table.slots),
        ("xdp_lb_table_promised_connections", "Connections that the table promises to hold.", table.promised),
        ("xdp_lb_table_used", "Slots with live connections, confirmed or not.", used),
        (
            "xdp_lb_table_unconfirmed",
            "Slots with live connections of one side's packets only.",
            table.unconfirmed,
        ),
        (
            "xdp_lb_table_replaceable",
            "Slots with closed connections, or idle ones over their timeout.",
            table.replaceable,
        ),
    ];
    for (name, help, value) in families {
        out.family(name, Kind::Gauge, help).sample(&Labels::default(), value);
    }
}

fn history(out: &mut Exposition, snapshot: &Snapshot, about: &About) {
    let none = Labels::default();
    let history = &snapshot.history;
    let help = "Readings of the configuration file that were carried out, or failed and changed nothing.";
    let mut family = out.family("xdp_lb_reloads_total", Kind::Counter, help);
    family.sample_with(&none, ("result", "applied"), history.reloads);
    family.sample_with(&none, ("result", "failed"), history.reloads_failed);
    let help = "Whether the last reload was carried out (1), as where there was none, or failed (0).";
    out.family("xdp_lb_last_reload_successful", Kind::Gauge, help)
        .sample(&none, u64::from(!history.last_reload_failed));
    let help = "Changes of the configuration that runs, by whatever way.";
    out.family("xdp_lb_changes_total", Kind::Counter, help).sample(&none, history.changes);
    let help = "When the last of these changes was; 0: there was none.";
    out.family("xdp_lb_last_change_timestamp_seconds", Kind::Gauge, help)
        .sample(&none, history.last_change.unwrap_or(0));
    let started = about.started;
    out.family("xdp_lb_start_time_seconds", Kind::Gauge, "When this process was started.")
        .time(&none, started.as_micros() as u64);
    let abi = about.abi.to_string();
    let pairs = [("version", about.version.as_str()), ("abi", &abi), ("kernel", &about.kernel)];
    let help = "Which program this is, with which version of its tables, on which kernel; always 1.";
    out.family("xdp_lb_build_info", Kind::Gauge, help).sample(&Labels::new(&pairs), 1);
}

#[cfg(test)]
#[path = "families_tests.rs"]
mod tests;
