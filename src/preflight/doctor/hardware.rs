//! What drivers and devices do with frames: native mode, MTU, queues, interrupts, offloads, far ends of veths.

use anyhow::Result;

use crate::config::{Config, XdpMode};
use crate::dataplane::{
    Offloads, bus_of, channels, driver_of, driver_xdp, gro_of, offloads, queues_with_xdp, xdp_features,
};
use crate::model::Protocol;
use crate::net::{Irq, Link, XdpAttached, irqbalance, irqs_of, online_cpus};
use crate::preflight::interfaces::{MtuLimit, SKB_ONLY};
use crate::preflight::{Finding, Remedy, Scene};

const VETH: &str = "veth";

pub(super) fn check(scene: &Scene, config: &Config) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let cpus = online_cpus()?;
    for link in scene.shown().into_iter().filter(|link| link.ethernet && !link.loopback) {
        let name = &link.name;
        findings.push(driver(config, link)?);
        findings.extend(mtu(scene, config, link));
        if let Some(channels) = channels(name)? {
            let most = queues_with_xdp(&driver_of(name)?.unwrap_or_default(), channels.max_receiving());
            findings.push(queues(link, channels.receiving(), most, cpus.len()));
        }
        findings.extend(interrupts(name, &cpus)?);
        if let Some(offloads) = offloads(name)? {
            findings.extend(merging(name, &offloads));
            findings.extend(tags(scene, link, &offloads));
        }
        let state = |on| if on { "on" } else { "off" };
        findings.extend(
            gro_of(name)?
                .map(|on| Finding::ok("gro", &format!("{} at {name}; XDP runs before it", state(on)))),
        );
        findings.extend(far_end(scene, link));
    }
    findings.extend(black_hole(scene, config));
    Ok(findings)
}

/// Whether the driver runs programs, and whether ours got the better mode.
fn driver(config: &Config, link: &Link) -> Result<Finding> {
    let name = &link.name;
    let driver = driver_of(name)?.unwrap_or_else(|| "no name".to_owned());
    let native = match xdp_features(link.index)? {
        Some(features) => features.basic,
        None => link.kind.as_deref() == Some(VETH) || driver_xdp(&driver).is_some(),
    };
    let is_skb = link.xdp.is_some_and(|xdp| xdp.mode == XdpAttached::Skb) && config.xdp_mode != XdpMode::Skb;
    let virtual_only = link.kind.as_deref().is_some_and(|kind| SKB_ONLY.contains(&kind));
    Ok(match native {
        // It is a kind of interface, not a driver, that lacks it.
        false if virtual_only || config.xdp_mode == XdpMode::Skb => {
            Finding::ok("driver", &format!("{name} ({driver}) has SKB mode only"))
        }
        false => {
            let message = format!("the driver of {name}, {driver}, has no native XDP: SKB mode is slower");
            Finding::warning(
                "driver",
                &message,
                "a device whose driver has it, or --xdp-mode skb to be content",
            )
        }
        true if is_skb => {
            let message =
                format!("the program on {name} ({driver}) is in SKB mode, though the driver has native mode");
            Finding::warning("driver", &message, "--xdp-mode native at the next start says why it is refused")
        }
        true => Finding::ok("driver", &format!("{name} ({driver}) has native XDP")),
    })
}

/// The program takes whole frames only: one that does not fit into the driver's buffer cannot reach it.
fn mtu(scene: &Scene, config: &Config, link: &Link) -> Option<Finding> {
    let limit = MtuLimit::of(scene, link);
    match limit {
        // A program that is to get there yet is judged with the interface.
        Some(limit) if limit.is_exceeded() && config.xdp_mode != XdpMode::Skb => {
            let is_skb = link.xdp.is_some_and(|xdp| xdp.mode == XdpAttached::Skb);
            let message = format!("{}: it has SKB mode, which is slower", limit.message);
            is_skb.then(|| Finding::warning("mtu", &message, &limit.fix))
        }
        Some(limit) if !limit.is_exceeded() => Some(Finding::ok("mtu", &limit.message)),
        _ => Some(Finding::ok("mtu", &format!("{} has an MTU of {}", link.name, link.mtu))),
    }
}

/// Frames above the MTU of the interface that they are to leave by are dropped. TCP agrees on less only where hosts at both
/// ends have the MTU of their network.
fn black_hole(scene: &Scene, config: &Config) -> Option<Finding> {
    let used = scene.in_use();
    if !used.iter().any(|link| scene.shows(link)) {
        return None;
    }
    let has_datagrams = config.services.iter().any(|service| service.protocol == Protocol::Udp);
    too_big(&used, has_datagrams)
}

