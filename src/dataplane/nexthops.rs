//! Next hops: which row each has, and when a row may be used again.

use std::collections::{HashMap, HashSet};
use std::mem::offset_of;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::tables::{Tables, as_bytes, from_bytes};
use super::types::{lb_egress, lb_neighbour_key, lb_nexthop, lb_nexthop_flags as bits};

/// A neighbour that frames can be sent to, or the interface that faces one which is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The interface that faces it.
    pub ifindex: u32,
    /// The largest IP packet that the interface takes, in bytes.
    pub mtu: u32,
    /// The interface's MAC.
    pub source: [u8; 6],
    /// The neighbour's MAC, if it is known.
    pub neighbour: Option<[u8; 6]>,
}

/// In which ways a program in native mode can send by an interface; what it cannot send the kernel delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Egress {
    /// Frames redirected to it arrive.
    pub redirect: bool,
    /// Frames that came in by it arrive when they are sent back out of it (`XDP_TX`).
    pub tx: bool,
}

impl Egress {
    /// Everything is sent by XDP.
    pub const DIRECT: Egress = Egress { redirect: true, tx: true };
    /// Everything is left to the kernel: what is assumed of an interface of which nothing is known.
    pub const STACK: Egress = Egress { redirect: false, tx: false };

    fn of_flags(flags: u32) -> Egress {
        Egress {
            redirect: flags & bits::LB_NEXTHOP_NO_REDIRECT.0 == 0,
            tx: flags & bits::LB_NEXTHOP_NO_TX.0 == 0,
        }
    }

    fn flags(self) -> u32 {
        let redirect = if self.redirect { 0 } else { bits::LB_NEXTHOP_NO_REDIRECT.0 };
        redirect | if self.tx { 0 } else { bits::LB_NEXTHOP_NO_TX.0 }
    }
}

/// Which row each next hop has. A row that packets may refer to is never rewritten: what changed gets a new row, and the
/// old one is made invalid, which sends its connections to the FIB for their new one. It is used again when a sweep has found
/// no entry that names it.
///
/// Those of backends and those of neighbours in general, which are the clients' next hops, have rows of their own: when a
/// route changes all clients' rows are renewed, while what goes to the backends never stops.
#[derive(Default)]
pub struct NextHops {
    backends: HashMap<NextHop, u16>,
    clients: HashMap<(u32, [u8; 6]), (NextHop, u16)>,
    egresses: HashMap<u32, Egress>,
    /// The highest row that was ever used.
    used: u16,
    free: Vec<u16>,
    retired: Vec<Retired>,
}

struct Retired {
    index: u16,
    at: Instant,
}

/// The rows that entries of the connection table name, as a sweep found them.
#[derive(Clone, Debug)]
pub struct NamedRows {
    named: Vec<bool>,
    /// A client that is reached by each row, as it stands in a live entry's key; 0: there is none.
    clients: Vec<u32>,
    /// When the sweep began.
    since: Instant,
}

impl NamedRows {
    /// None yet.
    pub fn new() -> NamedRows {
        const ROWS: usize = u16::MAX as usize + 1;
        NamedRows { named: vec![false; ROWS], clients: vec![0; ROWS], since: Instant::now() }
    }

    /// An entry names this row; its key, if it is live.
    pub fn note(&mut self, index: u16, live: Option<u64>) {
        let index = usize::from(index);
        self.named[index] = true;
        self.clients[index] = live.map_or(self.clients[index], |key| key as u32);
    }

    fn names(&self, index: u16) -> bool {
        self.named[usize::from(index)]
    }

    fn client(&self, index: u16) -> Option<Ipv4Addr> {
        let client = self.clients[usize::from(index)];
        (client != 0).then(|| Ipv4Addr::from(client.to_ne_bytes()))
    }
}

impl Default for NamedRows {
    fn default() -> Self {
        Self::new()
    }
}

/// Rows that neighbours in general leave to the backends: nobody on a segment can use up all by inventing neighbours.
const KEPT_FOR_BACKENDS: usize = 8192;
/// How long a packet may still carry the number of a row that it looked up before the row was retired: far longer than any
/// program runs.
const GRACE: Duration = Duration::from_secs(1);

