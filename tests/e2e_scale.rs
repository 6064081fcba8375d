//! Many services and backends: how long a start and a change take, and how much memory.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::balancer::Balancer;
use common::clients::requests;
use common::live::{ask, say, start, write};
use common::netns::{Lab, in_lab};
use common::networks::{VIP, two_arms};
use common::servers::nginx_everywhere;

/// What is promised is promised of a release build; one for tests, on a machine with other things to do, shows only what
/// grows faster than the number of services.
const SLOWER: u32 = if cfg!(debug_assertions) { 40 } else { 1 };

/// Services with ten backends each, all addresses different; the first service has real ones.
fn many(services: usize, scheduler: &str, changed: bool) -> String {
    let mut text = "interface = \"eth0\"\nassign-vip = true\nstats-interval = 0\n".to_owned();
    text += &format!(
        "[[service]]\nname = \"real\"\nvip = \"{VIP}:80\"\nhealth = \"none\"\nbackend = [ \"10.0.0.10:8080\" ]\n"
    );
    for n in 1..services {
        let backends: Vec<String> = (0..10)
            .map(|b| n * 10 + b)
            .map(|at| format!("\"10.{}.{}.{}:8080\"", 1 + at / 40000, at / 200 % 200, 1 + at % 200))
            .collect();
        text += &format!(
            "[[service]]\nname = \"s{n}\"\nvip = \"{VIP}:{}\"\nscheduler = \"{scheduler}\"\nhealth = \"none\"\nbackend = [ {} ]\n",
            1000 + n,
            backends.join(", ")
        );
    }
    if changed { text.replace("\"10.1.10.1:8080\"", "\"10.1.10.1:8081\"") } else { text }
}

fn network(lab: &Lab) -> Result<()> {
    two_arms(lab)?;
    lab.ip("lb", "route add 10.1.0.0/16 via 10.0.0.10\nroute add 10.2.0.0/16 via 10.0.0.11")
}

/// Memory of a process that is its own, in MB, as the kernel counts it.
fn memory(lb: &Balancer<'_>) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{}/status", lb.process.id()))?;
    let line = text.lines().find(|line| line.starts_with("RssAnon:")).context("no RssAnon")?;
    let kb: f64 = line.split_whitespace().nth(1).unwrap_or_default().parse()?;
    Ok(kb / 1000.0)
}

/// Seconds of CPU time that a process has used.
fn cpu(lb: &Balancer<'_>) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{}/stat", lb.process.id()))?;
    let after = text.rsplit_once(')').context("no stat")?.1;
    let words: Vec<&str> = after.split_whitespace().collect();
    Ok((words[11].parse::<f64>()? + words[12].parse::<f64>()?) / 100.0)
}

/// What a change leaves to do for the moment after it.
fn settle() {
    std::thread::sleep(Duration::from_millis(700));
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_thousand_services() -> Result<()> {
    in_lab(|lab| {
        network(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &many(1000, "weighted-round-robin", false))?;
        let begun = Instant::now();
        let lb = start(lab)?;
        let started = begun.elapsed();
        assert_eq!(requests(lab, &format!("http://{VIP}/?[1-10]"))?.len(), 10);

        write(lab, &many(1000, "weighted-round-robin", true))?;
        let said = say(lab, "reload")?;
        assert!(said.contains("add backend 10.1.10.1:8081"), "{said}");
        let begun = Instant::now();
        write(lab, &many(1000, "weighted-round-robin", false))?;
        let written = begun.elapsed();
        settle();
        let begun = Instant::now();
        say(lab, "reload")?;
        let reloaded = begun.elapsed();
        settle();
        let begun = Instant::now();
        say(lab, "backend weight s7 10.1.0.71:8080 9")?;
        let changed = begun.elapsed();
        let before = cpu(&lb)?;
        std::thread::sleep(Duration::from_secs(5));
        let idle = (cpu(&lb)? - before) / 5.0;
        println!(
            "1,000 services of 10 backends: start {started:?}, reload of one backend {reloaded:?} (writing {written:?}), one \
             weight {changed:?}, {:.0} MB, idle {:.1} % of a CPU",
            memory(&lb)?,
            idle * 100.0
        );
        assert!(started <= Duration::from_secs(2) * SLOWER, "started after {started:?}");
        assert!(reloaded <= Duration::from_millis(100) * SLOWER, "reloaded after {reloaded:?}");
        assert_eq!(ask(lab, "status")?["services"].as_array().map(Vec::len), Some(1000));
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_as_many_services_as_there_can_be() -> Result<()> {
    in_lab(|lab| {
        network(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &many(4096, "round-robin", false))?;
        let begun = Instant::now();
        let lb = start(lab)?;
        println!("4,096 services of 10 backends: start {:?}, {:.0} MB", begun.elapsed(), memory(&lb)?);
        assert_eq!(requests(lab, &format!("http://{VIP}/?[1-10]"))?.len(), 10);
        // Rings of 65,537 slots each would need more than is allowed.
        write(lab, &many(4096, "maglev", false))?;
        let said = common::live::complaint(lab, "reload")?;
        assert!(said.contains("ring-memory"), "{said}");
        Ok(())
    })
}
