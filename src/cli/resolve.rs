//! The one place where words become a [`Command`]: checks what fits together, fills in defaults. `instance` has the verbs
//! that are about a running instance.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use super::args::{Args, Run, ServiceArgs};
use super::complaints::{extra_word, mistyped};
use super::examples::{example, form, is_verb, verbs_in};
use super::usage::{Usage, quoted};
use super::verbs::Verb;
use super::{Command, instance};
use crate::config::words::{self as parse, Fault, Vip, alternatives};
use crate::config::{Config, DEFAULT_PIN_DIR, LogFormat, MAX_BACKENDS, default_socket};
use crate::model::{Backend, Health, OnDown, OnEmpty, Scheduler, Service, Timeouts};

/// Gives the arguments their meaning. `words` are what was typed.
pub(super) fn resolve(args: &Args, words: &[OsString]) -> Result<Command, Usage> {
    match &args.verb {
        None => {
            let config = Box::new(run(&args.run).map_err(|usage| mistyped(words).unwrap_or(usage))?);
            Ok(match args.run.check_only {
                true => Command::Check(config),
                false => Command::Run { config, file: None },
            })
        }
        Some(Verb::Run { config, check_only }) => Ok(Command::RunFile {
            file: path("--config", config.as_deref())?
                .ok_or_else(|| Usage::bad("--config", "it is missing", form("run")))?,
            check_only: *check_only,
        }),
        Some(Verb::Check { file }) => Ok(Command::CheckFile(required("FILE", file.as_deref(), path)?)),
        Some(Verb::Verify) => Ok(Command::Verify),
        Some(Verb::Tune { interface, dry_run, undo, json }) => Ok(Command::Tune {
            interface: interface_of(interface.as_deref(), form("tune"))?,
            dry_run: *dry_run,
            undo: *undo,
            json: *json,
        }),
        Some(Verb::VethPeer { interface, remove }) => {
            let interface = interface_of(interface.as_deref(), form("veth-peer"))?;
            Ok(Command::VethPeer { interface, remove: *remove })
        }
        Some(Verb::Detach { interface, pin_dir: dir }) => Ok(Command::Detach {
            interface: interface_of(interface.as_deref(), form("detach"))?,
            pin_dir: pin_dir(dir.as_deref())?,
        }),
        Some(verb) => instance::resolve(verb),
    }
}

/// An argument without which clap refuses the verb.
pub(super) fn required<T>(
    name: &str,
    word: Option<&OsStr>,
    read: impl Fn(&str, Option<&OsStr>) -> Result<Option<T>, Usage>,
) -> Result<T, Usage> {
    read(name, word)?.ok_or_else(|| Usage::bad(name, "it is missing", "xdp-lb --help"))
}

pub(super) fn path(name: &str, word: Option<&OsStr>) -> Result<Option<PathBuf>, Usage> {
    match word {
        Some(word) if word.is_empty() => {
            Err(Usage::bad(&format!("{name} \"\""), "it is empty", &example(name)))
        }
        word => Ok(word.map(PathBuf::from)),
    }
}

/// The interface that a verb is for; `right` shows the verb with one.
fn interface_of(word: Option<&OsStr>, right: &str) -> Result<String, Usage> {
    option("IFACE", word, parse::interface)?
        .ok_or_else(|| Usage::bad("IFACE", "the interface is missing", right))
}

