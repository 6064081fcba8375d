//! What others do to this host while an instance runs: switches, names, links, pins.

mod common;

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use common::balancer::{
    Balancer, LOOKUPS, PIN_DIR, XDP_LB, assert_nothing_left, has_address, has_xdp, pins, weighted,
};
use common::clients::{KeepAlive, assert_weighted, requests};
use common::eventually;
use common::netns::in_lab;
use common::networks::{VIP, reachable, two_arms, two_arms_bare, veth_peer};
use common::servers::{HTTP, nginx, nginx_everywhere};
use libbpf_rs::Link;
use nix::sys::signal::Signal;

const IP_FORWARD: &str = "net/ipv4/ip_forward";

fn args() -> String {
    format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP))
}

fn conf(interface: &str, name: &str) -> String {
    format!("net/ipv4/conf/{interface}/{name}")
}

fn says(lb: &Balancer, words: &str) {
    eventually(words, || lb.process.stderr().contains(words).then_some(()));
}

/// The switch that the program needs was on when it started, and so nobody's change.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_host_that_stops_being_a_router() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.set_sysctl("lb", IP_FORWARD, "1")?;
        let mut lb = Balancer::start(lab, &args())?;
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        lab.set_sysctl("lb", IP_FORWARD, "0")?;
        says(&lb, "set net.ipv4.conf.lo.forwarding = 1 (was 0)");
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert_eq!(lab.sysctl("lb", LOOKUPS)?, "0", "as they made it");
        Ok(())
    })
}

/// As when dockerd starts later: the end must not take away what was switched on for all interfaces.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_host_that_becomes_a_router() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = Balancer::start(lab, &args())?;
        assert_eq!(lab.sysctl("lb", &conf("eth0", "forwarding"))?, "1", "the kernel delivers");
        lab.set_sysctl("lb", IP_FORWARD, "1")?;
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        for interface in ["eth0", "eth1", "lo"] {
            assert_eq!(lab.sysctl("lb", &conf(interface, "forwarding"))?, "1", "{interface}");
        }
        assert_eq!(lab.sysctl("lb", &conf("eth1", "accept_local"))?, "0");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_two_instances_share_the_switch() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.add(&["far", "back"])?;
        for (namespace, interface, net) in [("far", "eth3", 7), ("back", "eth4", 8)] {
            lab.ip(
                "",
                &format!("link add {interface} netns lb type veth peer name {interface} netns {namespace}"),
            )?;
            lab.ip("lb", &format!("address add 10.{net}.0.1/24 dev {interface}\nlink set {interface} up"))?;
            lab.ip(
                namespace,
                &format!(
                    "address add 10.{net}.0.2/24 dev {interface}
                    link set {interface} up
                    route add default via 10.{net}.0.1"
                ),
            )?;
            reachable(lab, "lb", &format!("10.{net}.0.2"))?;
            veth_peer(lab, namespace, interface)?;
        }
        let _server = nginx(lab, "back")?;
        lab.wait_for_port("back", "tcp", HTTP)?;
        let mut first = Balancer::start(lab, &args())?;
        let second =
            format!("eth3 --vip 10.7.0.100:80 --backend 10.8.0.2:{HTTP} --pin-dir /sys/fs/bpf/second");
        let second = Balancer::start(lab, &(second + " --assign-vip"))?;
        let ask = || {
            let asked = lab
                .command("far", "curl")?
                .args(["-sS", "--max-time", "5", "http://10.7.0.100/"])
                .output()?;
            anyhow::Ok(asked.status.success())
        };
        assert!(ask()?);
        assert_eq!(first.stop(Signal::SIGTERM)?, Some(0));
        says(&second, "set net.ipv4.conf.lo.forwarding = 1 (was 0)");
        assert!(ask()?);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_interfaces_with_new_names() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let rename = |old: &str, new: &str| lab.ip("lb", &format!("link set {old} name {new}"));
        let mut lb = Balancer::start(lab, &args())?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        rename("eth0", "clients")?;
        rename("eth1", "back.0")?;
        says(&lb, "eth0 has a new name: clients");
        says(&lb, "eth1 has a new name: back.0");
        assert_eq!(held.ask()?, server);
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        let said = lb.process.stderr();
        assert!(!said.contains("is not there") && !said.contains("is gone"), "{said}");

        // And once more while nobody looks.
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        rename("clients", "eth0")?;
        rename("back.0", "eth1")?;
        let mut lb = Balancer::start(lab, &args())?;
        assert_eq!(held.ask()?, server);
        rename("eth1", "back")?;
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        rename("back", "eth1")?;
        for (interface, name) in [("eth0", "forwarding"), ("eth1", "forwarding"), ("eth1", "accept_local")] {
            assert_eq!(lab.sysctl("lb", &conf(interface, name))?, "0", "{interface}: {name}");
        }
        assert!(!has_address(lab, "lb", "eth0", VIP)?);
        assert_nothing_left(lab)
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_program_that_somebody_detached() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args())?;
        for name in pins()?.into_iter().filter(|name| name.starts_with("link_")) {
            Link::open(format!("{PIN_DIR}/{name}"))?.detach()?;
        }
        says(&lb, "somebody detached the program from eth0");
        says(&lb, "attached to eth0 too");
        says(&lb, "attached to eth1 too");
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        Ok(())
    })
}

/// Its pins were removed, and another instance has made its own at the same place.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_an_end_that_spares_anothers_pins() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.add(&["far"])?;
        lab.ip("", "link add eth3 netns lb type veth peer name eth3 netns far")?;
        lab.ip("lb", "address add 10.7.0.1/24 dev eth3\nlink set eth3 up")?;
        lab.ip("far", "address add 10.7.0.2/24 dev eth3\nlink set eth3 up")?;
        let mut first = Balancer::start(lab, &args())?;
        first.process.signal(Signal::SIGSTOP)?;
        fs::read_dir(PIN_DIR)?.try_for_each(|pin| fs::remove_file(pin?.path()))?;
        fs::remove_dir(PIN_DIR)?;
        let other = "eth3 --vip 10.7.0.100:80 --backend 10.7.0.2:80 --socket /run/other.sock";
        let second = Balancer::start(lab, other)?;
        first.process.signal(Signal::SIGCONT)?;
        assert_eq!(first.stop(Signal::SIGTERM)?, Some(0));
        assert!(!has_xdp(lab, "lb", "eth0")?);
        assert!(has_xdp(lab, "lb", "eth3")?, "{}", second.process.stderr());
        assert!(pins()?.iter().any(|name| name.starts_with("link_")));
        Ok(())
    })
}

/// A start that waits for a next hop is killed: nothing of what ran before may have been touched.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_start_that_is_killed_while_it_resolves() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = Balancer::start(lab, &args())?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        let other = format!("eth0 --vip {VIP}:81 --backend 10.0.0.99:{HTTP} --assign-vip");
        let other: Vec<&str> = other.split_whitespace().collect();
        let mut second = lab.start("lb", XDP_LB, &other)?;
        eventually("the kernel asks for the next hop", || {
            lab.ip_show("lb", "neighbour show 10.0.0.99").ok().filter(|shown| !shown.is_empty())
        });
        // It waits for a second.
        sleep(Duration::from_millis(300));
        second.signal(Signal::SIGKILL)?;
        second.wait()?;
        assert!(!second.stdout().contains("attached"), "{}", second.stdout());
        assert_eq!(held.ask()?, server);
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        Ok(())
    })
}
