//! Sticky services, as clients see them.

mod common;

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::balancer::{Balancer, PIN_DIR};
use common::clients::requests_with;
use common::netns::{Lab, in_lab};
use common::networks::{VIP, two_arms};
use common::servers::{HTTP, WHICH, dnsmasq_everywhere, nginx_everywhere};
use xdp_lb::dataplane::Tables;
use xdp_lb::dataplane::types::{lb_backend, lb_backend_state};

/// Three seconds, rounded up to the table's clock, and a bit.
const AFTER: Duration = Duration::from_millis(4300);

/// The second client, behind the first as behind a router.
const OTHER: &str = "192.168.50.1";

fn start<'a>(lab: &'a Lab, options: &str) -> Result<Balancer<'a>> {
    lab.ip("lb", "route add 192.168.50.0/24 via 192.168.1.2")?;
    lab.ip("client", &format!("address add {OTHER}/32 dev lo"))?;
    let backends = ["10.0.0.10", "10.0.0.11", "10.0.0.12"].map(|address| format!("--backend {address}"));
    let port = if options.contains("/udp") { 53 } else { HTTP };
    let backends = backends.map(|backend| format!("{backend}:{port}")).join(" ");
    Balancer::start(lab, &format!("eth0 {options} --scheduler rr {backends} --assign-vip"))
}

/// The servers that a client's new connections come to.
fn servers(lab: &Lab, client: &str, count: u32) -> Result<BTreeSet<String>> {
    let url = format!("http://{VIP}/?[1-{count}]");
    let answers = requests_with(lab, &["--interface", client, "-H", "Connection: close", &url])?;
    assert_eq!(answers.len(), count as usize);
    assert!(answers.iter().all(|answer| answer.new_connection && answer.seen.0 == client));
    Ok(answers.into_iter().map(|answer| answer.server).collect())
}

/// The only server of a client's 20 connections.
fn server(lab: &Lab, client: &str) -> Result<String> {
    let servers = servers(lab, client, 20)?;
    assert_eq!(servers.len(), 1, "{client} is on {servers:?}");
    servers.into_iter().next().context("no server")
}

const FIRST: &str = common::networks::CLIENT;

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_client_stays_and_moves_on_after_the_time() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = start(lab, &format!("--vip {VIP}:80 --sticky 3s"))?;
        let banner = lb.process.stdout();
        assert!(banner.contains("round-robin, clients stay for 3s"), "{banner}");
        assert_eq!([server(lab, FIRST)?, server(lab, OTHER)?], ["web1", "web2"], "each client has its own");
        assert_eq!([server(lab, FIRST)?, server(lab, OTHER)?], ["web1", "web2"], "and keeps it");
        sleep(AFTER);
        assert_eq!([server(lab, FIRST)?, server(lab, OTHER)?], ["web3", "web1"]);

        // As long as a connection lives the time does not begin.
        let vip: SocketAddr = format!("{VIP}:80").parse()?;
        let held = lab.within("client", || TcpStream::connect_timeout(&vip, Duration::from_secs(10)))??;
        sleep(2 * AFTER);
        assert_eq!(server(lab, FIRST)?, "web3");
        drop(held);
        assert_eq!(server(lab, FIRST)?, "web3", "it begins at its end");
        sleep(AFTER);
        assert_ne!(server(lab, FIRST)?, "web3");
        lb.figures()?.assert_all_direct();
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_without_the_option_a_client_is_spread() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let _lb = start(lab, &format!("--vip {VIP}:80 --sticky 0"))?;
        assert_eq!(servers(lab, FIRST, 3)?.len(), 3);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_backend_that_goes_down_loses_its_clients() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let _lb = start(lab, &format!("--vip {VIP}:80 --sticky 1h"))?;
        assert_eq!([server(lab, FIRST)?, server(lab, OTHER)?], ["web1", "web2"]);
        let tables = Tables::open(Path::new(PIN_DIR))?;
        let state = tables.backends.byte(1, offset_of!(lb_backend, state)).context("no first backend")?;
        state.store(lb_backend_state::LB_BACKEND_DOWN.0 as u8, Ordering::Relaxed);
        let moved = server(lab, FIRST)?;
        assert_ne!(moved, "web1");
        state.store(lb_backend_state::LB_BACKEND_UP.0 as u8, Ordering::Relaxed);
        assert_eq!([server(lab, FIRST)?, server(lab, OTHER)?], [moved.as_str(), "web2"]);
        Ok(())
    })
}

/// A flow is remembered once it is confirmed, by a second datagram after an answer.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_udp_clients_stay_too() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = dnsmasq_everywhere(lab)?;
        let _lb = start(lab, &format!("--vip {VIP}:53/udp --sticky 10s"))?;
        let ask = |port: u16| {
            let from = format!("{FIRST}#{port}");
            let lines = lab.run(
                "client",
                "dig",
                &[&format!("@{VIP}"), "-b", &from, "+tries=1", "+time=10", "+short", WHICH],
            )?;
            Ok::<_, anyhow::Error>(lines.trim().to_owned())
        };
        let first = ask(40000)?;
        assert_eq!(ask(40000)?, first, "the same flow");
        for port in 40001..40012 {
            assert_eq!(ask(port)?, first, "another flow of the client, from port {port}");
        }
        Ok(())
    })
}
