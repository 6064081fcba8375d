//! The connection table of a running instance, read through its pins by somebody who knows the key.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use plain::Plain;
use xdp_lb::dataplane::types::{
    lb_backend, lb_backend_events, lb_backend_load, lb_bucket, lb_nexthop, lb_phase, lb_settings,
    lb_state_layout,
};
use xdp_lb::dataplane::{Events, Loads, Rows, Sweeper, Walked};

use super::balancer::PIN_DIR;

/// The tables that tell where a connection may lie.
pub struct Pinned {
    connections: Rows<lb_bucket>,
    backends: Rows<lb_backend>,
    loads: Rows<lb_backend_load>,
    events: Rows<lb_backend_events>,
    nexthops: Rows<lb_nexthop>,
    settings: lb_settings,
}

/// A bucket, the confirmed connections in it, and clients that it is a candidate for.
pub struct Aim {
    bucket: usize,
    /// By key, with their backends.
    confirmed: Vec<(u64, u16)>,
    pub clients: Vec<(Ipv4Addr, u16)>,
}

/// What is in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    key: u64,
    backend: u16,
    phase: lb_phase,
}

impl Entry {
    fn is_confirmed(self) -> bool {
        (lb_phase::LB_PHASE_ESTABLISHED.0..=lb_phase::LB_PHASE_REVIVING.0).contains(&self.phase.0)
    }
}

impl Pinned {
    /// Of the instance with the default pins.
    pub fn open() -> Result<Pinned> {
        let row = pin("settings")?.lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?.context("no settings")?;
        let mut settings = lb_settings::default();
        plain::copy_from_bytes(&mut settings, &row).map_err(|error| anyhow!("the settings: {error:?}"))?;
        Ok(Pinned {
            connections: rows("connections")?,
            backends: rows("backends")?,
            loads: rows("backend_loads")?,
            events: rows("backend_events")?,
            nexthops: rows("nexthops")?,
            settings,
        })
    }

    fn entries(&self, bucket: usize) -> Vec<Entry> {
        let slots = self.connections.get(bucket).map(|bucket| bucket.conn).unwrap_or_default();
        let entry = |key, state: u64| Entry {
            key,
            backend: (state >> lb_state_layout::LB_STATE_BACKEND_SHIFT.0) as u16,
            phase: lb_phase((state >> lb_state_layout::LB_STATE_PHASE_SHIFT.0) as u32 & 7),
        };
        slots.iter().map(|conn| entry(conn.key, conn.state)).collect()
    }

    /// The bucket with the most confirmed connections, and so many clients of a network for which it is one of the two that
    /// their connections to the same service may lie in.
    pub fn aim(&self, network: Ipv4Addr, count: usize) -> Result<Aim> {
        let confirmed = |bucket: &usize| -> Vec<(u64, u16)> {
            let entries = self.entries(*bucket).into_iter().filter(|entry| entry.is_confirmed());
            entries.map(|entry| (entry.key, entry.backend)).collect()
        };
        let fullest = (0..self.connections.len()).max_by_key(|bucket| confirmed(bucket).len());
        let bucket = fullest.context("no buckets")?;
        let confirmed = confirmed(&bucket);
        let (key, _) = confirmed.first().context("no confirmed connection")?;
        let walked = Walked {
            connections: &self.connections,
            backends: &self.backends,
            loads: Loads(&self.loads),
            events: Events(&self.events),
            nexthops: &self.nexthops,
        };
        let sweeper = Sweeper::new(walked, self.settings, 0);
        let falls = |(address, port): &(Ipv4Addr, u16)| {
            let client = u64::from(u32::from_le_bytes(address.octets()));
            let key = client | u64::from(port.to_be()) << 32 | key >> 48 << 48;
            sweeper.candidates(key).contains(&bucket)
        };
        let all = (0..=u16::MAX)
            .flat_map(|n| (1024..=u16::MAX).map(move |port| (n, port)))
            .map(|(n, port)| (Ipv4Addr::from_bits(network.to_bits() + u32::from(n)), port));
        let clients: Vec<_> = all.filter(falls).take(count).collect();
        Ok(Aim { bucket, confirmed, clients })
    }

    /// Fails unless the bucket still has the confirmed connections, each with its backend. What else is in it.
    pub fn hit(&self, aim: &Aim) -> Result<String> {
        let entries = self.entries(aim.bucket);
        for (key, backend) in &aim.confirmed {
            let stays = |e: &&Entry| e.is_confirmed() && (e.key, e.backend) == (*key, *backend);
            ensure!(entries.iter().any(|e| stays(&e)), "connection {key:x} is not in {entries:x?}");
        }
        let phase = |entry: &Entry| entry.phase.0;
        Ok(format!(
            "{} confirmed, phases {:?}",
            aim.confirmed.len(),
            entries.iter().map(phase).collect::<Vec<_>>()
        ))
    }
}

fn pin(name: &str) -> Result<MapHandle> {
    MapHandle::from_pinned_path(Path::new(PIN_DIR).join(name)).with_context(|| format!("the pin {name}"))
}

fn rows<T: Plain + Copy>(name: &str) -> Result<Rows<T>> {
    Rows::map(pin(name)?)
}
