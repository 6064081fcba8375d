//! The schedulers, as clients see them.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use common::balancer::{Balancer, weighted};
use common::clients::{requests, requests_with, spread};
use common::netns::in_lab;
use common::networks::{VIP, two_arms};
use common::servers::{HTTP, nginx_everywhere};

const CLIENTS: u32 = 40;

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_round_robin_is_exact_and_ignores_weights() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let args = format!("eth0 --vip {VIP}:80 --scheduler round-robin {} --assign-vip", weighted(HTTP));
        let _lb = Balancer::start(lab, &args)?;
        let answers = requests(lab, &format!("http://{VIP}/?[1-60]"))?;
        assert_eq!(spread(&answers), BTreeMap::from([("web1", 20), ("web2", 20), ("web3", 20)]));
        assert!(answers.windows(3).all(|window| spread(window).len() == 3), "not one after the other");
        Ok(())
    })
}

/// Client addresses behind a router, so that all have a next hop that is known.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_ip_hash_keeps_a_client_on_its_backend() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.ip("lb", "route add 192.168.50.0/24 via 192.168.1.2")?;
        let address = |n| format!("192.168.50.{n}");
        let add: Vec<String> =
            (1..=CLIENTS).map(|n| format!("address add {}/32 dev lo", address(n))).collect();
        lab.ip("client", &add.join("\n"))?;
        let args = format!("eth0 --vip {VIP}:80 --scheduler ip-hash {} --assign-vip", weighted(HTTP));
        let lb = Balancer::start(lab, &args)?;

        let url = format!("http://{VIP}/?[1-3]");
        let mut servers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        // Twice, with all the other clients in between.
        for n in (1..=CLIENTS).chain(1..=CLIENTS) {
            let answers = requests_with(lab, &["--interface", &address(n), "-H", "Connection: close", &url])?;
            assert_eq!(answers.len(), 3);
            for answer in answers {
                assert_eq!((&answer.seen.0, answer.new_connection), (&address(n), true));
                servers.entry(address(n)).or_default().insert(answer.server);
            }
        }
        assert!(servers.values().all(|servers| servers.len() == 1), "{servers:?}");
        // Not that all three are: by chance alone the one of weight 20 has none of 40 clients once in 7,500 runs.
        let used: BTreeSet<_> = servers.values().flatten().collect();
        assert!(used.len() > 1, "all 40 clients are on {used:?}");
        assert_eq!(lb.figures()?.connections("tcp").values().sum::<u64>(), u64::from(6 * CLIENTS));
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_maglev_spreads_connections() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let backends = "--backend 10.0.0.10:8080 --backend 10.0.0.11:8080 --backend 10.0.0.12:8080";
        let args = format!("eth0 --vip {VIP}:80 --scheduler maglev {backends} --assign-vip");
        let lb = Balancer::start(lab, &args)?;
        let answers = requests(lab, &format!("http://{VIP}/?[1-300]"))?;
        // 100 each, give or take six standard deviations of the binomial distribution.
        let spread = spread(&answers);
        let fair = |count: &usize| (51..=149).contains(count);
        assert!(spread.len() == 3 && spread.values().all(fair), "{spread:?}");
        // A connection of several packets stays where it was: its entry or its hash says so.
        let kept = requests_with(lab, &[&format!("http://{VIP}/?[1-20]")])?;
        assert!(kept.iter().all(|answer| answer.server == kept[0].server), "{kept:?}");
        lb.figures()?.assert_all_direct();
        Ok(())
    })
}
