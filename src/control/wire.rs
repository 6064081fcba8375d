//! The bodies of requests, as client and server write and read them.

use std::net::SocketAddrV4;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::api::{BackendChange, Refusal};
use crate::model::{AdminState, Weight};

/// A backend to be added.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBackend {
    pub address: SocketAddrV4,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// What is to become of a backend.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Patch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    pub now: bool,
    pub persist: bool,
}

impl NewBackend {
    pub fn change(&self) -> Result<BackendChange, Refusal> {
        let weight = self.weight.map_or(Ok(Weight::default()), weight)?;
        let state = self.state.as_deref().map_or(Ok(AdminState::default()), state)?;
        Ok(BackendChange::Add(weight, state))
    }
}

impl Patch {
    /// The changes, in the order in which they are to be carried out.
    pub fn changes(&self) -> Result<Vec<BackendChange>, Refusal> {
        let mut changes = Vec::new();
        if let Some(number) = self.weight {
            changes.push(BackendChange::Weight(weight(number)?));
        }
        let deadline = self.deadline.as_deref().map(deadline).transpose()?;
        match self.state.as_deref() {
            Some(word) => {
                let state = state(word)?;
                let ends = self.now || deadline.is_some();
                if state == AdminState::Enabled && ends {
                    let wrong =
                        "an enabled backend keeps its connections: neither now nor a deadline goes with it";
                    return Err(Refusal::invalid(wrong));
                }
                if self.now && deadline.is_some() {
                    return Err(Refusal::invalid("now and a deadline exclude each other"));
                }
                changes.push(BackendChange::State { state, now: self.now, deadline });
            }
            None if self.now || deadline.is_some() => {
                return Err(Refusal::invalid("now and deadline go with a state, which is missing"));
            }
            None => {}
        }
        if changes.is_empty() {
            return Err(Refusal::invalid("nothing is to be changed: state or weight is needed"));
        }
        Ok(changes)
    }

    pub fn of_state(state: AdminState, now: bool, deadline: Option<Duration>, persist: bool) -> Patch {
        let deadline = deadline.map(|time| humantime::format_duration(time).to_string());
        Patch { state: Some(state.name().to_owned()), deadline, now, persist, ..Patch::default() }
    }
}

fn weight(number: u8) -> Result<Weight, Refusal> {
    Weight::new(number).ok_or_else(|| {
        let (min, max) = (Weight::MIN.get(), Weight::MAX.get());
        Refusal::invalid(format!("the weight {number} is outside {min} to {max}"))
    })
}

fn state(word: &str) -> Result<AdminState, Refusal> {
    AdminState::ALL.into_iter().find(|state| state.name() == word).ok_or_else(|| {
        Refusal::invalid(format!("there is no state {word:?}; write enabled, drain or disabled"))
    })
}

/// Seconds, or humantime's syntax.
fn deadline(word: &str) -> Result<Duration, Refusal> {
    let seconds = word.parse().ok().filter(|_| word.bytes().all(|byte| byte.is_ascii_digit()));
    match seconds.map(Duration::from_secs).or_else(|| humantime::parse_duration(word).ok()) {
        Some(time) if !time.is_zero() => Ok(time),
        _ => Err(Refusal::invalid(format!("the deadline {word:?} is no time from now; write 60s or 5m"))),
    }
}
