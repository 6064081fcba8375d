//! Who sends what was translated: XDP where it arrives, else the kernel, with what the kernel needs for it; and that the
//! better way is taken as soon as it works.

mod common;

use anyhow::Result;
use common::balancer::{Balancer, Figures, XDP_LB, has_xdp, weighted};
use common::clients::{KeepAlive, assert_weighted, requests, requests_with};
use common::eventually;
use common::files::transfer;
use common::netns::{Lab, in_lab};
use common::networks::{VIP, VIP_ONE_ARM, WEBS, docker, one_arm_bare, two_arms, two_arms_bare, veth_peer};
use common::servers::{HTTP, nginx_everywhere};
use nix::sys::signal::Signal;

const FILE_MIB: u64 = 16;
const ROUND_ROBIN: &str =
    "--scheduler rr --backend 10.0.0.10:8080 --backend 10.0.0.11:8080 --backend 10.0.0.12:8080";

fn args(vip: &str) -> String {
    format!("eth0 --vip {vip}:80 {} --assign-vip", weighted(HTTP))
}

fn conf(interface: &str, name: &str) -> String {
    format!("net/ipv4/conf/{interface}/{name}")
}

fn assert_sysctls(lab: &Lab, expected: &[(&str, &str, &str)]) -> Result<()> {
    for (interface, name, value) in expected {
        assert_eq!(lab.sysctl("lb", &conf(interface, name))?, *value, "{interface}: {name}");
    }
    Ok(())
}

/// A network as people have it: no program on the far ends, strict reverse path filters, nothing forwarded.
fn plain(lab: &Lab, interfaces: &[&str]) -> Result<()> {
    for interface in ["all"].iter().chain(interfaces) {
        lab.set_sysctl("lb", &conf(interface, "rp_filter"), "1")?;
        lab.set_sysctl("lb", &conf(interface, "accept_local"), "0")?;
        lab.set_sysctl("lb", &conf(interface, "send_redirects"), "1")?;
    }
    Ok(())
}

/// The line of the banner about an interface.
fn attached(lb: &Balancer, interface: &str) -> String {
    let banner = lb.process.stdout();
    let start = format!("attached to {interface} ");
    let line = banner.lines().find(|line| line.starts_with(&start));
    line.unwrap_or_else(|| panic!("no line {start:?} in:\n{banner}")).to_owned()
}

/// Every packet of these went by the kernel, and none was lost.
fn assert_all_by_the_kernel(figures: &Figures) {
    for class in ["sent", "drop", "error"] {
        assert_eq!(figures.reasons(class), [].into(), "packets counted as {class}");
    }
    let stack = figures.reasons("stack");
    assert!(stack.contains_key("to_backend") && stack.contains_key("to_client"), "{stack:?}");
}

/// Nothing helps on the far ends, and it works at once; the host is as before afterwards.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_plain_veths_work_out_of_the_box() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        plain(lab, &["eth0", "eth1"])?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = Balancer::start(lab, &args(VIP))?;
        for (interface, far) in [("eth0", "far end eth0"), ("eth1", "far end lb")] {
            let line = attached(&lb, interface);
            assert!(line.contains("native mode") && line.contains("delivery by the kernel"), "{line}");
            assert!(line.contains(far) && line.contains("neither an XDP program"), "{line}");
        }
        let line = attached(&lb, "eth0");
        assert!(line.contains("nsenter --net=/run/netns/client xdp-lb veth-peer eth0"), "{line}");
        assert_sysctls(
            lab,
            &[
                ("eth0", "forwarding", "1"),
                ("eth1", "forwarding", "1"),
                ("eth1", "accept_local", "1"),
                ("eth1", "rp_filter", "2"),
                // What needs no change has none.
                ("eth0", "accept_local", "0"),
                ("eth0", "rp_filter", "1"),
                ("all", "rp_filter", "1"),
                ("eth1", "send_redirects", "1"),
            ],
        )?;
        assert_eq!(lab.sysctl("lb", "net/ipv4/ip_forward")?, "0");
        let said = lb.process.stderr();
        for name in
            ["eth0.forwarding = 1 (was 0)", "eth1.accept_local = 1 (was 0)", "eth1.rp_filter = 2 (was 1)"]
        {
            assert!(said.contains(name), "{name}: {said}");
        }
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert_all_by_the_kernel(&lb.figures()?);
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert_sysctls(
            lab,
            &[
                ("eth0", "forwarding", "0"),
                ("eth1", "forwarding", "0"),
                ("eth1", "accept_local", "0"),
                ("eth1", "rp_filter", "1"),
            ],
        )
    })
}

