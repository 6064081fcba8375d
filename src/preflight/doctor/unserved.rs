//! Backends that are up by their checks, and serve no client.

use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use super::Patient;
use super::serving::called;
use crate::dataplane::{Census, Tables};
use crate::metrics::{BackendFigures, ServiceFigures, Snapshot};
use crate::preflight::Finding;

const NAME: &str = "backend";
/// One SYN may be on its way.
const ENOUGH: u32 = 2;
/// So long it is watched whether one of them is answered.
const MOMENT: Duration = Duration::from_millis(500);
/// More of them are counted, not named.
const NAMED: usize = 20;

pub(super) fn check(patient: &Patient) -> Vec<Finding> {
    let Some(before) = patient.figures.as_ref().filter(|figures| !suspects(figures).is_empty()) else {
        return Vec::new();
    };
    thread::sleep(MOMENT);
    // Tables that cannot be read are found by the check of the table.
    let tables = Tables::open(&patient.config.pin_dir);
    let after = tables.and_then(|tables| Snapshot::take(&tables, &Census::default()));
    after.map_or(Vec::new(), |after| judge(before, &after, patient))
}

/// Those that take new connections and had some without an answer.
fn suspects(figures: &Snapshot) -> Vec<(&ServiceFigures, &BackendFigures)> {
    let all =
        figures.services.iter().flat_map(|service| service.backends.iter().map(move |one| (service, one)));
    all.filter(|(_, backend)| backend.state == "up" && backend.unanswered_syns >= ENOUGH).collect()
}

fn judge(before: &Snapshot, after: &Snapshot, patient: &Patient) -> Vec<Finding> {
    let suspects = suspects(before);
    let unserved: Vec<_> = suspects
        .into_iter()
        .filter_map(|(service, backend)| {
            let now = same(after, service, backend.address)?;
            let answered = now.unanswered_syns < backend.unanswered_syns
                || now.events.handshakes.count() > backend.events.handshakes.count();
            (!answered).then_some((service, now))
        })
        .collect();
    let mut findings: Vec<Finding> =
        unserved.iter().take(NAMED).map(|(service, backend)| finding(service, backend, patient)).collect();
    if unserved.len() > NAMED {
        let message = format!("{} more backends are up, and answer no client", unserved.len() - NAMED);
        findings.push(Finding::warning(NAME, &message, &patient.command("top")));
    }
    findings
}

fn same<'a>(
    figures: &'a Snapshot,
    service: &ServiceFigures,
    address: SocketAddrV4,
) -> Option<&'a BackendFigures> {
    let is_it = |one: &&ServiceFigures| one.vip == service.vip && one.protocol == service.protocol;
    figures.services.iter().find(is_it)?.backends.iter().find(|backend| backend.address == address)
}

fn finding(service: &ServiceFigures, backend: &BackendFigures, patient: &Patient) -> Finding {
    let BackendFigures { address, unanswered_syns: all, refused_syns: refused, .. } = backend;
    let what = match refused {
        0 => format!("leaves clients unanswered: {all} SYNs since its last SYN-ACK"),
        _ => format!("refuses clients: {refused} of {all} SYNs since its last SYN-ACK"),
    };
    let message = format!("{address} of {} is up, but {what}", called(service));
    let look = patient.command(&format!("trace --backend {address} --reason opened,syn_retransmit,rst"));
    let fix = match refused {
        0 => format!(
            "look there for a firewall, and for its route to clients (their addresses stay as they are); see who asks: {look}"
        ),
        _ => format!("look there for a firewall that rejects clients; see who asks: {look}"),
    };
    Finding::warning(NAME, &message, &fix)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Config;
    use crate::preflight::doctor::State;

    fn figures(state: &str, unanswered: u32, refused: u32) -> Snapshot {
        let backend: Value = json!({"address": "10.0.0.10:8080", "state": state, "weight": 1, "active": 0, "load": null,
            "connections": 0, "to_backend": {"packets": 0, "bytes": 0}, "to_client": {"packets": 0, "bytes": 0},
            "unanswered_syns": unanswered, "refused_syns": refused});
        serde_json::from_value(json!({
            "services": [{"name": "web", "vip": "192.0.2.1:80", "protocol": "tcp", "scheduler": "maglev", "backends": [backend]}],
            "reasons": [],
            "table": {"slots": 1, "confirmed": 0, "unconfirmed": 0, "replaceable": 0}
        }))
        .expect("figures")
    }

    fn found(before: &Snapshot, after: &Snapshot) -> Vec<String> {
        let patient = Patient::new(Config::new(vec![], vec![]), State::Runs);
        judge(before, after, &patient).into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn who_answers_nobody_is_told() {
        let (silent, more) = (figures("up", 2, 0), figures("up", 5, 0));
        let says = "10.0.0.10:8080 of web (192.0.2.1:80/tcp) is up, but leaves clients unanswered: 5 SYNs since its last SYN-ACK";
        assert_eq!(found(&silent, &more), [says]);
        let refusing = figures("up", 5, 4);
        let says = "10.0.0.10:8080 of web (192.0.2.1:80/tcp) is up, but refuses clients: 4 of 5 SYNs since its last SYN-ACK";
        assert_eq!(found(&silent, &refusing), [says]);
    }

    #[test]
    fn who_is_busy_or_known_to_be_down_is_not() {
        assert!(found(&figures("up", 1, 1), &figures("up", 1, 1)).is_empty(), "it may be on its way");
        assert!(found(&figures("up", 4, 0), &figures("up", 3, 0)).is_empty(), "one was answered since");
        assert!(found(&figures("down", 4, 4), &figures("down", 4, 4)).is_empty(), "that is told already");
        let mut after = figures("up", 4, 0);
        after.services[0].backends[0].events.handshakes.buckets[3] = 1;
        assert!(found(&figures("up", 4, 0), &after).is_empty(), "one was answered since");
    }
}
