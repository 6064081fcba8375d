use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};

use super::interfaces::Interface;
use crate::config::Config;
use crate::net::{Link, Netlink, announce};

const HOST_PREFIX: u8 = 32;

/// The VIPs that this instance put on its interface. They go with it.
pub struct AssignedVips {
    netlink: Netlink,
    link: Link,
    added: Vec<Ipv4Addr>,
    /// A second announcement is still to come, as RFC 5227 asks for.
    announce_again: bool,
}

impl AssignedVips {
    /// With --assign-vip, adds each VIP that is not there yet and announces all by gratuitous ARP.
    pub fn assign(config: &Config, interface: &Interface) -> Result<AssignedVips> {
        let mut vips = AssignedVips {
            netlink: Netlink::open()?,
            link: interface.link.clone(),
            added: Vec::new(),
            announce_again: false,
        };
        if !config.assign_vip {
            return Ok(vips);
        }
        for vip in vips_of(config) {
            let name = &vips.link.name;
            let added = vips
                .netlink
                .add_address(vips.link.index, vip, HOST_PREFIX)
                .with_context(|| format!("could not add the VIP {vip} to {name}"))?;
            match added {
                true => vips.added.push(vip),
                false => crate::note!("the VIP {vip} is on {name} already and stays there"),
            }
        }
        vips.announce_again = true;
        vips.announce(config);
        Ok(vips)
    }

    fn announce(&self, config: &Config) {
        for vip in vips_of(config) {
            self.announce_one(vip);
        }
    }

    fn announce_one(&self, vip: Ipv4Addr) {
        let Some(mac) = self.link.mac else { return };
        if let Err(error) = announce(&self.link.name, mac, vip) {
            crate::note!("warning: could not announce {vip} on {}: {error:#}", self.link.name);
        }
    }

    /// Repeats the announcement of what was added, once.
    pub fn announce_again(&mut self) {
        if std::mem::take(&mut self.announce_again) {
            self.added.iter().for_each(|vip| self.announce_one(*vip));
        }
    }

    /// Says which VIPs are on no interface: nobody answers ARP for them.
    pub fn warn_of_unassigned(&mut self, config: &Config) {
        let Ok(addresses) = self.netlink.addresses() else { return };
        for vip in vips_of(config) {
            if !addresses.iter().any(|address| address.address == vip) {
                crate::note!(
                    "warning: the VIP {vip} is on no interface: nothing answers ARP for it. Add it (--assign-vip), \
                     unless your routers send it here by a route"
                );
            }
        }
    }

    /// Takes away what was added; further calls do nothing.
    pub fn remove(&mut self) {
        for vip in std::mem::take(&mut self.added) {
            if let Err(error) = self.netlink.delete_address(self.link.index, vip, HOST_PREFIX) {
                crate::note!("could not remove the VIP {vip} from {}: {error:#}", self.link.name);
            }
        }
    }
}

impl Drop for AssignedVips {
    fn drop(&mut self) {
        self.remove();
    }
}

fn vips_of(config: &Config) -> BTreeSet<Ipv4Addr> {
    config.services.iter().map(|service| *service.vip.ip()).collect()
}
