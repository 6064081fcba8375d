//! One running instance: starts it, keeps it in step with the network, prints what it does, and takes it down.

mod interfaces;
mod ledger;
mod network;
mod vip;

use std::io::Write as _;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::config::Config;
use crate::dataplane::{Census, PinDir, Plane};
use crate::metrics::{Snapshot, render};
use crate::net::Netlink;
use interfaces::Interfaces;
use ledger::Ledger;
use network::Network;
use vip::AssignedVips;

/// How often next hops are brought in step with the kernel's neighbours and routes.
const NETWORK_INTERVAL: Duration = Duration::from_secs(1);
/// How often neighbours are asked for that packets met and the kernel did not know.
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// How often connections over their timeout are marked; the table's clock would allow ten minutes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// The kernel looks up routes in a program only on behalf of an interface that forwards. The loopback interface's own
/// switch is enough, and forwards nothing by itself.
const LOOKUP_SYSCTL: &str = "net.ipv4.conf.lo.forwarding";

/// Runs until SIGINT, SIGTERM or SIGHUP. Whatever happens, what was attached, pinned, assigned or set is taken back.
pub fn run(config: &Config) -> Result<()> {
    let stop = stop_signal()?;
    let mut netlink = Netlink::open()?;
    let interfaces = Interfaces::find(&mut netlink, config)?;
    let pins = PinDir::acquire(&config.pin_dir)?;
    let mut ledger = Ledger::open(pins.path())?;
    if let Some(mounted) = pins.mounted() {
        ledger.add_mount(mounted)?;
        crate::note!("mounted a bpffs at {}, where none was", mounted.display());
    }
    if pins.had_leftovers() {
        crate::note!(
            "warning: an instance that died had left its programs attached; they were detached, and its \
             connections are lost"
        );
    }
    let served = serve(config, netlink, &interfaces, &pins, &mut ledger, &stop);
    // First of all: nobody should be drawn here by an address that nothing balances any more.
    vip::remove(ledger.vips(), &mut ledger);
    let detached = pins.detach();
    ledger.restore();
    let cleaned = detached.and(pins.remove(ledger.mounted()));
    served?;
    cleaned.context("could not clean up")?;
    say("detached; the pins are removed\n");
    Ok(())
}

/// Starts everything in the order in which each part needs the one before it, and serves.
fn serve(
    config: &Config,
    netlink: Netlink,
    interfaces: &Interfaces,
    pins: &PinDir,
    ledger: &mut Ledger,
    stop: &Receiver<()>,
) -> Result<()> {
    let first = interfaces.main().profile(interfaces::first_mode(config.xdp_mode));
    let mut plane = Plane::load(config.max_connections, &config.timeouts, &config.services, first)?;
    plane.apply(&config.services)?;
    allow_lookups(ledger);
    let mut network = Network::new(netlink, interfaces.indexes());
    network.resolve(&mut plane)?;
    let attached = interfaces.attach(&mut plane, config.xdp_mode)?;
    plane.pin(pins.path())?;
    for attachment in &attached {
        attachment.attachment.pin(pins.path())?;
    }
    let mut vips = AssignedVips::assign(config, interfaces.main(), ledger)?;
    vip::remove(ledger.inherited_vips(), ledger);
    ledger.restore_inherited();
    say(&banner(config, &network, &plane, &attached, pins));
    vips.warn_of_unassigned(config);
    tick(config, &mut plane, &mut network, &mut vips, ledger, stop)
}

/// Sends once on the first signal to stop.
fn stop_signal() -> Result<Receiver<()>> {
    let (sender, receiver) = mpsc::channel();
    ctrlc::set_handler(move || {
        // A receiver that is gone means that the process is ending already.
        let _ = sender.send(());
    })
    .context("could not install the handler of SIGINT and SIGTERM")?;
    Ok(receiver)
}

/// Lets the program look up routes.
fn allow_lookups(ledger: &mut Ledger) {
    let why = "the program needs it to look up the way to clients";
    if let Err(error) = ledger.set_sysctl(LOOKUP_SYSCTL, "1", why) {
        crate::note!(
            "warning: {error:#}; unless it is 1 already, all replies are left to the kernel, which drops most"
        );
    }
}

/// The work of a running instance, until it is told to stop.
fn tick(
    config: &Config,
    plane: &mut Plane,
    network: &mut Network,
    vips: &mut AssignedVips,
    ledger: &mut Ledger,
    stop: &Receiver<()>,
) -> Result<()> {
    let start = Instant::now();
    let mut next_ask = start;
    let mut next_network = start + NETWORK_INTERVAL;
    let mut next_sweep = start + SWEEP_INTERVAL;
    let mut next_report = config.stats_interval.map(|interval| start + interval);
    let mut report = Report::new(start);
    loop {
        let due = next_report.into_iter().fold(next_ask.min(next_network).min(next_sweep), Instant::min);
        let wait = due.saturating_duration_since(Instant::now());
        match stop.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        let now = Instant::now();
        if now >= next_ask {
            network.ask_for_unresolved(plane);
            next_ask = now + ASK_INTERVAL;
        }
        if now >= next_network {
            network.refresh_or_warn(plane);
            ledger.keep();
            vips.announce_again();
            next_network = now + NETWORK_INTERVAL;
        }
        if let (Some(due), Some(interval)) = (next_report, config.stats_interval) {
            if now >= due {
                let census = plane.sweep()?;
                report.print(plane, &census, now)?;
                next_report = Some(now + interval);
                next_sweep = now + SWEEP_INTERVAL;
            }
        }
        if now >= next_sweep {
            plane.sweep()?;
            next_sweep = now + SWEEP_INTERVAL;
        }
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

/// What was attached where, and how packets travel.
fn banner(
    config: &Config,
    network: &Network,
    plane: &Plane,
    attached: &[interfaces::AttachedInterface],
    pins: &PinDir,
) -> String {
    let mut text = format!("xdp-lb {}\n", env!("CARGO_PKG_VERSION"));
    for service in &config.services {
        text += &format!("service {}/{}, {}\n", service.vip, service.protocol, service.scheduler);
    }
    for backend in plane.backends() {
        text += &format!("  backend {}, {}\n", backend.address, network.describe(*backend));
    }
    for interface in attached {
        text += &format!("attached to {}\n", interface.describe());
    }
    text += &format!(
        "table: room for {} connections ({} slots)\npinned in {}\n",
        config.max_connections,
        u64::from(plane.settings().buckets) * 4,
        pins.path().display()
    );
    text
}

/// Writes to stdout. A reader that is gone or a full disk must not stop the balancing.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
