//! `--wait`: until a backend that takes no new connections has none any more.

use std::fmt;
use std::io::IsTerminal as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::control::{Ask, BackendChange, Client, backends_of};

/// How often connections are counted.
const POLL: Duration = Duration::from_millis(500);
/// How often it is said how many are left, where there is no terminal.
const LINE: Duration = Duration::from_secs(10);

/// How the waiting ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waited {
    why: Why,
    left: u64,
    time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    None,
    Deadline,
    Enabled,
    Interrupted,
}

/// A backend while it is waited for.
struct Left {
    connections: u64,
    /// It takes new connections again.
    enabled: bool,
}

impl Waited {
    /// False if the operator ended it, here or elsewhere.
    pub fn is_over(&self) -> bool {
        !matches!(self.why, Why::Interrupted | Why::Enabled)
    }

    pub fn to_json(&self) -> Value {
        let why = match self.why {
            Why::None => "no_connections",
            Why::Deadline => "deadline",
            Why::Enabled => "enabled",
            Why::Interrupted => "interrupted",
        };
        json!({ "why": why, "left": self.left, "seconds": self.time.as_secs_f64() })
    }
}

impl fmt::Display for Waited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why {
            Why::None => write!(f, "no connections are left"),
            Why::Deadline => write!(f, "the deadline has passed; connections left: {}", self.left),
            Why::Enabled => {
                write!(f, "it was enabled again meanwhile; connections left: {}", self.left)
            }
            Why::Interrupted => {
                write!(f, "interrupted: it goes on without being waited for; connections left: {}", self.left)
            }
        }
    }
}

/// Waits for a change of a backend to leave it without connections.
pub(super) fn wait(client: &Client, ask: &Ask, quiet: bool) -> Result<Waited> {
    let (sender, interrupted) = channel();
    ctrlc::set_handler(move || {
        // One that is not waited for any more means that the process is ending already.
        let _ = sender.send(());
    })
    .context("could not install the handler of SIGINT")?;
    let mut progress = Progress::new(quiet);
    let waited = poll(|| left(client, ask), deadline_of(ask), &interrupted, |left| progress.show(left));
    progress.bar.finish_and_clear();
    waited
}

fn poll(
    mut left: impl FnMut() -> Result<Left>,
    deadline: Option<Duration>,
    interrupted: &Receiver<()>,
    mut show: impl FnMut(u64),
) -> Result<Waited> {
    let start = Instant::now();
    loop {
        let Left { connections: left, enabled } = left()?;
        let ended = |why| Ok(Waited { why, left, time: start.elapsed() });
        if enabled {
            return ended(Why::Enabled);
        }
        if left == 0 {
            return ended(Why::None);
        }
        if deadline.is_some_and(|deadline| start.elapsed() >= deadline) {
            return ended(Why::Deadline);
        }
        show(left);
        let until_deadline = deadline.map_or(POLL, |deadline| deadline.saturating_sub(start.elapsed()));
        match interrupted.recv_timeout(POLL.min(until_deadline)) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return ended(Why::Interrupted),
        }
    }
}

fn deadline_of(ask: &Ask) -> Option<Duration> {
    match ask {
        Ask::ChangeBackend { change: BackendChange::State { deadline, .. }, .. } => *deadline,
        _ => None,
    }
}

/// What is left of the backend that was changed. One that is gone has no connections.
fn left(client: &Client, ask: &Ask) -> Result<Left> {
    let Ask::ChangeBackend { service, address, .. } = ask else {
        return Ok(Left { connections: 0, enabled: false });
    };
    let backends = backends_of(&client.status()?, Some(service)).unwrap_or_default();
    Ok(left_of(&backends, &address.to_string()))
}

fn left_of(backends: &Value, address: &str) -> Left {
    let all = backends["backends"].as_array().into_iter().flatten();
    let same: Vec<&Value> = all.filter(|backend| backend["address"] == address).collect();
    Left {
        connections: same.iter().filter_map(|backend| backend["active"].as_u64()).sum(),
        enabled: same
            .iter()
            .any(|backend| backend["health"]["admin"] == "enabled" && backend["state"] != "removed"),
    }
}

