//! Much data through the load balancer, with the offloads of veth on and off: how fast, and whether it arrives whole.

mod common;

use anyhow::{Context as _, Result};
use common::balancer::Balancer;
use common::clients::iperf3;
use common::files::transfer;
use common::netns::{Lab, in_lab};
use common::networks::{VIP, VIP_ONE_ARM, one_arm, two_arms};
use common::servers::{HTTP, nginx_everywhere};

const IPERF: u16 = 5201;
/// A path that works does thousands; one that loses or retransmits every segment does single digits.
const MODEST_MBIT: f64 = 100.0;
const FILE_MIB: u64 = 64;
const ROUND_ROBIN: &str =
    "--scheduler rr --backend 10.0.0.10:8080 --backend 10.0.0.11:8080 --backend 10.0.0.12:8080";

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_iperf3_two_arms() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        throughput(lab, VIP)
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_iperf3_one_arm() -> Result<()> {
    in_lab(|lab| {
        one_arm(lab)?;
        throughput(lab, VIP_ONE_ARM)
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_files_two_arms() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        files(lab, VIP, FILE_MIB)
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_files_one_arm() -> Result<()> {
    in_lab(|lab| {
        one_arm(lab)?;
        files(lab, VIP_ONE_ARM, FILE_MIB)
    })
}

/// Segments then arrive small, and with whole checksums that are updated rather than made.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_files_without_tx_offload() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        for namespace in ["client", "web1", "web2", "web3"] {
            lab.run(namespace, "ethtool", &["-K", "eth0", "tx", "off"])?;
            let now = lab.run(namespace, "ethtool", &["-k", "eth0"])?;
            assert!(now.contains("tx-checksumming: off"), "{now}");
        }
        files(lab, VIP, FILE_MIB / 2)
    })
}

/// With one backend, for iperf3 needs its two connections on the same one.
fn throughput(lab: &Lab, vip: &str) -> Result<()> {
    let _server = lab.start("web2", "iperf3", &["-s", "-p", &IPERF.to_string()])?;
    lab.wait_for_port("web2", "tcp", IPERF)?;
    let args = format!("eth0 --vip {vip}:{IPERF} --backend 10.0.0.11:{IPERF} --assign-vip");
    let lb = Balancer::start(lab, &args)?;
    for direction in ["", "-R"] {
        let report = iperf3(lab, vip, &format!("-p {IPERF} -t 2 {direction}"))?;
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().context("no rate")? / 1e6;
        println!("{vip} {direction}: {rate:.0} Mbit/s");
        assert!(rate > MODEST_MBIT, "{rate} Mbit/s {direction}");
    }
    lb.figures()?.assert_all_direct();
    Ok(())
}

/// One to each server, both ways.
fn files(lab: &Lab, vip: &str, mib: u64) -> Result<()> {
    let _servers = nginx_everywhere(lab)?;
    let lb = Balancer::start(lab, &format!("eth0 --vip {vip}:80 {ROUND_ROBIN} --assign-vip"))?;
    assert_eq!(HTTP, 8080, "as in ROUND_ROBIN");
    transfer(lab, vip, mib)?;
    let figures = lb.figures()?;
    assert!(figures.connections("tcp").values().all(|count| *count == 2), "{figures:?}");
    figures.assert_all_direct();
    Ok(())
}
