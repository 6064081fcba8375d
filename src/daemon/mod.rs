//! One running instance: starts it, keeps it in step with the network, prints what it does, and takes it down.

mod answers;
mod change;
mod deliveries;
mod detach;
mod exporter;
mod health;
mod interfaces;
mod kept_pins;
mod ledger;
mod network;
mod pool;
mod ramp;
mod running;
mod source;
mod start;
mod supervisor;
mod vip;
mod warnings;
mod watch;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use anyhow::{Context as _, Result, ensure};

use crate::config::Config;
use crate::control::{Ask, Reply, Server};
use crate::dataplane::{Mode, PinDir, Plane};
use crate::health::Event;
use crate::net::{Changes, Events, Netlink};
use crate::preflight::{self, Level};
use exporter::{Exporter, Listening};
use interfaces::Wanted;
use kept_pins::KeptPins;
use ledger::Ledger;
use pool::Pool;
use running::{Due, Running};
use source::Source;
use start::{Occasion, Started};
use supervisor::Supervisor;
use warnings::Warnings;

pub use detach::detach;

/// Runs until SIGINT, SIGTERM or SIGHUP, or until it is asked to stop. `file` is where the configuration was read. Whatever
/// happens, what was attached, pinned, assigned or set is taken back; but a start that fails over what an instance left which
/// died does not touch it, and with `persist` the data plane goes on when the process ends.
pub fn run(config: &Config, file: Option<PathBuf>) -> Result<()> {
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
        tracing::info!("mounted a bpffs at {}, where none was", mounted.display());
    }
    let started = match start(config, &wakes, netlink, needed, &pins, &mut ledger) {
        Ok(started) => started,
        Err(Failed { error, leaves_it: true }) => return Err(error),
        Err(Failed { error, leaves_it: false }) => {
            let _ = take_down(None, pins, &mut ledger);
            return Err(error);
        }
    };
    let (started, server, pool, listening) = started;
    let Started { plane, network, interfaces, deliveries, vips, watch, changed } = started;
    let vips = vips.context("a start has assigned nothing")?;
    let exporter = Exporter::start(listening, &plane, config);
    let mut running = Running {
        config: config.clone(),
        source: file.map(|path| Source::new(path, config.clone())),
        server,
        pool,
        exporter,
        supervisor: Supervisor::new(),
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
        due: Due::new(config),
    };
    if changed {
        running.note_change();
    }
    running.plane.tables().past().started();
    running.pool.follow(config, &mut running.plane);
    running.settle_in();
    say(&banner(&running));
    running.supervisor.ready();
    running.run(&wakes.receiver);
    running.supervisor.stopping();
    end(running)
}

/// Takes everything back, or leaves it to go on.
fn end(running: Running) -> Result<()> {
    let Running { config, mut plane, pins, mut ledger, server, pool, exporter, .. } = running;
    pool.count_checks(&plane);
    // Nobody should be told of what is about to end.
    drop((server, pool, exporter));
    if config.persist {
        say(&format!(
            "the process ends; by persist the programs, tables and addresses stay and go on: start it again to take them \
             over, or xdp-lb detach {} --pin-dir {}\n",
            config.main_interface(),
            config.pin_dir.display()
        ));
        return Ok(());
    }
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
    wakes: &Wakes,
    netlink: Netlink,
    needed: Vec<Wanted>,
    pins: &PinDir,
    ledger: &mut Ledger,
) -> Result<(Started, Option<Server>, Pool, Listening), Failed> {
    const GOES_ON: &str = "the start failed; what the instance before left goes on";
    const HALF_DONE: &str =
        "the start failed while it took over; what is attached goes on: start again when this is mended";
    let leaves_it = |error: anyhow::Error, how| Failed { error: error.context(how), leaves_it: true };
    let nothing_left = |error| Failed { error, leaves_it: false };
    let left = start::find_left(pins, ledger).map_err(|error| leaves_it(error, GOES_ON))?;
    let takes_over = left.is_some();
    let prepared = start::prepare(config, netlink, needed, left, Occasion::Start, ledger)
        .and_then(|prepared| Ok((prepared, serve(config, wakes)?, wakes.pool()?, Listening::begin(config)?)));
    match prepared {
        Ok((prepared, server, pool, listening)) => {
            let committed = prepared.commit(config, pins, ledger);
            let started = committed.map_err(|error| match takes_over {
                true => leaves_it(error, HALF_DONE),
                false => nothing_left(error),
            })?;
            Ok((started, server, pool, listening))
        }
        Err(error) if takes_over => {
            ledger.restore_own();
            Err(leaves_it(error, GOES_ON))
        }
        Err(error) => Err(nothing_left(error)),
    }
}

