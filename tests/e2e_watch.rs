//! What goes wrong while it runs is named on stderr, with its fix.

mod common;

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Result;
use common::balancer::Balancer;
use common::clients::KeepAlive;
use common::eventually;
use common::netns::{Lab, in_lab};
use common::networks::{CLIENT, VIP, VIP_ONE_ARM, one_arm, two_arms};
use common::servers::{HTTP, nginx_everywhere};

fn args(rest: &str) -> String {
    format!("eth0 --vip {VIP}:7/udp --assign-vip --stats-interval 300ms {rest}")
}

/// A line on stderr with all of these.
fn says(lb: &Balancer, words: &[&str]) {
    eventually(&format!("a warning with {words:?}"), || {
        let said = lb.process.stderr();
        said.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
    });
}

/// Sends datagrams to the VIP from so many ports.
fn datagrams(lab: &Lab, ports: std::ops::Range<u16>) -> Result<()> {
    for port in ports {
        let socket = lab.within("client", || UdpSocket::bind((CLIENT, port)))??;
        socket.send_to(b"?", (VIP, 7))?;
    }
    Ok(())
}

/// The most common mistake of all.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_backend_whose_replies_go_elsewhere() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.ip("web1", "route del default")?;
        let backends = format!("--backend 10.0.0.10:{HTTP} --backend 10.0.0.11:{HTTP}");
        let lb =
            Balancer::start(lab, &format!("eth0 --vip {VIP}:80 --scheduler rr {backends} --assign-vip"))?;
        for _ in 0..12 {
            let url = format!("http://{VIP}/");
            // Every second one comes to nothing.
            let _ = lab.command("client", "curl")?.args(["-sS", "--max-time", "0.5", &url]).output()?;
        }
        says(
            &lb,
            &["backend 10.0.0.10:8080", "replies never come back", "ip route replace default via 10.0.0.1"],
        );
        assert!(!lb.process.stderr().contains("backend 10.0.0.11:8080"), "{}", lb.process.stderr());
        // And the operator does so.
        lab.ip("web1", "route add default via 10.0.0.1")?;
        for _ in 0..4 {
            KeepAlive::open(lab, VIP, 80)?.ask()?;
        }
        Ok(())
    })
}

/// A client in the backends' own subnet gets its replies past the load balancer, and resets them.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_client_in_the_backends_subnet() -> Result<()> {
    in_lab(|lab| {
        one_arm(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(
            lab,
            &format!("eth0 --vip {VIP_ONE_ARM}:80 --backend 10.0.0.10:{HTTP} --assign-vip"),
        )?;
        for _ in 0..12 {
            let url = format!("http://{VIP_ONE_ARM}/");
            let _ = lab.command("web2", "curl")?.args(["-sS", "--max-time", "0.5", &url]).output()?;
        }
        says(&lb, &["backend 10.0.0.10:8080", "clients are in its own subnet"]);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_neighbours_that_do_not_resolve() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let lb = Balancer::start(lab, &args("--backend 10.0.0.10:7 --backend 10.0.0.99:7"))?;
        says(&lb, &["next hop 10.0.0.99 on eth1 does not answer ARP", "check that it is up"]);
        let said = lb.process.stderr();
        assert_eq!(said.matches("10.0.0.99 on eth1 does not answer").count(), 1, "said once: {said}");
        assert!(!said.contains("10.0.0.10 on eth1"), "{said}");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_neighbour_that_falls_silent() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let lb = Balancer::start(lab, &args("--backend 10.0.0.10:7 --backend 10.0.0.11:7"))?;
        lab.ip("web1", "link set eth0 down")?;
        lab.ip("lb", "neighbour del 10.0.0.10 dev eth1")?;
        says(&lb, &["next hop 10.0.0.10 on eth1 does not answer ARP"]);
        assert!(!lb.process.stderr().contains("10.0.0.11 on eth1"), "{}", lb.process.stderr());
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_table_that_is_nearly_full() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let lb = Balancer::start(lab, &args("--backend 10.0.0.10:7 --max-connections 100"))?;
        datagrams(lab, 20000..20080)?;
        std::thread::sleep(Duration::from_secs(1));
        assert!(!lb.process.stderr().contains("full"), "{}", lb.process.stderr());
        datagrams(lab, 20080..20099)?;
        says(&lb, &["more than 90 % full", "--max-connections"]);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_packets_that_fall_to_the_slow_path() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let lb = Balancer::start(lab, &args("--backend 10.0.0.10:7000"))?;
        let client = lab.within("client", || UdpSocket::bind((CLIENT, 41000)))??;
        let backend = lab.within("web1", || UdpSocket::bind(("10.0.0.10", 7000)))??;
        client.send_to(b"?", (VIP, 7))?;
        backend.set_read_timeout(Some(common::PATIENCE))?;
        let (_, from) = backend.recv_from(&mut [0; 100])?;
        lab.ip("lb", "route del 192.168.1.0/24\nroute add unreachable 192.168.1.0/24")?;
        std::thread::sleep(Duration::from_secs(1));
        for _ in 0..50 {
            backend.send_to(b"!", from)?;
        }
        says(&lb, &["slow way by the kernel", "route_by_kernel", "ip route get"]);
        Ok(())
    })
}
