use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};

use super::ledger::{Ledger, Vip};
use crate::config::Config;
use crate::net::{Link, Netlink, announce};

const HOST_PREFIX: u8 = 32;

/// The VIPs that this instance put on its interface; the ledger remembers them.
pub struct AssignedVips {
    netlink: Netlink,
    link: Link,
    /// Those that are to be there by us.
    added: Vec<Ipv4Addr>,
    /// A second announcement is still to come, as RFC 5227 asks for.
    announce_again: bool,
}

impl AssignedVips {
    /// None on an interface.
    pub fn on(link: &Link) -> Result<AssignedVips> {
        let netlink = Netlink::open()?;
        Ok(AssignedVips { netlink, link: link.clone(), added: Vec::new(), announce_again: false })
    }

    /// The interface that has them.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// With --assign-vip, adds each VIP that is not there yet and announces all by gratuitous ARP.
    pub fn assign(config: &Config, link: &Link, ledger: &mut Ledger) -> Result<AssignedVips> {
        let mut vips = AssignedVips::on(link)?;
        if !config.assign_vip {
            return Ok(vips);
        }
        for vip in vips_of(config) {
            if vips.add(vip, ledger)? {
                vips.added.push(vip);
            } else {
                tracing::info!("the VIP {vip} is on {} already and stays there", vips.link.name);
            }
        }
        vips.announce_again = true;
        vips.announce(config);
        Ok(vips)
    }

    /// Ok(false): it is there by somebody else.
    fn add(&mut self, vip: Ipv4Addr, ledger: &mut Ledger) -> Result<bool> {
        let Link { name, index, .. } = &self.link;
        let noted_now = ledger.add_vip(name, vip)?;
        let added = self
            .netlink
            .add_address(*index, vip, HOST_PREFIX)
            .with_context(|| format!("could not add the VIP {vip} to {name}"));
        let ours = match added {
            Ok(added) => added || !noted_now,
            Err(_) => false,
        };
        if !ours {
            ledger.drop_vip(name, vip)?;
        }
        added.map(|_| ours)
    }

    /// Puts the VIPs of another configuration on the interface, those that are not there yet. Those that only the one before
    /// had stay until [`AssignedVips::retain`]. Where it fails, none is added.
    pub fn extend(&mut self, config: &Config, ledger: &mut Ledger) -> Result<()> {
        let known: BTreeSet<Ipv4Addr> = self.added.iter().copied().collect();
        let wanted = if config.assign_vip { vips_of(config) } else { BTreeSet::new() };
        for vip in wanted.difference(&known) {
            match self.add(*vip, ledger) {
                Ok(false) => {}
                Ok(true) => {
                    self.added.push(*vip);
                    self.announce_one(*vip);
                    self.announce_again = true;
                }
                Err(error) => {
                    self.keep(&known, ledger);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Takes all of them away.
    pub fn leave(mut self, ledger: &mut Ledger) {
        self.keep(&BTreeSet::new(), ledger);
    }

    /// Takes VIPs away that a configuration does not ask for.
    pub fn retain(&mut self, config: &Config, ledger: &mut Ledger) {
        let wanted = if config.assign_vip { vips_of(config) } else { BTreeSet::new() };
        self.keep(&wanted, ledger);
    }

    fn keep(&mut self, wanted: &BTreeSet<Ipv4Addr>, ledger: &mut Ledger) {
        let gone: Vec<Ipv4Addr> = self.added.iter().filter(|vip| !wanted.contains(vip)).copied().collect();
        let is_gone = |vip: &Vip| vip.interface == self.link.name && gone.contains(&vip.address);
        let of_ledger = ledger.vips().into_iter().filter(is_gone).collect();
        remove(of_ledger, ledger);
        self.added.retain(|vip| wanted.contains(vip));
    }

    fn announce(&self, config: &Config) {
        for vip in vips_of(config) {
            self.announce_one(vip);
        }
    }

    fn announce_one(&self, vip: Ipv4Addr) {
        let Some(mac) = self.link.mac else { return };
        if let Err(error) = announce(&self.link.name, mac, vip) {
            tracing::warn!("could not announce {vip} on {}: {error:#}", self.link.name);
        }
    }

    /// Repeats the announcement of what was added, once. On an interface that is new under the old name, or has another
    /// MAC, adds and announces all again. Call it every second or so.
    pub fn follow(&mut self, link: &Link, ledger: &mut Ledger) -> Result<()> {
        let moved = (link.index, link.mac) != (self.link.index, self.link.mac);
        let before = std::mem::replace(&mut self.link, link.clone());
        if moved {
            let added = self.added.clone().into_iter().try_for_each(|vip| self.add(vip, ledger).map(drop));
            if let Err(error) = added {
                // To be tried again.
                self.link = before;
                return Err(error);
            }
        }
        if std::mem::replace(&mut self.announce_again, moved) || moved {
            self.added.iter().for_each(|vip| self.announce_one(*vip));
        }
        Ok(())
    }
}

/// Takes addresses that the ledger has from their interfaces, and out of it.
pub fn remove(vips: Vec<Vip>, ledger: &mut Ledger) {
    for Vip { interface, address, .. } in vips {
        let removed = remove_one(&interface, address).and_then(|()| ledger.drop_vip(&interface, address));
        if let Err(error) = removed {
            tracing::info!("could not remove the VIP {address} from {interface}: {error:#}");
        }
    }
}

/// The interface may be gone, and its addresses with it.
fn remove_one(interface: &str, address: Ipv4Addr) -> Result<()> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(interface)? else { return Ok(()) };
    netlink.delete_address(link.index, address, HOST_PREFIX).map(drop)
}

fn vips_of(config: &Config) -> BTreeSet<Ipv4Addr> {
    config.services.iter().map(|service| *service.vip.ip()).collect()
}