/// What is given is checked before what is missing: a wrong word is what the operator is looking at.
fn run(args: &Run) -> Result<Config, Usage> {
    let interfaces = interfaces(args)?;
    let given = GivenService::read(&args.service)?;
    let name = option("--name", args.name.as_deref(), parse::service_name)?;
    let xdp_mode = option("--xdp-mode", args.xdp_mode.as_deref(), parse::xdp_mode)?;
    let deliver = option("--deliver", args.deliver.as_deref(), parse::deliver)?;
    let pin_dir = pin_dir(args.pin_dir.as_deref())?;
    let socket = option("--socket", args.socket.as_deref(), parse::socket)?;
    let interval = option("--stats-interval", args.stats_interval.as_deref(), parse::stats_interval)?;
    let metrics = option("--metrics", args.metrics.as_deref(), parse::metrics)?;
    let log_format = option("--log-format", args.log_format.as_deref(), parse::log_format)?;
    let memory = option("--ring-memory", args.ring_memory.as_deref(), parse::bytes)?;
    let connections = option("--max-connections", args.max_connections.as_deref(), parse::max_connections)?;
    let timeouts = timeouts(args)?;

    if interfaces.is_empty() {
        return Err(Usage::missing("IFACE", "the interface is missing"));
    }
    if given.vip.is_none() {
        return Err(missing_vip(args));
    }
    if given.backends.is_empty() {
        return Err(Usage::missing("--backend", "it is missing, at least one is needed"));
    }
    Ok(Config {
        xdp_mode: xdp_mode.unwrap_or_default(),
        deliver: deliver.unwrap_or_default(),
        socket: socket.unwrap_or_else(|| default_socket(&pin_dir)),
        pin_dir,
        max_connections: connections.unwrap_or(Config::MAX_CONNECTIONS),
        ring_memory: memory.unwrap_or(Config::RING_MEMORY),
        timeouts,
        stats_interval: interval.unwrap_or(Some(Config::STATS_INTERVAL)),
        assign_vip: args.assign_vip,
        persist: args.persist,
        metrics,
        log_format: log_format.unwrap_or(LogFormat::default()),
        ..Config::new(interfaces, given.services(name.as_deref(), timeouts))
    })
}

/// What was said of a service.
pub(super) struct GivenService {
    pub vip: Option<Vip>,
    pub backends: Vec<Backend>,
    scheduler: Option<Scheduler>,
    sticky: Option<Duration>,
    health: Option<Health>,
    on_empty: Option<OnEmpty>,
    on_down: Option<OnDown>,
    slow_start: Option<Duration>,
}

impl GivenService {
    pub fn read(args: &ServiceArgs) -> Result<GivenService, Usage> {
        let vip = option("--vip", args.vip.as_deref(), parse::vip)?;
        let backends = backends(args, vip.as_ref())?;
        Ok(GivenService {
            vip,
            backends,
            scheduler: option("--scheduler", args.scheduler.as_deref(), parse::scheduler)?,
            sticky: option("--sticky", args.sticky.as_deref(), parse::sticky)?.flatten(),
            health: option("--health", args.health.as_deref(), parse::health)?,
            on_empty: option("--on-empty", args.on_empty.as_deref(), parse::on_empty)?,
            on_down: option("--on-down", args.on_down.as_deref(), parse::on_down)?,
            slow_start: option("--slow-start", args.slow_start.as_deref(), parse::slow_start)?,
        })
    }

    /// One for each protocol; none without a VIP.
    pub fn services(&self, name: Option<&str>, timeouts: Timeouts) -> Vec<Service> {
        let Some(vip) = &self.vip else { return Vec::new() };
        let health = self.health.clone().unwrap_or_else(|| Health::usual(vip.protocols));
        let service = |protocol| {
            let service = Service::new(vip.address, protocol, self.backends.clone());
            Service {
                name: name.map_or(service.name, str::to_owned),
                scheduler: self.scheduler.unwrap_or_default(),
                sticky: self.sticky,
                timeouts,
                on_empty: self.on_empty.unwrap_or_default(),
                on_down: self.on_down.unwrap_or_default(),
                health: health.clone(),
                slow_start: self.slow_start.unwrap_or_default(),
                ..service
            }
        };
        vip.protocols.iter().copied().map(service).collect()
    }
}

/// The value of an option that may be absent, with a complaint that names option and value.
pub(super) fn option<T>(
    name: &str,
    value: Option<&OsStr>,
    parse: impl Fn(&OsStr) -> Result<T, Fault>,
) -> Result<Option<T>, Usage> {
    value.map(|value| parse(value).map_err(|fault| bad_value(name, value, &fault))).transpose()
}

fn bad_value(name: &str, value: &OsStr, fault: &Fault) -> Usage {
    Usage::bad(&format!("{name} {}", quoted(value)), &fault.wrong, &fault.right)
}

