#![allow(unsafe_code)] // libbpf-rs tells of programs only by walking over all there are

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use libbpf_rs::{ErrorKind, MapCore as _, MapHandle, MapInfo};

use super::attach::{Attachment, open_pin};
use super::load::Profile;
use super::mapped::Rows;
use super::pin::{LINK_PREFIX, PROGRAM_PREFIX, PinDir};
use super::tables::{ABI, TABLE_NAMES, read_settings};
use super::types::{lb_bucket, lb_phase, lb_settings};
use super::usage::{SLOTS, entry, slot};

/// How much of a map's name the kernel keeps.
const NAME_LENGTH: usize = 15;

/// Without these nothing of an instance can be taken over; what else is missing is made anew.
const NEEDED: [&str; 8] =
    ["directory", "services", "service_states", "rings", "backends", "nexthops", "connections", "settings"];

/// Tables that no packet needs, so that programs do not name them.
const NOT_THE_PROGRAMS: [&str; 3] = ["settings", "backend_checks", "history"];

/// What an instance that died left: links that still run its program, and the tables that this uses.
///
/// The attached program is the truth. Pins only give names to what it uses: after a crash in the middle of a start they may
/// be of two minds.
pub struct Left {
    pub(super) links: Vec<LeftLink>,
    /// One for each set of tables that a program uses, the newest program's first.
    pub(super) sets: Vec<TableSet>,
}

/// A link that still runs a program.
pub(super) struct LeftLink {
    pub attachment: Attachment,
    pub pin: PathBuf,
    /// The program that it runs.
    pub program: OwnedFd,
    /// What is to take its place.
    pub wanted: Option<Profile>,
}

/// The tables of one program, by name.
pub(super) struct TableSet {
    pub maps: BTreeMap<&'static str, MapHandle>,
    pub settings: lb_settings,
    /// By the kernel's ids.
    ids: BTreeMap<&'static str, u32>,
}

impl Left {
    /// Looks through a locked pin directory. `None` if nothing in it can be taken over: it is empty, or what a start left
    /// that was killed before it attached anything.
    pub fn find(pins: &PinDir) -> Result<Option<Left>> {
        let names = pins.pins()?;
        let pinned = Pinned::open(pins, &names)?;
        let mut links = Vec::new();
        let mut sets: Vec<(u64, u32, TableSet)> = Vec::new();
        for name in names.iter().filter(|name| name.starts_with(LINK_PREFIX)) {
            let pin = pins.path().join(name);
            let Some((attachment, id)) = Attachment::open(&pin)? else { continue };
            let program = pinned.program(id)?;
            if !sets.iter().any(|(_, known, _)| *known == id) {
                let (load_time, maps) = maps_of(program.as_fd())?;
                sets.push((load_time, id, TableSet::new(pinned.maps(&maps)?, &pinned)?));
            }
            links.push(LeftLink { attachment, pin, program, wanted: None });
        }
        // Copies of a program on the same tables count once.
        sets.sort_by_key(|(load_time, id, _)| std::cmp::Reverse((*load_time, *id)));
        let mut sets: Vec<TableSet> = sets.into_iter().map(|(.., set)| set).collect();
        let mut seen = Vec::new();
        sets.retain(|set| {
            !seen.contains(&set.ids) && {
                seen.push(set.ids.clone());
                true
            }
        });
        if links.is_empty() {
            // All interfaces are gone, or the start was killed between pinning and attaching: the tables may still be whole.
            let set = TableSet::new(pinned.tables, &Pinned::default())?;
            match set.is_usable() {
                true => sets.push(set),
                false => return Ok(None),
            }
        }
        Ok(Some(Left { links, sets }))
    }

    /// Whether a program still runs somewhere.
    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// The version of the tables that are in use.
    pub(super) fn abi(&self) -> u32 {
        self.sets.first().map_or(0, |set| set.settings.abi)
    }
}

impl TableSet {
    /// Tables that the program does not name are those pinned beside it.
    fn new(mut maps: HashMap<&'static str, MapHandle>, pinned: &Pinned) -> Result<TableSet> {
        for name in NOT_THE_PROGRAMS {
            if let (false, Some(map)) = (maps.contains_key(name), pinned.tables.get(name)) {
                let map = MapHandle::try_from(map);
                maps.insert(name, map.with_context(|| format!("could not take hold of the table {name}"))?);
            }
        }
        let settings = maps.get("settings").map(read_settings).transpose()?.unwrap_or_default();
        let maps: BTreeMap<_, _> = maps.into_iter().collect();
        let mut ids = BTreeMap::new();
        for (name, map) in &maps {
            ids.insert(*name, id_of(map)?);
        }
        Ok(TableSet { maps, settings, ids })
    }

    /// Whether this version knows what is in the tables, and all that it needs is there.
    pub fn is_usable(&self) -> bool {
        let rows = |name: &str| self.maps.get(name).map_or(0, MapHandle::max_entries);
        (1..=ABI).contains(&self.settings.abi)
            && NEEDED.iter().all(|name| self.maps.contains_key(name))
            // Pins of two programs' tables would not fit together.
            && self.settings.buckets == rows("connections")
            && self.settings.service_buckets == 2 * rows("services")
            && self.settings.origins == 2 * rows("backends")
    }

