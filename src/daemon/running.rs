//! The work of a running instance: follows the network, sweeps the table, prints figures, says what is wrong.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::deliveries::Deliveries;
use super::interfaces::Interfaces;
use super::kept_pins::KeptPins;
use super::ledger::Ledger;
use super::network::Network;
use super::start::allow_lookups;
use super::vip::AssignedVips;
use super::warnings::Warnings;
use super::watch::Watch;
use super::{Wake, say};
use crate::config::Config;
use crate::dataplane::{Census, Plane, sweep_interval};
use crate::metrics::{Snapshot, render};
use crate::net::Changes;
use crate::preflight::{self, Level};

/// How often everything is looked at although nothing was heard.
const NETWORK_INTERVAL: Duration = Duration::from_secs(1);
/// The least time between two looks, whatever is heard: on a busy segment neighbours change all the time.
const NETWORK_PAUSE: Duration = Duration::from_millis(100);
/// How often neighbours are asked for that packets met and the kernel did not know.
const ASK_INTERVAL: Duration = Duration::from_millis(200);

/// Everything that a running instance holds.
pub struct Running<'a> {
    pub config: &'a Config,
    pub pins: KeptPins,
    pub ledger: Ledger,
    pub plane: Plane,
    pub network: Network,
    pub interfaces: Interfaces,
    pub deliveries: Deliveries,
    pub vips: AssignedVips,
    pub warnings: Warnings,
    pub watch: Watch,
    /// What an earlier instance set of this host is still to be put back, where this one does not need it.
    pub inherits: bool,
}

/// When what is due.
struct Due {
    ask: Instant,
    network: Instant,
    sweep: Instant,
    report: Option<Instant>,
}

impl Due {
    fn first(&self) -> Instant {
        self.report.into_iter().fold(self.ask.min(self.network).min(self.sweep), Instant::min)
    }
}

impl Running<'_> {
    /// Runs until it is told to stop. What fails meanwhile is said and tried again: what works goes on.
    pub fn run(&mut self, wakes: &Receiver<Wake>) {
        let start = Instant::now();
        let sweeps = sweep_interval(&self.config.services);
        let mut due = Due {
            ask: start,
            network: start,
            sweep: start + sweeps,
            report: self.config.stats_interval.map(|interval| start + interval),
        };
        let mut report = Report::new(start);
        let mut heard = Changes::default();
        let mut looked = start;
        loop {
            match wakes.recv_timeout(due.first().saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Wake::Network(changes)) => {
                    heard |= changes;
                    due.network = due.network.min(looked + NETWORK_PAUSE);
                }
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if now >= due.ask {
                let failed = self.network.ask_for_unresolved(&self.plane);
                self.warnings.are("ask", failed);
                due.ask = now + ASK_INTERVAL;
            }
            if now >= due.network {
                self.look(std::mem::take(&mut heard));
                looked = Instant::now();
                due.network = looked + NETWORK_INTERVAL;
            }
            let reported = due.report.is_some_and(|due| now >= due);
            if reported || now >= due.sweep {
                let failed = self.sweep(reported.then_some(&mut report), now).err();
                self.warnings.are("sweep", failed.map(|error| format!("{error:#}")));
                due.sweep = now + sweeps;
                if reported {
                    due.report = self.config.stats_interval.map(|interval| now + interval);
                }
            }
        }
    }

    /// The first look at the network since the program is attached: what an instance before left may have changed since it
    /// died.
    pub fn begin(&mut self) {
        if let Err(error) = self.sweep(None, Instant::now()) {
            self.warnings.are("sweep", [format!("{error:#}")]);
        }
        self.look(Changes::ALL);
    }

    /// One look at the network and at this host, and everything brought in step with it. What fails does not keep the rest.
    fn look(&mut self, heard: Changes) {
        let failed = self.follow(heard).err();
        if failed.is_none() && std::mem::take(&mut self.inherits) {
            // Everything that this instance needs of the host is set now: what only the one before needed can go.
            self.ledger.restore_inherited();
        }
        self.warnings.are("network", failed.map(|error| format!("could not follow the network: {error:#}")));
        self.ledger.keep();
        self.warnings.are("lookups", allow_lookups(&mut self.ledger).err().map(|error| format!("{error:#}")));
        self.pins.check(&mut self.plane, &mut self.ledger);
    }

    fn follow(&mut self, heard: Changes) -> Result<()> {
        let view = self.network.look(&self.plane)?;
        self.ledger.follow_names(view.links.values())?;
        let troubles = self.interfaces.follow(&mut self.plane, &view);
        self.warnings.are("interfaces", troubles);
        let slower = self.deliveries.follow(
            &mut self.plane,
            self.network.netlink(),
            &view,
            &self.interfaces,
            &mut self.ledger,
            heard.links,
        )?;
        if slower {
            let findings = preflight::check_firewall(self.network.netlink(), self.config)?;
            let troubles = findings.iter().filter(|finding| finding.level > Level::Ok);
            self.warnings.are("firewall", troubles.map(ToString::to_string));
        }
        let troubles = self.network.follow(&mut self.plane, &view, heard.routes)?;
        self.warnings.are("backends", troubles);
        let silent = self.network.silent().into_iter().map(|next_hop| {
            format!(
                "next hop {next_hop} does not answer ARP: until it does, what goes there is sent to where it was last, or \
                 left to the kernel; check that it is up and on that segment"
            )
        });
        self.warnings.are("neighbours", silent);
        if let Some(main) = self.interfaces.main() {
            self.vips.follow(&main.link, &mut self.ledger)?;
        }
        let troubles = self.watch.backends(&self.plane, &view, self.network.netlink())?;
        self.warnings.are("replies", troubles);
        Ok(())
    }

    fn sweep(&mut self, report: Option<&mut Report>, now: Instant) -> Result<()> {
        let census = self.plane.sweep()?;
        self.network.swept(&mut self.plane, &census.nexthops)?;
        for backend in self.plane.collect()? {
            crate::note!("backend {}, which was removed, has no connections any more", backend.address);
        }
        if census.corrected > 0 {
            crate::note!(
                "warning: the loads of least connections were off by {}: corrected",
                census.corrected
            );
        }
        let troubles = self.watch.table(&self.plane, &census, self.config.max_connections, now)?;
        self.warnings.are("table", troubles);
        report.map_or(Ok(()), |report| report.print(&self.plane, &census, now))
    }
}

/// The last figures printed, for the rates of the next.
struct Report {
    last: Option<Snapshot>,
    at: Instant,
}

impl Report {
    fn new(at: Instant) -> Report {
        Report { last: None, at }
    }

    fn print(&mut self, plane: &Plane, census: &Census, now: Instant) -> Result<()> {
        let snapshot = Snapshot::take(plane.tables(), census)?;
        let earlier = self.last.as_ref().map(|last| (last, now - self.at));
        say(&format!("\n{}", render(&snapshot, earlier)));
        (self.last, self.at) = (Some(snapshot), now);
        Ok(())
    }
}
