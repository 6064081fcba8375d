//! An instance that answers what is asked without doing anything.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use xdp_lb::control::{Ask, BackendChange, Client, Done, Limits, Refusal, Reply, Server};
use xdp_lb::model::{AdminState, Timeouts};

/// A server that notes what it is asked.
pub struct Instance {
    pub dir: TempDir,
    pub asked: Arc<Mutex<Vec<Ask>>>,
    pub server: Server,
}

impl Instance {
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("run/lb.sock")
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }

    pub fn asked(&self) -> Vec<Ask> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// One request, as it would come from curl: status, body.
    pub fn http(&self, request: &str, body: &str) -> (u16, String) {
        exchange(&self.path(), &head(request, "", body.len()), body)
    }

    /// The same where an error is expected: status, kind, text.
    pub fn problem(&self, request: &str, body: &str) -> (u16, String, String) {
        let (status, text) = self.http(request, body);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{request}: {text}"));
        let word = |key: &str| value[key].as_str().unwrap_or_else(|| panic!("{request}: {text}")).to_owned();
        (status, word("kind"), word("error"))
    }
}

pub fn head(request: &str, headers: &str, length: usize) -> String {
    format!("{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n")
}

pub fn exchange(path: &Path, head: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    parts(stream)
}

pub fn parts(mut stream: UnixStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status.unwrap_or_default(), body.unwrap_or_default())
}

pub fn figures() -> Value {
    let backend = |address: &str, active: u32| json!({"address": address, "state": "up", "active": active});
    json!({"services": [
        {"name": "web", "vip": "192.0.2.1:80", "protocol": "tcp", "backends": [backend("10.0.0.10:8080", 2)]},
        {"name": "dns", "vip": "192.0.2.1:53", "protocol": "tcp", "backends": [backend("10.0.0.11:53", 0)]},
        {"name": "dns", "vip": "192.0.2.1:53", "protocol": "udp", "backends": [backend("10.0.0.11:53", 7)]},
    ], "table": {"slots": 4}})
}

/// Answers as an instance would; what is refused is named for how.
pub fn answer(ask: &Ask) -> Result<Value, Refusal> {
    let done = |steps: &[&str]| {
        let steps = steps.iter().map(|step| (*step).to_owned()).collect();
        Ok(serde_json::to_value(Done { steps, applied: true, ..Done::default() }).unwrap())
    };
    match ask {
        Ask::Status => Ok(figures()),
        Ask::Config => Ok(json!({"toml": "interfaces = [\"eth0\"]\n"})),
        Ask::Connections(_) => Ok(json!({"connections": [], "more": false})),
        Ask::RemoveService { service, .. } if service == "nobody" => Err(Refusal::not_found("no nobody")),
        Ask::RemoveService { service, .. } if service == "twice" => Err(Refusal::conflict("twice")),
        Ask::RemoveService { service, .. } if service == "odd" => Err(Refusal::invalid("odd")),
        Ask::RemoveService { service, .. } if service == "broken" => {
            Err(Refusal::failed(&anyhow::anyhow!("inner").context("outer")))
        }
        Ask::ChangeBackend { change: BackendChange::State { state: AdminState::Disabled, .. }, .. } => {
            Err(Refusal::conflict("the last one"))
        }
        Ask::ChangeBackend { change: BackendChange::Weight(_), .. } => done(&["weight"]),
        Ask::ChangeBackend { change: BackendChange::State { .. }, .. } => done(&["state"]),
        _ => done(&["done"]),
    }
}

pub fn start_in(dir: TempDir, limits: Limits, ask: impl Fn(Ask, Reply) + Send + Sync + 'static) -> Instance {
    let path = dir.path().join("run/lb.sock");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = asked.clone();
    let note = move |question: Ask, reply: Reply| {
        notes.lock().unwrap().push(question.clone());
        ask(question, reply);
    };
    let server = Server::start_with(&path, Timeouts::default(), limits, note).unwrap();
    Instance { dir, asked, server }
}

pub fn start_with(limits: Limits, ask: impl Fn(Ask, Reply) + Send + Sync + 'static) -> Instance {
    start_in(tempfile::tempdir().unwrap(), limits, ask)
}

pub fn start() -> Instance {
    start_with(Limits::default(), |ask, reply| reply.send(answer(&ask)))
}
