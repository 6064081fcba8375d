//! Backends that die and come back, and what becomes of their connections.

mod common;

use std::net::UdpSocket;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::clients::KeepAlive;
use common::live::{self, Visit, Visits, ask, start, state, three_backends, write};
use common::metrics::{METRICS, Scrape, status};
use common::netns::{Lab, in_lab};
use common::networks::{VIP, two_arms};
use common::servers::{HTTP, WHICH, dnsmasq_everywhere, nginx, nginx_everywhere};
use common::{eventually, within};
use nix::sys::signal::Signal;

/// A loaded machine takes its time, and so do a process that is killed and the one that measures it; a build for tests more.
const SLACK: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 300 });

fn web(health: &str, more: &str) -> String {
    format!(
        "interface = \"eth0\"\nassign-vip = true\nstats-interval = 0\n[[service]]\nname = \"web\"\nvip = \"{VIP}:80\"\n\
         scheduler = \"round-robin\"\nhealth = {health}\n{more}\nbackend = [ {} ]\n",
        three_backends()
    )
}

/// How long after `since` the last visit began that did not work.
fn last_failure(visits: &[Visit], since: Instant) -> Duration {
    let failed = visits.iter().filter(|visit| visit.outcome.is_err());
    failed.map(|visit| visit.at.saturating_duration_since(since)).max().unwrap_or_default()
}