impl NextHops {
    /// The rows of tables that are in use, as another instance wrote them. Rows that neither a backend nor the table of
    /// neighbours names are retired, and made invalid by [`NextHops::retire_orphans`]: connections that name one ask for their way once more.
    pub fn adopt(tables: &Tables) -> Result<NextHops> {
        let mut adopted = NextHops::default();
        for key in tables.egresses.keys() {
            let row: lb_egress = read(&tables.egresses, &key)?;
            let ifindex = key.as_slice().try_into().context("a key of the table egresses")?;
            adopted.egresses.insert(u32::from_ne_bytes(ifindex), Egress::of_flags(row.flags));
        }
        let valid = |index: u16| {
            let row = tables.nexthops.get(usize::from(index))?;
            (u32::from(row.flags) & bits::LB_NEXTHOP_VALID.0 != 0).then(|| hop_of(&row))
        };
        for key in tables.neighbours.keys() {
            let name: lb_neighbour_key = from_bytes(&key)?;
            let index: [u8; 4] = look_up(&tables.neighbours, &key)?
                .as_slice()
                .try_into()
                .context("a row of the table neighbours")?;
            let index = u32::from_ne_bytes(index) as u16;
            if let Some(hop) = valid(index) {
                adopted.clients.insert((name.ifindex, name.mac), (hop, index));
            }
        }
        let clients: HashSet<u16> = adopted.clients.values().map(|(_, index)| *index).collect();
        for row in (1..tables.backends.len()).filter_map(|index| tables.backends.get(index)) {
            let hop = valid(row.nexthop).filter(|_| row.nexthop != 0 && !clients.contains(&row.nexthop));
            if let Some(hop) = hop {
                adopted.backends.entry(hop).or_insert(row.nexthop);
            }
        }
        adopted.sort_rows(tables)
    }

    /// Finds out which of the rows are free, and which are to be retired.
    fn sort_rows(mut self, tables: &Tables) -> Result<NextHops> {
        let named: HashSet<u16> =
            self.clients.values().map(|(_, index)| *index).chain(self.backends.values().copied()).collect();
        let is_written =
            |index: u16| tables.nexthops.get(usize::from(index)).is_some_and(|row| row.ifindex != 0);
        self.used = (1..=u16::MAX).rev().find(|index| is_written(*index)).unwrap_or(0);
        for index in (1..=self.used).filter(|index| !named.contains(index)) {
            if is_written(index) {
                self.retired.push(Retired { index, at: Instant::now() });
            } else {
                self.free.push(index);
            }
        }
        Ok(self)
    }

    /// What a row says, if it is in use.
    pub fn of_row(&self, index: u16) -> Option<NextHop> {
        let backends = self.backends.iter().map(|(hop, index)| (*hop, *index));
        backends.chain(self.clients.values().copied()).find(|(_, row)| *row == index).map(|(hop, _)| hop)
    }

    /// The row of a backend's next hop; makes one where there is none. `None` if no row is free.
    pub fn of_backend(&mut self, tables: &Tables, hop: NextHop) -> Result<Option<u16>> {
        if let Some(index) = self.backends.get(&hop) {
            return Ok(Some(*index));
        }
        let Some(index) = self.take() else { return Ok(None) };
        self.write(tables, index, hop)?;
        self.backends.insert(hop, index);
        Ok(Some(index))
    }

    /// The row of a neighbour that may be a client's next hop. `None` where it has none because only those kept for
    /// backends are left: the kernel's FIB knows the way to it.
    pub fn of_neighbour(&mut self, tables: &Tables, hop: NextHop) -> Result<Option<u16>> {
        let Some(mac) = hop.neighbour else { return Ok(None) };
        let old = self.clients.get(&(hop.ifindex, mac)).copied();
        if let Some((_, index)) = old.filter(|(known, _)| *known == hop) {
            return Ok(Some(index));
        }
        let Some(index) = self.take_for_neighbour() else { return Ok(None) };
        self.write(tables, index, hop)?;
        self.name(tables, hop.ifindex, mac, index)?;
        self.clients.insert((hop.ifindex, mac), (hop, index));
        if let Some((_, old)) = old {
            self.retire(tables, old)?;
        }
        Ok(Some(index))
    }

