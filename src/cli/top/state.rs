//! What is shown of the figures, and what keys make of that. No I/O: an [`Action`] says what is to be done.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::columns::Column;
use super::figures::{History, Key, Reading};
use super::view::{Line, View};
use crate::control::{Ask, BackendChange, Done};
use crate::model::AdminState;

/// Nobody reads a question in less time.
pub(super) const READING: Duration = Duration::from_millis(100);

/// What an operator sees, and may do.
pub(super) struct Top {
    history: History,
    /// What is on the screen; `None` until there are figures.
    pub view: Option<View>,
    /// A newer one, while the screen stands still.
    newer: Option<View>,
    pub lines: Vec<Line>,
    pub paused: bool,
    pub sort: Column,
    pub reverse: bool,
    pub filter: String,
    pub selected: Option<Key>,
    /// Whether the operator chose it; else it is whatever comes first.
    pub chosen: bool,
    /// The first line that is shown, and how many are.
    pub scroll: usize,
    pub page: usize,
    pub details: bool,
    pub prompt: Option<Prompt>,
    /// Since when the question is on the screen.
    pub asked: Option<Instant>,
    /// What became of the last key or change, and whether that is bad.
    pub message: Option<(String, bool)>,
    /// Since when nobody answers, and what is wrong.
    pub lost: Option<(Instant, String)>,
    /// What instance this is.
    pub place: String,
}

/// What is asked of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    /// A filter, the one before it, and what the operator had selected.
    Filter { before: String, selected: Option<Key> },
    /// Whether to carry out a change.
    Confirm(Proposal),
    /// Nothing: it explains.
    Help,
}

/// A change that waits for a yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub service: String,
    pub vip: SocketAddrV4,
    pub protocol: String,
    pub address: SocketAddrV4,
    pub state: AdminState,
    pub live: u32,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Quit,
    /// The screen is drawn anew, whatever may be on it.
    Redraw,
    Change(Box<Ask>),
}

impl Proposal {
    pub fn ask(&self) -> Ask {
        Ask::ChangeBackend {
            // Its name may be that of another protocol's service too.
            service: format!("{}/{}", self.vip, self.protocol),
            address: self.address,
            change: BackendChange::State { state: self.state, now: false, deadline: None },
            persist: false,
        }
    }

    /// The question, without how to answer it.
    pub fn question(&self) -> String {
        let (verb, follows) = match self.state {
            AdminState::Enabled => {
                ("Enable", "It takes new connections again while it is healthy.".to_owned())
            }
            AdminState::Drain => {
                ("Drain", format!("It takes no new connections; its {} live ones go on.", self.live))
            }
            AdminState::Disabled => (
                "Disable",
                format!(
                    "It takes no new connections and is not checked; its {} live ones go on, UDP flows move to others.",
                    self.live
                ),
            ),
        };
        format!("{verb} backend {} of {}? {follows}", self.address, self.service)
    }
}

impl Top {
    pub fn new(place: String) -> Top {
        Top {
            history: History::default(),
            view: None,
            newer: None,
            lines: Vec::new(),
            paused: false,
            sort: Column::State,
            reverse: false,
            filter: String::new(),
            selected: None,
            chosen: false,
            scroll: 0,
            page: 1,
            details: false,
            prompt: None,
            asked: None,
            message: None,
            lost: None,
            place,
        }
    }

    /// New figures. They count for rates even while the screen stands still.
    pub fn take(&mut self, mut reading: Reading) {
        self.history.take(&mut reading);
        let view = View::of(&reading, &self.history);
        self.lost = None;
        match self.paused {
            true => self.newer = Some(view),
            false => {
                self.view = Some(view);
                self.arrange();
            }
        }
    }

    /// Nobody answered.
    pub fn lose(&mut self, at: Instant, why: String) {
        let since = self.lost.take().map_or(at, |(since, _)| since);
        self.lost = Some((since, why));
    }

    /// A change came to its end.
    pub fn changed(&mut self, done: Result<Done, String>) {
        self.message = Some(match done {
            Ok(done) if done.steps.is_empty() => ("nothing had to be changed".into(), false),
            Ok(done) => (done.steps.join("; "), false),
            Err(why) => (why, true),
        });
    }

    pub fn pause(&mut self) {
        self.paused = !self.paused;
        if let Some(view) = self.newer.take() {
            self.view = Some(view);
        }
        self.arrange();
    }

