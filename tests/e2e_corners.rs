//! Traffic that is not the load balancer's, traffic that pretends to be, and neighbours it has never heard of.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::PATIENCE;
use common::balancer::{Balancer, weighted};
use common::clients::requests;
use common::netns::{Lab, in_lab};
use common::networks::{CLIENT, VIP, WEBS, reachable, two_arms, two_arms_shared_front};
use common::servers::{HTTP, nginx_everywhere};

/// A SYN-ACK that was lost is repeated after a second, and again after two more.
const NEIGHBOUR_PATIENCE: Duration = Duration::from_secs(5);
const SERVICE: u16 = 7;
const BACKEND: u16 = 7000;

/// Past the VIP, through the same host: its kernel routes, and nobody translates.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_direct_connections_to_a_backend() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
        let lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP)))?;
        for (web, address) in WEBS {
            for answer in requests(lab, &format!("http://{address}:{HTTP}/?[1-10]"))? {
                assert_eq!((answer.server.as_str(), answer.remote.as_str()), (web, address));
                assert_eq!(answer.seen, answer.own);
            }
        }
        // The host's own connections, to the servers and from a client.
        for (_, address) in WEBS {
            lab.run(
                "lb",
                "curl",
                &["-sS", "--fail", "--max-time", "20", &format!("http://{address}:{HTTP}/")],
            )?;
        }
        reachable(lab, "client", "192.168.1.1")?;
        let figures = lb.figures()?;
        assert_eq!(figures.connections("tcp").values().sum::<u64>(), 0, "{figures:?}");
        assert!(figures.reasons("sent").is_empty() && figures.reasons("drop").is_empty(), "{figures:?}");
        assert!(figures.reasons("pass").contains_key("no_connection"), "{figures:?}");

        assert_eq!(requests(lab, &format!("http://{VIP}/?[1-10]"))?.len(), 10);
        Ok(())
    })
}

/// A neighbour of the client pretends to be the backend that the client talks to.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_forged_replies_are_not_translated() -> Result<()> {
    in_lab(|lab| {
        two_arms_shared_front(lab)?;
        let args = format!("eth0 --vip {VIP}:{SERVICE}/udp --backend 10.0.0.10:{BACKEND} --assign-vip");
        let lb = Balancer::start(lab, &args)?;
        let client = udp_socket(lab, "client", CLIENT, 41000)?;
        let backend = udp_socket(lab, "web1", "10.0.0.10", BACKEND)?;
        client.send_to(b"question", (VIP, SERVICE))?;
        assert_eq!(received(&backend)?, (b"question".to_vec(), client.local_addr()?));
        backend.send_to(b"answer", client.local_addr()?)?;
        assert_eq!(received(&client)?, (b"answer".to_vec(), address(VIP, SERVICE)?));

        // What the kernel then makes of it, with all its checks off: forwards it as it is.
        forge_by(lab)?;
        let forger = udp_socket(lab, "other", "10.0.0.10", BACKEND)?;
        forger.send_to(b"forged", client.local_addr()?)?;
        assert_eq!(received(&client)?, (b"forged".to_vec(), address("10.0.0.10", BACKEND)?));
        let passed = lb.figures()?.reasons("pass");
        assert_eq!(passed.get("wrong_interface"), Some(&1), "{passed:?}");

        // And from the right side, but of no connection.
        backend.send_to(b"unasked", (CLIENT, 41001))?;
        let stranger = udp_socket(lab, "client", CLIENT, 41002)?;
        backend.send_to(b"unasked", stranger.local_addr()?)?;
        assert_eq!(received(&stranger)?, (b"unasked".to_vec(), address("10.0.0.10", BACKEND)?));
        // The connection that was meant goes on.
        client.send_to(b"more", (VIP, SERVICE))?;
        assert_eq!(received(&backend)?, (b"more".to_vec(), client.local_addr()?));
        Ok(())
    })
}

/// `other` gets the backend's address, and sends what is for the client by the load balancer.
fn forge_by(lab: &Lab) -> Result<()> {
    lab.ip(
        "other",
        "address add 10.0.0.10/32 dev lo
        route add 192.168.1.2/32 via 192.168.1.1",
    )?;
    lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
    for interface in ["all", "eth0", "eth1"] {
        lab.set_sysctl("lb", &format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
    }
    for interface in ["all", "eth0"] {
        lab.set_sysctl("client", &format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
    }
    Ok(())
}

fn udp_socket(lab: &Lab, namespace: &str, address: &str, port: u16) -> Result<UdpSocket> {
    let socket = lab.within(namespace, || UdpSocket::bind((address, port)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn address(address: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, port))
}

/// The next datagram, and whom it comes from.
fn received(socket: &UdpSocket) -> Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).context("nothing arrived")?;
    Ok((buffer[..length].to_vec(), from))
}

/// As after a fail-over: the client learned the VIP's MAC by an announcement, so that it never asks, and the load
/// balancer, which never heard its ARP, must find out where it is.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_client_that_never_asked() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let link = lab.ip_show("lb", "-br link show dev eth0")?;
        let mac = link.split_whitespace().nth(2).context("no MAC")?;
        // Nor does it ask again for the router's MAC meanwhile.
        for address in [VIP, "192.168.1.1"] {
            let entry = format!("{address} lladdr {mac} dev eth0 nud permanent");
            lab.ip("client", &format!("neighbour replace {entry}"))?;
        }
        lab.ip("lb", "neighbour flush dev eth0")?;
        let _lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP)))?;
        let known = lab.ip_show("lb", "neighbour show dev eth0")?;
        assert!(!known.contains("lladdr"), "{known}");

        let start = Instant::now();
        let answers = requests(lab, &format!("http://{VIP}/?[1-10]"))?;
        assert!(start.elapsed() < NEIGHBOUR_PATIENCE, "it took {:?}", start.elapsed());
        assert_eq!(answers.len(), 10);
        Ok(())
    })
}