/// Listens at the admin socket. Who may not make one does without: the balancing needs none.
fn serve(config: &Config, wakes: &Wakes) -> Result<Option<Server>> {
    let sender = wakes.sender.clone();
    let ask = move |ask, reply| {
        // A receiver that is gone means that the process is ending: the reply says so when it is dropped.
        let _ = sender.send(Wake::Ask(Box::new(ask), reply));
    };
    match Server::start(&config.socket, config.timeouts, ask) {
        Ok(server) => Ok(Some(server)),
        Err(error) if is_forbidden(&error) => {
            tracing::warn!("{error:#}: there is no admin socket, so it cannot be changed while it runs");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn is_forbidden(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|error| {
        matches!(error.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
    })
}

/// Takes everything back, whatever of it fails.
fn take_down(plane: Option<&mut Plane>, pins: PinDir, ledger: &mut Ledger) -> Result<()> {
    let renamed = Netlink::open()
        .and_then(|mut netlink| netlink.links())
        .and_then(|links| ledger.follow_names(links.iter()));
    if let Err(error) = renamed {
        tracing::warn!("what was changed on interfaces that have a new name now may stay: {error:#}");
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
        match finding.level {
            Level::Error => tracing::error!(about = finding.name, "{finding}"),
            _ => tracing::warn!(about = finding.name, "{finding}"),
        }
    }
    let errors = findings.iter().filter(|finding| finding.level == Level::Error).count();
    ensure!(errors == 0, "not started: {errors} {}", if errors == 1 { "error" } else { "errors" });
    Ok(())
}

/// What ends the loop's sleep.
enum Wake {
    Stop,
    Network(Changes),
    /// A backend went up or down.
    Health(Event),
    /// Somebody asks at the admin socket.
    Ask(Box<Ask>, Reply),
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

    /// Backends that wake it when they go up or down.
    fn pool(&self) -> Result<Pool> {
        let sender = self.sender.clone();
        Pool::new(move |event| {
            let _ = sender.send(Wake::Health(event));
        })
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
                    return tracing::warn!("{error:#}: changes are found once a second from now on");
                }
            }
        };
        thread::Builder::new().name("events".into()).spawn(listen).context("could not start a thread")?;
        Ok(())
    }
}

/// What was attached where, and how packets travel.
fn banner(running: &Running) -> String {
    let Running { config, plane, network, interfaces, deliveries, .. } = running;
    let mut text = format!("xdp-lb {}\n", env!("CARGO_PKG_VERSION"));
    for service in config.services.iter().take(SHOWN) {
        let name = if service.name == service.vip.to_string() { "" } else { &format!("{}, ", service.name) };
        text += &format!("service {name}{}/{}, {}\n", service.vip, service.protocol, service.how());
    }
    text += &and_more(config.services.len(), "services");
    for backend in plane.backends().iter().take(SHOWN) {
        text += &format!("  backend {}, {}\n", backend.address, network.describe(*backend));
    }
    text += &and_more(plane.backends().len(), "backends");
    for interface in interfaces.attached() {
        let mode = match interface.mode {
            Mode::Native => "native",
            Mode::Skb => "SKB",
        };
        text += &format!("attached to {} in {mode} mode", interface.link.name);
        if !interface.backends.is_empty() {
            let shown: Vec<String> = interface.backends.iter().take(SHOWN).map(ToString::to_string).collect();
            let more = interface.backends.len() - shown.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            text += &format!(", faces {}{more}", shown.join(" "));
        }
        text += &format!("; {}\n", deliveries.describe(interface));
    }
    if let Some(address) = running.exporter.address() {
        text += &format!("metrics at http://{address}/metrics\n");
    }
    text += &format!(
        "table: room for {} connections ({} slots)\npinned in {}\n",
        config.max_connections,
        u64::from(plane.settings().buckets) * 4,
        running.pins.path().display()
    );
    text
}

/// So many of a kind are shown; a screen has no more lines.
const SHOWN: usize = 64;

fn and_more(count: usize, what: &str) -> String {
    if count > SHOWN { format!("  and {} more {what}\n", count - SHOWN) } else { String::new() }
}

/// Writes to stdout. A reader that is gone or a full disk must not stop the balancing.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
