//! The network changes while connections live: next hops follow within a second, and no connection is lost.

mod common;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::balancer::{Balancer, has_address, has_xdp, weighted};
use common::clients::{KeepAlive, assert_weighted, requests};
use common::netns::{Lab, in_lab};
use common::networks::{
    CLIENT, VIP, client_at_lb, reachable, servers_behind, two_arms, two_arms_bare, veth_peer,
};
use common::servers::{HTTP, nginx_everywhere};
use common::{eventually, within};
use nix::sys::signal::Signal;

/// A change takes effect within a second; a segment that was lost meanwhile is sent again after a while that doubles.
const SOON: Duration = Duration::from_secs(4);

fn args() -> String {
    format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP))
}

/// The far client's network: 203.0.113.2 in `client` behind the routers `r1` (192.168.1.2) and `r2` (192.168.1.3), which are on
/// a bridge in `front` with `lb`.
fn two_routers(lab: &Lab) -> Result<()> {
    lab.add(&["client", "r1", "r2", "front", "lb", "switch", "web1", "web2", "web3"])?;
    lab.ip("front", "link add bridge type bridge forward_delay 0\nlink set bridge up")?;
    for (namespace, address) in [("lb", "192.168.1.1"), ("r1", "192.168.1.2"), ("r2", "192.168.1.3")] {
        lab.ip("", &format!("link add eth0 netns {namespace} type veth peer name {namespace} netns front"))?;
        lab.ip(namespace, &format!("address add {address}/24 dev eth0\nlink set eth0 up"))?;
        lab.ip("front", &format!("link set {namespace} master bridge up"))?;
    }
    for (n, router) in [(1, "r1"), (2, "r2")] {
        lab.ip("", &format!("link add eth{n} netns client type veth peer name eth1 netns {router}"))?;
        lab.ip(router, &format!("address add 10.{n}.0.1/24 dev eth1\nlink set eth1 up"))?;
        lab.ip(router, &format!("route add 203.0.113.2/32 via 10.{n}.0.2"))?;
        lab.set_sysctl(router, "net/ipv4/ip_forward", "1")?;
        lab.ip("client", &format!("address add 10.{n}.0.2/24 dev eth{n}\nlink set eth{n} up"))?;
        for interface in ["all", &format!("eth{n}")] {
            lab.set_sysctl("client", &format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
        }
        for interface in ["all", "eth0", "eth1"] {
            lab.set_sysctl(router, &format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
        }
    }
    lab.ip(
        "client",
        "address add 203.0.113.2/32 dev lo
        route add default via 10.1.0.1 src 203.0.113.2",
    )?;
    lab.ip("lb", "route add default via 192.168.1.2")?;
    servers_behind(lab, "eth1")?;
    reachable(lab, "client", "192.168.1.1")?;
    veth_peer(lab, "front", "lb")
}

/// Bytes that an interface has received.
fn received(lab: &Lab, namespace: &str, interface: &str) -> Result<u64> {
    let shown = lab.ip_show(namespace, &format!("-s -j link show dev {interface}"))?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    shown[0]["stats64"]["rx"]["packets"].as_u64().context("no count of packets")
}

/// The router is replaced by another machine with its address, as in a fail-over.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_gateway_with_a_new_mac() -> Result<()> {
    in_lab(|lab| {
        two_routers(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args())?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        lab.set_sysctl("r1", "net/ipv4/conf/eth0/arp_notify", "1")?;
        lab.ip("r1", "link set eth0 address 02:00:00:00:77:01")?;
        let start = Instant::now();
        assert_eq!(held.ask_within(SOON)?, server);
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert_eq!(lb.figures()?.reasons("drop"), [].into());
        Ok(())
    })
}

/// The gateway's address moves to another machine, while the first one keeps an address of its own, as with VRRP.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_gateway_whose_address_moves_to_another() -> Result<()> {
    in_lab(|lab| {
        two_routers(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.ip("r1", "address add 192.168.1.22/24 dev eth0")?;
        reachable(lab, "lb", "192.168.1.22")?;
        let _lb = Balancer::start(lab, &args())?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        let shown: serde_json::Value = serde_json::from_str(&lab.ip_show("r2", "-j link show dev eth0")?)?;
        let mac = shown[0]["address"].as_str().context("no MAC")?;
        lab.set_sysctl("r1", "net/ipv4/conf/eth0/promote_secondaries", "1")?;
        lab.ip("r1", "address del 192.168.1.2/24 dev eth0")?;
        lab.ip("r2", "address add 192.168.1.2/24 dev eth0")?;
        lab.ip("lb", &format!("neighbour replace 192.168.1.2 lladdr {mac} dev eth0 nud reachable"))?;
        within(SOON, "replies by the second router", || {
            let before = received(lab, "client", "eth2").ok()?;
            assert_eq!(held.ask().ok()?, server);
            (received(lab, "client", "eth2").ok()? > before).then_some(())
        });
        Ok(())
    })
}

/// The same while nobody looks: the next start finds out.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_gateway_that_changed_while_it_was_dead() -> Result<()> {
    in_lab(|lab| {
        two_routers(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = Balancer::start(lab, &args())?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        lab.ip("r1", "link set eth0 address 02:00:00:00:77:02")?;
        lab.ip("lb", "neighbour flush dev eth0")?;
        let _lb = Balancer::start(lab, &args())?;
        assert_eq!(held.ask_within(SOON)?, server);
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        Ok(())
    })
}

/// The way to the client leads by another router now, although the first one is still there.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_route_to_a_client_by_another_gateway() -> Result<()> {
    in_lab(|lab| {
        two_routers(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let _lb = Balancer::start(lab, &args())?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        for _ in 0..3 {
            for (router, interface) in [("192.168.1.3", "eth2"), ("192.168.1.2", "eth1")] {
                lab.ip("lb", &format!("route replace default via {router}"))?;
                within(SOON, &format!("replies by {router}"), || {
                    let before = received(lab, "client", interface).ok()?;
                    assert_eq!(held.ask().ok()?, server);
                    (received(lab, "client", interface).ok()? > before).then_some(())
                });
            }
        }
        Ok(())
    })
}

/// web1 is reached by another interface, which has no program when the route moves there.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_route_to_a_backend_by_another_interface() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.ip("", "link add eth2 netns lb type veth peer name eth1 netns web1")?;
        lab.ip("lb", "address add 10.2.0.1/24 dev eth2\nlink set eth2 up")?;
        lab.ip("web1", "address add 10.2.0.10/24 dev eth1\nlink set eth1 up")?;
        for interface in ["all", "eth0", "eth1"] {
            lab.set_sysctl("web1", &format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
        }
        let lb =
            Balancer::start(lab, &format!("eth0 --vip {VIP}:80 --backend 10.0.0.10:{HTTP} --assign-vip"))?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        assert_eq!(held.ask()?, "web1");
        assert!(!has_xdp(lab, "lb", "eth2")?);
        let before = received(lab, "lb", "eth2")?;
        lab.ip("lb", "route add 10.0.0.10/32 via 10.2.0.10 dev eth2")?;
        lab.ip("web1", "route replace default via 10.2.0.1 dev eth1")?;
        let start = Instant::now();
        assert_eq!(held.ask_within(SOON)?, "web1");
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        assert!(has_xdp(lab, "lb", "eth2")?);
        assert!(received(lab, "lb", "eth2")? > before);
        assert_eq!(requests(lab, &format!("http://{VIP}/?[1-20]"))?.len(), 20);
        assert!(lb.process.stderr().contains("attached to eth2 too"), "{}", lb.process.stderr());

        // And back, where the program still is.
        lab.ip("lb", "route del 10.0.0.10/32")?;
        lab.ip("web1", "route replace default via 10.0.0.1 dev eth0")?;
        assert_eq!(held.ask_within(SOON)?, "web1");
        assert_eq!(requests(lab, &format!("http://{VIP}/?[1-20]"))?.len(), 20);
        Ok(())
    })
}

