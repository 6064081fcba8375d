//! A real Prometheus and a real Alertmanager by the files in deploy/: what they count, and the alerts that arrive.

mod common;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::{Json, Router, routing::post};
use common::balancer::Balancer;
use common::clients::{KeepAlive, requests, spread};
use common::live::{complaint, say, start, write};
use common::netns::{Lab, Process, find, in_lab};
use common::networks::{VIP, WEBS, two_arms};
use common::promql::{dashboard, rules, rules_dir, shown, variables};
use common::servers::{HTTP, nginx, nginx_everywhere};
use common::{eventually, within};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

const PROGRAMS: [&str; 2] = ["prometheus", "prometheus-alertmanager"];
const PROMETHEUS: &str = "127.0.0.1:9090";
/// As deploy/prometheus/prometheus.yml has it.
const ALERTMANAGER: &str = "127.0.0.1:9093";
/// In place of the 15 s there, so that nobody waits for the next scrape. What the rules wait for stays.
const INTERVAL: &str = "1s";
const WEBHOOK: &str = "127.0.0.1:9099";
/// What rules wait for, two minutes at most, and what lies before and behind it.
const ALERTED: Duration = Duration::from_secs(180);
/// More than one in twenty of the connections that the table has room for; by ports that no other client gets.
const FLOOD: Range<u16> = 20_000..21_200;
const WAYS_TO_END: [&str; 5] = ["closed", "reset", "expired", "evicted", "moved"];

/// What arrived at the webhook: alerts as Alertmanager sends them.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<Value>>>);

impl Received {
    /// Listens in the namespace of the load balancer, until the test ends.
    fn listen(lab: &Lab) -> Result<Received> {
        let received = Received::default();
        let listener = lab.within("lb", || TcpListener::bind(WEBHOOK))??;
        listener.set_nonblocking(true)?;
        let keep = received.clone();
        let take = move |Json(message): Json<Value>| async move {
            let alerts = message["alerts"].as_array().cloned().unwrap_or_default();
            keep.0.lock().unwrap_or_else(PoisonError::into_inner).extend(alerts);
        };
        let app = Router::new().route("/", post(take));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::spawn(move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                axum::serve(listener, app).await
            })
        });
        Ok(received)
    }

    fn all(&self) -> Vec<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for an alert in a state.
    fn wait(&self, name: &str, status: &str) -> Value {
        within(ALERTED, &format!("{name} is {status}"), || {
            let is = |alert: &Value| alert["labels"]["alertname"] == name && alert["status"] == status;
            self.all().into_iter().find(is)
        })
    }
}

/// Prometheus and Alertmanager, in the namespace of the load balancer.
struct Watchers<'a> {
    lab: &'a Lab,
    _processes: [Process; 2],
}

