//! From one configuration to another while packets pass: all of it, or nothing.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};

use super::interfaces;
use super::running::Running;
use super::start::{self, Occasion, Started};
use super::vip::AssignedVips;
use crate::config::{self, Config};
use crate::control::{Done, Refusal};
use crate::dataplane::{Left, ring_memory};
use crate::model::{Backend, Change, Protocol, Service, Step, Timeouts, diff};
use crate::net::{Changes, Netlink};
use crate::preflight::{self, Level};

/// How long the next hops of new backends may take to answer ARP: nothing else is done meanwhile.
const RESOLVE_WAIT: Duration = Duration::from_millis(300);

/// How a change is carried out.
#[derive(Clone, Copy)]
pub struct How {
    /// Who wants it, for the log.
    pub by: &'static str,
    /// Only tells what would be done.
    pub dry_run: bool,
    /// Connections of removed backends are reset.
    pub now: bool,
}

impl How {
    /// Carried out, as gently as can be.
    pub fn by(by: &'static str) -> How {
        How { by, dry_run: false, now: false }
    }

    /// A step in words.
    fn tell(self, step: &Step) -> String {
        match &step.change {
            Change::RemoveBackend(address) if self.now => {
                format!("service {}: remove backend {address}: live TCP connections are reset", step.service)
            }
            _ => step.to_string(),
        }
    }
}

impl Running {
    /// Carries out another configuration. Where something of it fails everything is as it was.
    pub fn change(&mut self, new: Config, how: How) -> Result<Done, Refusal> {
        cannot_change(&self.config, &new)?;
        config::check(&new.services)
            .map_err(|fault| Refusal::invalid(format!("{}; write {}", fault.wrong, fault.right)))?;
        self.check_metrics(&new)?;
        let mut steps = settings(&self.config, &new);
        steps.extend(diff(&self.config.services, &new.services).iter().map(|step| how.tell(step)));
        if how.dry_run || (steps.is_empty() && self.config == new) {
            return Ok(Done { steps, applied: !how.dry_run, ..Done::default() });
        }
        let removed = if how.now { removed(&self.config, &new) } else { Vec::new() };
        let listening = self.exporter.prepare(&new).map_err(|error| Refusal::failed(&error))?;
        if let Err(error) = self.carry_out(&new) {
            self.exporter.follow(&self.plane, &self.config.services);
            return Err(Refusal::failed(&error));
        }
        for line in &steps {
            tracing::info!(by = how.by, "{line}");
        }
        self.config = new;
        self.note_change();
        self.exporter.follow(&self.plane, &self.config.services);
        if let Some(listening) = listening {
            self.exporter.serve(listening);
        }
        self.pool.follow(&self.config, &mut self.plane);
        self.vips.retain(&self.config, &mut self.ledger);
        if let Some(server) = &self.server {
            server.set_timeouts(self.config.timeouts);
        }
        for (vip, protocol, backend) in removed {
            if let Some(row) = self.plane.find(vip, protocol, backend) {
                self.plane.reset_connections(row.index);
            }
        }
        // Of what was removed, that which has no connections; and the network, from the new backends' point of view.
        self.due.now();
        self.due.report_after(&self.config, Instant::now());
        Ok(Done { steps, applied: true, ..Done::default() })
    }

    /// Writes down that what runs is something else now.
    pub fn note_change(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.plane.tables().past().changed(now.unwrap_or_default());
    }

