//! The one place where words become a [`Command`]: checks what fits together, fills in defaults.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::Command;
use super::args::{Args, Run, Verb};
use super::usage::{Usage, example, extra_word, is_verb, quoted};
use crate::config::words::{self as parse, Fault, Vip};
use crate::config::{Config, DEFAULT_PIN_DIR, MAX_BACKENDS, default_socket};
use crate::model::{Backend, Service, Timeouts};

/// Gives the arguments their meaning.
pub(super) fn resolve(args: &Args) -> Result<Command, Usage> {
    match &args.verb {
        None if args.run.check_only => Ok(Command::Check(Box::new(run(&args.run)?))),
        None => Ok(Command::Run(Box::new(run(&args.run)?))),
        Some(Verb::Status { pin_dir: dir, json }) => {
            Ok(Command::Status { pin_dir: pin_dir(dir.as_deref())?, json: *json })
        }
        Some(Verb::Verify) => Ok(Command::Verify),
        Some(Verb::VethPeer { interface, remove }) => {
            let interface = interface_of(interface.as_deref(), "xdp-lb veth-peer eth0")?;
            Ok(Command::VethPeer { interface, remove: *remove })
        }
        Some(Verb::Detach { interface, pin_dir: dir }) => Ok(Command::Detach {
            interface: interface_of(interface.as_deref(), "xdp-lb detach eth0")?,
            pin_dir: pin_dir(dir.as_deref())?,
        }),
    }
}

/// The interface that a verb is for; `right` shows the verb with one.
fn interface_of(word: Option<&OsStr>, right: &str) -> Result<String, Usage> {
    option("IFACE", word, parse::interface)?
        .ok_or_else(|| Usage::bad("IFACE", "the interface is missing", right))
}

/// What is given is checked before what is missing: a wrong word is what the operator is looking at.
fn run(args: &Run) -> Result<Config, Usage> {
    let interface = interface(args)?;
    let vip = option("--vip", args.vip.as_deref(), parse::vip)?;
    let backends = backends(args, vip.as_ref())?;
    let scheduler = option("--scheduler", args.scheduler.as_deref(), parse::scheduler)?;
    let sticky = option("--sticky", args.sticky.as_deref(), parse::sticky)?.flatten();
    let xdp_mode = option("--xdp-mode", args.xdp_mode.as_deref(), parse::xdp_mode)?;
    let deliver = option("--deliver", args.deliver.as_deref(), parse::deliver)?;
    let pin_dir = pin_dir(args.pin_dir.as_deref())?;
    let interval = option("--stats-interval", args.stats_interval.as_deref(), parse::stats_interval)?;
    let connections = option("--max-connections", args.max_connections.as_deref(), parse::max_connections)?;
    let timeouts = timeouts(args)?;

    let interface = interface.ok_or_else(|| Usage::missing("IFACE", "the interface is missing"))?;
    let vip = vip.ok_or_else(|| missing_vip(args))?;
    if backends.is_empty() {
        return Err(Usage::missing("--backend", "it is missing, at least one is needed"));
    }
    let service = |protocol| Service {
        scheduler: scheduler.unwrap_or_default(),
        sticky,
        timeouts,
        ..Service::new(vip.address, protocol, backends.clone())
    };
    Ok(Config {
        xdp_mode: xdp_mode.unwrap_or_default(),
        deliver: deliver.unwrap_or_default(),
        socket: default_socket(&pin_dir),
        pin_dir,
        max_connections: connections.unwrap_or(Config::MAX_CONNECTIONS),
        timeouts,
        stats_interval: interval.unwrap_or(Some(Config::STATS_INTERVAL)),
        assign_vip: args.assign_vip,
        ..Config::new(vec![interface], vip.protocols.iter().copied().map(service).collect())
    })
}

/// The value of an option that may be absent, with a complaint that names option and value.
fn option<T>(
    name: &str,
    value: Option<&OsStr>,
    parse: impl Fn(&OsStr) -> Result<T, Fault>,
) -> Result<Option<T>, Usage> {
    value.map(|value| parse(value).map_err(|fault| bad_value(name, value, &fault))).transpose()
}

fn bad_value(name: &str, value: &OsStr, fault: &Fault) -> Usage {
    Usage::bad(&format!("{name} {}", quoted(value)), &fault.wrong, &fault.right)
}

fn interface(args: &Run) -> Result<Option<String>, Usage> {
    if let Some(word) = args.positional.get(1) {
        return Err(extra_word(word, None));
    }
    let positional = option("IFACE", args.positional.first().map(OsString::as_os_str), parse::interface)?;
    let named = option("--interface", args.interface.as_deref(), parse::interface)?;
    match (positional, named) {
        (Some(verb), _) if is_verb(&verb) => Err(Usage::bad(
            &format!("{verb:?}"),
            "a command is the first argument and shares no options with running",
            &format!("xdp-lb {verb}, or --interface {verb} for an interface of that name"),
        )),
        (Some(positional), Some(named)) => Err(Usage::bad(
            &format!("--interface {named:?}"),
            &format!("the interface is given already, as {positional:?}"),
            &format!("one of the two: --interface {named} or {positional}"),
        )),
        (positional, named) => Ok(positional.or(named)),
    }
}

/// `xdp-lb stats` is more likely a command that does not exist than an interface.
fn missing_vip(args: &Run) -> Usage {
    let wrong = "it is missing";
    match args.positional.first() {
        Some(word) if args.backend.is_empty() => {
            let word = quoted(word);
            let hint = format!(
                "{word} was taken as the interface; the commands are status, verify, veth-peer and detach.\n\
                 Try 'xdp-lb --help' for all options and examples."
            );
            Usage::bad_with_hint("--vip", wrong, &example("--vip"), &hint)
        }
        _ => Usage::missing("--vip", wrong),
    }
}

fn backends(args: &Run, vip: Option<&Vip>) -> Result<Vec<Backend>, Usage> {
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

fn pin_dir(value: Option<&OsStr>) -> Result<PathBuf, Usage> {
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
