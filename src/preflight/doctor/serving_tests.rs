use serde_json::{Value, json};

use super::*;
use crate::preflight::Level;

const NOW: Duration = Duration::from_secs(10_000);

fn backend(last: u8, state: &str, health: Value) -> Value {
    json!({"address": format!("10.0.0.{last}:8080"), "state": state, "weight": 1, "active": 0, "load": null,
           "connections": 0, "to_backend": {"packets": 0, "bytes": 0}, "to_client": {"packets": 0, "bytes": 0},
           "health": health})
}

fn health(admin: &str, more: Value) -> Value {
    let mut all = json!({"check": "tcp", "admin": admin, "weight": 1, "up": null, "checks": 9, "failures": 0,
        "failure_rate": 0.0, "last_change": null, "last_error": null, "last_error_at": null, "latency_ms": null,
        "smoothed_latency_ms": null, "reset_in_seconds": null});
    for (key, value) in more.as_object().expect("an object") {
        all[key] = value.clone();
    }
    all
}

type Found = Vec<(Level, &'static str, String, Option<String>)>;

fn found(backends: Vec<Value>) -> Found {
    found_of(backends, State::Runs, |_| {})
}

/// What is found of an instance that is so, and was asked for something else.
fn found_of(backends: Vec<Value>, state: State, alter: impl Fn(&mut Config)) -> Found {
    let figures = json!({
        "services": [{"name": "web", "vip": "192.0.2.1:80", "protocol": "tcp", "scheduler": "maglev", "backends": backends}],
        "reasons": [],
        "table": {"slots": 1, "confirmed": 0, "unconfirmed": 0, "replaceable": 0}
    });
    let figures = serde_json::from_value(figures).expect("figures");
    let vip = "192.0.2.1:80".parse().expect("an address");
    let service = Service { health: Health::of(Probe::Tcp), ..Service::new(vip, Protocol::Tcp, vec![]) };
    let mut config = Config::new(vec!["eth0".into()], vec![service]);
    alter(&mut config);
    let findings = judge(&figures, &Patient::new(config, state), NOW).into_iter();
    findings.map(|finding| (finding.level, finding.name, finding.message, finding.fix)).collect()
}

#[test]
fn a_backend_that_is_down_is_told_with_its_error_and_time() {
    let down = health(
        "enabled",
        json!({"up": false, "last_change": 9_910.2, "last_error": "refused", "last_error_at": 9_999.0}),
    );
    let all = found(vec![backend(10, "up", health("enabled", json!({}))), backend(11, "down", down)]);
    assert_eq!(
        all[0],
        (
            Level::Warning,
            "backend",
            "10.0.0.11:8080 of web (192.0.2.1:80/tcp) is down for 1m 29s: refused".to_owned(),
            Some(
                "see that something listens there, and no firewall is in the way: nc -vzw2 10.0.0.11 8080"
                    .to_owned()
            )
        )
    );
    assert_eq!(all[1].2, "1 of 1 services have a backend for new connections");
    assert_eq!(all[2].2, "1 of 2 backends take new connections");
    assert_eq!(all.len(), 3, "{all:?}");
}

#[test]
fn a_service_without_a_taker_is_an_error_and_comes_first() {
    let down = || backend(10, "down", health("enabled", json!({"last_error": "refused"})));
    let out = || backend(11, "drain", health("drain", json!({})));
    let all = found(vec![down(), out()]);
    assert_eq!((all[0].0, all[0].1), (Level::Error, "service"));
    assert!(all[0].2.contains("(1 down, 1 by an operator (drain)): new connections are dropped"), "{all:?}");
    assert!(all[0].3.as_deref().is_some_and(|fix| fix.contains("xdp-lb backend enable web 10.0.0.11:8080")));
    // All by an operator is one all the same, and he knows best how to end it.
    let all = found(vec![out()]);
    assert_eq!(
        (all[0].0, all[0].3.as_deref()),
        (Level::Error, Some("xdp-lb backend enable web 10.0.0.11:8080"))
    );
    assert_eq!((all[1].0, all[1].1), (Level::Ok, "backend"));
    assert!(found(vec![])[0].2.contains("(it has none)"));
}

#[test]
fn what_an_operator_took_out_is_no_fault() {
    let out = |last| backend(last, "disabled", health("disabled", json!({"last_error": "refused"})));
    let all = found(
        [backend(9, "up", health("enabled", json!({})))].into_iter().chain((10..15).map(out)).collect(),
    );
    assert!(all.iter().all(|finding| finding.0 == Level::Ok), "{all:?}");
    assert!(
        all[0].2.ends_with(
            "(disabled), of web (192.0.2.1:80/tcp): 10.0.0.10:8080, 10.0.0.11:8080, 10.0.0.12:8080, 2 more"
        ),
        "{all:?}"
    );
    // One that goes on only until its connections end is no backend any more.
    let all =
        found(vec![backend(9, "up", health("enabled", json!({}))), backend(10, "removed", Value::Null)]);
    assert_eq!(all[1].2, "1 of 1 backends take new connections");
}

#[test]
fn one_that_fails_checks_but_is_not_down_yet_is_told() {
    let fails =
        |at: f64| backend(9, "up", health("enabled", json!({"last_error": "timeout", "last_error_at": at})));
    let all = found(vec![fails(9_995.0)]);
    assert_eq!(all[0].0, Level::Warning);
    assert!(all[0].2.ends_with("is up, but a check of just now failed: timeout"), "{all:?}");
    assert!(found(vec![fails(9_900.0)]).iter().all(|finding| finding.0 == Level::Ok), "long ago");
}

#[test]
fn those_that_nobody_checks_are_counted_and_many_are_not_named() {
    let all = found(vec![backend(9, "up", health("enabled", json!({"check": "none"})))]);
    assert_eq!(
        all[1].2,
        "1 of 1 backends take new connections; 1 of them are not checked, and taken to be up"
    );
    let down = (0..30).map(|last| backend(last, "down", Value::Null)).collect();
    let all = found(down);
    assert_eq!(all.len(), 1 + NAMED + 1);
    assert!(all[NAMED + 1].2.starts_with("10 more backends of web"));
}

#[test]
fn without_its_process_nothing_is_made_up() {
    let down = || vec![backend(10, "down", Value::Null)];
    let all = found_of(down(), State::Dead, |config| config.services[0].on_empty = OnEmpty::Pass);
    assert!(all[0].2.ends_with("new connections are left to this host (on-empty = pass)"), "{all:?}");
    for state in [State::Dead, State::Silent("it hangs".into(), "end it".into())] {
        let all = found_of(down(), state, |_| {});
        let fix = all[1].3.as_deref().unwrap_or_default();
        assert!(fix.contains("xdp-lb backend list") && !fix.contains("nc "), "{fix}");
    }
    let out = || vec![backend(11, "disabled", Value::Null)];
    let fix = found_of(out(), State::Dead, |_| {})[0].3.clone().unwrap_or_default();
    assert!(
        fix.starts_with("see to the process first") && fix.ends_with("enable web 10.0.0.11:8080"),
        "{fix}"
    );
}

#[test]
fn commands_name_the_instance() {
    let out = || vec![backend(11, "disabled", health("disabled", json!({})))];
    let fix = |pin_dir: &str, socket: &str| {
        let alter = |config: &mut Config| {
            (config.pin_dir, config.socket) = (pin_dir.into(), socket.into());
        };
        found_of(out(), State::Runs, alter)[0].3.clone().unwrap_or_default()
    };
    let enable = "xdp-lb backend enable web 10.0.0.11:8080";
    assert_eq!(fix("/sys/fs/bpf/xdp_lb", "/run/xdp-lb/xdp_lb.sock"), enable);
    assert_eq!(fix("/sys/fs/bpf/b", "/run/xdp-lb/b.sock"), format!("{enable} --pin-dir /sys/fs/bpf/b"));
    assert_eq!(fix("/sys/fs/bpf/b", "/run/b.sock"), format!("{enable} --socket /run/b.sock"));
}
