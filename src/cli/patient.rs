//! Whom `doctor` looks at: the instance that was named, that is on an interface, or that is the only one.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde::Deserialize as _;

use super::find::others;
use super::listening::{socket_for, socket_of};
use super::{Instance, Named};
use crate::config::{self, Config, default_socket};
use crate::control::{Client, ClientError, Halt};
use crate::dataplane::{
    Census, PROGRAM, PinDirState, Pinned, Tables, on_empty, pin_dir_of, pinned, program_name, program_on,
};
use crate::metrics::{BackendFigures, ServiceFigures, Snapshot};
use crate::model::{Backend, Protocol, Service, Weight};
use crate::net::{Netlink, RouteKind};
use crate::preflight::{Focus, Leftover, Patient, State, command};

/// The name of a configuration that an instance tells, for messages.
const TOLD: &str = "the running configuration";

/// How long the process is waited for: what the kernel and the pins tell is told without it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Finds out.
pub(super) fn find(netlink: &mut Netlink, interface: Option<&str>, instance: &Instance) -> Result<Patient> {
    let chosen = instance.named != Named::No;
    let (Some(interface), false) = (interface, chosen) else {
        let socket = socket_for(instance);
        let patient = ask(netlink, &instance.pin_dir, &socket)?;
        let mut patient = match patient.state {
            State::None | State::Dead if !chosen => other(netlink, instance, patient)?,
            // Somebody expects it there.
            State::None if instance.named == Named::Socket => {
                let why = format!("no instance listens at {}", socket.display());
                let fix = "is one running? xdp-lb doctor without --socket looks at the only one".to_owned();
                bare(&instance.pin_dir, &socket, State::Silent(why, fix))
            }
            _ => patient,
        };
        if !chosen {
            let found = left(netlink)?.into_iter();
            patient.left.extend(found.filter(|left| left.dir != patient.config.pin_dir));
        }
        return with_interface(netlink, patient, interface);
    };
    let ifindex = netlink.link(interface)?.map(|link| link.index);
    let dir = ifindex.filter(|ifindex| is_ours(*ifindex)).and_then(pin_dir_of);
    let patient = match dir {
        Some(dir) => ask(netlink, &dir, &socket_of(&dir))?,
        None => bare(&instance.pin_dir, &instance.socket, State::None),
    };
    with_interface(netlink, patient, Some(interface))
}

/// An interface that somebody asks for is looked at, whatever it has to do with the instance.
fn with_interface(netlink: &mut Netlink, mut patient: Patient, interface: Option<&str>) -> Result<Patient> {
    let Some(interface) = interface else { return Ok(patient) };
    let is_named = patient.config.interfaces.iter().any(|known| known == interface);
    let index = netlink.link(interface)?.map(|link| link.index);
    // One that is only a way to backends is not for clients because somebody asks about it.
    let is_facing = match index {
        Some(index) => facing(netlink, &patient.config)?.contains(&index),
        None => false,
    };
    if !is_named && !is_facing {
        patient.config.interfaces.push(interface.to_owned());
    }
    patient.focus = Some(Focus { interface: interface.to_owned(), with_backends: is_named });
    Ok(patient)
}

/// The interfaces by which backends are reached.
fn facing(netlink: &mut Netlink, config: &Config) -> Result<BTreeSet<u32>> {
    let mut facing = BTreeSet::new();
    for backend in config.services.iter().flat_map(|service| &service.backends) {
        let route = netlink.route_to(*backend.address.ip())?;
        facing.extend(route.filter(|route| route.kind == RouteKind::Unicast).map(|route| route.ifindex));
    }
    Ok(facing)
}

/// One at this socket of which nothing else is known.
fn bare(pin_dir: &Path, socket: &Path, state: State) -> Patient {
    let (pin_dir, socket) = (pin_dir.to_owned(), socket.to_owned());
    Patient::new(Config { pin_dir, socket, ..Config::new(vec![], vec![]) }, state)
}

fn is_ours(ifindex: u32) -> bool {
    program_on(ifindex).and_then(program_name).as_deref() == Some(PROGRAM)
}