    /// Puts the lines into the order and choice that is wanted now.
    pub fn arrange(&mut self) {
        let view = self.view.as_ref();
        self.lines = view.map(|view| view.lines(self.sort, self.reverse, &self.filter)).unwrap_or_default();
        if !self.chosen || self.selected_line().is_none() {
            self.select_first();
        }
    }

    fn backends(&self) -> impl Iterator<Item = (usize, &Key)> {
        self.lines.iter().enumerate().filter_map(|(at, line)| match (line, &self.view) {
            (Line::Backend(service, backend), Some(view)) => {
                Some((at, &view.services.get(*service)?.backends.get(*backend)?.key))
            }
            _ => None,
        })
    }

    fn key_of(&self, nth: usize) -> Option<&Key> {
        self.backends().nth(nth).map(|(_, key)| key)
    }

    /// The line of the selected backend.
    pub fn selected_line(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.backends().find(|(_, key)| *key == selected).map(|(at, _)| at)
    }

    /// Selects another backend, so many further down.
    pub fn step(&mut self, by: isize) {
        let selected = self.selected.as_ref();
        let now = self.backends().position(|(_, key)| Some(key) == selected).unwrap_or(0);
        let last = self.backends().count().saturating_sub(1);
        let next = now.saturating_add_signed(by).min(last);
        self.selected = self.key_of(next).cloned();
        self.chosen = true;
        if next == 0 {
            self.scroll = 0;
        }
    }

    /// Makes the selected backend visible, with its service above it and its reason below it where there is room.
    pub fn fit(&mut self, page: usize) {
        self.page = page.max(1);
        if let Some(at) = self.selected_line() {
            let has_why = matches!(self.lines.get(at + 1), Some(Line::Why(..)));
            let has_service = at > 0 && matches!(self.lines.get(at - 1), Some(Line::Service(_)));
            let (first, last) = (at - usize::from(has_service), at + usize::from(has_why));
            if last >= self.scroll + self.page {
                self.scroll = last + 1 - self.page;
            }
            self.scroll = self.scroll.min(if self.page > 2 { first } else { at });
        }
        self.scroll = self.scroll.min(self.lines.len().saturating_sub(self.page));
    }

    pub fn sort_by(&mut self, column: Column) {
        (self.sort, self.reverse) = (column, false);
        self.start_over();
    }

    /// Another order or choice is read from its beginning.
    pub fn start_over(&mut self) {
        self.chosen = false;
        self.arrange();
    }

    fn select_first(&mut self) {
        self.selected = self.key_of(0).cloned();
        (self.chosen, self.scroll) = (false, 0);
    }

    /// Everything is on the screen now.
    pub fn drawn(&mut self, at: Instant) {
        if matches!(self.prompt, Some(Prompt::Confirm(_))) {
            self.asked.get_or_insert(at);
        }
    }

    /// Whether the operator can have read the question by now: keys that were typed ahead are no answer to it.
    pub fn question_was_read(&self, now: Instant) -> bool {
        self.asked.is_some_and(|asked| now.saturating_duration_since(asked) >= READING)
    }

    /// Asks before a change of the selected backend, if there can be one.
    pub fn propose(&mut self, state: AdminState) {
        let found = self.view.as_ref().zip(self.selected.as_ref());
        let Some((view, (service, backend))) = found.and_then(|(view, key)| Some((view, view.find(key)?)))
        else {
            self.message = Some(("no backend is selected".into(), true));
            return;
        };
        let address = backend.key.address;
        let admin = backend.counted.health.as_ref().map(|health| health.admin.as_str());
        let refused = if self.lost.is_some() {
            Some("nobody answers: nothing can be changed".to_owned())
        } else if view.silent {
            Some("the process does not answer: nothing can be changed".to_owned())
        } else if !view.running {
            Some("no process runs: what is pinned can be read, not changed".to_owned())
        } else if backend.counted.state == "removed" {
            Some(format!("{address} is removed already; its connections go on"))
        } else if admin == Some(state.name()) {
            Some(format!("{address} is set to {state} already"))
        } else {
            None
        };
        match refused {
            Some(why) => self.message = Some((why, true)),
            None => {
                self.asked = None;
                self.prompt = Some(Prompt::Confirm(Proposal {
                    service: service.short(),
                    vip: service.vip,
                    protocol: service.protocol.clone(),
                    address,
                    state,
                    live: backend.counted.active,
                }));
            }
        }
    }
}