/// The kernel finishes the checksums that local senders left unfinished. With the egress device's offload off somebody
/// verifies the result.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_files_by_the_kernel_with_and_without_egress_offload() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        plain(lab, &["eth0", "eth1"])?;
        let _servers = nginx_everywhere(lab)?;
        for offload in ["on", "off"] {
            for interface in ["eth0", "eth1"] {
                lab.run("lb", "ethtool", &["-K", interface, "tx", offload])?;
                let now = lab.run("lb", "ethtool", &["-k", interface])?;
                assert!(now.contains(&format!("tx-checksumming: {offload}")), "{now}");
            }
            let mut lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {ROUND_ROBIN} --assign-vip"))?;
            transfer(lab, VIP, FILE_MIB)?;
            assert_all_by_the_kernel(&lb.figures()?);
            assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
            forget_files(lab)?;
        }
        Ok(())
    })
}

fn forget_files(lab: &Lab) -> Result<()> {
    for (web, _) in WEBS {
        let dir = lab.dir().join(web);
        std::fs::remove_file(dir.join("file"))?;
        std::fs::remove_dir_all(dir.join("up"))?;
        std::fs::create_dir(dir.join("up"))?;
    }
    Ok(())
}

/// Direct delivery is taken as soon as it works, and left as soon as it does not, while a connection lives.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_delivery_follows_the_far_ends() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args(VIP))?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        let sent = |reason: &str| -> Result<u64> {
            Ok(lb.figures()?.reasons("sent").get(reason).copied().unwrap_or_default())
        };
        assert_eq!((sent("to_backend")?, sent("to_client")?), (0, 0));

        // A program towards the backends, GRO alone towards the clients.
        veth_peer(lab, "switch", "lb")?;
        lab.run("client", "ethtool", &["-K", "eth0", "gro", "on"])?;
        for told in [
            "what leaves by eth1 is delivered direct (XDP_TX or redirect)",
            "eth0 is delivered direct (redirect)",
        ] {
            eventually(told, || lb.process.stderr().contains(told).then_some(()));
        }
        assert_eq!(held.ask()?, server);
        assert!(sent("to_backend")? > 0 && sent("to_client")? > 0);
        eventually("the sysctls are put back", || {
            let is = |interface, name| lab.sysctl("lb", &conf(interface, name)).ok();
            let back = is("eth0", "forwarding") == Some("0".into())
                && is("eth1", "accept_local") == Some("0".into());
            back.then_some(())
        });
        let before = lb.figures()?.reasons("stack");
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert_eq!(lb.figures()?.reasons("stack"), before, "all direct now");

        lab.run("switch", XDP_LB, &["veth-peer", "lb", "--remove"])?;
        lab.run("client", "ethtool", &["-K", "eth0", "gro", "off"])?;
        for told in ["what leaves by eth1 is delivered by the kernel", "eth0 is delivered by the kernel"] {
            eventually(told, || lb.process.stderr().contains(told).then_some(()));
        }
        assert_eq!(held.ask()?, server);
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        Ok(())
    })
}

/// Neither side may tell the client's router of a shorter way.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_one_arm_by_the_kernel() -> Result<()> {
    in_lab(|lab| {
        one_arm_bare(lab)?;
        plain(lab, &["eth0"])?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = Balancer::start(lab, &args(VIP_ONE_ARM))?;
        assert_sysctls(
            lab,
            &[
                ("eth0", "forwarding", "1"),
                ("eth0", "accept_local", "1"),
                ("eth0", "rp_filter", "2"),
                ("eth0", "send_redirects", "0"),
                ("all", "send_redirects", "0"),
            ],
        )?;
        assert_weighted(&requests(lab, &format!("http://{VIP_ONE_ARM}/?[1-100]"))?, VIP_ONE_ARM);
        assert_all_by_the_kernel(&lb.figures()?);
        assert_eq!(lb.stop(Signal::SIGINT)?, Some(0));
        assert_sysctls(lab, &[("eth0", "send_redirects", "1"), ("all", "send_redirects", "1")])
    })
}

/// What cannot be sent back by XDP_TX can be redirected.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_one_arm_with_gro_on_the_far_end() -> Result<()> {
    in_lab(|lab| {
        one_arm_bare(lab)?;
        lab.run("switch", "ethtool", &["-K", "lb", "gro", "on"])?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args(VIP_ONE_ARM))?;
        let line = attached(&lb, "eth0");
        assert!(line.contains("delivery direct (redirect): its far end lb has GRO"), "{line}");
        assert_weighted(&requests(lab, &format!("http://{VIP_ONE_ARM}/?[1-100]"))?, VIP_ONE_ARM);
        lb.figures()?.assert_all_direct();
        Ok(())
    })
}

/// One that has native mode is not slowed down by one that has none.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_servers_on_a_bridge_of_this_host() -> Result<()> {
    in_lab(|lab| {
        docker(lab)?;
        plain(lab, &["eth0", "docker0"])?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {ROUND_ROBIN} --assign-vip"))?;
        let line = attached(&lb, "eth0");
        assert!(line.contains("in native mode"), "{line}");
        let line = attached(&lb, "docker0");
        assert!(line.contains("in SKB mode") && line.contains("delivered by the kernel"), "{line}");
        transfer(lab, VIP, FILE_MIB)?;
        let figures = lb.figures()?;
        for class in ["drop", "error"] {
            assert_eq!(figures.reasons(class), [].into(), "packets counted as {class}");
        }
        Ok(())
    })
}

