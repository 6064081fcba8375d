//! Many services and backends: how long a start and a change take, and how much memory.

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::balancer::Balancer;
use common::clients::requests;
use common::live::{Visits, ask, say, start, write};
use common::metrics::{METRICS, Scrape, promtool};
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

/// Seconds of CPU time of its thread that serves metrics and of those that read for it.
fn cpu_of_metrics(lb: &Balancer<'_>) -> Result<f64> {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{}/task", lb.process.id()))? {
        let task = task?.path();
        let name = fs::read_to_string(task.join("comm"))?;
        if ["metrics", "tokio-rt-worker", "metrics-reader"].contains(&name.trim()) {
            let times = fs::read_to_string(task.join("schedstat"))?;
            sum += times.split_whitespace().next().unwrap_or_default().parse::<f64>()? / 1e9;
        }
    }
    Ok(sum)
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

/// How long a scrape takes until all of it has come, and how many bytes that is. They are not kept, which would take longer.
fn scrape() -> Result<(Duration, usize)> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(METRICS)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")?;
    let (mut buffer, mut all) = (vec![0; 1 << 20], 0);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok((begun.elapsed(), all));
        }
        let begins = all > 0 || buffer.starts_with(b"HTTP/1.1 200");
        anyhow::ensure!(begins, "{}", String::from_utf8_lossy(&buffer[..length]));
        all += length;
    }
}

/// The one in the middle, and the longest.
fn middle_and_longest(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times.get(times.len() / 2).copied().unwrap_or_default(), times.last().copied().unwrap_or_default())
}

/// For three seconds: how long visits take, and answers to a short question at the socket.
fn delays(lab: &Lab) -> Result<[(Duration, Duration); 2]> {
    let visits = Visits::begin(lab, VIP, 80, Duration::from_secs(5))?;
    let (until, mut asked) = (Instant::now() + Duration::from_secs(3), Vec::new());
    while Instant::now() < until {
        let begun = Instant::now();
        say(lab, "config show")?;
        asked.push(begun.elapsed());
    }
    let visits = visits.end();
    assert!(visits.iter().all(|visit| visit.outcome.is_ok()), "{visits:?}");
    let took = visits.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    Ok([middle_and_longest(took), middle_and_longest(asked)])
}

/// Whoever reads the metrics all the time delays neither traffic nor the socket.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_scrape_of_a_thousand_services() -> Result<()> {
    in_lab(|lab| {
        network(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let file = many(1000, "round-robin", false);
        write(lab, &file.replacen("stats", &format!("metrics = \"{METRICS}\"\nstats"), 1))?;
        let lb = start(lab)?;
        let mut times = Vec::new();
        let before = cpu_of_metrics(&lb)?;
        for _ in 0..5 {
            let (took, length) = lab.within("lb", scrape)??;
            times.push((took, length));
            // Longer than the text counts as new.
            thread::sleep(took * 4);
        }
        let cost = Duration::from_secs_f64((cpu_of_metrics(&lb)? - before) / 5.0);
        let scraped = Scrape::take(lab)?;
        assert_eq!(promtool(lab, &scraped.text)?, "");
        let series = scraped.samples.len();
        let (middle, longest) = middle_and_longest(times.iter().map(|(took, _)| *took).collect());

        let alone = delays(lab)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let scraper = lab.within("lb", || {
            thread::spawn(move || {
                let mut scrapes = 0;
                while !stopped.load(Ordering::Relaxed) {
                    scrape().expect("a scrape");
                    scrapes += 1;
                }
                scrapes
            })
        })?;
        let before = cpu(&lb)?;
        let scraped = delays(lab)?;
        let used = (cpu(&lb)? - before) / 3.0;
        stop.store(true, Ordering::Relaxed);
        let scrapes = scraper.join().expect("the scraper");
        println!(
            "1,000 services of 10 backends: a scrape {middle:?} ({longest:?} at most), {cost:?} of a CPU, {series} series, {:.1} MB; visits {:?} \
             ({:?} at most), while somebody scrapes all the time ({scrapes} scrapes, {:.0} % of a CPU) {:?} ({:?}); questions \
             at the socket {:?} ({:?}), meanwhile {:?} ({:?})",
            times[0].1 as f64 / 1e6,
            alone[0].0,
            alone[0].1,
            used * 100.0,
            scraped[0].0,
            scraped[0].1,
            alone[1].0,
            alone[1].1,
            scraped[1].0,
            scraped[1].1
        );
        // The fastest: what others do on this machine only adds to it.
        let fastest = times.iter().map(|(took, _)| *took).min().unwrap_or_default();
        assert!(fastest <= Duration::from_millis(200) * SLOWER, "a scrape takes {fastest:?}");
        // The client, the servers and the one who scrapes share two CPUs with it.
        let more = Duration::from_millis(20) * SLOWER;
        for (alone, scraped) in alone.iter().zip(&scraped) {
            assert!(scraped.0 <= alone.0 * 3 + more, "{scraped:?} while somebody scrapes, {alone:?} alone");
        }
        Ok(())
    })
}
