//! Which backends take new connections, and why the others do not.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Patient, State};
use crate::config::Config;
use crate::metrics::{BackendFigures, HealthFigures, ServiceFigures, Snapshot};
use crate::model::{AdminState, Health, OnEmpty, Probe, Protocol, Service};
use crate::preflight::Finding;

const SERVICE: &str = "service";
const BACKEND: &str = "backend";
/// More that are down of one service are counted, not named.
const NAMED: usize = 20;
/// So many of those that an operator took out are named in one line.
const NAMED_IN_A_LINE: usize = 3;
/// Where no process answers.
const PROCESS_FIRST: &str = "see to the process first, as said of the instance; then: ";

pub(super) fn check(patient: &Patient) -> Vec<Finding> {
    let Some(figures) = &patient.figures else { return Vec::new() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut findings = judge(figures, patient, now);
    if patient.state != State::Runs {
        for finding in findings.iter_mut().filter(|finding| finding.fix.is_some()) {
            finding.message.push_str("; so it stays, as no process answers that checks them");
        }
    }
    findings
}

fn judge(figures: &Snapshot, patient: &Patient, now: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut served, mut takers, mut all, mut unchecked) = (0, 0, 0, 0);
    for service in &figures.services {
        let configured = configured(&patient.config, service);
        // How backends are checked is in no table: what is configured is made up where no process told it.
        let checked = configured.filter(|_| patient.state == State::Runs).map(|service| &service.health);
        let judged = Judged::of(service);
        findings.extend(nobody(service, &judged, configured, patient));
        findings.extend(down(service, &judged, checked, patient, now));
        findings.extend(failing(service, &judged, checked, patient, now));
        findings.extend(taken_out(service, &judged));
        served += usize::from(!judged.takers.is_empty());
        takers += judged.takers.len();
        all += judged.all();
        unchecked += judged.takers.iter().filter(|backend| is_unchecked(backend)).count();
    }
    if served > 0 {
        let message =
            format!("{served} of {} services have a backend for new connections", figures.services.len());
        findings.push(Finding::ok(SERVICE, &message));
        let unknown = match unchecked {
            0 => String::new(),
            _ => format!("; {unchecked} of them are not checked, and taken to be up"),
        };
        let message = format!("{takers} of {all} backends take new connections{unknown}");
        findings.push(Finding::ok(BACKEND, &message));
    }
    findings
}

/// The backends of a service by what they are.
struct Judged<'a> {
    takers: Vec<&'a BackendFigures>,
    down: Vec<&'a BackendFigures>,
    /// Those that an operator drains or disabled, whatever checks find.
    out: Vec<&'a BackendFigures>,
}

impl<'a> Judged<'a> {
    fn of(service: &'a ServiceFigures) -> Judged<'a> {
        let mut judged = Judged { takers: Vec::new(), down: Vec::new(), out: Vec::new() };
        for backend in service.backends.iter().filter(|backend| backend.state != "removed") {
            match (by_operator(backend), backend.state.as_str()) {
                (Some(_), _) => judged.out.push(backend),
                (None, "up") => judged.takers.push(backend),
                (None, _) => judged.down.push(backend),
            }
        }
        judged
    }

    fn all(&self) -> usize {
        self.takers.len() + self.down.len() + self.out.len()
    }
}

/// `drain` or `disabled`, if an operator wants it so.
fn by_operator(backend: &BackendFigures) -> Option<&str> {
    let wanted = backend.health.as_ref().map_or(backend.state.as_str(), |health| health.admin.as_str());
    [AdminState::Drain, AdminState::Disabled].map(AdminState::name).into_iter().find(|name| *name == wanted)
}

fn is_unchecked(backend: &BackendFigures) -> bool {
    backend.health.as_ref().is_some_and(|health| health.check == Probe::None.name())
}

fn configured<'a>(config: &'a Config, service: &ServiceFigures) -> Option<&'a Service> {
    let protocol = Protocol::from_name(&service.protocol)?;
    config.services.iter().find(|one| one.vip == service.vip && one.protocol == protocol)
}

/// Its name, and its address where that is not the name.
pub(super) fn called(service: &ServiceFigures) -> String {
    let address = format!("{}/{}", service.vip, service.protocol);
    match &service.name {
        name if name.is_empty() || *name == service.vip.to_string() => address,
        name => format!("{name} ({address})"),
    }
}

/// The word by which a command finds a service.
fn word(service: &ServiceFigures) -> String {
    if service.name.is_empty() { service.vip.to_string() } else { service.name.clone() }
}

