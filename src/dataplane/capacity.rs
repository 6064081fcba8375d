use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::{MapCore as _, MapHandle};

use super::skeleton::lb::OpenXdpLbMaps;
use super::types;

/// How many rows each table has; they cannot grow while the program is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Buckets of four connections.
    pub buckets: u32,
    /// Services, and the next index that is free.
    pub services: u32,
    /// (Service, backend) pairs.
    pub backends: u32,
    /// Lines of 32 ring slots.
    pub ring_lines: u32,
    /// Buckets of two services in the directory.
    pub service_buckets: u32,
    /// Rows of backend addresses in the directory.
    pub origins: u32,
    /// Next hops.
    pub nexthops: u32,
    /// Clients that sticky services remember.
    pub affinity: u32,
}

impl Capacity {
    const SLOTS_PER_BUCKET: u64 = types::lb_constants::LB_CONNS_PER_BUCKET.0 as u64;
    /// An index has 16 bits, and 0 means "none".
    const MAX_ROWS: usize = 65535;
    const MIN_SERVICES: u32 = 256;
    const MIN_BACKENDS: u32 = 4096;
    const MIN_RING_LINES: u32 = 65536;
    const NEXTHOPS: u32 = 65536;
    /// So many that a service can become sticky later, and that each CPU's own list of free rows is not most of them.
    const MIN_AFFINITY: u32 = 16384;
    const MAX_AFFINITY: u32 = 1 << 20;

    /// Tables for so many connections and for twice as much of everything else as is needed now. At least 3.5 slots a
    /// connection: fuller tables fail to place new connections under churn.
    pub fn new(connections: u32, services: usize, backends: usize, ring_lines: usize) -> Result<Capacity> {
        let twice = |count: usize, least: u32| -> Result<u32> {
            let count = u32::try_from(count * 2 + 1).context("the tables would be too large")?;
            Ok(count.max(least))
        };
        ensure!(services <= Self::MAX_ROWS, "{services} services: there is room for {}", Self::MAX_ROWS);
        ensure!(backends <= Self::MAX_ROWS, "{backends} backends: there is room for {}", Self::MAX_ROWS);
        let rows = |count, least| Ok::<_, anyhow::Error>(twice(count, least)?.min(Self::MAX_ROWS as u32 + 1));
        let services = rows(services, Self::MIN_SERVICES)?;
        let backends = rows(backends, Self::MIN_BACKENDS)?;
        let buckets = (u64::from(connections) * 7).div_ceil(2 * Self::SLOTS_PER_BUCKET).max(1);
        Ok(Capacity {
            buckets: u32::try_from(buckets).context("too many connections")?,
            services,
            backends,
            ring_lines: twice(ring_lines, Self::MIN_RING_LINES)?,
            service_buckets: services * 2,
            origins: backends * 2,
            nexthops: Self::NEXTHOPS,
            affinity: Self::MIN_AFFINITY,
        })
    }

    /// How many connections a table of so many slots promises to hold.
    pub fn promised(slots: u64) -> u64 {
        slots * 2 / 7
    }

    /// Room to remember clients of sticky services: one for four connections, since most hold several. Where there are
    /// more, the least recently used ones lose their place, and no connection.
    pub fn with_affinity(self, connections: u32) -> Capacity {
        let rows = (connections / 4).clamp(Self::MIN_AFFINITY, Self::MAX_AFFINITY);
        Capacity { affinity: self.affinity.max(rows), ..self }
    }

    /// Lines of the directory.
    pub(super) fn directory_lines(&self) -> u32 {
        self.service_buckets + self.origins
    }

    /// That of tables that are there.
    pub(super) fn of_tables(
        maps: &BTreeMap<&'static str, MapHandle>,
        settings: &types::lb_settings,
    ) -> Option<Capacity> {
        let rows = |name| maps.get(name).map(MapHandle::max_entries);
        Some(Capacity {
            buckets: rows("connections")?,
            services: rows("services")?,
            backends: rows("backends")?,
            ring_lines: rows("rings")?,
            service_buckets: settings.service_buckets,
            origins: settings.origins,
            nexthops: rows("nexthops")?,
            affinity: rows("affinity").unwrap_or(Self::MIN_AFFINITY),
        })
    }

    /// At least as much of everything but connections.
    pub(super) fn at_least(self, other: Capacity) -> Capacity {
        Capacity {
            buckets: self.buckets,
            services: self.services.max(other.services),
            backends: self.backends.max(other.backends),
            ring_lines: self.ring_lines.max(other.ring_lines),
            service_buckets: self.service_buckets.max(other.service_buckets),
            origins: self.origins.max(other.origins),
            nexthops: self.nexthops,
            affinity: self.affinity.max(other.affinity),
        }
    }

    pub(super) fn apply(&self, maps: &mut OpenXdpLbMaps<'_>) -> Result<()> {
        let sizes = [
            (&mut maps.connections, self.buckets),
            (&mut maps.services, self.services),
            (&mut maps.service_states, self.services),
            (&mut maps.backends, self.backends),
            (&mut maps.backend_counters, self.backends),
            (&mut maps.backend_loads, self.backends),
            (&mut maps.backend_answers, self.backends),
            (&mut maps.backend_events, self.backends),
            (&mut maps.backend_checks, self.backends),
            (&mut maps.affinity, self.affinity),
            (&mut maps.rings, self.ring_lines),
            (&mut maps.nexthops, self.nexthops),
        ];
        for (map, rows) in sizes {
            let name = map.name().to_string_lossy().into_owned();
            map.set_max_entries(rows)
                .with_context(|| format!("could not give the table {name} {rows} rows"))?;
        }
        Ok(())
    }
}
