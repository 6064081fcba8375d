//! Whether this host's own connections may use the port of a VIP: their replies would be taken for those of clients.

use std::collections::BTreeSet;

use crate::config::Config;
use crate::net::read_sysctl;
use crate::preflight::{Finding, Remedy, Scene};

const NAME: &str = "ports";
const RANGE: &str = "net.ipv4.ip_local_port_range";
const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";

pub(super) fn check(scene: &Scene, config: &Config) -> Option<Finding> {
    // From an address that it has not this host connects nowhere.
    let is_here = |vip| scene.addresses.iter().any(|own| own.address == vip);
    let vips = config.services.iter().map(|service| service.vip).filter(|vip| is_here(*vip.ip()));
    let ports: BTreeSet<u16> = vips.map(|vip| vip.port()).collect();
    let (range, reserved) = (read_sysctl(RANGE).ok()?, read_sysctl(RESERVED).ok()?);
    judge(&range, &reserved, &ports)
}

fn judge(range: &str, reserved: &str, ports: &BTreeSet<u16>) -> Option<Finding> {
    let mut words = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (words.next(), words.next()) else { return None };
    let is_free = |port: &&u16| (first..=last).contains(*port) && !contains(reserved, **port);
    let clash: Vec<String> = ports.iter().filter(is_free).map(u16::to_string).collect();
    if clash.is_empty() {
        let message =
            format!("no VIP's port is among those that this host uses itself ({RANGE} = {first} {last})");
        return Some(Finding::ok(NAME, &message));
    }
    let message = format!(
        "{RANGE} is {first} {last}, with the VIP's port {} in it: a connection of this host's own from there would be taken for \
         that of a client",
        clash.join(", ")
    );
    // What others reserved stays reserved.
    let all = [reserved.to_owned()].into_iter().filter(|list| !list.is_empty()).chain(clash);
    let all: Vec<String> = all.collect();
    Some(Finding::mendable(NAME, &message, Remedy::sysctl(RESERVED, &all.join(","))))
}

/// Whether a port is in a list such as `8080,9148,10000-10100`.
fn contains(list: &str, port: u16) -> bool {
    let within = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u16>(), last.trim().parse::<u16>());
        matches!((first, last), (Ok(first), Ok(last)) if (first..=last).contains(&port))
    };
    list.split(',').any(within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;

    #[test]
    fn ports_of_vips_are_reserved() {
        let judged = |reserved: &str, ports: &[u16]| {
            judge("32768\t60999", reserved, &ports.iter().copied().collect())
                .map(|finding| (finding.level, finding.fix))
        };
        assert_eq!(judged("", &[80, 32767, 61000]), Some((Level::Ok, None)));
        let fix = |list: &str| Some((Level::Warning, Some(format!("sysctl -w {RESERVED}={list}"))));
        assert_eq!(judged("", &[80, 40000]), fix("40000"));
        assert_eq!(judged("8080,39000-39010", &[40000, 60999, 39005]), fix("8080,39000-39010,40000,60999"));
        assert_eq!(judged("39990-40010", &[40000]), Some((Level::Ok, None)));
        assert_eq!(judge("what", "", &BTreeSet::new()), None);
    }
}
