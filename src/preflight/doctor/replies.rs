//! Whether replies find their way back to clients.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::Result;

use super::Patient;
use crate::dataplane::{Class, Clock, Entries, Tables, Which};
use crate::net::{Netlink, RouteKind};
use crate::preflight::Finding;

const NAME: &str = "client-route";
/// What the program counts where the kernel's table of routes did not give it a way.
const REASON: &str = "route_by_kernel";
/// So many live connections are looked at, and so many of their clients asked for.
const CONNECTIONS: usize = 10_000;
const CLIENTS: usize = 200;
/// So many of those without a route are named.
const NAMED: usize = 3;

pub(super) fn check(netlink: &mut Netlink, patient: &Patient) -> Result<Vec<Finding>> {
    let Some(figures) = patient.figures.as_ref().filter(|_| patient.is_there()) else {
        return Ok(Vec::new());
    };
    let is_it = |reason: &&crate::metrics::ReasonFigures| {
        reason.class == Class::Stack.name() && reason.name == REASON
    };
    let packets = figures.reasons.iter().find(is_it).map_or(0, |reason| reason.counter.packets);
    let mut lost = Vec::new();
    // Tables that cannot be read are found by the check of the table.
    for client in clients(patient).unwrap_or_default() {
        let has_route = netlink.route_to(client)?.is_some_and(|route| route.kind != RouteKind::Other);
        lost.extend((!has_route).then_some(client));
    }
    Ok(judge(packets, &lost))
}

/// Some of those who have live connections.
fn clients(patient: &Patient) -> Result<BTreeSet<Ipv4Addr>> {
    let tables = Tables::open(&patient.config.pin_dir)?;
    let settings = tables.settings()?;
    let now = Clock::load()?.now(settings.clock_shift)?;
    let which = Which { limit: Some(CONNECTIONS), ..Which::default() };
    let listing = Entries::new(&tables, settings, now).list(&which);
    let all: BTreeSet<Ipv4Addr> = listing.entries.iter().map(|entry| *entry.client.ip()).collect();
    Ok(all.into_iter().take(CLIENTS).collect())
}

fn judge(packets: u64, lost: &[Ipv4Addr]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let [first, rest @ ..] = lost {
        let names: Vec<String> = lost.iter().take(NAMED).map(Ipv4Addr::to_string).collect();
        let more = match rest.len() >= NAMED {
            true => format!(" and {} more", lost.len() - NAMED),
            false => String::new(),
        };
        let message = format!(
            "this host has no route to clients with live connections ({}{more}): what is sent to them is dropped",
            names.join(", ")
        );
        findings.push(Finding::warning(
            NAME,
            &message,
            &format!("ip route add {}/24 via GATEWAY", network(*first)),
        ));
    }
    if packets > 0 {
        let message = format!(
            "{packets} packets, replies to clients most likely, were left to the kernel so far as the program found no way for \
             them ({REASON}): it drops those that it has no route for"
        );
        let fix = format!(
            "see whose they are: xdp-lb trace --reason {REASON}; ask for their way: ip route get CLIENT; without one: ip route \
             add NETWORK via GATEWAY"
        );
        findings.push(Finding::warning(NAME, &message, &fix));
    }
    findings
}

/// The network that an address is most likely in.
fn network(address: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = address.octets();
    Ipv4Addr::new(a, b, c, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;

    #[test]
    fn clients_without_a_route_are_named() {
        assert!(judge(0, &[]).is_empty());
        let client = |last| Ipv4Addr::new(198, 51, 100, last);
        let found = judge(7, &[client(1), client(2), client(3), client(4)]);
        assert!(found.iter().all(|finding| finding.level == Level::Warning) && found.len() == 2);
        assert!(
            found[0].message.contains("(198.51.100.1, 198.51.100.2, 198.51.100.3 and 1 more)"),
            "{found:?}"
        );
        assert_eq!(found[0].fix.as_deref(), Some("ip route add 198.51.100.0/24 via GATEWAY"));
        assert!(found[1].message.starts_with("7 packets"), "{found:?}");
        assert!(judge(0, &[client(1)])[0].message.contains("(198.51.100.1)"));
    }
}
