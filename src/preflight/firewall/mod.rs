//! Firewall rules that would stop what is left to the kernel to deliver.
//!
//! XDP runs before the firewall, so rules matter only for packets that the kernel forwards after the translation: to a
//! backend under the client's address, to a client under the VIP. Conntrack sees one direction of each, or both as two
//! connections: established they never are.

mod chains;
mod iptables;
mod nft;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use chains::{Chain, Flow, Obstacle, Owner, Table};

use super::{Finding, Scene};
use crate::config::Config;
use crate::model::Protocol;

const NAME: &str = "firewall";
/// A user's PATH lacks these, where the tools are.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Looks at the rules of this namespace, if they have to do with what is balanced.
pub(super) fn check(scene: &Scene, config: &Config) -> Vec<Finding> {
    if !scene.by_stack() {
        return vec![Finding::ok(
            NAME,
            "not looked at: what is balanced is sent by XDP, before any firewall",
        )];
    }
    let (mut findings, obstacles) = look(scene, config);
    findings.extend(obstacles);
    if findings.is_empty() {
        findings.push(Finding::ok(NAME, "no rule stops what the kernel forwards for the services"));
    }
    findings
}

/// Looks at the rules of this namespace: what could not be looked at, and what is in the way.
pub(super) fn look(scene: &Scene, config: &Config) -> (Vec<Finding>, Vec<Finding>) {
    let mut rules = Ruleset::default();
    rules.read();
    let blind = rules.blind.iter().map(|(message, fix)| Finding::warning(NAME, message, fix)).collect();
    (blind, obstacles(&rules.tables, &flows(scene, config)))
}

/// A chain that stops flows, with the commands that let them pass. Each such chain needs its own: what one accepts, another
/// may still drop.
fn obstacles(tables: &[Table], flows: &[Flow]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for table in tables {
        for chain in table.chains.iter().filter(|chain| chain.hook.is_some()) {
            let stopped: Vec<(Obstacle, &Flow)> =
                flows.iter().filter_map(|flow| Some((table.obstacle(chain, flow)?, flow))).collect();
            let Some((why, _)) = stopped.first() else { continue };
            let mut commands: Vec<String> = Vec::new();
            for (_, flow) in &stopped {
                let command = accepting(table, chain, flow);
                if !commands.contains(&command) {
                    commands.push(command);
                }
            }
            let message = format!(
                "the chain {} {} stops packets that the kernel is to forward: {why}",
                chain.name,
                place(table)
            );
            findings.push(Finding::warning(NAME, &message, &commands.join(" && ")));
        }
    }
    findings
}

fn place(table: &Table) -> String {
    match &table.owner {
        Owner::Nft => format!("(nftables, table {} {})", table.family, table.name),
        Owner::Iptables(command) => format!("({command}, table {})", table.name),
    }
}

/// The command that makes a chain accept a flow before any other rule of it.
fn accepting(table: &Table, chain: &Chain, flow: &Flow) -> String {
    let protocol = if flow.protocol == Protocol::Udp.number() { "udp" } else { "tcp" };
    let to = flow.destination.zip(flow.destination_port);
    let (address, port, to_backend) = match (to, flow.source.zip(flow.source_port)) {
        (Some((address, port)), _) => (address, port, true),
        (None, from) => {
            let (address, port) = from.unwrap_or_default();
            (address, port, false)
        }
    };
    let address = Ipv4Addr::from(address);
    match &table.owner {
        Owner::Nft => {
            let (address_field, port_field) =
                if to_backend { ("daddr", "dport") } else { ("saddr", "sport") };
            format!(
                "nft insert rule {} {} {} ip {address_field} {address} {protocol} {port_field} {port} accept",
                table.family, table.name, chain.name
            )
        }
        Owner::Iptables(command) => {
            let of_table = if table.name == "filter" { String::new() } else { format!(" -t {}", table.name) };
            let (address_option, port_option) =
                if to_backend { ("-d", "--dport") } else { ("-s", "--sport") };
            format!(
                "{command}{of_table} -I {} {address_option} {address} -p {protocol} {port_option} {port} -j ACCEPT",
                chain.name
            )
        }
    }
}

/// Both directions of each service and backend.
fn flows(scene: &Scene, config: &Config) -> Vec<Flow> {
    let mut flows = Vec::new();
    let ways = |service| config.interfaces.iter().map(move |interface| (service, interface));
    for (service, clients_by) in config.services.iter().flat_map(ways) {
        for backend in &service.backends {
            let Some(link) = scene.link_to(*backend.address.ip()) else { continue };
            let backends_by = &link.name;
            flows.push(Flow {
                protocol: service.protocol.number(),
                source: None,
                source_port: None,
                destination: Some((*backend.address.ip()).into()),
                destination_port: Some(backend.address.port()),
                arrives_by: clients_by.clone(),
                leaves_by: backends_by.clone(),
            });
            flows.push(Flow {
                protocol: service.protocol.number(),
                source: Some((*service.vip.ip()).into()),
                source_port: Some(service.vip.port()),
                destination: None,
                destination_port: None,
                arrives_by: backends_by.clone(),
                leaves_by: clients_by.clone(),
            });
        }
    }
    flows
}