/// Kills a server under load, and tells how long new connections still met it, and what the instance said.
fn kill_a_server(lab: &Lab, health: &str) -> Result<(Duration, String)> {
    two_arms(lab)?;
    let mut servers = nginx_everywhere(lab)?;
    write(lab, &web(health, ""))?;
    let lb = start(lab)?;
    let visits = Visits::begin(lab, VIP, 80, Duration::from_secs(5))?;
    sleep(Duration::from_millis(500));
    servers[1].signal(Signal::SIGKILL)?;
    servers[1].wait()?;
    let killed = Instant::now();
    eventually("it is down", || (state(lab, "10.0.0.11:8080").ok()? == "down").then_some(()));
    sleep(Duration::from_millis(500));
    let all = visits.end();
    let before = all.iter().filter(|visit| visit.at < killed).count();
    assert!(before > 20, "{before} visits before");
    let served = all.iter().filter(|visit| visit.outcome == Ok("web2".into())).count();
    assert!(served > 5, "web2 served {served}");
    let avoided = last_failure(&all, killed);

    // It comes back, and gets its share again.
    servers[1] = nginx(lab, "web2")?;
    lab.wait_for_port("web2", "tcp", HTTP)?;
    eventually("it is up", || (state(lab, "10.0.0.11:8080").ok()? == "up").then_some(()));
    let visits = Visits::begin(lab, VIP, 80, Duration::from_secs(5))?;
    sleep(Duration::from_millis(300));
    let all = visits.end();
    assert!(all.iter().all(|visit| visit.outcome.is_ok()), "{all:?}");
    let share = all.iter().filter(|visit| visit.outcome == Ok("web2".into())).count();
    // Its ring may be made a moment after its state is told.
    assert!(share * 4 >= all.len(), "web2 served {share} of {}", all.len());
    Ok((avoided, lb.process.stderr()))
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_dead_server_is_avoided_after_interval_times_fall() -> Result<()> {
    in_lab(|lab| {
        let health = "{ type = \"http\", interval = \"400ms\", timeout = \"200ms\", passive = 0 }";
        let (avoided, said) = kill_a_server(lab, health)?;
        // 10 % of jitter.
        let limit = Duration::from_millis(3 * 440 + 100) + SLACK;
        assert!(avoided <= limit, "after {avoided:?}, not {limit:?}");
        assert!(
            said.contains("service web: backend 10.0.0.11:8080 is down after 3 failed checks: "),
            "{said}"
        );
        assert!(said.contains("connection refused; its live TCP connections are reset"), "{said}");
        assert!(said.contains("service web: backend 10.0.0.11:8080 is up after 2 good checks"), "{said}");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_passive_checks_find_a_dead_server_within_a_second() -> Result<()> {
    in_lab(|lab| {
        let (avoided, _) = kill_a_server(lab, "\"tcp\"")?;
        assert!(avoided <= Duration::from_secs(1) + SLACK, "after {avoided:?}");
        Ok(())
    })
}

/// A machine that is switched off says nothing at all.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_passive_checks_find_a_silent_machine() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web("\"tcp\"", ""))?;
        let lb = start(lab)?;
        let visits: Vec<Visits> =
            (0..8).map(|_| Visits::begin(lab, VIP, 80, Duration::from_secs(5))).collect::<Result<_>>()?;
        sleep(Duration::from_millis(500));
        lab.ip("switch", "link set web3 down")?;
        let off = Instant::now();
        eventually("it is down", || (state(lab, "10.0.0.12:8080").ok()? == "down").then_some(()));
        sleep(Duration::from_millis(500));
        // One of them may wait for the silent machine: the others are not to go on meanwhile.
        visits.iter().for_each(Visits::stop);
        let all: Vec<Visit> = visits.into_iter().flat_map(Visits::end).collect();
        // A SYN that vanished is sent again after a second, to another backend then.
        let avoided = last_failure(&all, off);
        let failed: Vec<&Visit> = all.iter().filter(|visit| visit.outcome.is_err()).collect();
        assert!(avoided <= Duration::from_secs(1) + SLACK, "after {avoided:?}, off at {off:?}: {failed:?}");
        assert!(lb.process.stderr().contains("its live TCP connections go on"), "{}", lb.process.stderr());
        Ok(())
    })
}

/// `on-down`: the clients of a dead backend are told, or not.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_live_connections_follow_on_down() -> Result<()> {
    for (on_down, reset) in [("keep", false), ("reset", true)] {
        in_lab(move |lab| {
            two_arms(lab)?;
            let _servers = nginx_everywhere(lab)?;
            // A port where nobody listens: the server works, and is found dead as soon as checks go there.
            write(lab, &web("\"none\"", &format!("on-down = \"{on_down}\"")))?;
            let _lb = start(lab)?;
            let mut held = KeepAlive::open_many(lab, VIP, 80, 3)?;
            let servers: Vec<String> = held.iter_mut().map(KeepAlive::ask).collect::<Result<_>>()?;
            let health =
                "{ type = \"http\", path = \"/nowhere\", interval = \"100ms\", timeout = \"100ms\" }";
            let file = web(health, &format!("on-down = \"{on_down}\""))
                .replace("{ address = \"10.0.0.11:8080\" }, ", "")
                .replace(" ]\n", ", { address = \"10.0.0.11:8080\", state = \"drain\" } ]\n");
            write(lab, &file)?;
            live::say(lab, "reload")?;
            eventually("they are down", || (state(lab, "10.0.0.10:8080").ok()? == "down").then_some(()));
            for (held, server) in held.iter_mut().zip(&servers) {
                let answer = held.ask_within(Duration::from_secs(2));
                // Without any backend that is up nobody can answer with a RST.
                assert_eq!(answer.is_ok(), !reset, "{server}: {answer:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A client's flow of datagrams goes elsewhere with the first one after its server was found dead.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_udp_flows_move() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let mut servers = dnsmasq_everywhere(lab)?;
        let backends = three_backends().replace("8080", "53");
        write(
            lab,
            &format!(
                "interface = \"eth0\"\nassign-vip = true\n[[service]]\nname = \"dns\"\nvip = \"{VIP}:53/udp\"\n\
                 health = {{ type = \"tcp\", interval = \"200ms\", timeout = \"200ms\" }}\nbackend = [ {backends} ]\n"
            ),
        )?;
        let _lb = start(lab)?;
        let flow = lab.within("client", || UdpSocket::bind("192.168.1.2:40000"))??;
        flow.connect((VIP, 53))?;
        let first = who(&flow)?;
        assert_eq!(who(&flow)?, first, "a flow stays");
        servers[usize::from(first) - 1].signal(Signal::SIGKILL)?;
        servers[usize::from(first) - 1].wait()?;
        let address = format!("10.0.0.1{}:53", first - 1);
        eventually("it is down", || (state(lab, &address).ok()? == "down").then_some(()));
        assert_ne!(who(&flow)?, first, "the first datagram after the detection");
        Ok(())
    })
}

/// The number of the dnsmasq that answers.
fn who(flow: &UdpSocket) -> Result<u8> {
    flow.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in WHICH.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    flow.send(&query)?;
    let mut answer = [0; 512];
    let length = flow.recv(&mut answer).context("no answer")?;
    Ok(answer[length - 1])
}

/// What a check asks is nobody's traffic, and its figures are told.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_checks_are_no_traffic_and_have_figures() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let health = "{ type = \"http\", interval = \"100ms\", timeout = \"100ms\" }";
        write(lab, &web(health, ""))?;
        let lb = start(lab)?;
        let checks = |status: &serde_json::Value| {
            status["services"][0]["backends"][0]["health"]["checks"].as_u64().unwrap_or(0)
        };
        let status = eventually("twenty checks", || ask(lab, "status").ok().filter(|s| checks(s) >= 20));
        let health = &status["services"][0]["backends"][0]["health"];
        assert_eq!(
            (&health["check"], &health["up"], &health["failures"]),
            (&"http".into(), &true.into(), &0.into())
        );
        assert!(health["latency_ms"].as_f64().is_some_and(|ms| ms > 0.0 && ms < 100.0), "{health}");
        let figures = lb.figures()?;
        for backend in figures.backends("tcp") {
            assert_eq!((&backend["connections"], &backend["active"]), (&0.into(), &0.into()), "{backend}");
            assert_eq!(backend["to_backend"]["packets"], 0);
        }
        assert_eq!(figures.0["table"]["confirmed"], 0);
        Ok(())
    })
}

