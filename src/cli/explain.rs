//! `xdp-lb explain`: what would become of a packet now, by the program itself.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result};
use comfy_table::{Table, presets};
use etherparse::{Ethernet2Slice, Ipv4HeaderSlice, PacketBuilder};
use serde_json::{Value, json};

use super::Instance;
use super::names::Names;
use super::obstacles::{Obstacle, obstacles};
use super::show::print;
use super::source::pinned;
use crate::dataplane::{
    Choice, Class, Explainer, Explanation, HopFound, LifeState, Mode, OnInterface, Reason, on_interfaces,
};
use crate::model::{Protocol, Scheduler};
use crate::net::Netlink;

/// A packet that is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Who sends it.
    pub client: SocketAddrV4,
    /// For whom it is.
    pub vip: SocketAddrV4,
    /// It opens a connection of TCP; else it belongs to one.
    pub syn: bool,
}

/// A hop that the frame has before it, as most have.
const TTL: u8 = 64;

/// Tells what would become of a packet that arrives on an interface; without one on that by which its sender is reached.
pub fn explain(packet: &Packet, interface: Option<&str>, instance: &Instance) -> Result<()> {
    let tables = pinned(instance)?;
    let names = Names::of(instance, &tables)?;
    let mut netlink = Netlink::open()?;
    let (on, guessed) = arrives_on(packet, interface, instance, &names, &mut netlink)?;
    let link = netlink.links()?.into_iter().find(|link| link.index == on.ifindex);
    let mac = link.and_then(|link| link.mac).unwrap_or([2, 0, 0, 0, 0, 1]);
    let frame = frame_of(packet, mac)?;
    let explanation = Explainer::load(&tables, on.profile)?.explain(&frame, on.ifindex)?;
    let destination = Ends::of(&explanation.frame).map(|ends| *ends.destination.ip());
    let obstacles = obstacles(&mut netlink, on.ifindex, &explanation, destination)?;
    let account =
        Account { packet, on, guessed, frame: &frame, explanation: &explanation, obstacles, names: &names };
    print(&account.json(), instance.json, |_| account.text())
}

/// The interface that the packet arrives on: one that the program is on. And whether that is but a guess.
fn arrives_on(
    packet: &Packet,
    interface: Option<&str>,
    instance: &Instance,
    names: &Names,
    netlink: &mut Netlink,
) -> Result<(OnInterface, bool)> {
    let on = on_interfaces(&instance.pin_dir)?;
    let attached = || {
        let all: Vec<String> = on.iter().map(|on| names.interface(on.ifindex)).collect();
        all.join(", ")
    };
    if let Some(name) = interface {
        let index = names.interface_called(name)?;
        let found = on.iter().find(|on| on.ifindex == index);
        let found = found.copied().with_context(|| {
            format!("the program is not on {name}; --interface can be one of {}", attached())
        })?;
        return Ok((found, false));
    }
    let route = netlink.route_to(*packet.client.ip()).ok().flatten();
    let towards = route.and_then(|route| on.iter().find(|on| on.ifindex == route.ifindex));
    let chosen = towards.or_else(|| on.iter().min_by_key(|on| on.ifindex)).copied();
    let chosen = chosen.context("the program is on no interface")?;
    if towards.is_none() {
        crate::log::notice(&format!(
            "{} is not reached by an interface that the program is on; taken to arrive on {} (--interface can be one of {})",
            packet.client.ip(),
            names.interface(chosen.ifindex),
            attached()
        ));
    }
    Ok((chosen, towards.is_none()))
}

fn frame_of(packet: &Packet, mac: [u8; 6]) -> Result<Vec<u8>> {
    const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    let (client, vip) = (packet.client, packet.vip);
    let builder = PacketBuilder::ethernet2(PEER, mac).ipv4(client.ip().octets(), vip.ip().octets(), TTL);
    let mut frame = Vec::new();
    match packet.protocol {
        Protocol::Tcp => {
            let tcp = builder.tcp(client.port(), vip.port(), 1, 65535);
            let tcp = if packet.syn { tcp.syn() } else { tcp.ack(1) };
            tcp.write(&mut frame, &[])
        }
        Protocol::Udp => builder.udp(client.port(), vip.port()).write(&mut frame, &[]),
    }
    .context("could not make the packet")?;
    Ok(frame)
}

