//! Whether the next hop to each backend answers ARP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::net::{Link, Netlink};
use crate::preflight::{Finding, Scene};

const NAME: &str = "neighbour";
/// Time enough for an answer to the first question, and the kernel's second one after a second.
const PATIENCE: Duration = Duration::from_millis(1500);
const STEP: Duration = Duration::from_millis(20);

/// Next hops by interface, with the backends behind each.
type Hops<'a> = BTreeMap<(u32, Ipv4Addr), (&'a Link, Vec<Ipv4Addr>)>;

pub(super) fn check(netlink: &mut Netlink, scene: &Scene) -> Result<Vec<Finding>> {
    let mut hops = Hops::new();
    for (backend, route) in &scene.routes {
        let (Some(route), Some(link)) = (route, scene.link_to(*backend)) else { continue };
        if !scene.shows(link) {
            continue;
        }
        let hop = route.gateway.unwrap_or(*backend);
        hops.entry((link.index, hop)).or_insert_with(|| (link, Vec::new())).1.push(*backend);
    }
    let silent = silent(netlink, &hops)?;
    let mut answered: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, (link, _)) in hops.iter().filter(|(hop, _)| !silent.contains(hop)) {
        *answered.entry(&link.name).or_default() += 1;
    }
    let mut findings: Vec<Finding> = silent
        .iter()
        .filter_map(|hop| {
            let (link, backends) = hops.get(hop)?;
            Some(judge(hop.1, link, backends))
        })
        .collect();
    findings.extend(answered.into_iter().map(|(interface, count)| {
        let message = match count {
            1 => format!("the MAC of the next hop to backends by {interface} is known"),
            _ => format!("the MACs of {count} next hops to backends by {interface} are known"),
        };
        Finding::ok(NAME, &message)
    }));
    Ok(findings)
}

/// Those that are not known and do not answer. Those that others answer for are left alone.
fn silent(netlink: &mut Netlink, hops: &Hops<'_>) -> Result<BTreeSet<(u32, Ipv4Addr)>> {
    let mut unknown = without_known(netlink, hops.keys().copied().collect())?;
    for (ifindex, hop) in &unknown {
        // An interface that is down, or without the rights: it stays unknown.
        let _ = netlink.probe_neighbour(*ifindex, *hop);
    }
    let deadline = Instant::now() + PATIENCE;
    while !unknown.is_empty() && Instant::now() < deadline {
        sleep(STEP);
        unknown = without_known(netlink, unknown)?;
    }
    Ok(unknown)
}

fn without_known(
    netlink: &mut Netlink,
    mut hops: BTreeSet<(u32, Ipv4Addr)>,
) -> Result<BTreeSet<(u32, Ipv4Addr)>> {
    for neighbour in netlink.neighbours()?.iter().filter(|neighbour| neighbour.usable) {
        hops.remove(&(neighbour.ifindex, neighbour.address));
    }
    Ok(hops)
}

fn judge(hop: Ipv4Addr, link: &Link, backends: &[Ipv4Addr]) -> Finding {
    let name = &link.name;
    let message = match backends {
        [backend] if *backend == hop => format!("the backend {hop} does not answer ARP on {name}"),
        [first, ..] => {
            let more =
                if backends.len() > 1 { format!(" and {} more", backends.len() - 1) } else { String::new() };
            format!(
                "the router {hop}, by which the backend {first}{more} is reached, does not answer ARP on {name}"
            )
        }
        [] => format!("{hop} does not answer ARP on {name}"),
    };
    let fix = format!("see that it is up, and in the same subnet: ip neighbour show {hop} dev {name}");
    Finding::warning(NAME, &message, &fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_is_no_backend() {
        let link = Link::ethernet(2, "eth1");
        let address = |last| Ipv4Addr::new(10, 0, 0, last);
        let message = |hop, backends: &[Ipv4Addr]| judge(address(hop), &link, backends).message;
        assert_eq!(message(2, &[address(2)]), "the backend 10.0.0.2 does not answer ARP on eth1");
        assert_eq!(
            message(1, &[address(2), address(3)]),
            "the router 10.0.0.1, by which the backend 10.0.0.2 and 1 more is reached, does not answer ARP on eth1"
        );
    }
}