    /// The kernel's id of a table; 0 for one that is not there.
    pub fn id(&self, name: &str) -> u32 {
        self.ids.get(name).copied().unwrap_or(0)
    }

    /// How many confirmed connections there are, as far as this version can tell.
    pub fn confirmed(&self) -> u64 {
        let copy = self.maps.get("connections").and_then(|map| MapHandle::try_from(map).ok());
        let Some(rows) = copy.and_then(|map| Rows::<lb_bucket>::map(map).ok()) else { return 0 };
        let confirmed = |bucket, at| {
            slot(&rows, bucket, at).and_then(|(key, state)| entry(key, state)).is_some_and(|(_, state)| {
                let phase = state.phase().0;
                (lb_phase::LB_PHASE_ESTABLISHED.0..lb_phase::LB_PHASE_CLOSED.0).contains(&phase)
                    && !state.expired()
            })
        };
        (0..rows.len()).map(|bucket| (0..SLOTS).filter(|at| confirmed(bucket, *at)).count() as u64).sum()
    }
}

/// What the directory holds besides links.
#[derive(Default)]
struct Pinned {
    tables: HashMap<&'static str, MapHandle>,
    programs: HashMap<u32, OwnedFd>,
}

impl Pinned {
    fn open(pins: &PinDir, names: &[String]) -> Result<Pinned> {
        let mut pinned = Pinned::default();
        for name in names {
            let path = pins.path().join(name);
            let opening = || format!("could not open the pin {}", path.display());
            if name.starts_with(PROGRAM_PREFIX) {
                let program = open_pin(&path).with_context(opening)?;
                pinned.programs.insert(program_info(program.as_fd(), &mut [])?.id, program);
            } else if let Some(table) = TABLE_NAMES.iter().find(|table| *table == name) {
                pinned.tables.insert(table, MapHandle::from_pinned_path(&path).with_context(opening)?);
            }
        }
        Ok(pinned)
    }

    /// A program, by its pin if it has one: only root may ask for any other.
    fn program(&self, id: u32) -> Result<OwnedFd> {
        let found = match self.programs.get(&id) {
            Some(program) => program.try_clone(),
            // SAFETY: no pointers.
            None => match unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) } {
                // SAFETY: a new descriptor that nobody else owns.
                fd if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
                error => Err(io::Error::from_raw_os_error(-error)),
            },
        };
        found.with_context(|| format!("could not take hold of the attached program (id {id})"))
    }

    /// Those of the maps with these ids that are our tables.
    fn maps(&self, ids: &[u32]) -> Result<HashMap<&'static str, MapHandle>> {
        let mut found = HashMap::new();
        for id in ids {
            let pin = self.tables.values().find(|map| id_of(map).is_ok_and(|pinned| pinned == *id));
            let map = match pin {
                Some(map) => MapHandle::try_from(map),
                // Without CAP_SYS_ADMIN pins must do: the program's own data have none, and are no tables.
                None => match MapHandle::from_map_id(*id) {
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => continue,
                    map => map,
                },
            };
            let map =
                map.with_context(|| format!("could not take hold of the attached program's map {id}"))?;
            // A section of the program's data is pinned without the dots of its name.
            let kernels = map.name().to_string_lossy().trim_start_matches('.').replace('.', "_");
            let cut = |name: &str| name.get(..NAME_LENGTH).unwrap_or(name).to_owned();
            if let Some(name) = TABLE_NAMES.iter().find(|name| cut(name) == cut(&kernels)) {
                found.insert(*name, map);
            }
        }
        Ok(found)
    }
}

fn id_of(map: &MapHandle) -> Result<u32> {
    Ok(MapInfo::new(map.as_fd()).context("could not look at a table")?.info.id)
}

/// When a program was loaded, and the ids of its maps.
fn maps_of(program: BorrowedFd<'_>) -> Result<(u64, Vec<u32>)> {
    let count = program_info(program, &mut [])?.nr_map_ids;
    let mut ids = vec![0; count as usize];
    let info = program_info(program, &mut ids)?;
    Ok((info.load_time, ids))
}

fn program_info(program: BorrowedFd<'_>, maps: &mut [u32]) -> Result<libbpf_sys::bpf_prog_info> {
    let mut info = libbpf_sys::bpf_prog_info {
        nr_map_ids: maps.len() as u32,
        map_ids: maps.as_mut_ptr() as u64,
        ..Default::default()
    };
    let mut length = size_of_val(&info) as u32;
    // SAFETY: a live descriptor; `info` of this length and, within it, room for so many ids outlive the call.
    let result =
        unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut length) };
    match result {
        0 => Ok(info),
        error => Err(io::Error::from_raw_os_error(-error)).context("could not look at a program"),
    }
}
