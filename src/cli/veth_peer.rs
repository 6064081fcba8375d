//! `xdp-lb veth-peer`: lets frames that XDP sends out of a veth arrive at its far end.

use anyhow::{Context as _, Result};

use super::stdout::say;
use crate::dataplane::{attach_peer, detach_peer};
use crate::net::Netlink;

/// Attaches a program that passes everything to an interface, or removes it.
pub fn veth_peer(interface: &str, remove: bool) -> Result<()> {
    let link =
        Netlink::open()?.link(interface)?.with_context(|| format!("there is no interface {interface}"))?;
    let text = match remove {
        false if attach_peer(link.index, &link.name)? => {
            "has the program xdp_peer now: frames sent by XDP arrive"
        }
        false => "has the program xdp_peer already",
        true if detach_peer(link.index, &link.name)? => "has no XDP program any more",
        true => "has no XDP program",
    };
    say(format!("{interface} {text}\n"))
}