    /// A service and the metrics cannot have one address, whichever of them is new.
    fn check_metrics(&self, new: &Config) -> Result<(), Refusal> {
        for finding in preflight::check_metrics(new) {
            match finding.level {
                Level::Error => return Err(Refusal::invalid(finding.to_string())),
                _ => tracing::warn!("{finding}"),
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, new: &Config) -> Result<()> {
        let memory = ring_memory(&new.services);
        ensure!(
            memory <= new.ring_memory,
            "the rings of all services would take {memory} bytes, and ring-memory is {}: raise it, or use another \
             scheduler than maglev and ip-hash for some",
            new.ring_memory
        );
        let added = added(&self.config, new);
        let other_programs = needs_other_programs(&self.config, new);
        if !added.is_empty() || other_programs {
            self.check(&Config { services: added.clone(), ..new.clone() })?;
        }
        // Where there is no room in the tables larger ones are made, and the programs swapped.
        if other_programs || self.plane.stage(&new.services).is_err() {
            return self.swap(new).inspect_err(|_| self.vips.retain(&self.config, &mut self.ledger));
        }
        let reached = match added.is_empty() {
            true => self.vips.extend(new, &mut self.ledger).map(|()| Vec::new()),
            false => self.reach(new, &added),
        };
        let carried_out = reached.and_then(|interfaces| {
            let published = self.plane.publish();
            published.inspect_err(|_| self.interfaces.retract(&mut self.plane, &interfaces))
        });
        if carried_out.is_err() {
            self.plane.abandon();
            self.vips.retain(&self.config, &mut self.ledger);
        }
        self.pins.check(&mut self.plane, &mut self.ledger);
        carried_out
    }

    /// Everything that new backends and services need, before packets find them. Returns the interfaces that are new.
    fn reach(&mut self, new: &Config, added: &[Service]) -> Result<Vec<u32>> {
        let backends = added.iter().flat_map(|service| &service.backends);
        let backends: HashSet<SocketAddrV4> = backends.map(|backend| backend.address).collect();
        self.network.resolve(&mut self.plane, RESOLVE_WAIT, |backend| backends.contains(&backend))?;
        let view = self.network.look(&self.plane)?;
        let facing: BTreeSet<u32> = view.routes.values().map(|route| route.ifindex).collect();
        let links = view.links.values().filter(|link| facing.contains(&link.index));
        self.deliveries.foresee(&mut self.plane, self.network.netlink(), links)?;
        let interfaces = self.interfaces.extend(&mut self.plane, &view)?;
        self.vips.extend(new, &mut self.ledger).inspect_err(|_| {
            self.interfaces.retract(&mut self.plane, &interfaces);
        })?;
        Ok(interfaces)
    }

    /// What would keep what is new in a configuration from working.
    fn check(&mut self, new: &Config) -> Result<()> {
        let findings = preflight::check_change(self.network.netlink(), new)?;
        let errors = findings.iter().filter(|finding| finding.level == Level::Error);
        let errors: Vec<String> = errors.map(ToString::to_string).collect();
        ensure!(errors.is_empty(), "{}", errors.join("; "));
        Ok(())
    }

    /// Loads the programs anew over the tables, or over larger ones that are filled from them, and swaps them under traffic:
    /// a start over what an instance left, only that this one still lives.
    fn swap(&mut self, new: &Config) -> Result<()> {
        // Lines of rings that packets may still read would be taken for free ones.
        self.plane.settle()?;
        let left = Left::find(self.pins.dir())?.context("the pins are gone: start it anew")?;
        let mut netlink = Netlink::open()?;
        let needed = interfaces::needed(&mut netlink, new)?;
        let prepared = start::prepare(new, netlink, needed, Some(left), Occasion::Change, &mut self.ledger)?;
        // While all is still as it was: the addresses may be too many to remember. On another interface clients find them
        // before the programs do; on the old one they go on until then.
        let mut moved = None;
        if prepared.main().index == self.vips.link().index {
            self.vips.extend(new, &mut self.ledger)?;
        } else {
            let mut vips = AssignedVips::on(prepared.main())?;
            vips.extend(new, &mut self.ledger)?;
            moved = Some(vips);
        }
        let started = match prepared.commit(new, self.pins.dir(), &mut self.ledger) {
            Ok(started) => started,
            Err(error) => {
                moved.into_iter().for_each(|vips| vips.leave(&mut self.ledger));
                return Err(error);
            }
        };
        let Started { plane, network, interfaces, deliveries, watch, .. } = started;
        (self.plane, self.network, self.interfaces) = (plane, network, interfaces);
        (self.deliveries, self.watch) = (deliveries, watch);
        match moved {
            Some(vips) => std::mem::replace(&mut self.vips, vips).leave(&mut self.ledger),
            None => self.vips.retain(new, &mut self.ledger),
        }
        self.settle_in();
        Ok(())
    }

    /// The first look at the network since programs were attached: what there was before may have changed meanwhile.
    pub fn settle_in(&mut self) {
        if let Err(error) = self.sweep(None, Instant::now()) {
            self.warnings.are("sweep", [format!("{error:#}")]);
        }
        self.look(Changes::ALL);
    }
}

/// What only a start can set.
fn cannot_change(old: &Config, new: &Config) -> Result<(), Refusal> {
    let fixed = [
        ("pin-dir", old.pin_dir != new.pin_dir),
        ("socket", old.socket != new.socket),
        ("xdp-mode", old.xdp_mode != new.xdp_mode),
        ("log-format", old.log_format != new.log_format),
    ];
    match fixed.iter().find(|(_, changed)| *changed) {
        Some((key, _)) => Err(Refusal::invalid(format!(
            "{key} cannot change while it runs: set it back, or stop this instance and start it anew"
        ))),
        None => Ok(()),
    }
}

/// Whether the programs must be loaded anew: they have some of the settings in their code.
fn needs_other_programs(old: &Config, new: &Config) -> bool {
    old.max_connections != new.max_connections
        || old.deliver != new.deliver
        || old.interfaces != new.interfaces
        || old.longest_timeouts() != new.longest_timeouts()
}

/// The steps of what belongs to no service.
fn settings(old: &Config, new: &Config) -> Vec<String> {
    let times = |timeouts: &Timeouts| {
        let all = [timeouts.established, timeouts.unconfirmed, timeouts.closing, timeouts.udp];
        all.map(|time| humantime::format_duration(time).to_string()).join(", ")
    };
    let interval = |config: &Config| {
        config.stats_interval.map_or("never".to_owned(), |time| humantime::format_duration(time).to_string())
    };
    let address = |config: &Config| config.metrics.map_or("off".to_owned(), |address| address.to_string());
    let text =
        |old: &dyn std::fmt::Debug, new: &dyn std::fmt::Debug| (format!("{old:?}"), format!("{new:?}"));
    let all = [
        ("interfaces", (old.interfaces.join(" "), new.interfaces.join(" "))),
        ("deliver", text(&old.deliver, &new.deliver)),
        ("max-connections", text(&old.max_connections, &new.max_connections)),
        ("ring-memory", text(&old.ring_memory, &new.ring_memory)),
        ("timeouts", (times(&old.timeouts), times(&new.timeouts))),
        ("stats-interval", (interval(old), interval(new))),
        ("assign-vip", text(&old.assign_vip, &new.assign_vip)),
        ("persist", text(&old.persist, &new.persist)),
        ("metrics", (address(old), address(new))),
        ("watch", text(&old.watch, &new.watch)),
    ];
    let changed = all.into_iter().filter(|(_, (old, new))| old != new);
    changed
        .map(|(key, (old, new))| format!("{key} {} -> {}", old.to_lowercase(), new.to_lowercase()))
        .collect()
}

/// A backend of a service: the service's address, port and protocol, and the backend's address.
type Pair = (SocketAddrV4, Protocol, SocketAddrV4);

fn pairs(service: &Service) -> impl Iterator<Item = Pair> {
    service.backends.iter().map(|backend| (service.vip, service.protocol, backend.address))
}

fn keys(config: &Config) -> HashSet<(SocketAddrV4, Protocol)> {
    config.services.iter().map(|service| (service.vip, service.protocol)).collect()
}

/// What is new: services with those of their backends that were not there.
fn added(old: &Config, new: &Config) -> Vec<Service> {
    let (services, known): (_, HashSet<Pair>) = (keys(old), old.services.iter().flat_map(pairs).collect());
    let new_ones = new.services.iter().map(|service| {
        let is_new = |one: &&Backend| !known.contains(&(service.vip, service.protocol, one.address));
        let backends = service.backends.iter().filter(is_new).copied().collect();
        Service { backends, ..service.clone() }
    });
    let is_new = |service: &Service| {
        !service.backends.is_empty() || !services.contains(&(service.vip, service.protocol))
    };
    new_ones.filter(is_new).collect()
}

/// The backends that go, of services that stay.
fn removed(old: &Config, new: &Config) -> Vec<Pair> {
    let (services, stay): (_, HashSet<Pair>) = (keys(new), new.services.iter().flat_map(pairs).collect());
    let all = old.services.iter().filter(|service| services.contains(&(service.vip, service.protocol)));
    all.flat_map(pairs).filter(|backend| !stay.contains(backend)).collect()
}
