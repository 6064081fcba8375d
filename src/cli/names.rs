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
    interfaces: BTreeMap<u32, String>,
}

impl Names {
    pub fn of(instance: &Instance, tables: &Tables) -> Result<Names> {
        let mut services = of_tables(tables);
        match Client::connect(&instance.socket).and_then(|client| client.patient(PATIENCE).services()) {
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
        Ok(Names { services, interfaces: links.into_iter().map(|link| (link.index, link.name)).collect() })
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
    pub fn service_called(&self, word: &str) -> Result<(Ipv4Addr, Option<u16>, Option<Protocol>)> {
        let is_meant = |((vip, protocol), name): &(&(SocketAddrV4, Protocol), &String)| {
            means_service(word, name, *vip, *protocol)
        };
        let found: Vec<(SocketAddrV4, Protocol)> =
            self.services.iter().filter(is_meant).map(|(key, _)| *key).collect();
        match found.as_slice() {
            [] => Err(no_service(word)),
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
