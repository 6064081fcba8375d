//! Starts that fail, and what they leave behind: nothing. And the modes a start can choose.

mod common;

use std::path::Path;

use anyhow::Result;
use common::balancer::{Balancer, PIN_DIR, XDP_LB, has_address, has_xdp, refused, weighted};
use common::clients::{assert_weighted, requests};
use common::netns::{Lab, in_lab};
use common::networks::{VIP, two_arms, two_arms_bare, veth_peer};
use common::servers::{HTTP, nginx_everywhere};

fn args(interface: &str) -> String {
    format!("{interface} --vip {VIP}:80 {} --assign-vip", weighted(HTTP))
}

/// The start fails with these words in its message, and nothing shows that it was tried.
fn assert_refused(lab: &Lab, args: &str, words: &[&str]) -> Result<()> {
    let (code, said) = refused(lab, args)?;
    assert_eq!(code, Some(1), "{args}: {said}");
    for word in words {
        assert!(said.contains(word), "{args}: no {word:?} in {said:?}");
    }
    assert!(!Path::new(PIN_DIR).exists(), "{args}: left pins");
    assert!(!has_address(lab, "lb", "eth0", VIP)?, "{args}: left the VIP");
    assert_eq!(lab.sysctl("lb", "net/ipv4/conf/lo/forwarding")?, "0", "{args}");
    Ok(())
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_interfaces_that_cannot_be_used() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.ip("lb", "link add name idle type veth peer name far")?;
        assert_refused(lab, &args("eth7"), &["no interface eth7", "eth0", "eth1"])?;
        assert_refused(lab, &args("lo"), &["lo is the loopback interface"])?;
        assert_refused(lab, &args("idle"), &["idle is down", "ip link set idle up"])?;
        for interface in ["eth0", "eth1"] {
            assert!(!has_xdp(lab, "lb", interface)?, "a program on {interface}");
        }
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_backends_that_cannot_be_reached() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.ip("lb", "route add blackhole 10.8.0.0/24")?;
        let with = |backend: &str| format!("eth0 --vip {VIP}:80 --backend {backend} --assign-vip");
        assert_refused(lab, &with("10.7.0.1:80"), &["no route to backend 10.7.0.1:80", "ip route add"])?;
        assert_refused(lab, &with("10.8.0.1:80"), &["10.8.0.1"])?;
        assert_refused(lab, &with("10.0.0.1:80"), &["10.0.0.1:80 is an address of this host"])?;
        for interface in ["eth0", "eth1"] {
            assert!(!has_xdp(lab, "lb", interface)?, "a program on {interface}");
        }
        Ok(())
    })
}

/// Another program stays where it is; ours goes from the interfaces that it was on already.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_interfaces_with_another_program() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        for (taken, free) in [("eth0", "eth1"), ("eth1", "eth0")] {
            veth_peer(lab, "lb", taken)?;
            assert_refused(lab, &args("eth0"), &[taken, "already has another XDP program", "xdp_peer"])?;
            assert!(has_xdp(lab, "lb", taken)? && !has_xdp(lab, "lb", free)?, "with {taken} taken");
            lab.run("lb", XDP_LB, &["veth-peer", taken, "--remove"])?;
            assert!(!has_xdp(lab, "lb", taken)?);
        }
        let _lb = Balancer::start(lab, &args("eth0"))?;
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_pin_dirs_that_cannot_be_used() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let dir = lab.dir().display().to_string();
        let with = |dir: &str| format!("{} --pin-dir {dir}", args("eth0"));
        assert_refused(
            lab,
            &with(&format!("{dir}/pins")),
            &[&dir, "not in a bpffs", "such as /sys/fs/bpf/pins"],
        )?;
        assert_refused(lab, &with("/nowhere/pins"), &["/nowhere"])?;
        // Somebody else's directory stays as it is.
        let others = "/sys/fs/bpf/others";
        std::fs::create_dir_all(format!("{others}/theirs"))?;
        assert_refused(lab, &with(others), &[others, "theirs", "not ours"])?;
        assert!(std::fs::exists(format!("{others}/theirs"))?);
        assert!(!has_xdp(lab, "lb", "eth0")? && !has_xdp(lab, "lb", "eth1")?);
        Ok(())
    })
}

/// SKB mode needs no programs on the far ends.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_skb_mode() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &format!("{} --xdp-mode skb", args("eth0")))?;
        let banner = lb.process.stdout();
        assert_eq!(banner.matches("in SKB mode").count(), 2, "{banner}");
        assert!(!banner.contains("in native mode"), "{banner}");
        for interface in ["eth0", "eth1"] {
            let link = lab.ip_show("lb", &format!("-d link show dev {interface}"))?;
            assert!(link.contains("xdpgeneric"), "{link}");
        }
        let answers = requests(lab, &format!("http://{VIP}/?[1-200]"))?;
        assert_eq!(answers.len(), 200);
        assert_weighted(&answers, VIP);
        assert_eq!(lb.figures()?.connections("tcp").values().sum::<u64>(), 200);
        Ok(())
    })
}

/// A bridge's driver has no native mode.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_driver_without_native_mode() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.ip("lb", "link add br0 type bridge forward_delay 0\nlink set br0 up")?;
        let native = format!("{} --xdp-mode native", args("br0"));
        assert_refused(lab, &native, &["br0", "no native mode", "--xdp-mode auto"])?;
        let lb = Balancer::start(lab, &args("br0"))?;
        let (banner, said) = (lb.process.stdout(), lb.process.stderr());
        assert!(said.contains("warning") && said.contains("br0") && said.contains("SKB mode"), "{said}");
        assert!(banner.contains("attached to br0 in SKB mode"), "{banner}");
        // The other is none the worse for it.
        assert!(banner.contains("attached to eth1 in native mode"), "{banner}");
        Ok(())
    })
}
