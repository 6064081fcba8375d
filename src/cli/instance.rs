//! From words to what is asked of a running instance.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use clap::ValueEnum as _;
use clap_complete::Shell;

use super::examples::{form, verbs_in};
use super::resolve::{GivenService, option, path, pin_dir, required};
use super::usage::{Usage, quoted};
use super::verbs::{BackendVerb, FilterArgs, ServiceVerb, Target, Verb, WhichBackend};
use super::{Command, Instance, Named, Packet, Show, ShowTop, Watching};
use crate::config::default_socket;
use crate::config::words::{self as parse, Fault, alternatives};
use crate::control::{Ask, BackendChange, Filter, LISTED, Reload};
use crate::dataplane::types::lb_constants;
use crate::model::{AdminState, Protocol, Timeouts};
use crate::preflight::Level;

/// As much of a frame as can be captured.
const SNAPLEN: u32 = lb_constants::LB_SNAPSHOT_LENGTH.0;

/// With less, frames of IPv4 could be without their ports.
const LEAST_SNAPLEN: u32 = 64;

/// How often `stats` shows figures where nothing else is said.
const STATS_INTERVAL: Duration = Duration::from_secs(2);
/// The same of `top`.
const TOP_INTERVAL: Duration = Duration::from_secs(1);

/// Gives the verbs that ask an instance, or print something of this program, their meaning.
pub(super) fn resolve(verb: &Verb) -> Result<Command, Usage> {
    match verb {
        Verb::Status { target } => Ok(Command::Show(Show::Status, instance(target)?)),
        Verb::Stats { interval, count, target } => {
            let show = Show::Stats {
                interval: option("--interval", interval.as_deref(), interval_word)?.unwrap_or(STATS_INTERVAL),
                count: option("--count", count.as_deref(), |word| number(word, "10"))?,
            };
            Ok(Command::Show(show, instance(target)?))
        }
        Verb::Explain { client, vip, syn, interface, target } => Ok(Command::Explain {
            packet: packet(client.as_deref(), vip.as_deref(), *syn)?,
            interface: option("--interface", interface.as_deref(), parse::interface)?,
            instance: instance(target)?,
        }),
        Verb::Trace { watch, target } => Ok(Command::Trace(Watching::read(watch)?, instance(target)?)),
        Verb::Capture { write, snaplen, watch, target } => Ok(Command::Capture {
            watching: Watching::read(watch)?,
            file: required("--write", write.as_deref(), path)?,
            length: option("--snaplen", snaplen.as_deref(), snaplen_word)?.unwrap_or(SNAPLEN),
            instance: instance(target)?,
        }),
        Verb::Top { interval, once, no_color, socket, pin_dir } => {
            let interval = option("--interval", interval.as_deref(), interval_word)?.unwrap_or(TOP_INTERVAL);
            let show = ShowTop { interval, once: *once, no_color: *no_color };
            Ok(Command::Top(show, instance_at(socket.as_deref(), pin_dir.as_deref(), false)?))
        }
        Verb::Service { verb, target } => service(verb, instance(target)?),
        Verb::Backend { verb, target } => backend(verb, instance(target)?),
        Verb::Connections { verb, filter, target } => connections(verb.is_some(), filter_of(filter)?, target),
        Verb::Config { target, .. } => Ok(Command::Show(Show::Config, instance(target)?)),
        Verb::Reload { dry_run, now, target } => {
            change(Ask::Reload(Reload { dry_run: *dry_run, now: *now }), target)
        }
        Verb::Stop { target } => change(Ask::Stop, target),
        Verb::Doctor { interface, fix, level, target } => Ok(Command::Doctor {
            interface: option("IFACE", interface.as_deref(), parse::interface)?,
            instance: instance(target)?,
            fix: *fix,
            level: option("--level", level.as_deref(), level_word)?.unwrap_or(Level::Ok),
        }),
        Verb::Completions { shell } => {
            Ok(Command::Completions(required("SHELL", shell.as_deref(), |name, word| {
                option(name, word, shell_word)
            })?))
        }
        Verb::Man { verb, dir } => {
            Ok(Command::Manual { verb: manual_verb(verb)?, dir: path("--dir", dir.as_deref())? })
        }
        // `resolve` has these.
        Verb::Run { .. }
        | Verb::Check { .. }
        | Verb::Verify
        | Verb::Tune { .. }
        | Verb::VethPeer { .. }
        | Verb::Detach { .. } => Err(Usage::bad("arguments", "they are of no instance", "xdp-lb --help")),
    }
}

fn connections(kill: bool, filter: Filter, target: &Target) -> Result<Command, Usage> {
    if !kill {
        let limit = Some(filter.limit.unwrap_or(LISTED));
        return Ok(Command::Show(Show::Connections(Filter { limit, ..filter }), instance(target)?));
    }
    if filter.is_empty() {
        let wrong = "--service, --backend, --client or --state is needed: which connections?";
        return Err(Usage::bad("connections kill", wrong, form("connections kill")));
    }
    change(Ask::Kill(filter), target)
}