impl<'a> Watchers<'a> {
    fn start(lab: &'a Lab) -> Result<Watchers<'a>> {
        let dir = lab.dir().join("watchers");
        fs::create_dir(&dir)?;
        fs::copy(rules_dir().join("alerts.yml"), dir.join("alerts.yml"))?;
        let config = fs::read_to_string(rules_dir().join("prometheus.yml"))?;
        ensure!(config.matches(": 15s").count() == 2, "other intervals in prometheus.yml");
        fs::write(dir.join("prometheus.yml"), config.replace(": 15s", &format!(": {INTERVAL}")))?;
        let config = format!(
            "route: {{ receiver: test, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 1h }}\n\
             receivers: [ {{ name: test, webhook_configs: [ {{ url: 'http://{WEBHOOK}/' }} ] }} ]\n"
        );
        fs::write(dir.join("alertmanager.yml"), config)?;
        let at = |name: &str| dir.join(name).display().to_string();
        let alertmanager = [
            format!("--config.file={}", at("alertmanager.yml")),
            format!("--storage.path={}", at("alertmanager")),
            format!("--web.listen-address={ALERTMANAGER}"),
            "--cluster.listen-address=".to_owned(),
        ];
        let prometheus = [
            format!("--config.file={}", at("prometheus.yml")),
            format!("--storage.tsdb.path={}", at("prometheus")),
            format!("--web.listen-address={PROMETHEUS}"),
        ];
        let run = |program: &str, args: &[String]| {
            lab.start("lb", program, &args.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let processes = [run("prometheus-alertmanager", &alertmanager)?, run("prometheus", &prometheus)?];
        for port in [9093, 9090] {
            lab.wait_for_port("lb", "tcp", port)?;
        }
        Ok(Watchers { lab, _processes: processes })
    }

    /// The result of a query now: its series.
    fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let url = format!("http://{PROMETHEUS}/api/v1/query");
        let query = format!("query={expression}");
        let args = ["-sS", "--max-time", "30", "-G", "--data-urlencode", &query, &url];
        let text = self.lab.run("lb", "curl", &args)?;
        let answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        ensure!(answer["status"] == "success", "{expression}: {text}");
        Ok(answer["data"]["result"].as_array().context("no result")?.clone())
    }

    /// The value of a query that has one series.
    fn value(&self, expression: &str) -> Option<f64> {
        let result = self.query(expression).expect("an answer");
        let [one] = &result[..] else { return None };
        one["value"][1].as_str()?.parse().ok()
    }

    /// Waits for a value.
    fn becomes(&self, expression: &str, value: f64) {
        eventually(&format!("{expression} is {value}"), || {
            (self.value(expression) == Some(value)).then_some(())
        });
    }
}

fn config() -> String {
    let backend = |(_, address): &(&str, &str)| format!("{{ address = \"{address}:{HTTP}\" }}");
    let backends: Vec<String> = WEBS.iter().map(backend).collect();
    format!(
        "interface = \"eth0\"\nassign-vip = true\nstats-interval = 0\nmax-connections = 10_000\n\
         timeout-unconfirmed = \"90s\"\n\
         metrics = \"127.0.0.1:9105\"\n[[service]]\nname = \"web\"\nvip = \"{VIP}:80\"\n\
         health = {{ type = \"http\", interval = \"300ms\", timeout = \"300ms\" }}\nbackend = [ {} ]\n",
        backends.join(", ")
    )
}

/// What Prometheus has is what the clients did, to the last connection and packet.
fn assert_counted(lab: &Lab, lb: &Balancer, watchers: &Watchers) -> Result<()> {
    let answers = requests(lab, &format!("http://{VIP}/?[1-210]"))?;
    let servers = spread(&answers);
    watchers.becomes("sum(xdp_lb_connections_opened_total)", answers.len() as f64);
    watchers.becomes("sum(xdp_lb_handshake_seconds_count{service=\"web\"})", answers.len() as f64);
    watchers.becomes("sum(xdp_lb_connections_closed_total)", answers.len() as f64);
    for (web, address) in WEBS {
        let selector = format!(
            "{{service=\"web\", protocol=\"tcp\", backend_ip=\"{address}\", backend_port=\"{HTTP}\"}}"
        );
        watchers.becomes(&format!("xdp_lb_connections_opened_total{selector}"), servers[web] as f64);
    }
    let sent = lb.figures()?.reasons("sent");
    for direction in ["to_backend", "to_client"] {
        let packets = format!("sum(xdp_lb_packets_total{{direction=\"{direction}\"}})");
        watchers.becomes(&packets, sent[direction] as f64);
    }
    let ended = WAYS_TO_END.map(|way| format!("sum(xdp_lb_connections_{way}_total)")).join(" + ");
    watchers.becomes(&ended, answers.len() as f64);
    Ok(())
}

/// Prometheus understands whatever the dashboard asks, and has an answer to it.
fn assert_shown(watchers: &Watchers) -> Result<()> {
    // Nothing has been dropped and nothing has gone wrong; nor has a check failed in the range.
    let empty = ["Drops by reason", "Alerts", "Reload failed"];
    let dashboard = dashboard();
    let fill = |expression: &str| {
        let pairs =
            [("$instance", ".*"), ("$service", "web"), ("$__rate_interval", "10m"), ("$__range", "10m")];
        pairs.iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value))
    };
    for shown in shown(&dashboard) {
        let expression = fill(&shown.expression);
        let result = watchers.query(&expression)?;
        let expected = !empty.contains(&shown.place.as_str());
        ensure!(result.is_empty() != expected, "{}: {expression}: {result:?}", shown.place);
    }
    for (name, series, label) in variables(&dashboard) {
        let values = watchers.query(&format!("count by ({label}) ({})", fill(&series)))?;
        ensure!(values.len() == 1, "{name}: {values:?}");
    }
    Ok(())
}

/// An operator disables a backend and removes it, while a connection of it goes on: nobody is to be woken for that.
fn assert_silent(lab: &Lab, watchers: &Watchers) -> Result<()> {
    let rules = rules();
    let down = &rules.iter().find(|rule| rule.name == "XdpLbBackendDown").context("no such rule")?.expression;
    let mut kept = KeepAlive::open_many(lab, VIP, 80, WEBS.len())?;
    kept.iter_mut().try_for_each(|connection| connection.ask().map(drop))?;
    let (address, of) = (WEBS[2].1, format!("{{backend_ip=\"{}\"}}", WEBS[2].1));
    for (verb, weight) in [("disable", 1.0), ("remove", 0.0)] {
        say(lab, &format!("backend {verb} web {address}:{HTTP}"))?;
        watchers.becomes(&format!("xdp_lb_backend_up{of} + xdp_lb_backend_weight{of}"), weight);
        watchers.becomes(&format!("xdp_lb_connections{of}"), 1.0);
        assert_eq!(watchers.query(down)?, Vec::<Value>::new());
    }
    Ok(())
}

