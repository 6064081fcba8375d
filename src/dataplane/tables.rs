use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapInfo, OpenMapMut};
use plain::Plain;

use super::affinity::Affinity;
use super::connections::{Sweeper, Walked};
use super::counters;
use super::events::Events;
use super::history::{Checks, History};
use super::loads::Loads;
use super::mapped::Rows;
use super::retirement::{self, Retirement};
use super::skeleton::lb::{OpenXdpLbMaps, XdpLbMaps};
use super::types;

/// Of the rows' layout and meaning.
pub(super) const ABI: u32 = types::lb_constants::LB_ABI_VERSION.0;

macro_rules! for_each_map {
    ($each:ident) => {
        $each!(
            directory,
            services,
            service_states,
            rings,
            backends,
            backend_loads,
            backend_answers,
            backend_events,
            backend_checks,
            affinity,
            nexthops,
            unresolved,
            connections,
            neighbours,
            egresses,
            reason_counters,
            backend_counters,
            handshakes,
            history,
            watched,
            watch_scratch,
            data_watch,
            settings
        )
    };
}

macro_rules! names {
    ($($map:ident),*) => { [$(stringify!($map)),*] };
}

/// What the tables are called, and pinned under.
pub(super) const TABLE_NAMES: [&str; 23] = for_each_map!(names);

/// The tables that hold the configuration. Their rows name each other by index, so that one of them is never replaced alone.
pub(super) const CONFIGURATION: [&str; 9] = [
    "directory",
    "services",
    "service_states",
    "rings",
    "backends",
    "backend_counters",
    "backend_answers",
    "backend_events",
    "backend_checks",
];

/// What a map must be like to serve as one of our tables: type, size of keys, size of values, flags, rows.
pub(super) type Shape = (u32, u32, u32, u32, u32);

/// The shape of a map that is there.
pub(super) fn shape_of(map: &MapHandle) -> Result<Shape> {
    use std::os::fd::AsFd as _;
    let info = MapInfo::new(map.as_fd()).context("could not look at a table")?.info;
    Ok((info.type_, info.key_size, info.value_size, info.map_flags, info.max_entries))
}

/// The shapes of the tables of a program that is about to be loaded.
pub(super) fn shapes(maps: &OpenXdpLbMaps<'_>) -> BTreeMap<&'static str, Shape> {
    let shape = |map: &OpenMapMut<'_>| {
        (u32::from(map.map_type()), map.key_size(), map.value_size(), map.map_flags(), map.max_entries())
    };
    macro_rules! each {
        ($($map:ident),*) => { [$((stringify!($map), shape(&maps.$map))),*] };
    }
    BTreeMap::from(for_each_map!(each))
}

/// Every table of a loaded program.
pub struct Tables {
    pub(super) directory: MapHandle,
    /// Services by index.
    pub services: Rows<types::lb_service>,
    /// What packets write of a service.
    pub service_states: Rows<types::lb_service_state>,
    /// Lines of ring slots.
    pub rings: Rows<types::lb_ring_line>,
    /// (Service, backend) pairs by index.
    pub backends: Rows<types::lb_backend>,
    /// Live connections by backend index, where a scheduler asks for them.
    pub backend_loads: Rows<types::lb_backend_load>,
    /// By backend index: how many SYNs since its last SYN-ACK, and how many it refused.
    pub backend_answers: Rows<types::lb_backend_answers>,
    /// What became of the connections of each backend. Row 0 has those of backends that are gone.
    pub backend_events: Rows<types::lb_backend_events>,
    /// What checks of each backend found; row 0 as above.
    pub backend_checks: Rows<types::lb_backend_checks>,
    affinity: MapHandle,
    /// Next hops by index.
    pub nexthops: Rows<types::lb_nexthop>,
    /// Neighbours that packets met and the kernel did not know.
    pub unresolved: Rows<types::lb_unresolved>,
    /// The connection table.
    pub connections: Rows<types::lb_bucket>,
    pub(super) neighbours: MapHandle,
    pub(super) egresses: MapHandle,
    reason_counters: MapHandle,
    pub(super) backend_counters: MapHandle,
    /// When handshakes that are under way began.
    pub handshakes: Rows<types::lb_handshake>,
    /// What the control plane did.
    pub history: Rows<types::lb_history>,
    /// The ring of what is watched.
    pub(super) watched: MapHandle,
    watch_scratch: MapHandle,
    /// Who watches what.
    pub(super) data_watch: Rows<types::lb_watch>,
    settings: MapHandle,
}

impl Tables {
    /// The tables of a program just loaded.
    pub(super) fn of_loaded(maps: &XdpLbMaps<'_>) -> Result<Tables> {
        Self::from_handles(|name| {
            macro_rules! find {
                ($($map:ident),*) => { match name { $(stringify!($map) => MapHandle::try_from(&maps.$map),)*
                    _ => bail!("there is no map {name}") } };
            }
            for_each_map!(find).with_context(|| format!("could not take hold of the table {name}"))
        })
    }