/// A backend that came back gets more from time to time, and its whole share in the end.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_slow_start() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let mut servers = nginx_everywhere(lab)?;
        let health = "{ type = \"tcp\", interval = \"200ms\", timeout = \"200ms\" }";
        write(lab, &web(health, "slow-start = \"10s\""))?;
        let _lb = start(lab)?;
        servers[0].signal(Signal::SIGKILL)?;
        servers[0].wait()?;
        eventually("it is down", || (state(lab, "10.0.0.10:8080").ok()? == "down").then_some(()));
        servers[0] = nginx(lab, "web1")?;
        eventually("it is up", || (state(lab, "10.0.0.10:8080").ok()? == "up").then_some(()));
        let share = || -> Result<f64> {
            let visits = Visits::begin(lab, VIP, 80, Duration::from_secs(5))?;
            sleep(Duration::from_millis(500));
            let all = visits.end();
            assert!(all.iter().all(|visit| visit.outcome.is_ok()), "{all:?}");
            let own = all.iter().filter(|visit| visit.outcome == Ok("web1".into())).count();
            Ok(own as f64 / all.len() as f64)
        };
        let early = share()?;
        assert!(early < 0.2, "{early} of the connections within the first seconds");
        // It goes on where it was.
        live::say(lab, "backend drain web 10.0.0.10:8080")?;
        live::say(lab, "backend enable web 10.0.0.10:8080")?;
        eventually("its whole share", || share().ok().filter(|share| *share > 0.3));
        Ok(())
    })
}

/// What the operator's will hides is not forgotten, also not by programs that are loaded anew.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_dead_backend_stays_down_whatever_is_done_meanwhile() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let mut servers = nginx_everywhere(lab)?;
        let file = web("{ type = \"tcp\", interval = \"200ms\", timeout = \"200ms\" }", "");
        write(lab, &file)?;
        let _lb = start(lab)?;
        servers[1].signal(Signal::SIGKILL)?;
        servers[1].wait()?;
        eventually("it is down", || (state(lab, "10.0.0.11:8080").ok()? == "down").then_some(()));
        live::say(lab, "backend disable web 10.0.0.11:8080")?;
        // It has the programs loaded anew.
        write(lab, &file.replace("[[service]]", "timeout-udp = 33\n[[service]]"))?;
        live::say(lab, "reload")?;
        live::say(lab, "backend enable web 10.0.0.11:8080")?;
        assert_eq!(state(lab, "10.0.0.11:8080")?, "down");
        let visits = Visits::begin(lab, VIP, 80, Duration::from_secs(5))?;
        sleep(Duration::from_millis(500));
        let all = visits.end();
        assert!(
            all.iter().all(|visit| visit.outcome.is_ok()),
            "{:?}",
            all.iter().find(|visit| visit.outcome.is_err())
        );
        Ok(())
    })
}

