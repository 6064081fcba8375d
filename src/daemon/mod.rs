//! One running instance: starts it, keeps it in step with the network, prints what it does, and takes it down.

mod deliveries;
mod interfaces;
mod ledger;
mod network;
mod running;
mod vip;
mod warnings;
mod watch;

use std::io::Write as _;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use anyhow::{Context as _, Result, ensure};

use crate::config::Config;
use crate::dataplane::{Mode, PinDir, Plane};
use crate::net::{Changes, Events, Netlink};
use crate::preflight::{self, Level};
use deliveries::Deliveries;
use interfaces::{Interfaces, Wanted};
use ledger::Ledger;
use network::Network;
use running::Running;
use vip::AssignedVips;
use warnings::Warnings;
use watch::Watch;

/// The kernel looks up routes in a program only on behalf of an interface that forwards. The loopback interface's own
/// switch is enough, and forwards nothing by itself.
const LOOKUP_SYSCTL: &str = "net.ipv4.conf.lo.forwarding";

/// Runs until SIGINT, SIGTERM or SIGHUP. Whatever happens, what was attached, pinned, assigned or set is taken back.
pub fn run(config: &Config) -> Result<()> {
    let wakes = Wakes::by_signals()?;
    let mut netlink = Netlink::open()?;
    check(&mut netlink, config)?;
    let needed = interfaces::needed(&mut netlink, config)?;
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
    let served = serve(config, netlink, needed, &pins, &mut ledger, &wakes);
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

/// Looks for what would keep it from working, and says what is found. Nothing has been changed so far.
fn check(netlink: &mut Netlink, config: &Config) -> Result<()> {
    let findings = preflight::check(netlink, config)?;
    for finding in findings.iter().filter(|finding| finding.level > Level::Ok) {
        crate::note!("{}: {finding}", finding.level.name());
    }
    let errors = findings.iter().filter(|finding| finding.level == Level::Error).count();
    ensure!(errors == 0, "not started: {errors} {}", if errors == 1 { "error" } else { "errors" });
    Ok(())
}

/// Starts everything in the order in which each part needs the one before it, and serves.
fn serve(
    config: &Config,
    netlink: Netlink,
    needed: Vec<Wanted>,
    pins: &PinDir,
    ledger: &mut Ledger,
    wakes: &Wakes,
) -> Result<()> {
    let main = needed.first().context("no interface is named")?.link.clone();
    let mut interfaces = Interfaces::new(&main.name, config);
    let first = interfaces.first_profile(&main);
    let mut plane = Plane::load(config.max_connections, &config.timeouts, &config.services, first)?;
    plane.apply(&config.services)?;
    allow_lookups(ledger);
    let mut network = Network::new(netlink);
    network.resolve(&mut plane)?;
    plane.pin(pins.path())?;
    for wanted in needed {
        interfaces.attach(&mut plane, pins, wanted)?;
    }
    // From here on nothing that happens to the network is missed.
    wakes.listen()?;
    let vips = AssignedVips::assign(config, &main, ledger)?;
    vip::remove(ledger.inherited_vips(), ledger);
    let mut running = Running {
        config,
        pins,
        ledger,
        plane,
        network,
        interfaces,
        deliveries: Deliveries::new(config.deliver),
        vips,
        warnings: Warnings::default(),
        watch: Watch::new(),
    };
    running.follow(Changes { links: true, ..Changes::default() })?;
    running.ledger.restore_inherited();
    say(&banner(&running));
    running.run(&wakes.receiver);
    Ok(())
}

/// What ends the loop's sleep.
enum Wake {
    Stop,
    Network(Changes),
}

/// Where that comes from.
struct Wakes {
    sender: Sender<Wake>,
    receiver: Receiver<Wake>,
}

impl Wakes {
    /// Wakes by SIGINT, SIGTERM and SIGHUP.
    fn by_signals() -> Result<Wakes> {
        let (sender, receiver) = mpsc::channel();
        let on_signal = sender.clone();
        ctrlc::set_handler(move || {
            // A receiver that is gone means that the process is ending already.
            let _ = on_signal.send(Wake::Stop);
        })
        .context("could not install the handler of SIGINT and SIGTERM")?;
        Ok(Wakes { sender, receiver })
    }

    /// Wakes by changes of the network too, told by a thread of their own. Without it they are found within a second.
    fn listen(&self) -> Result<()> {
        let mut events = Events::open()?;
        let sender = self.sender.clone();
        let listen = move || loop {
            match events.wait() {
                Ok(changes) if sender.send(Wake::Network(changes)).is_ok() => {}
                Ok(_) => return,
                Err(error) => {
                    return crate::note!("warning: {error:#}: changes are found once a second from now on");
                }
            }
        };
        thread::Builder::new().name("events".into()).spawn(listen).context("could not start a thread")?;
        Ok(())
    }
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

/// What was attached where, and how packets travel.
fn banner(running: &Running<'_>) -> String {
    let Running { config, plane, network, interfaces, deliveries, .. } = running;
    let mut text = format!("xdp-lb {}\n", env!("CARGO_PKG_VERSION"));
    for service in &config.services {
        text += &format!("service {}/{}, {}\n", service.vip, service.protocol, service.how());
    }
    for backend in plane.backends() {
        text += &format!("  backend {}, {}\n", backend.address, network.describe(*backend));
    }
    for interface in interfaces.attached() {
        let mode = match interface.mode() {
            Mode::Native => "native",
            Mode::Skb => "SKB",
        };
        text += &format!("attached to {} in {mode} mode", interface.link.name);
        if !interface.backends.is_empty() {
            text += &format!(", faces {}", interface.backends.join(" "));
        }
        text += &format!("; {}\n", deliveries.describe(interface));
    }
    text += &format!(
        "table: room for {} connections ({} slots)\npinned in {}\n",
        config.max_connections,
        u64::from(plane.settings().buckets) * 4,
        running.pins.path().display()
    );
    text
}

/// Writes to stdout. A reader that is gone or a full disk must not stop the balancing.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