fn interfaces(args: &Run) -> Result<Vec<String>, Usage> {
    if let Some(word) = args.positional.get(1) {
        return Err(extra_word(word, ""));
    }
    let positional = option("IFACE", args.positional.first().map(OsString::as_os_str), parse::interface)?;
    if let Some(verb) = positional.as_ref().filter(|word| is_verb(word)) {
        return Err(Usage::bad(
            &format!("{verb:?}"),
            "a command is the first argument and shares no options with running",
            &format!("{}, or --interface {verb} for an interface of that name", form(verb)),
        ));
    }
    let mut interfaces: Vec<String> = positional.into_iter().collect();
    for word in &args.interface {
        let Some(interface) = option("--interface", Some(word), parse::interface)? else { continue };
        if interfaces.contains(&interface) {
            let part = format!("--interface {interface:?}");
            return Err(Usage::bad(&part, "the interface is given already", "each interface once"));
        }
        interfaces.push(interface);
    }
    Ok(interfaces)
}

/// `xdp-lb show` is more likely a command that does not exist than an interface.
fn missing_vip(args: &Run) -> Usage {
    let wrong = "it is missing";
    match args.positional.first() {
        Some(word) if args.service.backend.is_empty() => {
            let hint = format!(
                "{} was taken as the interface; the commands are {}.\nTry 'xdp-lb --help' for all options and examples.",
                quoted(word),
                alternatives(&verbs_in("")).replace(" or ", " and ")
            );
            Usage::bad_with_hint("--vip", wrong, &example("--vip"), &hint)
        }
        _ => Usage::missing("--vip", wrong),
    }
}

fn backends(args: &ServiceArgs, vip: Option<&Vip>) -> Result<Vec<Backend>, Usage> {
    let mut backends: Vec<Backend> = Vec::new();
    for word in &args.backend {
        let bad = |wrong: String, right: &str| {
            let fault = Fault { wrong, right: right.to_owned() };
            bad_value("--backend", word, &fault)
        };
        let backend = parse::backend(word).map_err(|fault| bad_value("--backend", word, &fault))?;
        if vip.is_some_and(|vip| vip.address.ip() == backend.address.ip()) {
            let wrong = "it is the VIP's address, a backend has one of its own".to_owned();
            return Err(bad(wrong, "10.0.0.10:8080 or 10.0.0.10:8080:50"));
        }
        if let Some(first) = backends.iter().find(|other| other.address == backend.address) {
            let wrong = format!("{} is a backend already", first.address);
            return Err(bad(wrong, &format!("it once, with the weight that it should have: {first}")));
        }
        if backends.len() == MAX_BACKENDS {
            let wrong = format!("it is backend number {}, there can be {MAX_BACKENDS}", MAX_BACKENDS + 1);
            return Err(bad(wrong, &format!("1 to {MAX_BACKENDS} of --backend 10.0.0.10:8080:50")));
        }
        backends.push(backend);
    }
    Ok(backends)
}

pub(super) fn pin_dir(value: Option<&OsStr>) -> Result<PathBuf, Usage> {
    Ok(option("--pin-dir", value, parse::pin_dir)?.unwrap_or_else(|| PathBuf::from(DEFAULT_PIN_DIR)))
}

fn timeouts(args: &Run) -> Result<Timeouts, Usage> {
    let default = Timeouts::default();
    let timeout = |name, value: &Option<OsString>, default| {
        let given = option(name, value.as_deref(), |word| parse::timeout(word, default))?;
        Ok::<_, Usage>(given.unwrap_or(default))
    };
    Ok(Timeouts {
        established: timeout("--timeout-established", &args.timeout_established, default.established)?,
        unconfirmed: timeout("--timeout-unconfirmed", &args.timeout_unconfirmed, default.unconfirmed)?,
        closing: timeout("--timeout-closing", &args.timeout_closing, default.closing)?,
        udp: timeout("--timeout-udp", &args.timeout_udp, default.udp)?,
    })
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