/// Asks the instance with these pins, or looks at what it left.
fn ask(netlink: &mut Netlink, pin_dir: &Path, socket: &Path) -> Result<Patient> {
    let silent = |why: String, fix: &str| Ok(bare(pin_dir, socket, State::Silent(why, fix.to_owned())));
    let again = command("doctor", pin_dir, socket);
    let client = Client::connect(socket).map(|client| client.patient(PATIENCE));
    let told = client.and_then(|client| Ok((client.config()?, client.status())));
    let (text, status) = match told {
        Ok(told) => told,
        Err(ClientError::NoInstance(_)) => return without_process(netlink, pin_dir, socket),
        Err(error @ ClientError::Denied(_)) => return silent(error.to_string(), &format!("sudo {again}")),
        Err(ClientError::Refused(refusal)) => return silent(refusal.to_string(), "see its log"),
        Err(error @ (ClientError::Silent(..) | ClientError::Broken(_))) => {
            return mute(netlink, pin_dir, socket, &error);
        }
    };
    let config = match config::parse(&text, Path::new(TOLD)) {
        Ok(config) => config,
        Err(error) => return silent(error.to_string(), "use the program that it runs"),
    };
    match elsewhere(&config.pin_dir) {
        Some(process) => silent(
            format!("the instance (process {process}) is in another network namespace"),
            &format!("nsenter --net=/proc/{process}/ns/net {again}"),
        ),
        None => {
            let told = status.ok().and_then(|status| Snapshot::deserialize(status).ok());
            let mut figures = told.or_else(|| figures_of(&config.pin_dir)).map(Box::new);
            figures.iter_mut().for_each(|figures| figures.name(&config.services));
            Ok(Patient { figures, ..Patient::new(config, State::Runs) })
        }
    }
}

/// One that listens and does not answer: its tables tell what they can.
fn mute(netlink: &mut Netlink, pin_dir: &Path, socket: &Path, error: &ClientError) -> Result<Patient> {
    // By its socket alone it may have been found, and then its pins are those that go with that.
    let found = pinned().into_iter().map(|pinned| pinned.dir).find(|dir| default_socket(dir) == socket);
    let pin_dir = if default_socket(pin_dir) == socket {
        pin_dir.to_owned()
    } else {
        found.unwrap_or(pin_dir.to_owned())
    };
    let PinDirState::Running(process) = PinDirState::of(&pin_dir) else {
        return Ok(bare(&pin_dir, socket, State::Silent(error.to_string(), "see its log".to_owned())));
    };
    let (why, fix) = match process.and_then(|process| Some((process, Halt::of(process)?))) {
        Some((process, Halt::Stopped(_))) => (
            format!("process {process} was stopped by a signal, and answers nobody"),
            format!("kill -CONT {process}"),
        ),
        Some((process, halt @ Halt::Traced(_))) => (
            format!("process {process} is {halt}, and answers nobody"),
            "have the debugger go on, or end it".to_owned(),
        ),
        None => (
            error.to_string(),
            "see its log; if it stays so, kill it and start it again: what is pinned goes on meanwhile"
                .to_owned(),
        ),
    };
    let why = format!("{why}; the rest of this is what its tables and the kernel tell");
    if elsewhere(&pin_dir).is_some() {
        return Ok(bare(&pin_dir, socket, State::Silent(why, fix)));
    }
    by_tables(netlink, &pin_dir, socket, State::Silent(why, fix))
}

/// The process of an instance that sees another network than this one.
fn elsewhere(pin_dir: &Path) -> Option<u32> {
    let PinDirState::Running(Some(process)) = PinDirState::of(pin_dir) else { return None };
    let theirs = fs::read_link(format!("/proc/{process}/ns/net")).ok()?;
    (fs::read_link("/proc/thread-self/ns/net").ok()? != theirs).then_some(process)
}

fn without_process(netlink: &mut Netlink, pin_dir: &Path, socket: &Path) -> Result<Patient> {
    match PinDirState::of(pin_dir) {
        PinDirState::Running(process) => {
            let process = process.map_or("a process".to_owned(), |process| format!("process {process}"));
            let why = format!(
                "{process} holds the pins in {}, but does not listen at {}",
                pin_dir.display(),
                socket.display()
            );
            let fix = "--socket PATH, if it listens elsewhere; else restart it".to_owned();
            let state = State::Silent(why, fix);
            match elsewhere(pin_dir) {
                Some(_) => Ok(bare(pin_dir, socket, state)),
                None => by_tables(netlink, pin_dir, socket, state),
            }
        }
        // What its tables tell is of a network that is not this one.
        PinDirState::Leftovers if Pinned::of(pin_dir).is_only_elsewhere() => {
            let left = Leftover { dir: pin_dir.to_owned(), interfaces: Vec::new(), elsewhere: true };
            Ok(Patient { left: vec![left], ..bare(pin_dir, socket, State::None) })
        }
        PinDirState::Leftovers => by_tables(netlink, pin_dir, socket, State::Dead),
        _ => Ok(bare(pin_dir, socket, State::None)),
    }
}