/// Clients that send a SYN and are never heard of again.
fn flood(lab: &Lab, watchers: &Watchers) -> Result<()> {
    let ports = format!("{}-{}", FLOOD.start, FLOOD.end);
    let deaf = format!(
        "table ip deaf {{ chain in {{ type filter hook input priority 0; tcp sport 80 tcp dport {ports} drop; }}; }}"
    );
    lab.run("client", "nft", &[&deaf])?;
    let vip: SocketAddr = format!("{VIP}:80").parse()?;
    let syn = |port| -> io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        match socket.connect(&vip.into()) {
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Ok(()),
            other => other,
        }
    };
    lab.within("client", || FLOOD.into_iter().try_for_each(syn))??;
    watchers.becomes("xdp_lb_table_unconfirmed", FLOOD.len() as f64);
    Ok(())
}

/// A server dies, and the file becomes wrong; both are mended. The flood ends by itself.
fn assert_told(lab: &Lab, watchers: &Watchers, received: &Received, mut server: Process) -> Result<Process> {
    server.signal(Signal::SIGKILL)?;
    server.wait()?;
    write(lab, &config().replace("web", "web\" = \""))?;
    complaint(lab, "reload")?;
    let alert = received.wait("XdpLbBackendDown", "firing");
    let labels = |name: &str| alert["labels"][name].as_str().unwrap_or_default();
    assert_eq!(
        ["service", "protocol", "backend_ip", "backend_port"].map(labels),
        ["web", "tcp", WEBS[1].1, "8080"]
    );
    assert_eq!((labels("severity"), labels("job")), ("warning", "xdp-lb"));
    assert_eq!(alert["annotations"]["summary"], format!("Backend {}:8080 of web/tcp is down", WEBS[1].1));
    assert_eq!(alert["annotations"]["runbook"], "docs/troubleshooting.md#alert-xdplbbackenddown");
    received.wait("XdpLbReloadFailed", "firing");
    received.wait("XdpLbFlood", "firing");
    // The one that is left serves on.
    assert_eq!(
        spread(&requests(lab, &format!("http://{VIP}/?[1-10]"))?).into_iter().collect::<Vec<_>>(),
        [("web1", 10)]
    );
    write(lab, &config())?;
    say(lab, "reload")?;
    let server = nginx(lab, WEBS[1].0)?;
    received.wait("XdpLbBackendDown", "resolved");
    received.wait("XdpLbReloadFailed", "resolved");
    received.wait("XdpLbFlood", "resolved");
    watchers.becomes("sum(xdp_lb_backend_up)", 2.0);
    Ok(server)
}

#[test]
#[ignore = "takes minutes and root: make test-all"]
fn root_alerts_arrive() -> Result<()> {
    if let Some(missing) = PROGRAMS.iter().find(|program| find(program).is_err()) {
        println!("SKIPPED: {missing} is not installed (make deps-all, on Debian)");
        return Ok(());
    }
    in_lab(|lab| {
        two_arms(lab)?;
        let mut servers = nginx_everywhere(lab)?;
        write(lab, &config())?;
        let mut lb = start(lab)?;
        let received = Received::listen(lab)?;
        let watchers = Watchers::start(lab)?;
        watchers.becomes("sum(up{job=\"xdp-lb\"})", 1.0);
        assert_counted(lab, &lb, &watchers)?;
        assert_silent(lab, &watchers)?;
        assert_shown(&watchers)?;
        flood(lab, &watchers)?;
        let server = assert_told(lab, &watchers, &received, servers.remove(1))?;

        // The process dies, what it loaded goes on.
        lb.stop(Signal::SIGKILL)?;
        received.wait("XdpLbMetricsMissing", "firing");
        assert_eq!(requests(lab, &format!("http://{VIP}/?[1-10]"))?.len(), 10);
        let _lb = start(lab)?;
        received.wait("XdpLbMetricsMissing", "resolved");
        let mut names: Vec<String> =
            received.all().iter().map(|alert| alert["labels"]["alertname"].to_string()).collect();
        names.dedup();
        println!("received: {names:?}");
        for alert in received.all() {
            let expected = ["XdpLbBackendDown", "XdpLbReloadFailed", "XdpLbFlood", "XdpLbMetricsMissing"];
            assert!(expected.iter().any(|name| alert["labels"]["alertname"] == *name), "{alert}");
            assert_ne!(alert["labels"]["backend_ip"], WEBS[2].1, "{alert}");
        }
        drop(server);
        Ok(())
    })
}