fn instance(target: &Target) -> Result<Instance, Usage> {
    instance_at(target.socket.as_deref(), target.pin_dir.as_deref(), target.json)
}

fn instance_at(socket: Option<&OsStr>, dir: Option<&OsStr>, json: bool) -> Result<Instance, Usage> {
    let pin_dir = pin_dir(dir)?;
    let named = match (dir, socket) {
        (Some(_), _) => Named::Pins,
        (None, Some(_)) => Named::Socket,
        (None, None) => Named::No,
    };
    let socket = option("--socket", socket, parse::socket)?;
    Ok(Instance { named, socket: socket.unwrap_or_else(|| default_socket(&pin_dir)), pin_dir, json })
}

fn packet(client: Option<&OsStr>, vip: Option<&OsStr>, syn: bool) -> Result<Packet, Usage> {
    let client = required("CLIENT:PORT", client, |name, word| option(name, word, sender_word))?;
    let vip = required("VIP:PORT", vip, |name, word| option(name, word, parse::vip))?;
    let protocol = match vip.protocols {
        [Protocol::Udp] if syn => {
            return Err(Usage::bad("--syn", "a datagram of UDP opens nothing", form("explain")));
        }
        [one] => *one,
        _ => return Err(Usage::bad("VIP:PORT", "one packet is of TCP or of UDP", form("explain"))),
    };
    Ok(Packet { protocol, client, vip: vip.address, syn })
}

fn change(ask: Ask, target: &Target) -> Result<Command, Usage> {
    Ok(Command::Change { ask, wait: false, instance: instance(target)? })
}

fn service(verb: &ServiceVerb, instance: Instance) -> Result<Command, Usage> {
    let ask = match verb {
        ServiceVerb::List => return Ok(Command::Show(Show::Services, instance)),
        ServiceVerb::Add { name, service, persist } => {
            let name =
                required("NAME", name.as_deref(), |name, word| option(name, word, parse::service_name))?;
            let given = GivenService::read(service)?;
            if given.vip.is_none() {
                return Err(Usage::bad("--vip", "it is missing", form("service add")));
            }
            let services = given.services(Some(&name), Timeouts::default());
            Ask::AddServices { services, persist: *persist }
        }
        ServiceVerb::Remove { service, persist } => {
            Ask::RemoveService { service: service_named(service)?, persist: *persist }
        }
    };
    Ok(Command::Change { ask, wait: false, instance })
}

fn backend(verb: &BackendVerb, instance: Instance) -> Result<Command, Usage> {
    let state = |state, now, deadline| BackendChange::State { state, now, deadline };
    let (which, change, wait) = match verb {
        BackendVerb::List { service } => {
            let service = option("SERVICE", service.as_deref(), service_word)?;
            return Ok(Command::Show(Show::Backends(service), instance));
        }
        BackendVerb::Add { service, backend, state, persist } => {
            let name = "ADDR:PORT[:WEIGHT]";
            let backend =
                required(name, backend.as_deref(), |name, word| option(name, word, parse::backend))?;
            let state = option("--state", state.as_deref(), parse::admin_state)?;
            let ask = Ask::ChangeBackend {
                service: service_named(service)?,
                address: backend.address,
                change: BackendChange::Add(backend.weight, state.unwrap_or_default()),
                persist: *persist,
            };
            return Ok(Command::Change { ask, wait: false, instance });
        }
        BackendVerb::Remove { which, now, wait } => (which, BackendChange::Remove { now: *now }, *wait),
        BackendVerb::Drain { which, deadline, wait, now } => {
            let deadline = option("--deadline", deadline.as_deref(), deadline_word)?;
            if *now && deadline.is_some() {
                let wrong = "with --now connections are reset at once";
                return Err(Usage::bad("--deadline", wrong, "one of the two: --now or --deadline 60s"));
            }
            (which, state(AdminState::Drain, *now, deadline), *wait)
        }
        BackendVerb::Enable { which } => (which, state(AdminState::Enabled, false, None), false),
        BackendVerb::Disable { which, now } => (which, state(AdminState::Disabled, *now, None), false),
        BackendVerb::Weight { which, weight } => {
            let weight =
                required("N", weight.as_deref(), |name, word| option(name, word, parse::weight_number))?;
            (which, BackendChange::Weight(weight), false)
        }
    };
    Ok(Command::Change { ask: change_of(which, change)?, wait, instance })
}

fn change_of(which: &WhichBackend, change: BackendChange) -> Result<Ask, Usage> {
    Ok(Ask::ChangeBackend {
        service: service_named(&which.service)?,
        address: required("ADDR:PORT", which.backend.as_deref(), |name, word| {
            option(name, word, address_word)
        })?,
        change,
        persist: which.persist,
    })
}

fn filter_of(args: &FilterArgs) -> Result<Filter, Usage> {
    Ok(Filter {
        service: option("--service", args.service.as_deref(), service_word)?,
        backend: option("--backend", args.backend.as_deref(), address_word)?,
        client: option("--client", args.client.as_deref(), client_word)?,
        state: option("--state", args.state.as_deref(), state_word)?,
        limit: option("--limit", args.limit.as_deref(), |word| number(word, "100"))?
            .map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
    })
}