/// The rules of this namespace, as far as they could be read.
#[derive(Default)]
struct Ruleset {
    tables: Vec<Table>,
    /// What could not be looked at, and what would help.
    blind: Vec<(String, &'static str)>,
}

impl Ruleset {
    fn read(&mut self) {
        self.read_iptables_nft();
        self.read_nft();
        self.read_iptables_legacy();
    }

    /// Rules that iptables made in nftables; their matches are not readable by nft.
    fn read_iptables_nft(&mut self) {
        let Some((save, command)) = iptables_of("nf_tables", "iptables-nft") else { return };
        match output_of(&save, &[]) {
            Ok(text) => self.tables.extend(iptables::parse(&text, command)),
            Err(error) => self.blind("iptables", &error, LOOK),
        }
    }

    fn read_nft(&mut self) {
        let Some(nft) = find("nft") else {
            return self.blind("nftables", "nft is not installed", INSTALL);
        };
        let text = output_of(&nft, &["-j", "list", "ruleset"]);
        let ruleset = text.and_then(|text| match text.trim() {
            "" => Ok(serde_json::Value::Null),
            text => serde_json::from_str(text).map_err(|error| error.to_string()),
        });
        let known =
            |table: &Table| table.family == "ip" && self.tables.iter().any(|known| known.name == table.name);
        match ruleset {
            Ok(ruleset) => {
                let mut tables = nft::parse(&ruleset);
                tables.retain(|table| !known(table));
                self.tables.extend(tables);
            }
            Err(error) => self.blind("nftables", &error, LOOK),
        }
    }

    /// Only if there are such tables: looking would make them.
    fn read_iptables_legacy(&mut self) {
        let names = fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
        if names.trim().is_empty() {
            return;
        }
        let saved = match iptables_of("legacy", "iptables-legacy") {
            Some((save, command)) => output_of(&save, &[]).map(|text| (text, command)),
            None => Err("iptables-legacy-save is not installed".to_owned()),
        };
        match saved {
            Ok((text, command)) => self.tables.extend(iptables::parse(&text, command)),
            Err(error) => self.blind("iptables-legacy", &error, INSTALL),
        }
    }

    fn blind(&mut self, what: &str, why: &str, fix: &'static str) {
        self.blind.push((format!("could not look at the rules of {what}: {why}"), fix));
    }
}

const LOOK: &str = "see as root whether forwarding is allowed: nft list ruleset; iptables-save";
const INSTALL: &str = "install nftables and iptables, or see yourself whether forwarding is allowed";

/// The saving tool of one of the two kinds of iptables, and the command that changes the same rules.
fn iptables_of(kind: &str, special: &'static str) -> Option<(PathBuf, &'static str)> {
    if let Some(save) = find("iptables-save") {
        if output_of(&save, &["--version"]).is_ok_and(|version| version.contains(kind)) {
            return Some((save, "iptables"));
        }
    }
    find(&format!("{special}-save")).map(|save| (save, special))
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&path).chain(SBIN.iter().map(PathBuf::from));
    dirs.find_map(|dir| Some(dir.join(tool)).filter(|tool| tool.is_file()))
}

/// What a tool printed, or in one line why not.
fn output_of(tool: &Path, args: &[&str]) -> Result<String, String> {
    let output =
        Command::new(tool).args(args).env("LC_ALL", "C").output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().find(|line| !line.is_empty()).unwrap_or("it failed").trim().to_owned())
}

/// First and last address of a network.
fn network(address: u32, length: u32) -> Option<(u32, u32)> {
    let hosts = u32::MAX.checked_shr(length).unwrap_or(0);
    (length <= 32).then_some((address & !hosts, address | hosts))
}

/// A protocol's number by its name in rules.
fn protocol(name: &str) -> Option<u32> {
    match name {
        "icmp" => Some(1),
        "igmp" => Some(2),
        "ipencap" | "ipip" => Some(4),
        "tcp" => Some(6),
        "udp" => Some(17),
        "dccp" => Some(33),
        "ipv6" => Some(41),
        "gre" => Some(47),
        "esp" => Some(50),
        "ah" => Some(51),
        "icmpv6" | "ipv6-icmp" => Some(58),
        "ospf" => Some(89),
        "sctp" => Some(132),
        "udplite" => Some(136),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
