use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags};

use super::tables::{Tables, as_bytes};
use super::types::{lb_neighbour_key, lb_nexthop, lb_nexthop_flags};

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

/// Which index each next hop has. A row that packets may refer to is never rewritten: what changed gets a new row, and the
/// old one is made invalid, which sends its connections to the FIB for their new one.
#[derive(Default)]
pub struct NextHops {
    rows: HashMap<NextHop, u16>,
    by_neighbour: HashMap<(u32, [u8; 6]), NextHop>,
    used: u16,
}

/// Rows that neighbours in general leave to the backends: nobody on a segment can use up all by inventing neighbours.
const KEPT_FOR_BACKENDS: u16 = 8192;

impl NextHops {
    /// As [`NextHops::index`], for a neighbour that may be a client's next hop.
    pub fn index_of_neighbour(&mut self, tables: &Tables, hop: NextHop) -> Result<Option<u16>> {
        if self.used >= u16::MAX - KEPT_FOR_BACKENDS && !self.rows.contains_key(&hop) {
            return Ok(None);
        }
        self.index(tables, hop)
    }

    /// The index of a next hop; makes a row for a new one. `None` once all rows were used: the kernel's FIB and stack
    /// take what has no row.
    pub fn index(&mut self, tables: &Tables, hop: NextHop) -> Result<Option<u16>> {
        if let Some(index) = self.rows.get(&hop) {
            return Ok(Some(*index));
        }
        let Some(index) = self.used.checked_add(1) else { return Ok(None) };
        self.used = index;
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&hop.neighbour.unwrap_or_default());
        macs[6..].copy_from_slice(&hop.source);
        let flags = hop.neighbour.map_or(0, |_| lb_nexthop_flags::LB_NEXTHOP_VALID.0 as u8);
        let mtu = u16::try_from(hop.mtu).unwrap_or(u16::MAX);
        tables.nexthops.set(
            usize::from(index),
            lb_nexthop { ifindex: hop.ifindex, mtu, flags, macs, ..Default::default() },
        )?;
        self.rows.insert(hop, index);
        if let Some(mac) = hop.neighbour {
            tables
                .neighbours
                .update(as_bytes(&key(hop.ifindex, mac)), &u32::from(index).to_ne_bytes(), MapFlags::ANY)
                .with_context(|| format!("could not note next hop {index} in the table neighbours"))?;
            if let Some(old) = self.by_neighbour.insert((hop.ifindex, mac), hop) {
                self.invalidate(tables, old)?;
            }
        }
        Ok(Some(index))
    }

    /// Makes a neighbour's row invalid, because nobody has its MAC any more.
    pub fn retire(&mut self, tables: &Tables, ifindex: u32, mac: [u8; 6]) -> Result<()> {
        let Some(hop) = self.by_neighbour.remove(&(ifindex, mac)) else { return Ok(()) };
        tables
            .neighbours
            .delete(as_bytes(&key(ifindex, mac)))
            .context("could not remove a next hop from the table neighbours")?;
        self.invalidate(tables, hop)
    }

    fn invalidate(&mut self, tables: &Tables, hop: NextHop) -> Result<()> {
        let Some(index) = self.rows.remove(&hop) else { return Ok(()) };
        tables
            .nexthops
            .byte(usize::from(index), offset_of!(lb_nexthop, flags))
            .with_context(|| format!("there is no next hop {index}"))?
            .store(0, Ordering::Release);
        Ok(())
    }
}

fn key(ifindex: u32, mac: [u8; 6]) -> lb_neighbour_key {
    lb_neighbour_key { ifindex, mac, reserved: 0 }
}