fn nobody(
    service: &ServiceFigures,
    judged: &Judged<'_>,
    configured: Option<&Service>,
    patient: &Patient,
) -> Option<Finding> {
    if !judged.takers.is_empty() {
        return None;
    }
    let name = word(service);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    judged.down.iter().for_each(|_| *counts.entry("down").or_default() += 1);
    judged.out.iter().for_each(|one| *counts.entry(by_operator(one).unwrap_or("down")).or_default() += 1);
    let counts: Vec<String> = counts
        .into_iter()
        .map(|(state, count)| match state {
            "down" => format!("{count} down"),
            state => format!("{count} by an operator ({state})"),
        })
        .collect();
    let why = if counts.is_empty() { "it has none".to_owned() } else { counts.join(", ") };
    let fate = match configured.map(|one| one.on_empty) {
        Some(OnEmpty::Pass) => "are left to this host (on-empty = pass)",
        _ => "are dropped",
    };
    let message =
        format!("no backend of {} takes new connections ({why}): new connections {fate}", called(service));
    // Only a process changes anything.
    let first = if patient.state == State::Runs { "" } else { PROCESS_FIRST };
    let enable = |out: &BackendFigures| {
        format!("{first}{}", patient.command(&format!("backend enable {name} {}", out.address)))
    };
    let fix = match (judged.out.first(), judged.down.is_empty()) {
        (Some(out), true) => enable(out),
        (Some(out), false) => format!("mend those that are down (see below), or {}", enable(out)),
        (None, false) => "mend one of those that are down, see below".to_owned(),
        (None, true) => {
            format!("{first}{}", patient.command(&format!("backend add {name} ADDR:PORT")))
        }
    };
    Some(Finding::error(SERVICE, &message, &fix))
}

fn down(
    service: &ServiceFigures,
    judged: &Judged<'_>,
    checked: Option<&Health>,
    patient: &Patient,
    now: Duration,
) -> Vec<Finding> {
    let of_one = |backend: &&BackendFigures| {
        let health = backend.health.as_ref();
        let since = health
            .and_then(|health| health.last_change)
            .map_or(String::new(), |at| format!(" for {}", ago(now, at)));
        let why = health.map_or(String::new(), why);
        let message = format!("{} of {} is {}{since}{why}", backend.address, called(service), backend.state);
        Finding::warning(BACKEND, &message, &fix(backend.address, checked, patient))
    };
    let mut findings: Vec<Finding> = judged.down.iter().take(NAMED).map(of_one).collect();
    if judged.down.len() > NAMED {
        let message = format!("{} more backends of {} are down", judged.down.len() - NAMED, called(service));
        let fix = patient.command(&format!("backend list {}", word(service)));
        findings.push(Finding::warning(BACKEND, &message, &fix));
    }
    findings
}

/// Those that still take connections, though their last checks failed.
fn failing(
    service: &ServiceFigures,
    judged: &Judged<'_>,
    checked: Option<&Health>,
    patient: &Patient,
    now: Duration,
) -> Vec<Finding> {
    let Some(checked) = checked else { return Vec::new() };
    // Since then another check would have come to a result.
    let recent = checked.interval * 2 + checked.timeout;
    let is_failing = |backend: &&&BackendFigures| {
        let at = backend.health.as_ref().and_then(|health| health.last_error_at);
        at.is_some_and(|at| now.as_secs_f64() - at < recent.as_secs_f64())
    };
    let finding = |backend: &&BackendFigures| {
        let why = backend.health.as_ref().map_or(String::new(), why);
        let message =
            format!("{} of {} is up, but a check of just now failed{why}", backend.address, called(service));
        Finding::warning(BACKEND, &message, &fix(backend.address, Some(checked), patient))
    };
    judged.takers.iter().filter(is_failing).take(NAMED).map(finding).collect()
}

fn why(health: &HealthFigures) -> String {
    match &health.last_error {
        Some(error) => format!(": {error}"),
        None if health.checks == 0 => ": no check of it has come to a result yet".to_owned(),
        None => String::new(),
    }
}

/// Since a time, in whole seconds.
fn ago(now: Duration, at: f64) -> String {
    let seconds = (now.as_secs_f64() - at).max(0.0) as u64;
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// A command that does by hand what the check does.
fn fix(backend: SocketAddrV4, checked: Option<&Health>, patient: &Patient) -> String {
    let Some(Health { probe, port, .. }) = checked else {
        let list = patient.command("backend list");
        return format!(
            "{PROCESS_FIRST}{list}, which shows what it finds: only it knows how they are checked"
        );
    };
    let asked = SocketAddrV4::new(*backend.ip(), port.unwrap_or(backend.port()));
    match probe {
        Probe::Http(http) => format!("see what it answers here: curl -v http://{asked}{}", http.path),
        Probe::Https(http, _) => format!("see what it answers here: curl -vk https://{asked}{}", http.path),
        Probe::Tcp | Probe::None => format!(
            "see that something listens there, and no firewall is in the way: nc -vzw2 {} {}",
            asked.ip(),
            asked.port()
        ),
    }
}

/// What an operator wants is no fault.
fn taken_out(service: &ServiceFigures, judged: &Judged<'_>) -> Vec<Finding> {
    let mut by_state: BTreeMap<&str, Vec<&BackendFigures>> = BTreeMap::new();
    for backend in &judged.out {
        by_state.entry(by_operator(backend).unwrap_or_default()).or_default().push(backend);
    }
    let finding = |(state, backends): (&str, Vec<&BackendFigures>)| {
        let mut names: Vec<String> =
            backends.iter().take(NAMED_IN_A_LINE).map(|backend| backend.address.to_string()).collect();
        if backends.len() > NAMED_IN_A_LINE {
            names.push(format!("{} more", backends.len() - NAMED_IN_A_LINE));
        }
        let message = format!("by an operator ({state}), of {}: {}", called(service), names.join(", "));
        Finding::ok(BACKEND, &message)
    };
    by_state.into_iter().map(finding).collect()
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