/// Down and up again: everything is where it was.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_interfaces_that_go_down_and_up() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args())?;
        let told = |what: &str| eventually(what, || lb.process.stderr().contains(what).then_some(()));
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        for (interface, says) in [
            ("eth1", "eth1, which backend 10.0.0.10:8080 is behind, is down, and the route with it"),
            ("eth0", ""),
        ] {
            lab.ip("lb", &format!("link set {interface} down"))?;
            told(says);
            lab.ip("lb", &format!("link set {interface} up"))?;
            assert_eq!(held.ask_within(SOON)?, server, "{interface}");
        }
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        Ok(())
    })
}

/// The interface itself is made anew, with another index and MAC, as when a driver is loaded again.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_interfaces_that_are_made_anew() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args())?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;

        lab.ip("lb", "link delete eth1")?;
        eventually("its end is noticed", || lb.process.stderr().contains("eth1 is gone").then_some(()));
        lab.ip("", "link add eth1 netns lb type veth peer name lb netns switch")?;
        lab.ip("lb", "address add 10.0.0.1/24 dev eth1\nlink set eth1 up")?;
        lab.ip("switch", "link set lb master bridge up")?;
        eventually("the program is back", || has_xdp(lab, "lb", "eth1").ok().filter(|is| *is));
        assert_eq!(held.ask()?, server);

        lab.ip("lb", "link delete eth0")?;
        let says = "eth0 is not there: clients reach nothing by it until it is back";
        eventually(says, || lb.process.stderr().contains(says).then_some(()));
        client_at_lb(lab)?;
        eventually("the program is back", || has_xdp(lab, "lb", "eth0").ok().filter(|is| *is));
        eventually("the VIP too", || has_address(lab, "lb", "eth0", VIP).ok().filter(|is| *is));
        assert_eq!(held.ask()?, server);
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        Ok(())
    })
}

/// A frame that would not fit any more is dropped under its name, and one that fits goes on.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_mtu_that_shrinks() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let lb =
            Balancer::start(lab, &format!("eth0 --vip {VIP}:7/udp --backend 10.0.0.10:7000 --assign-vip"))?;
        let client = lab.within("client", || UdpSocket::bind((CLIENT, 41000)))??;
        let backend = lab.within("web1", || UdpSocket::bind(("10.0.0.10", 7000)))??;
        backend.set_read_timeout(Some(SOON))?;
        let mut buffer = [0; 2000];
        client.send_to(&[7; 1400], (VIP, 7))?;
        assert_eq!(backend.recv(&mut buffer)?, 1400);
        lab.ip("lb", "link set eth1 mtu 1300")?;
        within(SOON, "too_big", || {
            client.send_to(&[7; 1400], (VIP, 7)).ok()?;
            lb.figures().ok()?.reasons("drop").get("too_big").copied()
        });
        client.send_to(&[7; 1200], (VIP, 7))?;
        loop {
            if backend.recv(&mut buffer)? == 1200 {
                break;
            }
        }
        lab.ip("lb", "link set eth1 mtu 1500")?;
        within(SOON, "the old size", || {
            client.send_to(&[7; 1401], (VIP, 7)).ok()?;
            (backend.recv(&mut buffer).ok()? == 1401).then_some(())
        });
        Ok(())
    })
}