/// The only instance that runs beside the usual one, where that does not; or else what one left.
fn other(netlink: &mut Netlink, usual: &Instance, patient: Patient) -> Result<Patient> {
    Ok(match &others(&usual.socket)[..] {
        [] if patient.state == State::Dead => patient,
        [] => match (&running()[..], left(netlink)?.iter().find(|left| !left.interfaces.is_empty())) {
            // It listens elsewhere.
            ([dir], _) => ask(netlink, dir, &socket_of(dir))?,
            (_, Some(left)) => by_tables(netlink, &left.dir, &default_socket(&left.dir), State::Dead)?,
            (_, None) => patient,
        },
        [socket] => ask(netlink, &usual.pin_dir, socket)?,
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            let why = format!("several instances run, which listen at {}", names.join(", "));
            bare(&usual.pin_dir, &usual.socket, State::Silent(why, "--socket names one of them".into()))
        }
    })
}

/// Where instances that run have their pins.
fn running() -> Vec<PathBuf> {
    let dirs = pinned().into_iter().map(|pinned| pinned.dir);
    let runs = |dir: &PathBuf| matches!(PinDirState::of(dir), PinDirState::Running(_));
    dirs.filter(|dir| runs(dir) && elsewhere(dir).is_none()).collect()
}

/// What instances without a process left, whatever their pin directories are.
fn left(netlink: &mut Netlink) -> Result<Vec<Leftover>> {
    let links = netlink.links()?;
    let name = |index: &u32| links.iter().find(|link| link.index == *index).map(|link| link.name.clone());
    let is_left = |pinned: &Pinned| PinDirState::of(&pinned.dir) == PinDirState::Leftovers;
    let leftover = |Pinned { dir, interfaces, elsewhere }: Pinned| Leftover {
        dir,
        interfaces: interfaces.iter().filter_map(name).collect(),
        elsewhere,
    };
    Ok(pinned().into_iter().filter(is_left).map(leftover).collect())
}

fn figures_of(pin_dir: &Path) -> Option<Snapshot> {
    // Tables that cannot be read are found by the check of the table.
    Tables::open(pin_dir).and_then(|tables| Snapshot::take(&tables, &Census::default())).ok()
}

/// What an instance that nobody answers for was asked to do, as far as its pins tell.
fn by_tables(netlink: &mut Netlink, pin_dir: &Path, socket: &Path, state: State) -> Result<Patient> {
    let mut patient = bare(pin_dir, socket, state);
    let figures = figures_of(pin_dir);
    let services = figures.iter().flat_map(|figures| &figures.services).filter_map(service);
    patient.config.services = services.collect();
    let fates = Tables::open(pin_dir).map(|tables| on_empty(&tables)).unwrap_or_default();
    for service in &mut patient.config.services {
        service.on_empty = fates.get(&(service.vip, service.protocol)).copied().unwrap_or_default();
    }
    patient.figures = figures.map(Box::new);
    let attached = netlink.links()?.into_iter();
    let attached: Vec<_> = attached
        .filter(|link| is_ours(link.index) && pin_dir_of(link.index).as_deref() == Some(pin_dir))
        .collect();
    // Those of backends are found by their routes; which of the others were named nobody knows any more.
    let facing = facing(netlink, &patient.config)?;
    let names = |keep: &dyn Fn(u32) -> bool| -> Vec<String> {
        attached.iter().filter(|link| keep(link.index)).map(|link| link.name.clone()).collect()
    };
    patient.config.interfaces = names(&|index| !facing.contains(&index));
    if patient.config.interfaces.is_empty() {
        patient.config.interfaces = names(&|_| true);
    }
    Ok(patient)
}

fn service(figures: &ServiceFigures) -> Option<Service> {
    let backend = |figures: &BackendFigures| {
        let weight = Weight::new(figures.weight).unwrap_or(Weight::MIN);
        let address: SocketAddrV4 = figures.address;
        (figures.state != "removed").then(|| Backend::new(address, weight))
    };
    let backends = figures.backends.iter().filter_map(backend).collect();
    Some(Service::new(figures.vip, Protocol::from_name(&figures.protocol)?, backends))
}
