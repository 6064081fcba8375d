//! The real binary's commands that ask an instance, with a made-up instance behind the socket: no root, no kernel.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use xdp_lb::control::{Ask, BackendChange, Done, Filter, Refusal, Reply, Server};
use xdp_lb::model::{AdminState, Timeouts};

/// An instance whose one backend loses a connection each time that it is asked for figures.
struct Instance {
    dir: TempDir,
    asked: Arc<Mutex<Vec<Ask>>>,
    connections: Arc<AtomicU64>,
    _server: Server,
}

fn figures(active: u64) -> Value {
    let counter = json!({"packets": 10 * active, "bytes": 1000 * active});
    let backend = |address: &str, state: &str, active: u64| {
        json!({"address": address, "state": state, "weight": 5, "active": active, "load": null,
            "connections": 12, "to_backend": counter, "to_client": counter, "novelty": "new"})
    };
    json!({"services": [{"name": "web", "vip": "192.0.2.1:80", "protocol": "tcp", "scheduler": "maglev",
            "backends": [backend("10.0.0.10:8080", "drain", active), backend("10.0.0.11:8080", "up", 3)]}],
        "reasons": [{"class": "drop", "name": "malformed", "help": "", "packets": 4, "bytes": 240}],
        "table": {"slots": 3500, "confirmed": 2, "unconfirmed": 0, "replaceable": 1}, "extra": {"is": "kept"}})
}

fn answer(ask: &Ask, connections: &AtomicU64) -> Result<Value, Refusal> {
    let done = |done: Done| Ok(serde_json::to_value(Done { applied: true, ..done }).unwrap());
    match ask {
        Ask::Status => {
            let lose = |left: u64| Some(left.saturating_sub(1));
            let left = connections.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose).unwrap();
            Ok(figures(left))
        }
        Ask::Config => Ok(json!({"toml": "interfaces = [\"eth0\"]\n"})),
        Ask::Connections(filter) => Ok(json!({"connections": [{"service": "web", "vip": "192.0.2.1:80",
            "protocol": "tcp", "client": "198.51.100.7:1234", "backend": "10.0.0.10:8080", "state": "established",
            "idle_seconds": 1.25}], "more": filter.limit == Some(1)})),
        Ask::RemoveService { .. } => Err(Refusal::not_found("there is no service \"nobody\"")),
        Ask::Kill(_) => done(Done { ended: Some(3), ..Done::default() }),
        Ask::Reload(reload) => {
            Ok(json!({"steps": ["service 192.0.2.1:80/tcp: remove"], "applied": !reload.dry_run}))
        }
        _ => done(Done { steps: vec!["backend 10.0.0.10:8080: drain".into()], ..Done::default() }),
    }
}

fn start(connections: u64) -> Instance {
    let dir = tempfile::tempdir().unwrap();
    let (asked, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(connections)));
    let (notes, left) = (asked.clone(), connections.clone());
    let server = Server::start(&dir.path().join("lb.sock"), Timeouts::default(), move |ask, reply: Reply| {
        notes.lock().unwrap().push(ask.clone());
        reply.send(answer(&ask, &left));
    });
    Instance { dir, asked, connections, _server: server.unwrap() }
}

impl Instance {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("lb.sock")
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xdp-lb"));
        command.args(line.split(' ')).arg("--socket").arg(self.socket());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What it prints, where it works and says nothing else.
    fn prints(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        let [stdout, stderr] = texts(&output);
        assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{line}");
        assert!(stdout.ends_with('\n') && !stdout.ends_with("\n\n"), "{line}: {stdout:?}");
        stdout
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.prints(&format!("{line} --json"))).unwrap()
    }

    fn asked(&self) -> Vec<Ask> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn texts(output: &Output) -> [String; 2] {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap())
}

/// The words of a table's row that begins with a word.
fn row(text: &str, first: &str) -> Vec<String> {
    let row = text.lines().find(|line| line.split_whitespace().next() == Some(first));
    row.unwrap_or_else(|| panic!("no {first} in {text}")).split_whitespace().map(str::to_owned).collect()
}

#[test]
fn status_for_people_and_as_json() {
    let instance = start(7);
    let text = instance.prints("status");
    assert!(text.starts_with("web  192.0.2.1:80/tcp  maglev\n"), "{text}");
    assert_eq!(row(&text, "10.0.0.10:8080")[1..5], ["drain", "5", "7", "12"]);
    assert!(text.contains("drops: malformed 4") && text.contains("in 3500 slots"), "{text}");
    let status = instance.json("status");
    assert_eq!(status["running"], true);
    assert_eq!(status["extra"]["is"], "kept", "what this version does not know is passed on");
    assert_eq!(status["services"][0]["backends"][0]["novelty"], "new");
}

#[test]
fn services_and_backends() {
    let instance = start(7);
    assert_eq!(
        row(&instance.prints("service list"), "web"),
        ["web", "192.0.2.1:80/tcp", "maglev", "2", "1", "10"]
    );
    assert_eq!(instance.json("service list")["services"][0]["name"], "web");
    for line in ["backend list", "backend list web", "backend list 192.0.2.1:80/tcp"] {
        let text = instance.prints(line);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("web/tcp  10.0.0.11:8080  up"), "{text}");
        assert_eq!(instance.json(line)["backends"].as_array().unwrap().len(), 2);
    }
    let output = instance.command("backend list nobody").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output)[1].contains("there is no service \"nobody\""), "{output:?}");
}