    /// The tables that a running or a dead instance left in its pin directory.
    pub fn open(pin_dir: &Path) -> Result<Tables> {
        let tables = Self::from_handles(|name| {
            let path = pin_dir.join(name);
            MapHandle::from_pinned_path(&path)
                .with_context(|| format!("could not open the pinned table {}", path.display()))
        })?;
        let settings = tables.settings()?;
        ensure!(
            settings.abi == ABI,
            "the tables in {} are of version {}, this program's are of {ABI}: use the program that made them",
            pin_dir.display(),
            settings.abi
        );
        Ok(tables)
    }

    pub(super) fn from_handles(mut handle: impl FnMut(&str) -> Result<MapHandle>) -> Result<Tables> {
        Ok(Tables {
            directory: handle("directory")?,
            services: Rows::map(handle("services")?)?,
            service_states: Rows::map(handle("service_states")?)?,
            rings: Rows::map(handle("rings")?)?,
            backends: Rows::map(handle("backends")?)?,
            backend_loads: Rows::map(handle("backend_loads")?)?,
            backend_answers: Rows::map(handle("backend_answers")?)?,
            backend_events: Rows::map(handle("backend_events")?)?,
            backend_checks: Rows::map(handle("backend_checks")?)?,
            affinity: handle("affinity")?,
            nexthops: Rows::map(handle("nexthops")?)?,
            unresolved: Rows::map(handle("unresolved")?)?,
            connections: Rows::map(handle("connections")?)?,
            neighbours: handle("neighbours")?,
            egresses: handle("egresses")?,
            reason_counters: handle("reason_counters")?,
            backend_counters: handle("backend_counters")?,
            handshakes: Rows::map(handle("handshakes")?)?,
            history: Rows::map(handle("history")?)?,
            watched: handle("watched")?,
            watch_scratch: handle("watch_scratch")?,
            data_watch: Rows::map(handle("data_watch")?)?,
            settings: handle("settings")?,
        })
    }

    /// Every table with its name.
    pub(super) fn handles(&self) -> [(&'static str, &MapHandle); 23] {
        [
            ("directory", &self.directory),
            ("services", self.services.handle()),
            ("service_states", self.service_states.handle()),
            ("rings", self.rings.handle()),
            ("backends", self.backends.handle()),
            ("backend_loads", self.backend_loads.handle()),
            ("backend_answers", self.backend_answers.handle()),
            ("backend_events", self.backend_events.handle()),
            ("backend_checks", self.backend_checks.handle()),
            ("affinity", &self.affinity),
            ("nexthops", self.nexthops.handle()),
            ("unresolved", self.unresolved.handle()),
            ("connections", self.connections.handle()),
            ("neighbours", &self.neighbours),
            ("egresses", &self.egresses),
            ("reason_counters", &self.reason_counters),
            ("backend_counters", &self.backend_counters),
            ("handshakes", self.handshakes.handle()),
            ("history", self.history.handle()),
            ("watched", &self.watched),
            ("watch_scratch", &self.watch_scratch),
            ("data_watch", self.data_watch.handle()),
            ("settings", &self.settings),
        ]
    }

    /// Whether both have the configuration in the same maps.
    pub fn are_the_same(&self, other: &Tables) -> bool {
        use std::os::fd::AsFd as _;
        let id = |map: &MapHandle| MapInfo::new(map.as_fd()).map(|info| info.info.id).ok();
        let same = |a: &MapHandle, b: &MapHandle| id(a).is_some() && id(a) == id(b);
        same(self.services.handle(), other.services.handle())
            && same(self.backends.handle(), other.backends.handle())
    }

    /// What the program was loaded with.
    pub fn settings(&self) -> Result<types::lb_settings> {
        read_settings(&self.settings)
    }

    pub(super) fn write_settings(&self, settings: &types::lb_settings) -> Result<()> {
        // SAFETY is `plain`'s: settings has no padding.
        self.settings
            .update(&0u32.to_ne_bytes(), as_bytes(settings), MapFlags::ANY)
            .context("could not write the table settings")
    }

    /// A walk over the connections that goes by the services' own timeouts. `now` is the time by the table's clock.
    pub fn sweeper(&self, settings: types::lb_settings, now: u16) -> Sweeper<'_> {
        Sweeper::new(self.walked(), settings, now).with_services(&self.services)
    }