/// Backends that this host cannot reach take no new connections, whoever is to blame for that; those that live go on.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_an_interface_that_is_down_takes_its_backends_down() -> Result<()> {
    const DOWN: &str = "link set eth1 down";
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let health = "{ type = \"http\", interval = \"400ms\", timeout = \"200ms\" }";
        write(lab, &format!("metrics = \"{METRICS}\"\n{}", web(health, "")))?;
        let lb = start(lab)?;
        let ready = || Ok::<_, anyhow::Error>(status(lab, "/readyz")?.0);
        let healthy = || Ok::<_, anyhow::Error>(Scrape::take(lab)?.sum("xdp_lb_backend_health", ""));
        let mut held = KeepAlive::open_many(lab, VIP, 80, 3)?;
        let servers: Vec<String> = held.iter_mut().map(KeepAlive::ask).collect::<Result<_>>()?;
        assert_eq!((ready()?, healthy()?), (200, 3.0));

        lab.ip("lb", DOWN)?;
        // 10 % of jitter.
        let limit = |checks: u32| Duration::from_millis(440) * checks + SLACK;
        within(limit(3), "no backend is there", || (ready().ok()? == 503).then_some(()));
        let (code, said) = status(lab, "/readyz")?;
        assert!(
            code == 503 && said.contains("no backend takes new connections of the services web/tcp"),
            "{said}"
        );
        eventually("all are unhealthy", || (healthy().ok()? == 0.0).then_some(()));
        for address in ["10.0.0.10:8080", "10.0.0.11:8080", "10.0.0.12:8080"] {
            assert_eq!(state(lab, address)?, "down");
            let told = format!(
                "service web: backend {address} is down after 3 failed checks: network is unreachable"
            );
            eventually(&told, || lb.process.stderr().contains(&told).then_some(()));
        }
        let log = lb.process.stderr();
        assert!(log.contains("its live TCP connections go on") && !log.contains("could not check"), "{log}");

        lab.ip("lb", "link set eth1 up")?;
        within(limit(3), "all are back", || (healthy().ok()? == 3.0).then_some(()));
        assert_eq!(ready()?, 200);
        for (held, server) in held.iter_mut().zip(&servers) {
            assert_eq!(&held.ask_within(Duration::from_secs(5))?, server, "where it was");
        }

        // `fall` bounds what a flap may do: this one is over before the third check.
        lab.ip("lb", DOWN)?;
        sleep(Duration::from_millis(300));
        lab.ip("lb", "link set eth1 up")?;
        sleep(Duration::from_secs(1));
        assert_eq!(lb.process.stderr().matches("is down after").count(), 3, "{}", lb.process.stderr());
        Ok(())
    })
}

/// What this host refuses to ask says nothing of a backend, and is seen.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_checks_that_could_not_be_made_are_counted() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let health = "{ type = \"tcp\", interval = \"100ms\", timeout = \"100ms\" }";
        write(lab, &format!("metrics = \"{METRICS}\"\n{}", web(health, "")))?;
        let lb = start(lab)?;
        let count = |address: &str, result: &str| -> Result<f64> {
            let labels = format!("service=web backend_ip={address} result={result}");
            Ok(Scrape::take(lab)?.one("xdp_lb_health_checks_total", &labels))
        };
        assert_eq!(count("10.0.0.10", "unchecked")?, 0.0);
        // EACCES: by the host's own policy.
        lab.ip("lb", "route add prohibit 10.0.0.10/32")?;
        eventually("they are counted", || (count("10.0.0.10", "unchecked").ok()? >= 5.0).then_some(()));
        assert_eq!((count("10.0.0.10", "failed")?, count("10.0.0.11", "unchecked")?), (0.0, 0.0));
        assert_eq!(state(lab, "10.0.0.10:8080")?, "up");
        let status = ask(lab, "status")?;
        let backend = &status["services"][0]["backends"][0];
        assert!(backend["health"]["unchecked"].as_u64() >= Some(5), "{backend}");
        assert!(backend["checks"]["unchecked"].as_u64() >= Some(5), "{backend}");
        let log = lb.process.stderr();
        assert!(log.contains("could not check 10.0.0.10:8080: permission denied"), "{log}");
        Ok(())
    })
}
