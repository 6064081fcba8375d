//! Keys.

use std::time::Instant;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::columns::Column;
use super::figures::Key;
use super::state::{Action, Prompt, Top};
use crate::model::AdminState;

/// Keys and what they do, for the help.
pub(super) const KEYS: [(&str, &str); 12] = [
    ("up down k j, PgUp PgDn, Home End", "select a backend"),
    ("Enter", "details of it, and back"),
    ("s > and <", "sort by the next column, or the one before"),
    ("r", "the other way round"),
    ("!", "ill backends first, as at the start"),
    ("/", "only what has these words: service, address, state, or ill, suspect, off, well"),
    ("Esc", "back; clear the filter"),
    ("d", "drain: no new connections, live ones go on"),
    ("D", "disable: the same, and no checks"),
    ("e", "enable again"),
    ("p", "let the screen stand still, or go on"),
    ("q", "quit"),
];

/// What a key does that is pressed now.
pub(super) fn key(top: &mut Top, key: KeyEvent, now: Instant) -> Action {
    if key.kind == KeyEventKind::Release {
        return Action::Nothing;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Action::Quit,
            KeyCode::Char('l') => Action::Redraw,
            _ => Action::Nothing,
        };
    }
    match top.prompt.take() {
        None => {
            top.message = None;
            list(top, key.code)
        }
        Some(Prompt::Help) => Action::Nothing,
        Some(Prompt::Filter { before, selected }) => {
            filter(top, key.code, before, selected);
            Action::Nothing
        }
        Some(Prompt::Confirm(proposal)) => match key.code {
            KeyCode::Char('y') if top.question_was_read(now) => {
                top.message = Some(("asking the instance ...".into(), false));
                Action::Change(Box::new(proposal.ask()))
            }
            KeyCode::Char('n' | 'q') | KeyCode::Esc => {
                top.message = Some(("nothing was changed".into(), false));
                Action::Nothing
            }
            // A key that was meant for the list is no answer.
            _ => {
                top.prompt = Some(Prompt::Confirm(proposal));
                Action::Nothing
            }
        },
    }
}

fn list(top: &mut Top, code: KeyCode) -> Action {
    let page = isize::try_from(top.page).unwrap_or(isize::MAX);
    match code {
        KeyCode::Char('q') => return Action::Quit,
        KeyCode::Char('?' | 'h') => top.prompt = Some(Prompt::Help),
        KeyCode::Up | KeyCode::Char('k') => top.step(-1),
        KeyCode::Down | KeyCode::Char('j') => top.step(1),
        KeyCode::PageUp => top.step(-page),
        KeyCode::PageDown => top.step(page),
        KeyCode::Home | KeyCode::Char('g') => top.step(isize::MIN),
        KeyCode::End | KeyCode::Char('G') => top.step(isize::MAX),
        KeyCode::Enter => {
            top.details = !top.details && top.selected.is_some();
            top.chosen = true;
        }
        KeyCode::Char('s' | '>') => top.sort_by(top.sort.beside(1)),
        KeyCode::Char('<') => top.sort_by(top.sort.beside(-1)),
        KeyCode::Char('!') => {
            (top.sort, top.reverse) = (Column::State, false);
            top.arrange();
        }
        KeyCode::Char('r') => {
            top.reverse = !top.reverse;
            top.start_over();
        }
        KeyCode::Char('/') => {
            let selected = top.selected.clone().filter(|_| top.chosen);
            top.prompt = Some(Prompt::Filter { before: top.filter.clone(), selected });
        }
        KeyCode::Esc if top.details => top.details = false,
        KeyCode::Esc => {
            top.filter = String::new();
            top.arrange();
        }
        KeyCode::Char('d') => top.propose(AdminState::Drain),
        KeyCode::Char('D') => top.propose(AdminState::Disabled),
        KeyCode::Char('e') => top.propose(AdminState::Enabled),
        KeyCode::Char('p') => top.pause(),
        _ => {}
    }
    Action::Nothing
}

/// Each key of a filter is followed at once.
fn filter(top: &mut Top, code: KeyCode, before: String, selected: Option<Key>) {
    let mut text = top.filter.clone();
    match code {
        KeyCode::Enter => return,
        // As before, the selection too.
        KeyCode::Esc => {
            top.filter = before;
            top.chosen = selected.is_some();
            top.selected = selected;
            return top.arrange();
        }
        KeyCode::Backspace => drop(text.pop()),
        KeyCode::Char(c) if !c.is_control() => text.push(c),
        _ => {}
    }
    top.details = false;
    top.prompt = Some(Prompt::Filter { before, selected });
    if text != top.filter {
        top.filter = text;
        top.start_over();
    }
}