/// `None` if all have the same.
fn too_big(used: &[&Link], has_datagrams: bool) -> Option<Finding> {
    let mtus = used.iter().map(|link| link.mtu);
    let (least, most) = (mtus.clone().min()?, mtus.max()?);
    let below = |limit: u32| used.iter().filter(move |link| link.mtu < limit);
    let above = || used.iter().filter(|link| link.mtu > least);
    if least == most {
        return None;
    }
    let who = match has_datagrams {
        true => "datagrams are, and TCP's segments where a host has another MTU than its network",
        false => "TCP's segments are where a host has another MTU than its network",
    };
    let large: Vec<String> = above().map(|link| format!("{} ({})", link.name, link.mtu)).collect();
    let small: Vec<&str> = below(least + 1).map(|link| link.name.as_str()).collect();
    let message = format!(
        "frames of up to {most} bytes that arrive by {} are too big for {} ({least}), and dropped: {who}",
        large.join(", "),
        small.join(", ")
    );
    let set = |link: &&Link, mtu: u32| format!("ip link set {} mtu {mtu}", link.name);
    let raise: Vec<String> = below(most).map(|link| set(link, most)).collect();
    let lower: Vec<String> = above().map(|link| set(link, least)).collect();
    let fix = format!(
        "give all the same MTU, if the networks have it: {}, or {}",
        raise.join(" && "),
        lower.join(" && ")
    );
    Some(Finding::warning("mtu", &message, &fix))
}

/// Each queue is served by one processor at a time.
fn queues(link: &Link, now: u32, most: u32, cpus: usize) -> Finding {
    const NAME: &str = "queues";
    let name = &link.name;
    let message =
        format!("{name} receives by {now} of {most} possible queues, and there are {cpus} processors");
    let wanted = most.min(u32::try_from(cpus).unwrap_or(u32::MAX));
    let tune = format!("xdp-lb tune {name}");
    match (now < wanted, link.kind.as_deref()) {
        (false, _) => Finding::ok(NAME, &message),
        // How many of them are used is the far end's to say.
        (true, Some(VETH)) => Finding { fix: Some(tune), ..Finding::ok(NAME, &message) },
        // Nor are those of other software this host's.
        (true, Some(_)) => Finding::ok(NAME, &message),
        (true, None) => Finding::warning(NAME, &format!("{message}: some have nothing to do"), &tune),
    }
}

fn interrupts(name: &str, cpus: &[usize]) -> Result<Option<Finding>> {
    let irqs = irqs_of(name, bus_of(name)?.as_deref())?;
    // Who serves one that went away meanwhile is not to be known.
    let served: Vec<(Irq, Vec<usize>)> =
        irqs.into_iter().filter_map(|irq| Some((irq.clone(), irq.served_by().ok()?))).collect();
    Ok(spread(name, &served, cpus.len(), irqbalance()))
}

/// Interrupts of queues that one processor serves alone, while others have none.
fn spread(name: &str, served: &[(Irq, Vec<usize>)], cpus: usize, irqbalance: Option<u32>) -> Option<Finding> {
    const NAME: &str = "irq";
    let mut queues: Vec<_> = served.iter().filter_map(|(irq, _)| irq.queue).collect();
    queues.sort_unstable();
    queues.dedup();
    let mut used: Vec<usize> = served.iter().flat_map(|(_, cpus)| cpus).copied().collect();
    used.sort_unstable();
    used.dedup();
    let balancer = irqbalance.map_or(String::new(), |process| {
        format!("; irqbalance (process {process}) moves them as it sees fit")
    });
    let message = format!(
        "the {} interrupts of {name}, for {} different queues, are served by {} of {cpus} processors{balancer}",
        served.len(),
        queues.len(),
        used.len()
    );
    (!served.is_empty()).then(|| match used.len() < queues.len().min(cpus) {
        true => Finding::warning(NAME, &message, &format!("xdp-lb tune {name}")),
        false => Finding::ok(NAME, &message),
    })
}

/// Frames that the device made of many are too big for the program, and cannot be sent on.
fn merging(name: &str, offloads: &Offloads) -> Option<Finding> {
    let message = format!(
        "large receive offload is on at {name}: merged frames cannot be balanced, and drivers refuse native mode"
    );
    offloads.lro.then(|| Finding::mendable("lro", &message, Remedy::LroOff(name.to_owned())))
}

/// A tag that the device takes away is missing when the frame is sent on.
fn tags(scene: &Scene, link: &Link, offloads: &Offloads) -> Option<Finding> {
    let has_vlans = scene.links.values().any(|link| link.kind.as_deref() == Some("vlan"));
    let name = &link.name;
    // Software keeps the tag with the frame.
    let takes_tags = offloads.rx_vlan && link.kind.is_none();
    let message = format!(
        "{name} takes VLAN tags out of frames before the program sees them, and there are VLANs here: frames of theirs that are balanced lose the tag"
    );
    (takes_tags && has_vlans)
        .then(|| Finding::warning("offloads", &message, &format!("ethtool -K {name} rxvlan off")))
}