    /// A neighbour's MAC that nobody has any more.
    pub fn forget_neighbour(&mut self, tables: &Tables, ifindex: u32, mac: [u8; 6]) -> Result<()> {
        let Some((_, index)) = self.clients.remove(&(ifindex, mac)) else { return Ok(()) };
        tables
            .neighbours
            .delete(as_bytes(&key(ifindex, mac)))
            .context("could not remove a next hop from the table neighbours")?;
        self.retire(tables, index)
    }

    /// Every (interface index, MAC) of a neighbour that has a row.
    pub fn neighbours(&self) -> impl Iterator<Item = (u32, [u8; 6])> {
        self.clients.keys().copied()
    }

    /// Those of them that live connections are sent to, each with one of its clients.
    pub fn in_use(&self, named: &NamedRows) -> impl Iterator<Item = ((u32, [u8; 6]), Ipv4Addr)> {
        self.clients.iter().filter_map(|(station, (_, index))| Some((*station, named.client(*index)?)))
    }

    /// Gives each of these neighbours another row, so that its connections ask the FIB for their way once more: the routes
    /// have changed. They must be such as the kernel would send to. Ok(false): not enough rows are free now; try again after
    /// a sweep.
    pub fn renew_neighbours(&mut self, tables: &Tables, alive: &HashSet<(u32, [u8; 6])>) -> Result<bool> {
        let known = self.clients.iter().filter(|(key, _)| alive.contains(key));
        let known: Vec<_> = known.map(|(key, known)| (*key, *known)).collect();
        if self.room() < known.len() + KEPT_FOR_BACKENDS {
            return Ok(false);
        }
        for ((ifindex, mac), (hop, old)) in known {
            let Some(index) = self.take() else { return Ok(false) };
            self.write(tables, index, hop)?;
            self.name(tables, ifindex, mac, index)?;
            self.clients.insert((ifindex, mac), (hop, index));
            self.retire(tables, old)?;
        }
        Ok(true)
    }

    /// Retires the rows of backends' next hops that no backend has any more, `used` being those that one has.
    pub fn keep_backends(&mut self, tables: &Tables, used: &HashSet<u16>) -> Result<()> {
        let unused: Vec<(NextHop, u16)> = self
            .backends
            .iter()
            .map(|(hop, index)| (*hop, *index))
            .filter(|(_, i)| !used.contains(i))
            .collect();
        for (hop, index) in unused {
            self.backends.remove(&hop);
            self.retire(tables, index)?;
        }
        Ok(())
    }

    /// Makes the rows invalid that [`NextHops::adopt`] found nobody to keep up to date, once the tables are this instance's.
    pub fn retire_orphans(&self, tables: &Tables) -> Result<()> {
        self.retired.iter().try_for_each(|old| self.store_flags(tables, old.index, 0))
    }

    /// How frames leave by an interface from now on, those to next hops that have a row already too; `None` for an
    /// interface that is gone.
    pub fn set_egress(&mut self, tables: &Tables, ifindex: u32, egress: Option<Egress>) -> Result<()> {
        let name = ifindex.to_ne_bytes();
        let Some(egress) = egress else {
            if self.egresses.remove(&ifindex).is_some() {
                tables
                    .egresses
                    .delete(&name)
                    .context("could not remove an interface from the table egresses")?;
            }
            return Ok(());
        };
        if self.egresses.insert(ifindex, egress) == Some(egress) {
            return Ok(());
        }
        tables
            .egresses
            .update(&name, as_bytes(&lb_egress { flags: egress.flags() }), MapFlags::ANY)
            .context("could not note an interface in the table egresses")?;
        let rows =
            self.backends.iter().map(|(hop, index)| (*hop, *index)).chain(self.clients.values().copied());
        for (hop, index) in rows.filter(|(hop, _)| hop.ifindex == ifindex) {
            self.store_flags(tables, index, self.flags_of(hop))?;
        }
        Ok(())
    }

    /// The interfaces of which it is known how frames leave by them.
    pub fn egresses(&self) -> impl Iterator<Item = u32> {
        self.egresses.keys().copied()
    }

