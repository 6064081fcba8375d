//! The far ends of the load balancer's veths, which count what the generator's frames came to.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::{Link, MapCore as _, MapFlags, Object};
use nix::net::if_::if_nametoindex;

use super::generator::{compile, map};
use super::netns::Lab;

/// What passed by, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// The generator's own, by their TOS.
    pub marked: u64,
    /// To its clients, by their address.
    pub syn_acks: u64,
    pub rsts: u64,
    /// To its clients, all others.
    pub answers: u64,
    /// Not about the generator.
    pub others: u64,
}

/// What becomes of the generator's frames, and of answers to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The kernel gets them.
    Pass = 0,
    Drop = 1,
    /// The frames are answered: as a server would that has SYN cookies, by a SYN-ACK or a RST; a datagram by itself.
    Answer = 2,
}

/// Which frames are the generator's, and what becomes of them.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its clients' network, by address and length of the prefix.
    pub clients: (Ipv4Addr, u32),
    /// 0: none is its own.
    pub tos: u8,
    pub action: Action,
}

/// A program on an interface, as long as this lives.
pub struct FarEnd {
    object: Object,
    _link: Link,
}

impl FarEnd {
    /// Attaches it.
    pub fn attach(lab: &Lab, namespace: &str, interface: &str, rule: Rule) -> Result<FarEnd> {
        let object = compile("far_end")?;
        let link = lab.within(namespace, || -> Result<Link> {
            let index = if_nametoindex(interface)?;
            let program = object.progs_mut().next().context("no program")?;
            Ok(program.attach_xdp(index.try_into()?)?)
        })??;
        let far_end = FarEnd { object, _link: link };
        far_end.set(rule)?;
        Ok(far_end)
    }

    /// Sets another rule.
    pub fn set(&self, rule: Rule) -> Result<()> {
        let (network, length) = rule.clients;
        ensure!((1..=32).contains(&length), "a prefix of {length} bits");
        let mask = u32::MAX << (32 - length);
        let mut bytes = [network.to_bits() & mask, mask].map(u32::to_ne_bytes).concat();
        bytes.extend([rule.tos, rule.action as u8, 0, 0]);
        Ok(map(&self.object, "far_end_rule")?.update(&0u32.to_ne_bytes(), &bytes, MapFlags::ANY)?)
    }

    /// What has passed by so far.
    pub fn passed(&self) -> Result<Passed> {
        let counts = map(&self.object, "far_end_counts")?;
        let count = |row: u32| -> Result<u64> {
            let cpus = counts.lookup_percpu(&row.to_ne_bytes(), MapFlags::ANY)?.context("no count")?;
            cpus.iter().map(|cpu| Ok(u64::from_ne_bytes(cpu[..8].try_into()?))).sum()
        };
        Ok(Passed {
            marked: count(0)?,
            syn_acks: count(1)?,
            rsts: count(2)?,
            answers: count(3)?,
            others: count(4)?,
        })
    }
}
