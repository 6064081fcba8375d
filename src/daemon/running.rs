//! The work of a running instance: follows the network, sweeps the table, answers what it is asked, says what is wrong.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::deliveries::Deliveries;
use super::exporter::Exporter;
use super::interfaces::Interfaces;
use super::kept_pins::KeptPins;
use super::ledger::Ledger;
use super::network::Network;
use super::pool::{self, Pool};
use super::source::Source;
use super::start::allow_lookups;
use super::supervisor::Supervisor;
use super::vip::AssignedVips;
use super::warnings::Warnings;
use super::watch::Watch;
use super::{Wake, say};
use crate::config::Config;
use crate::control::Server;
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
pub struct Running {
    pub config: Config,
    /// Where the configuration was read, if it was.
    pub source: Option<Source>,
    pub server: Option<Server>,
    pub pool: Pool,
    pub exporter: Exporter,
    pub supervisor: Supervisor,
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
    pub due: Due,
}

/// When what is due.
pub struct Due {
    ask: Instant,
    pool: Instant,
    network: Instant,
    sweep: Instant,
    report: Instant,
}

impl Due {
    /// Everything at its time from now on.
    pub fn new(config: &Config) -> Due {
        let now = Instant::now();
        let mut due = Due { ask: now, pool: now, network: now, sweep: now, report: now };
        due.sweep_after(config, now);
        due.report_after(config, now);
        due
    }

    /// A look at the network and a sweep, as soon as there is time.
    pub fn now(&mut self) {
        (self.network, self.sweep) = (Instant::now(), Instant::now());
    }

    fn sweep_after(&mut self, config: &Config, now: Instant) {
        self.sweep = now + sweep_interval(&config.services);
    }

    /// The next figures are printed one interval from then on.
    pub fn report_after(&mut self, config: &Config, now: Instant) {
        const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        self.report = now + config.stats_interval.unwrap_or(NEVER);
    }

    fn first(&self) -> Instant {
        [self.pool, self.network, self.sweep, self.report].into_iter().fold(self.ask, Instant::min)
    }
}

impl Running {
    /// Runs until it is told to stop. What fails meanwhile is said and tried again: what works goes on.
    pub fn run(&mut self, wakes: &Receiver<Wake>) {
        let mut report = Report::new(Instant::now());
        let mut heard = Changes::default();
        let mut looked = Instant::now();
        loop {
            let pause = self.due.first().saturating_duration_since(Instant::now());
            let first = match wakes.recv_timeout(pause) {
                Ok(wake) => Some(wake),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // All that waits: a sweep may take longer than it takes the next to come.
            for wake in first.into_iter().chain(wakes.try_iter()) {
                match wake {
                    Wake::Network(changes) => {
                        heard |= changes;
                        self.due.network = self.due.network.min(looked + NETWORK_PAUSE);
                    }
                    Wake::Health(event) => {
                        self.pool.note(event, &mut self.plane);
                        self.due.pool = Instant::now();
                    }
                    Wake::Ask(ask, reply) => {
                        let (answer, goes_on) = self.answer(*ask);
                        reply.send(answer);
                        if !goes_on {
                            return;
                        }
                        // Who asks without a pause must not keep it from what is due: the others wait for the next round.
                        if Instant::now() >= self.due.first() {
                            break;
                        }
                    }
                    Wake::Stop => return,
                }
            }
            self.supervisor.alive();
            self.exporter.turned(&self.plane);
            let now = Instant::now();
            if now >= self.due.pool {
                self.tend_pool(now);
            }
            if now >= self.due.ask {
                let failed = self.network.ask_for_unresolved(&self.plane);
                self.warnings.are("ask", failed);
                self.due.ask = now + ASK_INTERVAL;
            }
            if now >= self.due.network {
                self.look(std::mem::take(&mut heard));
                self.follow_file();
                looked = Instant::now();
                self.due.network = looked + NETWORK_INTERVAL;
            }
            let reported = now >= self.due.report;
            if reported || now >= self.due.sweep {
                let failed = self.sweep(reported.then_some(&mut report), now).err();
                self.warnings.are("sweep", failed.map(|error| format!("{error:#}")));
                self.due.sweep_after(&self.config, now);
                if reported {
                    self.due.report_after(&self.config, now);
                }
            }
        }
    }

    fn tend_pool(&mut self, now: Instant) {
        self.pool.tick(now, &mut self.plane);
        let failed = self.plane.respread().err();
        let failed = failed.map(|error| format!("could not make a service's ring anew: {error:#}"));
        self.warnings.are("rings", failed);
        self.due.pool = now + pool::TICK;
    }

    /// One look at the network and at this host, and everything brought in step with it. What fails does not keep the rest.
    pub fn look(&mut self, heard: Changes) {
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
        if heard.routes || heard.links {
            self.network.forget_routes();
        }
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
            let findings = preflight::check_firewall(self.network.netlink(), &self.config)?;
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

    pub fn sweep(&mut self, report: Option<&mut Report>, now: Instant) -> Result<()> {
        self.plane.settle()?;
        let census = self.plane.sweep()?;
        self.network.swept(&mut self.plane, &census.nexthops)?;
        for backend in self.plane.collect()? {
            tracing::info!("backend {}, which was removed, has no connections any more", backend.address);
        }
        if census.corrected > 0 {
            tracing::warn!("the loads of least connections were off by {}: corrected", census.corrected);
        }
        let troubles = self.watch.table(&self.plane, &census, self.config.max_connections, now)?;
        self.warnings.are("table", troubles);
        report.map_or(Ok(()), |report| report.print(&self.plane, &census, now))
    }
}

/// The last figures printed, for the rates of the next.
pub struct Report {
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