    /// After a sweep: frees the retired rows that no entry names, and retires those of neighbours that the kernel has
    /// forgotten (`alive` are those it knows) and no entry names.
    pub fn collect(
        &mut self,
        tables: &Tables,
        named: &NamedRows,
        alive: &HashSet<(u32, [u8; 6])>,
    ) -> Result<()> {
        let is_free = |old: &Retired| named.since.duration_since(old.at) >= GRACE && !named.names(old.index);
        let (free, retired) = std::mem::take(&mut self.retired).into_iter().partition(is_free);
        self.retired = retired;
        self.free.extend(<Vec<Retired>>::into_iter(free).map(|old| old.index));
        let forgotten: Vec<_> = self
            .clients
            .iter()
            .filter(|(key, (_, index))| !alive.contains(key) && !named.names(*index))
            .map(|(key, _)| *key)
            .collect();
        forgotten.into_iter().try_for_each(|(ifindex, mac)| self.forget_neighbour(tables, ifindex, mac))
    }

    fn take(&mut self) -> Option<u16> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        self.used = self.used.checked_add(1)?;
        Some(self.used)
    }

    fn take_for_neighbour(&mut self) -> Option<u16> {
        if self.room() > KEPT_FOR_BACKENDS { self.take() } else { None }
    }

    /// How many rows could be taken now.
    fn room(&self) -> usize {
        self.free.len() + usize::from(u16::MAX - self.used)
    }

    fn flags_of(&self, hop: NextHop) -> u8 {
        let valid = hop.neighbour.map_or(0, |_| bits::LB_NEXTHOP_VALID.0);
        (valid | self.egresses.get(&hop.ifindex).copied().unwrap_or(Egress::STACK).flags()) as u8
    }

    /// Writes a row that nothing refers to yet.
    fn write(&self, tables: &Tables, index: u16, hop: NextHop) -> Result<()> {
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&hop.neighbour.unwrap_or_default());
        macs[6..].copy_from_slice(&hop.source);
        let mtu = u16::try_from(hop.mtu).unwrap_or(u16::MAX);
        let flags = self.flags_of(hop);
        tables.nexthops.set(
            usize::from(index),
            lb_nexthop { ifindex: hop.ifindex, mtu, flags, macs, ..Default::default() },
        )
    }

    /// Makes new connections find a neighbour's row.
    fn name(&self, tables: &Tables, ifindex: u32, mac: [u8; 6], index: u16) -> Result<()> {
        tables
            .neighbours
            .update(as_bytes(&key(ifindex, mac)), &u32::from(index).to_ne_bytes(), MapFlags::ANY)
            .with_context(|| format!("could not note next hop {index} in the table neighbours"))
    }

    fn retire(&mut self, tables: &Tables, index: u16) -> Result<()> {
        self.store_flags(tables, index, 0)?;
        self.retired.push(Retired { index, at: Instant::now() });
        Ok(())
    }

    fn store_flags(&self, tables: &Tables, index: u16, flags: u8) -> Result<()> {
        tables
            .nexthops
            .byte(usize::from(index), offset_of!(lb_nexthop, flags))
            .with_context(|| format!("there is no next hop {index}"))?
            .store(flags, Ordering::Release);
        Ok(())
    }
}

fn look_up(map: &MapHandle, key: &[u8]) -> Result<Vec<u8>> {
    let name = map.name().to_string_lossy().into_owned();
    map.lookup(key, MapFlags::ANY)
        .with_context(|| format!("could not read the table {name}"))?
        .with_context(|| format!("a row of the table {name} is gone"))
}

fn read<T: plain::Plain + Copy + Default>(map: &MapHandle, key: &[u8]) -> Result<T> {
    from_bytes(&look_up(map, key)?)
}

fn hop_of(row: &lb_nexthop) -> NextHop {
    let part = |at: usize| {
        let mut mac = [0; 6];
        mac.copy_from_slice(&row.macs[at..at + 6]);
        mac
    };
    let neighbour = Some(part(0)).filter(|mac| *mac != [0; 6]);
    NextHop { ifindex: row.ifindex, mtu: row.mtu.into(), source: part(6), neighbour }
}

fn key(ifindex: u32, mac: [u8; 6]) -> lb_neighbour_key {
    lb_neighbour_key { ifindex, mac, reserved: 0 }
}
