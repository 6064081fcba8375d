//! What the end-to-end tests share: namespaces, networks, servers, clients, and the load balancer in them.

// Each test file is a program of its own that uses a part of this.
#![allow(dead_code)]

pub mod balancer;
pub mod clients;
pub mod echo;
pub mod far_end;
pub mod files;
pub mod generator;
pub mod live;
pub mod metrics;
pub mod netns;
pub mod networks;
pub mod newcomers;
pub mod pinned;
pub mod promql;
pub mod resets;
pub mod servers;
pub mod terminal;

use std::thread::sleep;
use std::time::{Duration, Instant};

/// What a loaded machine may need for anything that takes no time by itself.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until there is an answer; panics where there is none in time.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// The same with a time limit that is part of what is tested.
pub fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        // Taken before the look: one that took long is still good.
        let late = Instant::now() >= deadline;
        if let Some(found) = look() {
            return found;
        }
        assert!(!late, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(20));
    }
}
