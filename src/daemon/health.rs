//! The health of backends in figures.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::time::{Duration, SystemTime};

use super::running::Running;
use crate::health::Stats;
use crate::metrics::HealthFigures;

impl Running {
    /// What is known of each backend that is configured, by service and address.
    pub fn health(&self) -> HashMap<(String, SocketAddrV4), HealthFigures> {
        let stats = self.pool.stats();
        let mut all = HashMap::new();
        for service in &self.config.services {
            for backend in &service.backends {
                let key = (service.name.clone(), backend.address);
                let mut figures = stats.get(&key).map_or_else(HealthFigures::default, figures_of);
                service.health.probe.name().clone_into(&mut figures.check);
                figures.admin = backend.state.name().to_owned();
                figures.weight = backend.weight.get();
                let row = self.plane.find(service.vip, service.protocol, backend.address);
                let left = row.and_then(|row| self.pool.time_left(row));
                figures.reset_in_seconds = left.map(|left| left.as_secs_f64());
                all.insert(key, figures);
            }
        }
        all
    }
}

fn figures_of(stats: &Stats) -> HealthFigures {
    HealthFigures {
        up: Some(stats.up),
        checks: stats.checks,
        failures: stats.failures,
        unchecked: stats.unchecked,
        failure_rate: stats.recent_failure_rate(),
        last_change: stats.changed.map(seconds),
        last_error: stats.last_error.as_ref().map(|(failure, _)| failure.to_string()),
        last_error_at: stats.last_error.as_ref().map(|(_, at)| seconds(*at)),
        latency_ms: stats.latency.map(milliseconds),
        smoothed_latency_ms: stats.smoothed.map(milliseconds),
        ..HealthFigures::default()
    }
}

/// Seconds since 1970.
fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
