//! Whether replies find their way back to clients.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::Patient;
use crate::dataplane::{Class, Clock, Entries, Reason, Tables, Which};
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
/// So long it is watched whether there are more of these packets.
const MOMENT: Duration = Duration::from_millis(500);

pub(super) fn check(netlink: &mut Netlink, patient: &Patient) -> Result<Vec<Finding>> {
    let Some(figures) = patient.figures.as_ref().filter(|_| patient.is_there()) else {
        return Ok(Vec::new());
    };
    let is_it = |reason: &&crate::metrics::ReasonFigures| {
        reason.class == Class::Stack.name() && reason.name == REASON
    };
    let so_far = figures.reasons.iter().find(is_it).map_or(0, |reason| reason.counter.packets);
    let mut lost = Vec::new();
    // Tables that cannot be read are found by the check of the table.
    for client in clients(patient).unwrap_or_default() {
        let has_route = netlink.route_to(client)?.is_some_and(|route| route.kind != RouteKind::Other);
        lost.extend((!has_route).then_some(client));
    }
    let counted = Counted { so_far, now: if so_far > 0 { growth(patient).unwrap_or(0) } else { 0 } };
    Ok(judge(&counted, &lost, patient))
}

/// Packets without a way.
struct Counted {
    /// Since the first start, whatever was mended since then.
    so_far: u64,
    /// While it was looked at.
    now: u64,
}

/// How many there are in a moment: sums never go back.
fn growth(patient: &Patient) -> Result<u64> {
    let tables = Tables::open(&patient.config.pin_dir)?;
    let counted = || -> Result<u64> {
        let reasons = Reason::ALL.iter();
        let mut ours = reasons.filter(|one| one.class == Class::Stack && one.name == REASON);
        ours.try_fold(0, |sum, one| Ok(sum + tables.reason_counter(one.code())?.packets))
    };
    let before = counted()?;
    thread::sleep(MOMENT);
    Ok(counted()?.saturating_sub(before))
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

fn judge(counted: &Counted, lost: &[Ipv4Addr], patient: &Patient) -> Vec<Finding> {
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
    let Counted { so_far, now } = *counted;
    let what = format!(
        "replies to clients most likely, were left to the kernel as the program found no way for them ({REASON})"
    );
    if now > 0 {
        let message = format!(
            "{now} packets in a moment, {what}: it drops those that it has no route for; {so_far} so far"
        );
        let fix = format!(
            "see whose they are: {}; ask for their way: ip route get CLIENT; without one: ip route add NETWORK via GATEWAY",
            patient.command(&format!("trace --reason {REASON}"))
        );
        findings.push(Finding::warning(NAME, &message, &fix));
    } else if so_far > 0 {
        let message = format!("{so_far} packets so far, {what}, none of them just now");
        findings.push(Finding::ok(NAME, &message));
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
    use super::super::State;
    use super::*;
    use crate::config::Config;
    use crate::preflight::Level;

    #[test]
    fn clients_without_a_route_are_named() {
        assert!(found(0, 0, &[]).is_empty());
        let client = |last| Ipv4Addr::new(198, 51, 100, last);
        let all = found(7, 2, &[client(1), client(2), client(3), client(4)]);
        assert!(all.iter().all(|finding| finding.level == Level::Warning) && all.len() == 2);
        assert!(all[0].message.contains("(198.51.100.1, 198.51.100.2, 198.51.100.3 and 1 more)"), "{all:?}");
        assert_eq!(all[0].fix.as_deref(), Some("ip route add 198.51.100.0/24 via GATEWAY"));
        assert!(all[1].message.starts_with("2 packets in a moment, "), "{all:?}");
        assert!(found(0, 0, &[client(1)])[0].message.contains("(198.51.100.1)"));
    }

    #[test]
    fn what_was_counted_before_it_was_mended_is_no_fault() {
        let all = found(7, 0, &[]);
        assert_eq!((all.len(), all[0].level), (1, Level::Ok));
        assert!(all[0].message.starts_with("7 packets so far, "), "{all:?}");
    }

    fn found(so_far: u64, now: u64, lost: &[Ipv4Addr]) -> Vec<Finding> {
        judge(&Counted { so_far, now }, lost, &Patient::new(Config::new(vec![], vec![]), State::Runs))
    }
}