/// The commands behind "fix: " in a warning about the firewall.
fn firewall_fixes(lb: &Balancer) -> Vec<String> {
    let said = lb.process.stderr();
    let warnings = said.lines().filter(|line| line.contains("warning: the chain "));
    warnings.filter_map(|line| Some(line.split_once("; fix: ")?.1.to_owned())).collect()
}

/// As Docker leaves a host: the policy of FORWARD is to drop, what conntrack calls invalid is dropped first, and what it knows is
/// accepted. Nothing works until the printed rule is pasted, and then everything does.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_docker_and_its_firewall() -> Result<()> {
    in_lab(|lab| {
        docker(lab)?;
        plain(lab, &["eth0", "docker0"])?;
        for rule in [
            "-P FORWARD DROP",
            "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ] {
            lab.run("lb", "iptables", &rule.split_whitespace().collect::<Vec<_>>())?;
        }
        let _servers = nginx_everywhere(lab)?;
        let mut lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {ROUND_ROBIN} --assign-vip"))?;
        let fixes = firewall_fixes(&lb);
        assert!(!fixes.is_empty(), "{}", lb.process.stderr());
        let url = format!("http://{VIP}/");
        assert!(requests_with(lab, &["--connect-timeout", "2", &url]).is_err(), "the rules do drop it");
        for fix in fixes {
            lab.run("lb", "sh", &["-c", &fix])?;
        }
        transfer(lab, VIP, FILE_MIB)?;
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        let lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {ROUND_ROBIN} --assign-vip"))?;
        assert!(firewall_fixes(&lb).is_empty(), "{}", lb.process.stderr());
        assert_eq!(requests(lab, &format!("http://{VIP}/?[1-30]"))?.len(), 30);
        Ok(())
    })
}

/// The firewall matters from the moment on at which something is left to the kernel.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_firewall_that_begins_to_matter() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.run("lb", "iptables", &["-P", "FORWARD", "DROP"])?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args(VIP))?;
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert!(firewall_fixes(&lb).is_empty(), "{}", lb.process.stderr());
        lab.run("switch", XDP_LB, &["veth-peer", "lb", "--remove"])?;
        let fixes =
            eventually("the firewall is looked at", || Some(firewall_fixes(&lb)).filter(|f| !f.is_empty()));
        for fix in fixes {
            lab.run("lb", "sh", &["-c", &fix])?;
        }
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_operator_may_choose() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = Balancer::start(lab, &format!("{} --deliver stack", args(VIP)))?;
        let line = attached(&lb, "eth1");
        assert!(line.contains("delivery by the kernel: --deliver stack"), "{line}");
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert_all_by_the_kernel(&lb.figures()?);
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));

        // In SKB mode too.
        let mut lb = Balancer::start(lab, &format!("{} --xdp-mode skb --deliver direct", args(VIP)))?;
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        lb.figures()?.assert_all_direct();
        assert_eq!(lab.sysctl("lb", &conf("eth0", "forwarding"))?, "0");
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert!(!has_xdp(lab, "lb", "eth0")?);
        Ok(())
    })
}

/// What is forced to vanish is said to.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_direct_delivery_into_nothing_is_said() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        let lb = Balancer::start(lab, &format!("{} --deliver direct", args(VIP)))?;
        let line = attached(&lb, "eth1");
        assert!(line.contains("--deliver direct, although what is redirected there vanishes"), "{line}");
        assert_sysctls(lab, &[("eth0", "forwarding", "0"), ("eth1", "forwarding", "0")])
    })
}

/// Clients are reached by another interface than the one that they arrive on, to which only the kernel can send.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_clients_that_are_reached_another_way() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.ip("", "link add eth2 netns client type veth peer name eth2 netns lb")?;
        lab.ip("client", "link set eth2 up\naddress add 172.16.0.2/24 dev eth2")?;
        lab.ip(
            "lb",
            "address add 172.16.0.1/24 dev eth2
            link set eth2 up
            route add 192.168.1.2/32 via 172.16.0.2 dev eth2
            route add default via 172.16.0.2 dev eth2",
        )?;
        for (namespace, interface) in
            [("client", "all"), ("client", "eth0"), ("client", "eth2"), ("lb", "eth1")]
        {
            lab.set_sysctl(namespace, &conf(interface, "rp_filter"), "0")?;
        }
        let lb = Balancer::start(lab, &args(VIP))?;
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert_sysctls(lab, &[("eth1", "forwarding", "1"), ("eth0", "forwarding", "0")])?;
        assert!(lb.figures()?.reasons("stack").contains_key("to_client"));
        Ok(())
    })
}
