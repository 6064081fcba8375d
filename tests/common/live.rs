//! An instance that runs by a file and is changed while it runs.

use std::fs;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::balancer::{Balancer, XDP_LB};
use super::netns::Lab;
use super::networks::WEBS;
use super::servers::HTTP;

/// The path of the test's configuration file.
pub fn file(lab: &Lab) -> PathBuf {
    lab.dir().join("xdp-lb.toml")
}

/// Writes it.
pub fn write(lab: &Lab, text: &str) -> Result<()> {
    Ok(fs::write(file(lab), text)?)
}

/// Starts an instance by the file.
pub fn start(lab: &Lab) -> Result<Balancer<'_>> {
    Balancer::start(lab, &format!("run --config {}", file(lab).display()))
}

/// What a command says on stdout; it must end well.
pub fn say(lab: &Lab, words: &str) -> Result<String> {
    lab.run("lb", XDP_LB, &words.split_whitespace().collect::<Vec<_>>())
}

/// What a command says as JSON.
pub fn ask(lab: &Lab, words: &str) -> Result<Value> {
    let text = say(lab, &format!("{words} --json"))?;
    serde_json::from_str(&text).with_context(|| format!("{words}: not JSON: {text}"))
}

/// What a command complains about; it must fail.
pub fn complaint(lab: &Lab, words: &str) -> Result<String> {
    let output = lab.command("lb", XDP_LB)?.args(words.split_whitespace()).output()?;
    ensure!(!output.status.success(), "{words} ended well: {}", String::from_utf8_lossy(&output.stdout));
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The three servers as a file has them.
pub fn three_backends() -> String {
    let backend = |(_, address): &(&str, &str)| format!("{{ address = \"{address}:{HTTP}\" }}");
    WEBS.iter().map(backend).collect::<Vec<_>>().join(", ")
}

/// The state of a backend of the first service.
pub fn state(lab: &Lab, address: &str) -> Result<String> {
    let status = ask(lab, "status")?;
    let backends = status["services"][0]["backends"].as_array().context("no backends")?;
    let backend = backends.iter().find(|backend| backend["address"] == address);
    let backend = backend.with_context(|| format!("no backend {address} in {status}"))?;
    Ok(backend["state"].as_str().context("no state")?.to_owned())
}

/// One request, over a connection of its own.
#[derive(Clone, Debug)]
pub struct Visit {
    /// When it began.
    pub at: Instant,
    /// The server that answered, or what went wrong.
    pub outcome: Result<String, String>,
}

/// Clients that come one after the other, as fast as they are answered.
pub struct Visits {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Visit>>,
}

impl Visits {
    /// Begins; a visit fails that takes longer than `limit`.
    pub fn begin(lab: &Lab, address: &str, port: u16, limit: Duration) -> Result<Visits> {
        let target: SocketAddr = format!("{address}:{port}").parse()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = lab.within("client", || {
            thread::spawn(move || {
                let mut visits = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    let at = Instant::now();
                    let outcome = visit(target, limit).map_err(|error| format!("{error:#}"));
                    visits.push(Visit { at, outcome });
                }
                visits
            })
        })?;
        Ok(Visits { stop, thread })
    }

    /// No more visits begin.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Ends, and tells of all.
    pub fn end(self) -> Vec<Visit> {
        self.stop();
        self.thread.join().expect("visits")
    }
}

fn visit(target: SocketAddr, limit: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").context("no answer")?.1;
    Ok(body.split(' ').next().unwrap_or_default().to_owned())
}
