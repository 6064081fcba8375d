//! The start of an instance: on nothing, or on what one that died left running.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::deliveries::Deliveries;
use super::interfaces::{self, Interfaces, Wanted};
use super::ledger::Ledger;
use super::network::Network;
use super::vip::{self, AssignedVips};
use super::watch::Watch;
use crate::config::Config;
use crate::dataplane::{Committed, Left, PinDir, Plane, Request, TakeOver};
use crate::model::Step;
use crate::net::{Link, Netlink};

/// The kernel looks up routes in a program only on behalf of an interface that forwards. The loopback interface's own
/// switch is enough, and forwards nothing by itself.
const LOOKUP_SYSCTL: &str = "net.ipv4.conf.lo.forwarding";

/// How long the next hops of backends may take to answer ARP before their packets are left to the kernel.
const RESOLVE_WAIT: Duration = Duration::from_secs(1);

/// Why programs are loaded over tables that are there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// An instance that died left them.
    Start,
    /// This instance changes what only new programs can do.
    Change,
}

/// All that can fail is done; what was left is still as it was.
pub struct Prepared {
    plane: Plane,
    network: Network,
    interfaces: Interfaces,
    deliveries: Deliveries,
    main: Link,
    occasion: Occasion,
    /// The start is a change of what was left.
    changes: bool,
}

/// The new configuration holds.
pub struct Started {
    pub plane: Plane,
    pub network: Network,
    pub interfaces: Interfaces,
    pub deliveries: Deliveries,
    /// Those of a start; a change has its own.
    pub vips: Option<AssignedVips>,
    pub watch: Watch,
    /// What an instance before left was something else.
    pub changed: bool,
}

/// What an instance that died left, if it can be taken over. What cannot is cleared away: nothing runs of it.
pub fn find_left(pins: &PinDir, ledger: &Ledger) -> Result<Option<Left>> {
    let left = Left::find(pins)?;
    if let Some(left) = &left {
        ensure!(
            !(ledger.was_elsewhere() && left.is_attached()),
            "the pins in {} are those of an instance in another network namespace, whose programs still run: choose \
             another --pin-dir, or remove that one there, naming an interface that it is on (xdp-lb detach eth0 --pin-dir {})",
            pins.path().display(),
            pins.path().display()
        );
        if ledger.is_new() {
            tracing::warn!(
                "the instance before left no record of what it changed on this host: addresses and sysctls that it \
                 set stay, unless they are put back by hand"
            );
        }
    } else if pins.detach()? > 0 {
        tracing::info!("a start that was killed had left some pins, which nothing uses: they are removed");
    }
    Ok(left)
}

/// Loads the program, resolves the next hops and attaches to interfaces that have no program yet.
pub fn prepare(
    config: &Config,
    netlink: Netlink,
    mut needed: Vec<Wanted>,
    left: Option<Left>,
    occasion: Occasion,
    ledger: &mut Ledger,
) -> Result<Prepared> {
    let main = needed.first().context("no interface is named")?.link.clone();
    let named = needed.iter().take(config.interfaces.len()).map(|wanted| wanted.link.name.clone()).collect();
    let mut interfaces = Interfaces::new(named, config);
    let timeouts = config.longest_timeouts();
    let request = Request {
        max_connections: config.max_connections,
        timeouts: &timeouts,
        services: &config.services,
        profile: interfaces.first_profile(&main),
        key: None,
    };
    let mut network = Network::new(netlink);
    let deliveries = Deliveries::new(config.deliver);
    let mut changes = false;
    let mut plane = match left {
        None => {
            let mut plane = Plane::load_for(&request)?;
            plane.stage(&config.services)?;
            plane
        }
        Some(left) => {
            let (plane, how, steps) = Plane::take_over(left, &request)?;
            if occasion == Occasion::Start {
                tell(&how, &steps);
                changes = !steps.is_empty();
            }
            plane
        }
    };
    deliveries.foresee(&mut plane, network.netlink(), needed.iter().map(|wanted| &wanted.link))?;
    // What keeps it from this, the first look at the network tells.
    let _ = allow_lookups(ledger);
    network.resolve(&mut plane, RESOLVE_WAIT, |_| true)?;
    // A removed backend's connections go on, and its replies arrive where they did.
    let (view, live) = (network.look(&plane)?, plane.live_backends());
    for backend in plane.backends().iter().filter(|backend| live.contains(&backend.index)) {
        if let Some(link) = view.facing(*backend) {
            interfaces::face(&mut needed, link, backend.address);
        }
    }
    interfaces.attach_all(&mut plane, needed)?;
    Ok(Prepared { plane, network, interfaces, deliveries, main, occasion, changes })
}

impl Prepared {
    /// The interface that gets the VIPs.
    pub fn main(&self) -> &Link {
        &self.main
    }

    /// Makes the configuration the one that holds. What only the one before needed of this host is still to be taken back. An
    /// error of a change: nothing has changed; of a start: programs may be swapped already.
    pub fn commit(self, config: &Config, pins: &PinDir, ledger: &mut Ledger) -> Result<Started> {
        let Prepared { mut plane, network, interfaces, deliveries, main, occasion, changes } = self;
        let watch = Watch::new(&plane)?;
        let Committed { unused, lost, mut troubles } = plane.commit(pins)?;
        for ifindex in unused {
            tracing::info!("detached from interface {ifindex}, which is not used any more");
        }
        // Of what was removed, that which has no connections.
        troubles.extend(plane.collect().err().map(|error| format!("{error:#}")));
        if lost > 0 {
            tracing::warn!("{lost} confirmed connections found no place in the smaller table and are lost");
        }
        let vips = match occasion {
            Occasion::Start => {
                ensure!(troubles.is_empty(), "{}", troubles.join("; "));
                let vips = AssignedVips::assign(config, &main, ledger)?;
                vip::remove(ledger.inherited_vips(), ledger);
                Some(vips)
            }
            // The old plane is not the tables' any more: this one goes on, with what could be done.
            Occasion::Change => {
                troubles.iter().for_each(|trouble| tracing::warn!("{trouble}"));
                None
            }
        };
        Ok(Started { plane, network, interfaces, deliveries, vips, watch, changed: changes })
    }
}

/// Says what becomes of what was left, before it is done.
fn tell(how: &TakeOver, steps: &[Step]) {
    const FOUND: &str = "an instance before left its programs running";
    match how {
        TakeOver::Adopted => tracing::info!("{FOUND}: they and their connections are taken over"),
        TakeOver::Converted(tables) => tracing::info!(
            "{FOUND}: they and their connections are taken over; made anew and filled from the old ones: {}",
            tables.join(", ")
        ),
        TakeOver::Lost { abi, confirmed } => tracing::warn!(
            "{FOUND}, with tables of version {abi}, which this program does not know: {confirmed} confirmed \
             connections are lost"
        ),
    }
    steps.iter().for_each(|step| tracing::info!("{step}"));
}

/// Lets the program look up routes. To be called every second: another's write to `net.ipv4.ip_forward`, or the end of
/// another instance, changes the switch too.
pub fn allow_lookups(ledger: &mut Ledger) -> Result<()> {
    ledger.set_sysctl(LOOKUP_SYSCTL, "1", "the program needs it to look up the way to clients").with_context(|| {
        format!("without {LOOKUP_SYSCTL}=1 all replies are left to the kernel, which drops most: set it by hand")
    })
}
