//! Tells systemd how it goes (sd_notify(3)); does nothing where nobody asked.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Whoever started this process, if it wants to be told.
pub struct Supervisor {
    /// How often it wants to hear that this process lives.
    every: Option<Duration>,
    told: Instant,
}

impl Supervisor {
    /// By the environment that it gave this process.
    pub fn new() -> Supervisor {
        let every = sd_notify::watchdog_enabled().map(|limit| limit / 3);
        Supervisor { every, told: Instant::now() }
    }

    /// It balances.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// It is about to end.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// The main loop has come round. Call it at least every second.
    pub fn alive(&mut self) {
        if self.every.is_some_and(|every| self.told.elapsed() >= every) {
            tell(&[NotifyState::Watchdog]);
            self.told = Instant::now();
        }
    }
}

/// One who does not listen is no reason to stop.
fn tell(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