/// Everything there is to be told.
struct Account<'a> {
    packet: &'a Packet,
    on: OnInterface,
    /// Nothing says that the packet arrives there.
    guessed: bool,
    frame: &'a [u8],
    explanation: &'a Explanation,
    obstacles: Vec<Obstacle>,
    names: &'a Names,
}

impl Account<'_> {
    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        for (step, lines) in self.steps() {
            for (at, line) in lines.into_iter().enumerate() {
                table.add_row([if at == 0 { step } else { "" }, line.as_str()]);
            }
        }
        table.trim_fmt()
    }

    /// Each step with what is to be said of it, in the order of the packet's way.
    fn steps(&self) -> Vec<(&'static str, Vec<String>)> {
        let mut steps =
            vec![("packet", vec![self.packet_text()]), ("interface", vec![self.interface_text()])];
        steps.push(("service", vec![self.service_text()]));
        if self.explanation.service.is_some() {
            steps.push(("connection", vec![self.connection_text()]));
        }
        if let Some(choice) = &self.explanation.choice {
            steps.push(("scheduler", self.choice_text(choice)));
        }
        if let Some(rewrite) = self.rewrite() {
            steps.push(("rewrite", vec![rewrite.text()]));
        }
        if let Some(hop) = &self.explanation.next_hop {
            steps.push(("next hop", vec![self.hop_text(hop)]));
        }
        steps.push(("verdict", vec![self.verdict_text()]));
        if !self.obstacles.is_empty() {
            let messages = self.obstacles.iter().map(|obstacle| obstacle.message.clone());
            steps.push(("warning", messages.collect()));
        }
        steps
    }

    /// Whether the packet comes from a backend.
    fn is_reply(&self) -> bool {
        let found = self.explanation.connection.as_ref().and_then(|found| found.backend);
        found == Some(self.packet.client)
            || ["no_connection", "wrong_interface"].contains(&self.explanation.reason.name)
    }

    /// The client, and the VIP as far as that is known: a reply has neither as its sender.
    fn ends(&self) -> (SocketAddrV4, Option<SocketAddrV4>) {
        match self.is_reply() {
            true => (self.packet.vip, self.explanation.service.as_ref().map(|service| service.vip)),
            false => (self.packet.client, Some(self.packet.vip)),
        }
    }

    fn packet_text(&self) -> String {
        let Packet { protocol, client, vip, syn } = self.packet;
        let kind = match (protocol, syn) {
            (Protocol::Udp, _) => "a datagram",
            (Protocol::Tcp, true) => "SYN, opens a connection",
            (Protocol::Tcp, false) => "ACK, of a connection (--syn for one that opens it)",
        };
        format!("{protocol} {client} -> {vip}, {kind}")
    }

    fn interface_text(&self) -> String {
        // Else it depends on where the packet goes, as the verdict says.
        let delivery = if self.on.profile.stack { ", delivery by the kernel" } else { "" };
        let guess = if self.guessed { " (a guess)" } else { "" };
        format!(
            "{}{guess}, XDP in {} mode{delivery}",
            self.names.interface(self.on.ifindex),
            mode_name(self.on.mode)
        )
    }

    fn service_text(&self) -> String {
        let Some(service) = &self.explanation.service else {
            return format!("none: {}", self.explanation.reason.help);
        };
        let name = self.names.service(service.vip, service.protocol);
        let vip = service.vip.to_string();
        let name = if name == vip { vip } else { format!("{name}, {vip}") };
        let (all, up) = service.backends;
        let scheduler = service.scheduler.map_or("an unknown scheduler", Scheduler::name);
        format!("{name}/{}, {scheduler}, {up} of {all} backends take new connections", service.protocol)
    }

    fn connection_text(&self) -> String {
        let Some(found) = &self.explanation.connection else {
            return "none is known of this client's address and port".to_owned();
        };
        let backend =
            found.backend.map_or("a backend that is gone".to_owned(), |backend| backend.to_string());
        let state = found.state.map_or("ended", LifeState::name);
        match found.goes_on {
            true => format!("with {backend}, {state}: the packet goes on with it"),
            false => format!("with {backend}, {state}: the packet does not belong to it"),
        }
    }

    fn choice_text(&self, choice: &Choice) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(recorded) = choice.recorded {
            lines.push(format!("the client came to {recorded} before (sticky)"));
        }
        let scheduler = self.explanation.service.as_ref().and_then(|service| service.scheduler);
        if choice.ring_length > 0 {
            let why = match scheduler {
                Some(Scheduler::IpHash) => "by a hash of the client's address",
                Some(Scheduler::Maglev) => "by a hash of the client's address and port",
                Some(Scheduler::LeastConn) => "whose turn it is among equals",
                _ => "whose turn it is now",
            };
            lines.push(format!("slot {} of {}, {why}", choice.ring_position, choice.ring_length));
        } else if choice.recorded.is_none() {
            lines.push("no backend is on the ring: none takes new connections".to_owned());
        }
        lines.extend(choice.least.map(|least| format!("{least} has the fewest connections for its weight")));
        lines.extend(refusals_text(&choice.refusals));
        lines.extend(choice.backend.map(|backend| format!("{backend} takes it")));
        if choice.no_slot {
            lines.push("the connection table has no slot for it".to_owned());
        }
        lines
    }

    fn rewrite(&self) -> Option<Rewrite> {
        matches!(self.explanation.reason.class, Class::Sent | Class::Stack)
            .then(|| Rewrite::between(self.frame, &self.explanation.frame))?
    }

    fn hop_text(&self, hop: &HopFound) -> String {
        let by_fib = if hop.by_fib { ", by the kernel's routes (no next hop is known yet)" } else { "" };
        if hop.ifindex == 0 {
            return format!("the kernel finds it{by_fib}");
        }
        let mac = match hop.macs.0 {
            [0, 0, 0, 0, 0, 0] => "MAC not known yet".to_owned(),
            mac => mac_text(mac),
        };
        format!("{mac} by {}, MTU {}{by_fib}", self.names.interface(hop.ifindex), hop.mtu)
    }

    fn verdict_text(&self) -> String {
        let reason = self.explanation.reason;
        let by = self.explanation.out_ifindex.map(|out| format!(" by {}", self.names.interface(out)));
        let action = verdict_name(self.explanation.verdict);
        format!(
            "{action}{}: {} ({} {})",
            by.unwrap_or_default(),
            reason.help,
            reason.class.name(),
            reason.name
        )
    }

    fn json(&self) -> Value {
        let Explanation { reason, verdict, frame, out_ifindex, service, connection, choice, next_hop } =
            self.explanation;
        let interface = |index: u32| self.names.interface(index);
        let (client, vip) = self.ends();
        json!({
            "packet": {
                "protocol": self.packet.protocol.to_string(),
                "source": self.packet.client,
                "destination": self.packet.vip,
                "direction": if self.is_reply() { "to_client" } else { "to_backend" },
                "client": client,
                "vip": vip,
                "syn": self.packet.syn,
                "frame": hex(self.frame),
            },
            "interface": {
                "name": interface(self.on.ifindex),
                "guessed": self.guessed,
                "mode": mode_name(self.on.mode),
                "profile": self.on.profile.name(),
            },
            "service": service.as_ref().map(|service| json!({
                "name": self.names.service(service.vip, service.protocol),
                "vip": service.vip,
                "protocol": service.protocol.to_string(),
                "scheduler": service.scheduler.map(Scheduler::name),
                "backends": service.backends.0,
                "takes_new": service.backends.1,
            })),
            "connection": connection.as_ref().map(|found| json!({
                "backend": found.backend,
                "state": found.state.map_or("ended", LifeState::name),
                "goes_on": found.goes_on,
            })),
            "scheduler": choice.as_ref().map(choice_json),
            "rewrite": self.rewrite().map(|rewrite| rewrite.json()),
            "next_hop": next_hop.as_ref().map(|hop| json!({
                "interface": (hop.ifindex != 0).then(|| interface(hop.ifindex)),
                "mac": (hop.ifindex != 0).then(|| mac_text(hop.macs.0)),
                "source_mac": (hop.ifindex != 0).then(|| mac_text(hop.macs.1)),
                "mtu": (hop.ifindex != 0).then_some(hop.mtu),
                "by_fib": hop.by_fib,
            })),
            "verdict": {
                "action": verdict_name(*verdict),
                "interface": out_ifindex.map(interface),
                "class": reason.class.name(),
                "reason": reason.name,
                "help": reason.help,
                "frame": hex(frame),
            },
            "warnings": self.obstacles.iter().map(Obstacle::json).collect::<Vec<_>>(),
        })
    }
}

