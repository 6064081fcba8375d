//! One running instance: starts it, keeps it in step with the network, prints what it does, and takes it down.

mod deliveries;
mod detach;
mod interfaces;
mod kept_pins;
mod ledger;
mod network;
mod running;
mod start;
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
use interfaces::Wanted;
use kept_pins::KeptPins;
use ledger::Ledger;
use running::Running;
use start::Started;
use warnings::Warnings;

pub use detach::detach;

/// Runs until SIGINT, SIGTERM or SIGHUP. Whatever happens, what was attached, pinned, assigned or set is taken back; but a
/// start that fails over what an instance left which died does not touch it.
pub fn run(config: &Config) -> Result<()> {
    let wakes = Wakes::by_signals()?;
    let mut netlink = Netlink::open()?;
    check(&mut netlink, config)?;
    let needed = interfaces::needed(&mut netlink, config)?;
    // From here on nothing that happens to the network is missed.
    wakes.listen()?;
    let pins = PinDir::acquire(&config.pin_dir)?;
    let mut ledger = Ledger::open(pins.path())?;
    ledger.follow_names(netlink.links()?.iter())?;
    if let Some(mounted) = pins.mounted() {
        ledger.add_mount(mounted)?;
        crate::note!("mounted a bpffs at {}, where none was", mounted.display());
    }
    let started = match start(config, netlink, needed, &pins, &mut ledger) {
        Ok(started) => started,
        Err(Failed { error, leaves_it: true }) => return Err(error),
        Err(Failed { error, leaves_it: false }) => {
            let _ = take_down(None, pins, &mut ledger);
            return Err(error);
        }
    };
    let Started { plane, network, interfaces, deliveries, vips, watch } = started;
    let mut running = Running {
        config,
        pins: KeptPins::new(pins),
        ledger,
        plane,
        network,
        interfaces,
        deliveries,
        vips,
        warnings: Warnings::default(),
        watch,
        inherits: true,
    };
    running.begin();
    say(&banner(&running));
    running.run(&wakes.receiver);
    let Running { mut plane, pins, mut ledger, .. } = running;
    take_down(Some(&mut plane), pins.into_inner(), &mut ledger).context("could not clean up")?;
    say("detached; the pins are removed\n");
    Ok(())
}

/// Why a start failed, and whether what an instance before left goes on as it was.
struct Failed {
    error: anyhow::Error,
    leaves_it: bool,
}

fn start(
    config: &Config,
    netlink: Netlink,
    needed: Vec<Wanted>,
    pins: &PinDir,
    ledger: &mut Ledger,
) -> Result<Started, Failed> {
    const GOES_ON: &str = "the start failed; what the instance before left goes on";
    const HALF_DONE: &str =
        "the start failed while it took over; what is attached goes on: start again when this is mended";
    let leaves_it = |error: anyhow::Error, how| Failed { error: error.context(how), leaves_it: true };
    let nothing_left = |error| Failed { error, leaves_it: false };
    let left = start::find_left(pins, ledger).map_err(|error| leaves_it(error, GOES_ON))?;
    let takes_over = left.is_some();
    match start::prepare(config, netlink, needed, left, ledger) {
        Ok(prepared) => {
            let committed = prepared.commit(config, pins, ledger);
            committed.map_err(|error| match takes_over {
                true => leaves_it(error, HALF_DONE),
                false => nothing_left(error),
            })
        }
        Err(error) if takes_over => {
            ledger.restore_own();
            Err(leaves_it(error, GOES_ON))
        }
        Err(error) => Err(nothing_left(error)),
    }
}

/// Takes everything back, whatever of it fails.
fn take_down(plane: Option<&mut Plane>, pins: PinDir, ledger: &mut Ledger) -> Result<()> {
    let renamed = Netlink::open()
        .and_then(|mut netlink| netlink.links())
        .and_then(|links| ledger.follow_names(links.iter()));
    if let Err(error) = renamed {
        crate::note!("warning: what was changed on interfaces that have a new name now may stay: {error:#}");
    }
    // First of all: nobody should be drawn here by an address that nothing balances any more.
    vip::remove(ledger.vips(), ledger);
    // By the links themselves: their pins may be gone.
    let detached = plane.map_or(Ok(()), Plane::detach_all);
    let unpinned = pins.detach();
    ledger.restore();
    let removed = pins.remove(ledger.mounted());
    detached.and(unpinned.map(drop)).and(removed)
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
        let mode = match interface.mode {
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