    /// What a walk over the connections meets.
    pub fn walked(&self) -> Walked<'_> {
        Walked {
            connections: &self.connections,
            backends: &self.backends,
            loads: self.loads(),
            events: self.events(),
            nexthops: &self.nexthops,
        }
    }

    /// What became of connections, to be counted.
    pub fn events(&self) -> Events<'_> {
        Events(&self.backend_events)
    }

    /// What checks found, to be counted.
    pub fn checks(&self) -> Checks<'_> {
        Checks(&self.backend_checks)
    }

    /// What the control plane did, to be counted.
    pub fn past(&self) -> History<'_> {
        History(&self.history)
    }

    /// The loads that least connections go by.
    pub fn loads(&self) -> Loads<'_> {
        Loads(&self.backend_loads)
    }

    /// Which backend each client of a sticky service is to come back to.
    pub fn affinity(&self) -> Affinity<'_> {
        Affinity(&self.affinity)
    }

    /// All of them, for another copy of the program.
    pub(super) fn shared(&self) -> Result<BTreeMap<&'static str, MapHandle>> {
        let share = |(name, map): (&'static str, &MapHandle)| {
            let map = MapHandle::try_from(map)
                .with_context(|| format!("could not take hold of the table {name}"))?;
            Ok((name, map))
        };
        self.handles().into_iter().map(share).collect()
    }

    /// Adds what a backend's row counted to row 0, so that the row can count for another backend from 0.
    pub(super) fn retire_backend(&self, index: u16) -> Result<()> {
        let retirement = Retirement {
            counters: &self.backend_counters,
            events: &self.backend_events,
            checks: &self.backend_checks,
            history: &self.history,
        };
        retirement.retire(index)
    }

    /// How often rows were given back, whoever did it; `None` while one is: what is read meanwhile may be there twice.
    pub fn retirements(&self) -> Option<u64> {
        retirement::retirements(&self.history)
    }

    /// Packets and bytes that met a reason, over all CPUs.
    pub fn reason_counter(&self, code: u32) -> Result<Counter> {
        let rows: Vec<types::lb_counter> = per_cpu(&self.reason_counters, code)?;
        Ok(rows.iter().map(Counter::from).sum())
    }

    /// A backend's counters, over all CPUs.
    pub fn backend_counters(&self, index: u16) -> Result<types::lb_backend_counters> {
        let rows: Vec<types::lb_backend_counters> = per_cpu(&self.backend_counters, u32::from(index))?;
        let counted = rows.iter().copied().fold(types::lb_backend_counters::default(), counters::sum);
        Ok(counters::sum(counted, self.events().carried(index)))
    }

    /// The counters of all backends, by index, over all CPUs.
    pub fn all_backend_counters(&self) -> Result<Vec<types::lb_backend_counters>> {
        let counted = counters::of_all_backends(&self.backend_counters)?;
        let rows = counted.into_iter().enumerate();
        Ok(rows.map(|(index, row)| counters::sum(row, self.events().carried(index as u16))).collect())
    }
}

/// What is in a table of settings. One of another version may be shorter or longer: what is missing is 0.
pub(super) fn read_settings(settings: &MapHandle) -> Result<types::lb_settings> {
    let mut value = settings
        .lookup(&0u32.to_ne_bytes(), MapFlags::ANY)
        .context("could not read the table settings")?
        .context("the table settings is empty")?;
    value.resize(size_of::<types::lb_settings>(), 0);
    from_bytes(&value)
}

/// Packets and the bytes of their whole frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of whole frames, from the Ethernet header on.
    pub bytes: u64,
}

impl From<&types::lb_counter> for Counter {
    fn from(row: &types::lb_counter) -> Counter {
        Counter { packets: row.packets, bytes: row.bytes }
    }
}

impl std::iter::Sum for Counter {
    fn sum<I: Iterator<Item = Counter>>(counters: I) -> Counter {
        counters.fold(Counter::default(), |a, b| Counter {
            packets: a.packets + b.packets,
            bytes: a.bytes + b.bytes,
        })
    }
}

fn per_cpu<T: Plain + Copy + Default>(map: &MapHandle, index: u32) -> Result<Vec<T>> {
    let name = map.name().to_string_lossy().into_owned();
    map.lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)
        .with_context(|| format!("could not read row {index} of the table {name}"))?
        .with_context(|| format!("the table {name} has no row {index}"))?
        .iter()
        .map(|value| from_bytes(value))
        .collect()
}

/// A row from its bytes, wherever they lie.
pub(super) fn from_bytes<T: Plain + Copy + Default>(bytes: &[u8]) -> Result<T> {
    let mut row = T::default();
    plain::copy_from_bytes(&mut row, bytes).map_err(|error| {
        anyhow::anyhow!("a row of {} bytes is not what was expected: {error:?}", bytes.len())
    })?;
    Ok(row)
}

/// A row as its bytes.
#[allow(unsafe_code)] // the one view of a row as bytes
pub(super) fn as_bytes<T: Plain>(row: &T) -> &[u8] {
    // SAFETY: rows are C structs without hidden padding (see skeleton.rs).
    unsafe { plain::as_bytes(row) }
}

/// Makes a program that is about to be loaded use maps that are there.
pub(super) fn reuse(maps: &mut OpenXdpLbMaps<'_>, there: &BTreeMap<&'static str, MapHandle>) -> Result<()> {
    use std::os::fd::AsFd as _;
    macro_rules! each {
        ($($map:ident),*) => { [$((stringify!($map), &mut maps.$map)),*] };
    }
    for (name, map) in for_each_map!(each) {
        if let Some(handle) = there.get(name) {
            map.reuse_fd(handle.as_fd()).with_context(|| format!("could not share the table {name}"))?;
        }
    }
    Ok(())
}
