//! HTTP through the load balancer: real nginx and curl, with one arm and with two.

mod common;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::thread;

use anyhow::Result;
use common::PATIENCE;
use common::balancer::{Balancer, weighted};
use common::clients::{assert_weighted, requests, requests_with, spread};
use common::netns::in_lab;
use common::networks::{CLIENT, VIP, VIP_ONE_ARM, one_arm, two_arms};
use common::servers::{HTTP, nginx_everywhere};
use serde_json::json;

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_two_arms_spread_by_weight() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP)))?;
        let answers = requests(lab, &format!("http://{VIP}/?[1-250]"))?;
        assert_eq!(answers.len(), 250);
        assert_weighted(&answers, VIP);
        assert!(answers.iter().all(|answer| answer.own.0 == CLIENT));
        lb.figures()?.assert_all_direct();
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_one_arm_spread_by_weight() -> Result<()> {
    in_lab(|lab| {
        one_arm(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let args = format!("eth0 --vip {VIP_ONE_ARM}:80 {} --assign-vip", weighted(HTTP));
        let lb = Balancer::start(lab, &args)?;
        let answers = requests(lab, &format!("http://{VIP_ONE_ARM}/?[1-250]"))?;
        assert_eq!(answers.len(), 250);
        assert_weighted(&answers, VIP_ONE_ARM);
        assert!(answers.iter().all(|answer| answer.own.0 == CLIENT));
        lb.figures()?.assert_all_direct();
        let banner = lb.process.stdout();
        assert_eq!(banner.matches("attached to ").count(), 1, "{banner}");
        Ok(())
    })
}

/// Connections that arrive on several CPUs at once take turns all the same.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_parallel_clients_spread_by_weight() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP)))?;
        let answers = thread::scope(|scope| {
            let client = || requests(lab, &format!("http://{VIP}/?[1-100]"));
            let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
            let answers = clients.into_iter().map(|client| client.join().expect("no panic"));
            answers.collect::<Result<Vec<_>>>()
        })?;
        let expected = BTreeMap::from([("web1", 200), ("web2", 120), ("web3", 80)]);
        assert_eq!(spread(&answers.concat()), expected);
        lb.figures()?.assert_all_direct();
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_figures_match_the_requests() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP)))?;
        let before = lb.figures()?;
        assert!(before.connections("tcp").values().all(|count| *count == 0), "{before:?}");
        assert_eq!(before.backends("tcp")[0]["to_backend"], json!({"packets": 0, "bytes": 0}));

        let answers = requests(lab, &format!("http://{VIP}/?[1-37]"))?;
        let figures = lb.figures()?;
        let expected = spread(&answers);
        let mut packets = 0;
        for (backend, (web, address)) in figures.backends("tcp").iter().zip(common::networks::WEBS) {
            assert_eq!(backend["address"], format!("{address}:{HTTP}"));
            assert_eq!(backend["connections"], expected[web], "{web} of {expected:?}");
            assert_eq!(backend["state"], "up");
            for way in ["to_backend", "to_client"] {
                // A connection with a request has at least SYN, ACK, request and FIN one way, as many the other way.
                let counted = backend[way]["packets"].as_u64().unwrap_or(0);
                assert!(counted >= 4 * expected[web] as u64, "{way} of {web}: {counted} packets");
                assert!(backend[way]["bytes"].as_u64().unwrap_or(0) >= 54 * counted);
                packets += counted;
            }
        }
        let sent: u64 = figures.reasons("sent").values().sum();
        assert_eq!(packets, sent, "packets of all backends, and packets sent");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_kept_connection_stays_on_its_backend() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP)))?;
        for _ in 0..5 {
            let answers = requests_with(lab, &[&format!("http://{VIP}/?[1-20]")])?;
            let opened = answers.iter().filter(|answer| answer.new_connection).count();
            assert_eq!((answers.len(), opened), (20, 1));
            assert!(answers.iter().all(|answer| answer.server == answers[0].server), "{answers:?}");
        }
        assert_eq!(lb.figures()?.connections("tcp").values().sum::<u64>(), 5);
        Ok(())
    })
}

/// Nothing listens at the backend: its RST comes back as the VIP's.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_backend_that_refuses() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let lb = Balancer::start(lab, &format!("eth0 --vip {VIP}:80 --backend 10.0.0.10:81 --assign-vip"))?;
        let vip = SocketAddr::new(VIP.parse()?, 80);
        let refused = lab.within("client", || TcpStream::connect_timeout(&vip, PATIENCE))?;
        assert_eq!(refused.map(drop).map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused));
        lb.figures()?.assert_all_direct();
        Ok(())
    })
}