/// Frames that native XDP sends into a veth arrive only where the far end expects them.
fn far_end(scene: &Scene, link: &Link) -> Option<Finding> {
    let facts = scene.egress.get(&link.index).filter(|_| link.kind.as_deref() == Some(VETH))?;
    let message = format!("{}: {}", link.name, facts.why);
    Some(match &facts.faster {
        _ if scene.is_chosen() => Finding::ok(VETH, &message),
        Some(fix) if !facts.redirect => {
            let message = format!(
                "{message}, so that frames sent by XDP would vanish: the kernel delivers them, slower"
            );
            Finding::warning(VETH, &message, fix)
        }
        fix => Finding { fix: fix.clone(), ..Finding::ok(VETH, &message) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;

    fn link(kind: Option<&str>) -> Link {
        Link { kind: kind.map(str::to_owned), ..Link::ethernet(2, "eth0") }
    }

    #[test]
    fn what_is_dropped_is_a_warning_for_every_protocol() {
        let small = Link { name: "eth1".into(), mtu: 1400, ..link(None) };
        for has_datagrams in [true, false] {
            let found = too_big(&[&small, &link(None)], has_datagrams).expect("a finding");
            assert_eq!(found.level, Level::Warning);
            assert!(found.message.starts_with(
                "frames of up to 1500 bytes that arrive by eth0 (1500) are too big for eth1 (1400)"
            ));
            assert!(found.fix.is_some_and(|fix| fix.contains("ip link set eth1 mtu 1500")));
        }
        assert_eq!(too_big(&[&small, &small], true), None);
        assert_eq!(too_big(&[], true), None);
    }

    #[test]
    fn each_alternative_gives_all_the_same_mtu() {
        let of = |name: &str, mtu| Link { name: name.into(), mtu, ..link(None) };
        let all = [of("eth0", 1500), of("eth1", 1500), of("eth2", 1400), of("eth3", 1450)];
        let found = too_big(&all.iter().collect::<Vec<_>>(), false).expect("a finding");
        let large =
            "arrive by eth0 (1500), eth1 (1500), eth3 (1450) are too big for eth2 (1400), and dropped";
        assert!(found.message.contains(large), "{}", found.message);
        let fix = found.fix.unwrap_or_default();
        let (_, commands) = fix.split_once(": ").expect("commands");
        let (raise, lower) = commands.split_once(", or ").expect("two of them");
        assert_eq!(raise, "ip link set eth2 mtu 1500 && ip link set eth3 mtu 1500");
        let each = ["eth0", "eth1", "eth3"].map(|name| format!("ip link set {name} mtu 1400"));
        assert_eq!(lower, each.join(" && "));
    }

    #[test]
    fn queues_are_compared_with_processors() {
        let level = |kind, most, now, cpus| {
            let finding = queues(&link(kind), now, most, cpus);
            (finding.level, finding.fix.is_some())
        };
        assert_eq!(level(None, 8, 1, 4), (Level::Warning, true));
        assert_eq!(level(None, 8, 4, 4), (Level::Ok, false));
        assert_eq!(level(None, 1, 1, 4), (Level::Ok, false), "there are no more");
        assert_eq!(level(Some(VETH), 2, 1, 2), (Level::Ok, true));
        assert_eq!(level(Some("tun"), 1, 0, 2), (Level::Ok, false));
    }

    #[test]
    fn interrupts_on_one_processor_are_found() {
        let irq = |number, queue, cpus: &[usize]| {
            (Irq { number, name: format!("eth0-{queue}"), queue: Some(queue) }, cpus.to_vec())
        };
        let level = |served: &[_], cpus| spread("eth0", served, cpus, Some(7)).map(|finding| finding.level);
        assert_eq!(level(&[], 4), None);
        assert_eq!(level(&[irq(1, 0, &[0]), irq(2, 1, &[0])], 4), Some(Level::Warning));
        assert_eq!(level(&[irq(1, 0, &[0]), irq(2, 1, &[1])], 4), Some(Level::Ok));
        assert_eq!(level(&[irq(1, 0, &[0]), irq(2, 1, &[0])], 1), Some(Level::Ok));
        assert_eq!(level(&[irq(1, 0, &[0]), irq(2, 0, &[0])], 4), Some(Level::Ok), "one queue's two");
        let message = spread("eth0", &[irq(1, 0, &[0])], 2, Some(7)).unwrap().message;
        assert!(message.contains("irqbalance (process 7)"), "{message}");
    }

    #[test]
    fn merged_frames_are_mended() {
        let on = merging("eth0", &Offloads { lro: true, rx_vlan: false }).unwrap();
        assert_eq!((on.level, on.fix.as_deref()), (Level::Warning, Some("ethtool -K eth0 lro off")));
        assert_eq!(on.remedy, Some(Remedy::LroOff("eth0".into())));
        assert_eq!(merging("eth0", &Offloads { lro: false, rx_vlan: true }), None);
    }
}
