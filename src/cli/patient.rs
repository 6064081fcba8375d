//! Whom `doctor` looks at: the instance that was named, that is on an interface, or that is the only one.

use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;

use anyhow::Result;

use super::find::others;
use super::{Instance, Named};
use crate::config::{self, Config, default_socket};
use crate::control::{Client, ClientError};
use crate::dataplane::{Census, PROGRAM, PinDirState, Tables, pin_dir_of, program_name, program_on};
use crate::metrics::{BackendFigures, ServiceFigures, Snapshot};
use crate::model::{Backend, Protocol, Service, Weight};
use crate::net::{Netlink, RouteKind};
use crate::preflight::{Patient, State};

/// The name of a configuration that an instance tells, for messages.
const TOLD: &str = "the running configuration";

/// Finds out.
pub(super) fn find(netlink: &mut Netlink, interface: Option<&str>, instance: &Instance) -> Result<Patient> {
    let chosen = instance.named != Named::No;
    let (Some(interface), false) = (interface, chosen) else {
        let patient = ask(netlink, &instance.pin_dir, &instance.socket)?;
        let patient = match patient.state {
            State::None | State::Dead if !chosen => other(netlink, instance)?.unwrap_or(patient),
            _ => patient,
        };
        return Ok(with_interface(patient, interface));
    };
    let ifindex = netlink.link(interface)?.map(|link| link.index);
    let dir = ifindex.filter(|ifindex| is_ours(*ifindex)).and_then(pin_dir_of);
    match dir {
        Some(dir) => ask(netlink, &dir, &default_socket(&dir)),
        None => Ok(with_interface(bare(&instance.pin_dir, State::None), Some(interface))),
    }
}

/// An interface that somebody asks for is looked at, whatever it has to do with the instance.
fn with_interface(mut patient: Patient, interface: Option<&str>) -> Patient {
    let interfaces = &mut patient.config.interfaces;
    interfaces
        .extend(interface.filter(|name| !interfaces.iter().any(|known| known == name)).map(str::to_owned));
    patient
}

fn bare(pin_dir: &Path, state: State) -> Patient {
    let config = Config { pin_dir: pin_dir.to_owned(), ..Config::new(vec![], vec![]) };
    Patient { config, state }
}

fn is_ours(ifindex: u32) -> bool {
    program_on(ifindex).and_then(program_name).as_deref() == Some(PROGRAM)
}

/// Asks the instance with these pins, or looks at what it left.
fn ask(netlink: &mut Netlink, pin_dir: &Path, socket: &Path) -> Result<Patient> {
    let silent = |why: String, fix: &str| Ok(bare(pin_dir, State::Silent(why, fix.to_owned())));
    let text = match Client::connect(socket).and_then(|client| client.config()) {
        Ok(text) => text,
        Err(ClientError::NoInstance(_)) => return without_process(netlink, pin_dir, socket),
        Err(error @ ClientError::Denied(_)) => return silent(error.to_string(), "sudo xdp-lb doctor"),
        Err(error) => return silent(error.to_string(), "see its log"),
    };
    let config = match config::parse(&text, Path::new(TOLD)) {
        Ok(config) => config,
        Err(error) => return silent(error.to_string(), "use the program that it runs"),
    };
    match elsewhere(&config.pin_dir) {
        Some(process) => silent(
            format!("the instance (process {process}) is in another network namespace"),
            &format!("nsenter --net=/proc/{process}/ns/net xdp-lb doctor"),
        ),
        None => Ok(Patient { config, state: State::Runs }),
    }
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
            Ok(bare(
                pin_dir,
                State::Silent(why, "--socket PATH, if it listens elsewhere; else restart it".into()),
            ))
        }
        PinDirState::Leftovers => dead(netlink, pin_dir),
        _ => Ok(bare(pin_dir, State::None)),
    }
}

/// The only instance that runs beside the usual one, where that does not.
fn other(netlink: &mut Netlink, usual: &Instance) -> Result<Option<Patient>> {
    Ok(match &others(&usual.socket)[..] {
        [] => None,
        [socket] => Some(ask(netlink, &usual.pin_dir, socket)?),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            let why = format!("several instances run, which listen at {}", names.join(", "));
            Some(bare(&usual.pin_dir, State::Silent(why, "--socket names one of them".into())))
        }
    })
}

/// What an instance without a process was asked for, as far as its pins tell.
fn dead(netlink: &mut Netlink, pin_dir: &Path) -> Result<Patient> {
    let mut patient = bare(pin_dir, State::Dead);
    // Tables that cannot be read are found by the check of the table.
    let figures = Tables::open(pin_dir).and_then(|tables| Snapshot::take(&tables, &Census::default()));
    patient.config.services =
        figures.map_or(vec![], |figures| figures.services.iter().filter_map(service).collect());
    let attached = netlink.links()?.into_iter();
    let attached: Vec<_> = attached
        .filter(|link| is_ours(link.index) && pin_dir_of(link.index).as_deref() == Some(pin_dir))
        .collect();
    // Those of backends are found by their routes; which of the others were named nobody knows any more.
    let mut facing = Vec::new();
    for backend in patient.config.services.iter().flat_map(|service| &service.backends) {
        let route = netlink.route_to(*backend.address.ip())?;
        facing.extend(route.filter(|route| route.kind == RouteKind::Unicast).map(|route| route.ifindex));
    }
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