/// Tells how many are left: by a bar on a terminal, else by a line now and then.
struct Progress {
    bar: ProgressBar,
    quiet: bool,
    lines: bool,
    said: Option<Instant>,
    most: u64,
}

impl Progress {
    fn new(quiet: bool) -> Progress {
        let lines = !std::io::stderr().is_terminal();
        let bar = match quiet || lines {
            true => ProgressBar::hidden(),
            false => ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()),
        };
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {msg} [{elapsed}]") {
            bar.set_style(style);
        }
        Progress { bar, quiet, lines, said: None, most: 0 }
    }

    fn show(&mut self, left: u64) {
        self.most = self.most.max(left);
        // Each of these may draw.
        self.bar.set_message(format!("connections left: {left}"));
        self.bar.set_length(self.most);
        self.bar.set_position(self.most - left);
        let due = self.said.is_none_or(|said| said.elapsed() >= LINE);
        if self.lines && !self.quiet && due {
            crate::log::notice(&format!("connections left: {left}"));
            self.said = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(connections: u64) -> Left {
        Left { connections, enabled: false }
    }

    #[test]
    fn one_that_is_enabled_again_is_waited_for_no_more() {
        let (_keep, interrupted) = channel();
        let mut polls = 0;
        let left = || {
            polls += 1;
            Ok(Left { connections: 3, enabled: polls == 2 })
        };
        let waited = poll(left, None, &interrupted, |_| {}).unwrap();
        assert_eq!((waited.why, waited.left, waited.is_over()), (Why::Enabled, 3, false));
        let backend =
            json!({"address": "10.0.0.1:80", "state": "up", "active": 3, "health": {"admin": "enabled"}});
        assert!(left_of(&json!({"backends": [backend]}), "10.0.0.1:80").enabled);
    }

    #[test]
    fn it_ends_when_none_are_left() {
        let (_sender, interrupted) = channel();
        let mut counts = [2, 1, 0].into_iter();
        let mut shown = Vec::new();
        let waited =
            poll(|| Ok(some(counts.next().unwrap())), None, &interrupted, |left| shown.push(left)).unwrap();
        assert_eq!((waited.why, waited.left, shown), (Why::None, 0, vec![2, 1]));
        assert!(waited.is_over() && waited.time >= 2 * POLL);
        assert_eq!(waited.to_json()["why"], "no_connections");
    }

    #[test]
    fn it_ends_at_the_deadline() {
        let (_sender, interrupted) = channel();
        let deadline = Some(Duration::from_millis(20));
        let waited = poll(|| Ok(some(7)), deadline, &interrupted, |_| {}).unwrap();
        assert_eq!((waited.why, waited.left), (Why::Deadline, 7));
        assert!(waited.is_over() && waited.time < POLL);
        assert_eq!(waited.to_string(), "the deadline has passed; connections left: 7");
    }

    #[test]
    fn whoever_interrupts_it_is_told_that_it_goes_on() {
        let (sender, interrupted) = channel();
        sender.send(()).unwrap();
        let waited = poll(|| Ok(some(7)), None, &interrupted, |_| {}).unwrap();
        assert!(!waited.is_over());
        assert!(waited.to_string().contains("goes on"), "{waited}");
        assert!(poll(|| anyhow::bail!("gone"), None, &interrupted, |_| {}).is_err());
    }

    #[test]
    fn the_connections_of_all_protocols_count() {
        let backend = |address: &str, active: u64| json!({"address": address, "active": active});
        let all = json!({"backends": [backend("10.0.0.1:53", 2), backend("10.0.0.1:53", 3), backend("10.0.0.2:53", 9)]});
        assert_eq!(left_of(&all, "10.0.0.1:53").connections, 5);
        assert_eq!(left_of(&Value::Null, "10.0.0.1:53").connections, 0);
    }
}
