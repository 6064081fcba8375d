use super::*;
use crate::metrics::{ReasonFigures, TableFigures};

fn backend(address: &str, state: &str, connections: u64) -> BackendFigures {
    let counter = Counter { packets: connections * 10, bytes: connections * 1000 };
    let events = BackendEvents { closed: connections, ..BackendEvents::default() };
    BackendFigures {
        address: address.parse().unwrap(),
        state: state.into(),
        down: false,
        weight: 7,
        active: 1,
        load: None,
        connections,
        to_backend: counter,
        to_client: counter,
        events,
        unanswered_syns: 0,
        refused_syns: 0,
        checks: CheckFigures { passed: connections, unchecked: 1, ..CheckFigures::default() },
        health: None,
    }
}

fn service(name: &str, backends: Vec<BackendFigures>) -> ServiceFigures {
    ServiceFigures {
        name: name.into(),
        vip: "192.0.2.1:80".parse().unwrap(),
        protocol: "tcp".into(),
        scheduler: "maglev".into(),
        backends,
    }
}

fn text(services: Vec<ServiceFigures>) -> String {
    let reason = ReasonFigures {
        class: "drop".into(),
        name: "ttl".into(),
        help: String::new(),
        counter: Counter { packets: 5, bytes: 500 },
    };
    let table = TableFigures { slots: 35, promised: 10, confirmed: 3, unconfirmed: 1, replaceable: 2 };
    let gone = GoneFigures { connections: 100, ..GoneFigures::default() };
    let snapshot = Snapshot { services, reasons: vec![reason], table, gone, history: Default::default() };
    expose(&snapshot, &About::default(), 0)
}

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "{line}\n{text}");
}

#[test]
fn a_backend_that_was_removed_and_added_again_is_one_series() {
    let rows = vec![backend("10.0.0.1:80", "removed", 3), backend("10.0.0.1:80", "drain", 4)];
    let text = text(vec![service("web", rows)]);
    let labels = "{service=\"web\",protocol=\"tcp\",backend_ip=\"10.0.0.1\",backend_port=\"80\"";
    has(&text, &format!("xdp_lb_connections_opened_total{labels}}} 7"));
    has(&text, &format!("xdp_lb_connections_closed_total{labels}}} 7"));
    has(&text, &format!("xdp_lb_packets_total{labels},direction=\"to_client\"}} 70"));
    has(&text, &format!("xdp_lb_connections{labels}}} 2"));
    has(&text, &format!("xdp_lb_health_checks_total{labels},result=\"passed\"}} 7"));
    has(&text, &format!("xdp_lb_health_checks_total{labels},result=\"unchecked\"}} 2"));
    has(&text, &format!("xdp_lb_backend_weight{labels}}} 7"));
    has(&text, &format!("xdp_lb_backend_up{labels}}} 0"));
    has(&text, &format!("xdp_lb_backend_disabled{labels}}} 1"));
    has(&text, "xdp_lb_backend_health{backend_ip=\"10.0.0.1\",backend_port=\"80\"} 1");
    has(&text, "xdp_lb_backend_connections{backend_ip=\"10.0.0.1\",backend_port=\"80\"} 2");
    has(&text, "xdp_lb_active_connections 4");
    has(&text, "xdp_lb_drops_total{reason=\"ttl\"} 5");
    let gone = "{service=\"\",protocol=\"\",backend_ip=\"\",backend_port=\"\"}";
    has(&text, &format!("xdp_lb_connections_opened_total{gone} 100"));
    let mut series: Vec<&str> = text.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect();
    let count = series.len();
    series.sort();
    series.dedup();
    assert_eq!(series.len(), count, "a series stands there twice");
}

#[test]
fn health_is_that_of_the_worst_service() {
    let health = |states: [&str; 2], down: bool| {
        let backends = states.map(|state| BackendFigures { down, ..backend("10.0.0.1:80", state, 0) });
        let services = backends.into_iter().enumerate().map(|(n, one)| service(&format!("s{n}"), vec![one]));
        let text = text(services.collect());
        let line = text.lines().find(|line| line.starts_with("xdp_lb_backend_health{")).map(str::to_owned);
        line.map(|line| line.ends_with(" 1"))
    };
    assert_eq!(health(["up", "up"], false), Some(true));
    assert_eq!(health(["up", "drain"], false), Some(true));
    assert_eq!(health(["up", "down"], false), Some(false));
    assert_eq!(health(["disabled", "up"], false), Some(false));
    assert_eq!(health(["removed", "up"], false), Some(true));
    assert_eq!(health(["removed", "removed"], false), None, "nobody checks it any more");
    assert_eq!(health(["drain", "drain"], true), Some(false), "what drains can be dead");
}