fn service_named(word: &Option<OsString>) -> Result<String, Usage> {
    required("SERVICE", word.as_deref(), |name, word| option(name, word, service_word))
}

pub(super) fn fault(wrong: &str, right: &str) -> Fault {
    Fault { wrong: wrong.to_owned(), right: right.to_owned() }
}

/// A name, or a VIP with or without its protocol: which of them there are only the instance knows.
pub(super) fn service_word(value: &OsStr) -> Result<String, Fault> {
    let right = "web or 192.168.1.100:80";
    match value.to_str() {
        None => Err(fault("it is not valid UTF-8", right)),
        Some("") => Err(fault("the service is missing", right)),
        Some(word) if word.contains(char::is_control) => {
            Err(fault("it has a control character in it", right))
        }
        Some(word) => Ok(word.to_owned()),
    }
}

/// A backend without its weight.
fn address_word(value: &OsStr) -> Result<SocketAddrV4, Fault> {
    let backend = parse::backend(value).map_err(|fault| Fault {
        right: fault.right.split(" or ").next().unwrap_or_default().to_owned(),
        ..fault
    })?;
    match value.to_str().map_or(0, |word| word.matches(':').count()) {
        1 => Ok(backend.address),
        _ => Err(fault("it has a weight, which is not asked for here", &backend.address.to_string())),
    }
}

/// Who sends a packet.
fn sender_word(value: &OsStr) -> Result<SocketAddrV4, Fault> {
    let address = value.to_str().and_then(|word| word.parse().ok());
    address.ok_or_else(|| fault("it is not an IPv4 address and a port", "198.51.100.7:40000"))
}

fn snaplen_word(value: &OsStr) -> Result<u32, Fault> {
    let right = "128";
    let length = number(value, right)?;
    match u32::try_from(length) {
        Ok(length) if length < LEAST_SNAPLEN => Err(fault(
            &format!("it is less than {LEAST_SNAPLEN}, the shortest that shows whose packet it is"),
            right,
        )),
        Ok(length) if length <= SNAPLEN => Ok(length),
        _ => Err(fault(&format!("it is more than {SNAPLEN}"), right)),
    }
}

fn client_word(value: &OsStr) -> Result<Ipv4Addr, Fault> {
    let address = value.to_str().and_then(|word| word.parse().ok());
    address.ok_or_else(|| fault("it is not an IPv4 address of four numbers from 0 to 255", "198.51.100.7"))
}

fn state_word(value: &OsStr) -> Result<String, Fault> {
    let known = Filter::STATES.iter().find(|state| value == **state);
    let names = Filter::STATES.map(str::to_owned);
    known
        .map(|state| (*state).to_owned())
        .ok_or_else(|| fault("there is no such state", &alternatives(&names)))
}

pub(super) fn number(value: &OsStr, right: &str) -> Result<u64, Fault> {
    let digits = value.to_str().filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|word| word.parse().ok()).filter(|number| *number > 0);
    number.ok_or_else(|| fault("it is not a number from 1 on", right))
}

pub(super) fn interval_word(value: &OsStr) -> Result<Duration, Fault> {
    let right = "2s or 500ms";
    let read = parse::stats_interval(value).map_err(|fault| Fault { right: right.to_owned(), ..fault })?;
    read.ok_or_else(|| fault("it is outside 100ms to 365days", right))
}

fn deadline_word(value: &OsStr) -> Result<Duration, Fault> {
    let right = "60s or 5m";
    let read = parse::stats_interval(value).map_err(|fault| Fault { right: right.to_owned(), ..fault })?;
    read.ok_or_else(|| fault("that is at once, which --now says", right))
}

fn level_word(value: &OsStr) -> Result<Level, Fault> {
    let known = Level::ALL.into_iter().find(|level| value == level.name());
    known.ok_or_else(|| {
        fault("there is no such level", &alternatives(&Level::ALL.map(|level| level.name().to_owned())))
    })
}

fn shell_word(value: &OsStr) -> Result<Shell, Fault> {
    let known = Shell::value_variants().iter().find(|shell| value == shell.to_string().as_str());
    known.copied().ok_or_else(|| {
        let names: Vec<String> = Shell::value_variants().iter().map(ToString::to_string).collect();
        fault("there is no such shell", &alternatives(&names))
    })
}

fn manual_verb(words: &[OsString]) -> Result<Vec<String>, Usage> {
    let mut known = String::new();
    for word in words {
        let verbs = verbs_in(&known);
        let Some(verb) = word.to_str().filter(|word| verbs.iter().any(|verb| verb == word)) else {
            let right =
                verbs.first().map_or("man".to_owned(), |_| format!("one of {}", alternatives(&verbs)));
            return Err(Usage::bad(&quoted(word), "there is no such command", &right));
        };
        known = format!("{known} {verb}").trim().to_owned();
    }
    Ok(known.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
#[path = "instance_tests.rs"]
mod tests;
