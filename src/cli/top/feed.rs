//! Figures, keys and signals, each from a thread of its own: a slow instance does not make the keys slow.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use ratatui::crossterm::event;
use serde_json::Value;

use super::super::Instance;
use super::super::show::snapshot;
use super::super::source::{Source, process};
use super::figures::Reading;
use crate::control::{Ask, Done};

/// Something happened.
pub(super) enum Event {
    Figures(Box<Result<Reading>>),
    Changed(Result<Done>),
    Input(io::Result<event::Event>),
    /// The process is to end.
    Signal,
    /// A thread that this cannot go on without is gone.
    Broken,
}

/// Reads figures, from whoever has them.
pub(super) struct Figures {
    instance: Instance,
    source: Option<Source>,
    find: fn(&Instance) -> Result<Source>,
}

impl Figures {
    pub fn new(instance: &Instance) -> Figures {
        Figures { instance: instance.clone(), source: None, find: Source::find }
    }

    /// It is said on stderr if they do not come from a process.
    pub fn said(instance: &Instance) -> Figures {
        Figures { find: Source::open, ..Figures::new(instance) }
    }

    /// A process is asked as soon as there is one, what is pinned is read as long as there is none.
    pub fn read(&mut self) -> Result<Reading> {
        let source = match self.source.take() {
            Some(source) if source.is_best(&self.instance) => source,
            _ => (self.find)(&self.instance)?,
        };
        let status = match source.status() {
            Ok(status) => status,
            // It has just ended.
            Err(_) => {
                let source = self.source.insert((self.find)(&self.instance)?);
                let status = source.status()?;
                return reading(&status, source.is_silent());
            }
        };
        let silent = source.is_silent();
        self.source = Some(source);
        reading(&status, silent)
    }
}

fn reading(status: &Value, silent: bool) -> Result<Reading> {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Reading {
        snapshot: snapshot(status)?,
        running: status["running"] == true,
        silent,
        version: status["version"].as_str().map(str::to_owned),
        at: Instant::now(),
        wall: wall.as_secs_f64(),
    })
}

/// Tells of a thread's end, however that comes.
struct Last(Sender<Event>);

impl Drop for Last {
    fn drop(&mut self) {
        let _ = self.0.send(Event::Broken);
    }
}

/// Starts to read figures at intervals; what is sent is changed meanwhile.
pub(super) fn figures(mut figures: Figures, interval: Duration, to: Sender<Event>) -> Result<Sender<Ask>> {
    let (ask, asked) = channel();
    let thread = thread::Builder::new().name("figures".into());
    let run = move || {
        let last = Last(to);
        let mut due = Instant::now() + interval;
        while let Some(asked) = wait(&asked, due) {
            if let Some(ask) = asked {
                let done = process(&figures.instance).and_then(|client| Ok(client.change(&ask)?));
                let _ = last.0.send(Event::Changed(done));
            }
            if last.0.send(Event::Figures(Box::new(figures.read()))).is_err() {
                return;
            }
            due = (due + interval).max(Instant::now());
        }
    };
    thread.spawn(run).context("could not start the thread that reads figures")?;
    Ok(ask)
}

/// Until something is asked, or until a time; `None`: nobody will ask any more.
fn wait(asked: &Receiver<Ask>, due: Instant) -> Option<Option<Ask>> {
    match asked.recv_timeout(due.saturating_duration_since(Instant::now())) {
        Ok(ask) => Some(Some(ask)),
        Err(RecvTimeoutError::Timeout) => Some(None),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

/// Starts to read keys. The thread ends with the process.
pub(super) fn input(to: Sender<Event>) -> Result<()> {
    let run = move || {
        let last = Last(to);
        loop {
            let input = event::read();
            let is_over = input.is_err();
            if last.0.send(Event::Input(input)).is_err() || is_over {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("keys".into());
    thread.spawn(run).map(drop).context("could not start the thread that reads keys")
}

/// Has signals that end a process end this one in order.
pub(super) fn signals(to: Sender<Event>) -> Result<()> {
    let tell = move || {
        let _ = to.send(Event::Signal);
    };
    ctrlc::set_handler(tell)
        .map_err(|error| anyhow!(error).context("could not install the handler of signals"))
}