fn choice_json(choice: &Choice) -> Value {
    let refused =
        |(backend, reason): &(SocketAddrV4, &Reason)| json!({ "backend": backend, "reason": reason.name });
    json!({
        "ring_length": choice.ring_length,
        "ring_position": choice.ring_position,
        "recorded": choice.recorded,
        "least": choice.least,
        "refused": choice.refusals.iter().map(refused).collect::<Vec<_>>(),
        "backend": choice.backend,
        "no_slot": choice.no_slot,
    })
}

/// A line for each backend that was passed over, however many of its slots were tried.
fn refusals_text(refusals: &[(SocketAddrV4, &'static Reason)]) -> Vec<String> {
    let mut lines: Vec<(String, usize)> = Vec::new();
    for (backend, reason) in refusals {
        let line = match backend.ip().is_unspecified() {
            true => format!("an empty slot: {}", reason.help),
            false => format!("not {backend}: {}", reason.help),
        };
        match lines.iter_mut().find(|(known, _)| *known == line) {
            Some((_, times)) => *times += 1,
            None => lines.push((line, 1)),
        }
    }
    let text = |(line, times): (String, usize)| match times {
        1 => line,
        times => format!("{line} ({times} slots)"),
    };
    lines.into_iter().map(text).collect()
}

/// What of the packet's headers is another after the translation.
struct Rewrite {
    source: (SocketAddrV4, SocketAddrV4),
    destination: (SocketAddrV4, SocketAddrV4),
    ttl: (u8, u8),
}

impl Rewrite {
    fn between(before: &[u8], after: &[u8]) -> Option<Rewrite> {
        let (before, after) = (Ends::of(before)?, Ends::of(after)?);
        Some(Rewrite {
            source: (before.source, after.source),
            destination: (before.destination, after.destination),
            ttl: (before.ttl, after.ttl),
        })
    }

    fn text(&self) -> String {
        let mut parts = Vec::new();
        for (what, (before, after)) in [("source", self.source), ("destination", self.destination)] {
            if before != after {
                parts.push(format!("{what} {before} -> {after}"));
            }
        }
        parts.push(match self.ttl {
            (before, after) if before == after => format!("TTL {before} stays for the kernel to lower"),
            (before, after) => format!("TTL {before} -> {after}"),
        });
        parts.join(", ")
    }

    fn json(&self) -> Value {
        let pair =
            |(before, after): (SocketAddrV4, SocketAddrV4)| json!({ "before": before, "after": after });
        json!({
            "source": pair(self.source),
            "destination": pair(self.destination),
            "ttl": { "before": self.ttl.0, "after": self.ttl.1 },
        })
    }
}

/// What the translation may change.
struct Ends {
    source: SocketAddrV4,
    destination: SocketAddrV4,
    ttl: u8,
}

impl Ends {
    fn of(frame: &[u8]) -> Option<Ends> {
        let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
        let payload = ethernet.payload();
        let ip = Ipv4HeaderSlice::from_slice(payload.payload).ok()?;
        let ports = payload.payload.get(ip.slice().len()..)?.get(..4)?;
        let end = |address: Ipv4Addr, at: usize| {
            SocketAddrV4::new(address, u16::from_be_bytes([ports[at], ports[at + 1]]))
        };
        Some(Ends {
            source: end(ip.source_addr(), 0),
            destination: end(ip.destination_addr(), 2),
            ttl: ip.ttl(),
        })
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Native => "native",
        Mode::Skb => "skb",
    }
}

/// The kernel's names (`enum xdp_action`).
fn verdict_name(verdict: u32) -> &'static str {
    ["XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"]
        .get(verdict as usize)
        .unwrap_or(&"unknown")
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once() {
        let reason = |name: &str| Reason::ALL.iter().find(|one| one.name == name).unwrap();
        let backend = |last: u8| SocketAddrV4::new([10, 0, 0, last].into(), 80);
        let nobody = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let full = reason("table_full");
        let mut refusals = vec![(backend(1), full); 8];
        refusals.extend([(backend(2), full), (nobody, reason("no_backend"))]);
        let lines = refusals_text(&refusals);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[0], format!("not 10.0.0.1:80: {} (8 slots)", full.help));
        assert_eq!(lines[1], format!("not 10.0.0.2:80: {}", full.help));
        assert!(lines[2].starts_with("an empty slot: "), "{lines:?}");
    }
}
