//! What is right by itself, and wrong together with the rest: duplicates, and more than there can be.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::words::Fault;
use super::{MAX_ALL_BACKENDS, MAX_BACKENDS, MAX_SERVICES, MAX_SERVICES_PER_BACKEND};
use crate::model::{Protocol, Service};

/// A part of a service that something can be wrong with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Name,
    Vip,
    /// By its number.
    Backend(usize),
}

/// Something that does not go with what came before it.
pub(super) struct Clash {
    /// The number of the service, and the part of it.
    pub(super) at: (usize, Part),
    /// What it clashes with.
    pub(super) with: Option<(usize, Part)>,
    /// What is wrong; a place can be appended.
    pub(super) wrong: String,
    /// What to write, in words.
    pub(super) right: String,
}

/// Whether these services can be balanced together; if not, what is wrong first. Each of them is right by itself.
pub fn check(services: &[Service]) -> Result<(), Fault> {
    let mut first: Option<Clash> = None;
    find(services, &mut |clash| {
        first.get_or_insert(clash);
    });
    first.map_or(Ok(()), |Clash { at: (index, part), wrong, right, .. }| {
        let service = &services[index];
        let what = match part {
            Part::Name => format!("the name {:?}", service.name),
            Part::Vip => format!("the VIP {}/{}", service.vip, service.protocol),
            Part::Backend(number) => {
                format!("the backend {} of {:?}", service.backends[number].address, service.name)
            }
        };
        Err(Fault { wrong: format!("{what}: {wrong}"), right })
    })
}

/// Tells of every clash, service by service.
pub(super) fn find(services: &[Service], tell: &mut dyn FnMut(Clash)) {
    let vips = services.iter().map(|service| *service.vip.ip()).collect();
    let mut seen = Seen { vips, ..Seen::default() };
    for (index, service) in services.iter().enumerate() {
        seen.service(index, service, tell);
        seen.backends(index, service, tell);
    }
}

#[derive(Default)]
struct Seen<'s> {
    vips: HashSet<Ipv4Addr>,
    names: HashMap<&'s str, (usize, SocketAddrV4)>,
    services: HashMap<(SocketAddrV4, Protocol), usize>,
    /// How many services a backend has.
    uses: HashMap<(SocketAddrV4, Protocol), usize>,
    backends: usize,
}

impl<'s> Seen<'s> {
    fn service(&mut self, index: usize, service: &'s Service, tell: &mut dyn FnMut(Clash)) {
        let mut clash = |part, with: Option<usize>, wrong: &str, right: &str| {
            let with = with.map(|other| (other, part));
            tell(Clash { at: (index, part), with, wrong: wrong.into(), right: right.into() });
        };
        if index == MAX_SERVICES {
            let wrong = format!("there can be {MAX_SERVICES} services, one of TCP and UDP counts twice");
            clash(Part::Vip, None, &wrong, "fewer services");
        }
        match self.services.entry((service.vip, service.protocol)) {
            Entry::Vacant(entry) => {
                entry.insert(index);
            }
            Entry::Occupied(entry) => {
                let wrong = format!("there is a {} service at this VIP already", service.protocol);
                clash(
                    Part::Vip,
                    Some(*entry.get()),
                    &wrong,
                    "one service with all backends, or another port",
                );
            }
        }
        if service.name.parse::<SocketAddrV4>().is_ok_and(|address| address != service.vip) {
            clash(Part::Name, None, "a name that is an address is the VIP's own", "a name such as \"web\"");
        }
        // The TCP and the UDP service of a VIP may share their name: it is the VIP's text, or both came from /any.
        match self.names.entry(&service.name) {
            Entry::Vacant(entry) => {
                entry.insert((index, service.vip));
            }
            Entry::Occupied(entry) => {
                let (other, vip) = *entry.get();
                if vip != service.vip {
                    clash(Part::Name, Some(other), "there is a service of this name already", "another name");
                }
            }
        }
    }

    fn backends(&mut self, index: usize, service: &Service, tell: &mut dyn FnMut(Clash)) {
        let mut own: HashMap<SocketAddrV4, usize> = HashMap::new();
        for (number, backend) in service.backends.iter().enumerate() {
            let mut clash = |with: Option<usize>, wrong: String, right: &str| {
                let with = with.map(|other| (index, Part::Backend(other)));
                tell(Clash { at: (index, Part::Backend(number)), with, wrong, right: right.into() });
            };
            if number == MAX_BACKENDS {
                clash(None, format!("a service can have {MAX_BACKENDS} backends"), "fewer backends");
            }
            if self.backends == MAX_ALL_BACKENDS {
                let wrong = format!("all services can have {MAX_ALL_BACKENDS} backends together");
                clash(None, wrong, "fewer backends");
            }
            self.backends += 1;
            if self.vips.contains(backend.address.ip()) {
                let wrong = "it is the address of a VIP, a backend has one of its own".into();
                clash(None, wrong, "another address");
            }
            if let Some(other) = own.insert(backend.address, number) {
                let wrong = "it is a backend of this service already".into();
                clash(Some(other), wrong, "it once, with the weight that it should have");
            }
            let uses = self.uses.entry((backend.address, service.protocol)).or_default();
            if *uses == MAX_SERVICES_PER_BACKEND {
                let wrong = format!(
                    "it is a backend of {MAX_SERVICES_PER_BACKEND} {} services already, there can be no more",
                    service.protocol
                );
                clash(None, wrong, "another port of the same machine");
            }
            *uses += 1;
        }
    }
}
