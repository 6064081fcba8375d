//! What services, backends and interfaces are called, for those who look at the tables themselves.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Instance;
use super::source::no_service;
use crate::control::{Client, ClientError};
use crate::dataplane::{Tables, ipv4_of};
use crate::model::{Protocol, means_service};
use crate::net::Netlink;

/// Names are only a help: whoever waits for them wants to see packets.
const PATIENCE: Duration = Duration::from_secs(2);

/// The names that an instance knows: by its process, or without one by its tables, where a service is called by its VIP.
pub(super) struct Names {
    services: BTreeMap<(SocketAddrV4, Protocol), String>,
    /// Each with the services that it is a backend of.
    backends: BTreeMap<SocketAddrV4, Vec<(SocketAddrV4, Protocol)>>,
    interfaces: BTreeMap<u32, String>,
}

/// A service by address, port and protocol, as far as that matters.
pub(super) type Meant = (Ipv4Addr, Option<u16>, Option<Protocol>);

impl Names {
    pub fn of(instance: &Instance, tables: &Tables) -> Result<Names> {
        let mut services = of_tables(tables);
        match Client::reader(&instance.socket, PATIENCE).and_then(|client| client.services()) {
            Ok(answer) => services.extend(of_process(&answer)),
            Err(ClientError::NoInstance(_)) => crate::log::notice(&format!(
                "no process listens at {}: services are called by their VIPs",
                instance.socket.display()
            )),
            Err(error @ ClientError::Silent(..)) => {
                crate::log::notice(&format!("{error}: services are called by their VIPs"));
            }
            Err(error) => return Err(error.into()),
        }
        let links = Netlink::open()?.links().context("could not list the interfaces")?;
        let backends = backends_of_tables(tables);
        Ok(Names {
            services,
            backends,
            interfaces: links.into_iter().map(|link| (link.index, link.name)).collect(),
        })
    }

    /// Whether every service of the tables has a name here.
    pub fn know(&self, tables: &Tables) -> bool {
        of_tables(tables).keys().all(|key| self.services.contains_key(key))
    }

    pub fn service(&self, vip: SocketAddrV4, protocol: Protocol) -> String {
        self.services.get(&(vip, protocol)).cloned().unwrap_or_else(|| vip.to_string())
    }

    pub fn interface(&self, index: u32) -> String {
        self.interfaces.get(&index).cloned().unwrap_or_else(|| format!("interface {index}"))
    }

    pub fn interface_called(&self, name: &str) -> Result<u32> {
        let found = self.interfaces.iter().find(|(_, known)| *known == name);
        found.map(|(index, _)| *index).with_context(|| format!("there is no interface {name}"))
    }

    /// The address, port and protocol of what a word means: a service's name, or its VIP with or without the protocol. One
    /// name, or VIP, may be both of TCP and of UDP: no protocol then.
    pub fn service_called(&self, word: &str) -> Result<Meant> {
        let is_meant = |((vip, protocol), name): &(&(SocketAddrV4, Protocol), &String)| {
            means_service(word, name, *vip, *protocol)
        };
        let found: Vec<(SocketAddrV4, Protocol)> =
            self.services.iter().filter(is_meant).map(|(key, _)| *key).collect();
        match found.as_slice() {
            [] => {
                let known: Vec<String> = self.services.values().cloned().collect();
                bail!("{}{}", no_service(word), alike(word, known))
            }
            [(vip, protocol)] => Ok((*vip.ip(), Some(vip.port()), Some(*protocol))),
            [(vip, _), rest @ ..] if rest.iter().all(|(other, _)| other == vip) => {
                Ok((*vip.ip(), Some(vip.port()), None))
            }
            several => {
                let vips: Vec<String> = several.iter().map(|(vip, _)| vip.to_string()).collect();
                bail!("{word} is the name of several services: write one of {}", vips.join(", "))
            }
        }
    }

    /// Fails if there is no such backend, or not of that service.
    pub fn backend_called(&self, word: (Ipv4Addr, Option<u16>), service: Option<Meant>) -> Result<()> {
        let (address, port) = word;
        let is_meant = |(vip, protocol): &(SocketAddrV4, Protocol)| {
            service.is_none_or(|(meant, port, only)| {
                *vip.ip() == meant
                    && port.is_none_or(|port| port == vip.port())
                    && only.is_none_or(|only| only == *protocol)
            })
        };
        let of_it = self.backends.iter().filter(|(_, services)| services.iter().any(is_meant));
        let known: Vec<SocketAddrV4> = of_it.map(|(backend, _)| *backend).collect();
        let is_it = |one: &&SocketAddrV4| *one.ip() == address && port.is_none_or(|port| port == one.port());
        if known.iter().any(|one| is_it(&one)) {
            return Ok(());
        }
        let word = port.map_or_else(|| address.to_string(), |port| format!("{address}:{port}"));
        let of = if service.is_some() { " of that service" } else { "" };
        let known = known.iter().map(SocketAddrV4::to_string).collect();
        bail!(
            "there is no backend {word}{of}{}; xdp-lb backend list shows which there are",
            alike(&word, known)
        )
    }
}

/// What a word may have been meant to be.
fn alike(word: &str, mut known: Vec<String>) -> String {
    const SHOWN: usize = 3;
    known.sort_by_cached_key(|one| strsim::damerau_levenshtein(word, one));
    known.dedup();
    known.truncate(SHOWN);
    if known.is_empty() { String::new() } else { format!(" (is it {}?)", known.join(" or ")) }
}

fn backends_of_tables(tables: &Tables) -> BTreeMap<SocketAddrV4, Vec<(SocketAddrV4, Protocol)>> {
    let mut found: BTreeMap<SocketAddrV4, Vec<(SocketAddrV4, Protocol)>> = BTreeMap::new();
    for row in (1..tables.backends.len()).filter_map(|index| tables.backends.get(index)) {
        let service =
            tables.services.get(usize::from(row.service)).filter(|_| row.state != 0 && row.service != 0);
        let Some((service, protocol)) =
            service.and_then(|service| Some((service, Protocol::from_number(service.proto)?)))
        else {
            continue;
        };
        let endpoint = |addr, port| SocketAddrV4::new(ipv4_of(addr), u16::from_be(port));
        found
            .entry(endpoint(row.addr, row.port))
            .or_default()
            .push((endpoint(service.addr, service.port), protocol));
    }
    found
}

fn of_tables(tables: &Tables) -> BTreeMap<(SocketAddrV4, Protocol), String> {
    let rows = (1..tables.services.len()).filter_map(|index| tables.services.get(index));
    rows.filter_map(|row| {
        let vip = SocketAddrV4::new(ipv4_of(row.addr), u16::from_be(row.port));
        Some(((vip, Protocol::from_number(row.proto)?), vip.to_string()))
    })
    .collect()
}

fn of_process(services: &Value) -> BTreeMap<(SocketAddrV4, Protocol), String> {
    let entry = |service: &Value| {
        let word = |key: &str| service.get(key).and_then(Value::as_str);
        let vip = word("vip")?.parse().ok()?;
        Some(((vip, Protocol::from_name(word("protocol")?)?), word("name")?.to_owned()))
    };
    services.get("services").and_then(Value::as_array).into_iter().flatten().filter_map(entry).collect()
}