#[test]
fn connections_are_listed() {
    let instance = start(0);
    let text = instance.prints("connections --client 198.51.100.7");
    assert_eq!(
        row(&text, "198.51.100.7:1234"),
        ["198.51.100.7:1234", "web/tcp", "10.0.0.10:8080", "established", "1.2", "s"]
    );
    let client = Some("198.51.100.7".parse().unwrap());
    assert_eq!(
        instance.asked(),
        [Ask::Connections(Filter { client, limit: Some(1000), ..Filter::default() })]
    );
    let output = instance.command("connections --limit 1").output().unwrap();
    assert!(texts(&output)[1].contains("there are more: --limit"), "{output:?}");
    assert_eq!(instance.json("connections --limit 1")["more"], true);
}

#[test]
fn the_configuration_is_shown() {
    let instance = start(0);
    assert_eq!(instance.prints("config show"), "interfaces = [\"eth0\"]\n");
    assert_eq!(instance.json("config show"), json!({"toml": "interfaces = [\"eth0\"]\n"}));
}

#[test]
fn stats_have_rates_and_an_end() {
    let instance = start(7);
    let text = instance.prints("stats --interval 100ms --count 3");
    let rows: Vec<&str> = text.lines().filter(|line| line.contains("10.0.0.11:8080")).collect();
    assert_eq!(rows.len(), 3, "{text}");
    let rate = |row: &str| row.split_whitespace().nth(5).unwrap().to_owned();
    assert_eq!((rate(rows[0]), rate(rows[1])), ("-".into(), "0.0".into()), "{text}");
    let output = instance.command("stats --json --count 2 --interval 100ms").output().unwrap();
    let lines: Vec<Value> =
        texts(&output)[0].lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].get("seconds").is_none());
    assert!(lines[1]["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(lines[1]["services"][0]["backends"][0]["rates"]["connections"], 0.0);
}

#[test]
fn top_is_for_terminals_and_prints_one_screen() {
    let instance = start(7);
    let output = instance.command("top").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let [stdout, stderr] = texts(&output);
    assert_eq!(stdout, "");
    assert!(stderr.contains("not: use xdp-lb stats, or xdp-lb top --once"), "{stderr}");
    let text = instance.prints("top --once --interval 100ms");
    assert_eq!(row(&text, "-10.0.0.10:8080")[1..5], ["drain", "5", "6", "12"], "{text}");
    assert_eq!(row(&text, "10.0.0.11:8080")[1..6], ["up", "5", "3", "12", "0"], "{text}");
    assert!(text.contains("malformed") && text.contains("web 192.0.2.1:80/tcp 1/2 up"), "{text}");
    assert!(text.lines().all(|line| line.len() <= 120), "{text}");
    let looks = |ask: &Ask| matches!(ask, Ask::Status | Ask::Config);
    assert!(instance.asked().iter().all(looks), "it only looks");
}

#[test]
fn changes_are_told() {
    let instance = start(0);
    let line = "service 192.0.2.1:80/tcp: remove\n";
    assert_eq!(instance.prints("reload"), line);
    let dry = format!("{line}this was a dry run: nothing has been changed\n");
    assert_eq!(instance.prints("reload --dry-run"), dry);
    assert_eq!(instance.prints("connections kill --service web"), "3 connections were ended\n");
    let done = json!({"steps": ["backend 10.0.0.10:8080: drain"], "applied": true});
    for line in [
        "backend drain web 10.0.0.10:8080 --deadline 60s",
        "backend add web 10.0.0.12:8080:7 --state drain",
        "backend weight web 10.0.0.10:8080 9",
        "service add dns --vip 192.0.2.1:53/any --backend 10.0.0.1:53",
        "stop",
    ] {
        assert_eq!(instance.prints(line), "backend 10.0.0.10:8080: drain\n");
        assert_eq!(instance.json(line), done, "{line}");
    }
}

#[test]
fn a_refusal_is_a_failure() {
    let instance = start(0);
    for line in ["service remove nobody", "service remove nobody --json"] {
        let output = instance.command(line).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(texts(&output), ["", "xdp-lb: there is no service \"nobody\"\n"]);
    }
}

#[test]
fn a_drain_is_waited_for() {
    let instance = start(3);
    let line = "backend drain web 10.0.0.10:8080 --wait";
    let output = instance.command(line).output().unwrap();
    let [stdout, stderr] = texts(&output);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout, "backend 10.0.0.10:8080: drain\nno connections are left\n");
    assert_eq!(stderr, "xdp-lb: connections left: 3\n", "a line every ten seconds");
    let asked = instance.asked();
    assert_eq!(asked.iter().filter(|ask| **ask == Ask::Status).count(), 4);
    let state = BackendChange::State { state: AdminState::Drain, now: false, deadline: None };
    assert!(matches!(&asked[0], Ask::ChangeBackend { change, .. } if *change == state));

    instance.connections.store(1, Ordering::SeqCst);
    let done = instance.json(line);
    assert_eq!((&done["applied"], &done["waited"]["why"]), (&json!(true), &json!("no_connections")));
    assert_eq!(done["waited"]["left"], 0);
}

#[test]
fn a_deadline_ends_the_wait() {
    let instance = start(1000);
    let since = Instant::now();
    let done = instance.json("backend drain web 10.0.0.10:8080 --wait --deadline 1s");
    assert_eq!(done["waited"]["why"], "deadline");
    assert!(done["waited"]["left"].as_u64().unwrap() > 900);
    assert!(since.elapsed() >= Duration::from_secs(1) && since.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_interrupted_wait_leaves_the_drain_going() {
    let instance = start(1_000_000);
    let child = instance.command("backend drain web 10.0.0.10:8080 --wait").spawn().unwrap();
    while !instance.asked.lock().unwrap().contains(&Ask::Status) {
        sleep(Duration::from_millis(10));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let [stdout, _] = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stdout.contains("interrupted: it goes on without being waited for"), "{stdout}");
    assert_eq!(instance.asked().iter().filter(|ask| matches!(ask, Ask::ChangeBackend { .. })).count(), 1);
}
