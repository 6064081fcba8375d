//! Backends that take no more: what becomes of their connections, and when.

mod common;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::balancer::{Balancer, XDP_LB};
use common::clients::{KeepAlive, requests, spread};
use common::live::{ask, complaint, file, say, start, three_backends, write};
use common::netns::{Lab, Process, in_lab};
use common::networks::{VIP, two_arms};
use common::servers::nginx_everywhere;
use common::within;

fn web(name: &str) -> String {
    format!(
        "interface = \"eth0\"\nassign-vip = true\n[[service]]\nname = \"{name}\"\nvip = \"{VIP}:80\"\n\
         scheduler = \"round-robin\"\nhealth = \"none\"\nbackend = [ {} ]\n",
        three_backends()
    )
}

/// Those who must live as long as the test.
type Everybody<'a> = (Balancer<'a>, Vec<Process>);

/// An instance with its servers, and a connection to each of them, web1 first.
fn connected(lab: &Lab) -> Result<(Everybody<'_>, Vec<KeepAlive>)> {
    two_arms(lab)?;
    let servers = nginx_everywhere(lab)?;
    write(lab, &web("web"))?;
    let lb = start(lab)?;
    let mut held = KeepAlive::open_many(lab, VIP, 80, 3)?;
    let mut by_server = Vec::new();
    for mut one in held.drain(..) {
        by_server.push((one.ask()?, one));
    }
    by_server.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        by_server.iter().map(|(server, _)| server.as_str()).collect::<Vec<_>>(),
        ["web1", "web2", "web3"]
    );
    Ok(((lb, servers), by_server.into_iter().map(|(_, one)| one).collect()))
}

fn is_reset(held: &mut KeepAlive) {
    within(Duration::from_secs(5), "it is reset", || held.ask_within(Duration::from_secs(1)).err());
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_drain_ends_when_none_are_left_or_its_deadline_passes() -> Result<()> {
    in_lab(|lab| {
        let (_lb, mut held) = connected(lab)?;
        let begun = Instant::now();
        let said = say(lab, "backend drain web 10.0.0.10:8080 --deadline 2s --wait")?;
        assert!(said.contains("are reset after 2s") && said.contains("the deadline has passed"), "{said}");
        assert!(begun.elapsed() >= Duration::from_secs(2), "it ended with a connection left");
        is_reset(&mut held[0]);
        assert_eq!(held[1].ask()?, "web2");

        let mut waits = lab.start("lb", XDP_LB, &["backend", "drain", "web", "10.0.0.11:8080", "--wait"])?;
        sleep(Duration::from_secs(1));
        held.remove(1);
        assert!(waits.wait()?.success());

        let mut waits = lab.start("lb", XDP_LB, &["backend", "drain", "web", "10.0.0.12:8080", "--wait"])?;
        sleep(Duration::from_secs(1));
        say(lab, "backend enable web 10.0.0.12:8080")?;
        assert_eq!(waits.wait()?.code(), Some(1));
        assert!(waits.stdout().contains("enabled again meanwhile"), "{}{}", waits.stdout(), waits.stderr());
        assert_eq!(held[1].ask()?, "web3");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_deadline_outlives_what_becomes_of_its_backend() -> Result<()> {
    in_lab(|lab| {
        let (_lb, mut held) = connected(lab)?;
        say(lab, "backend drain web 10.0.0.10:8080 --deadline 3s")?;
        say(lab, "backend remove web 10.0.0.10:8080")?;
        say(lab, "backend drain web 10.0.0.11:8080 --deadline 3s")?;
        write(lab, &web("shop"))?;
        say(lab, "reload")?;
        let status = ask(lab, "status")?;
        let all = status["services"][0]["backends"].as_array().cloned().unwrap_or_default();
        let drains = all.iter().find(|one| one["address"] == "10.0.0.11:8080").expect("it is there");
        assert!(drains["health"]["reset_in_seconds"].as_f64().is_some_and(|left| left > 0.0), "{drains}");
        let said = say(lab, "backend drain shop 10.0.0.12:8080 --deadline 3s")?;
        assert!(said.contains("reset after 3s"), "{said}");
        let said = say(lab, "backend enable shop 10.0.0.12:8080")?;
        assert!(said.contains("drain -> enabled"), "{said}");
        sleep(Duration::from_millis(3500));
        is_reset(&mut held[0]);
        is_reset(&mut held[1]);
        assert_eq!(held[2].ask()?, "web3", "it was enabled again");

        say(lab, "backend drain shop 10.0.0.12:8080 --deadline 2s")?;
        let said = say(lab, "backend drain shop 10.0.0.12:8080")?;
        assert!(said.contains("there is no deadline any more"), "{said}");
        sleep(Duration::from_millis(2500));
        assert_eq!(held[2].ask()?, "web3", "its deadline was taken back");

        let last = complaint(lab, "backend remove shop 10.0.0.99:8080 --now")?;
        assert!(last.contains("is no backend"), "{last}");
        Ok(())
    })
}

/// Nobody is left to answer a segment of somebody else's connection with a RST: that is said.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_cannot_be_reset_is_said() -> Result<()> {
    in_lab(|lab| {
        let (_lb, _held) = connected(lab)?;
        say(lab, "backend disable web 10.0.0.10:8080")?;
        say(lab, "backend disable web 10.0.0.11:8080")?;
        let said = say(lab, "backend drain web 10.0.0.12:8080 --now")?;
        assert!(
            said.contains("but nobody tells their clients: no other backend takes connections"),
            "{said}"
        );
        Ok(())
    })
}

/// A configuration that never comes keeps nobody waiting.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_pipe_is_no_configuration() -> Result<()> {
    in_lab(|lab| {
        let (_lb, mut held) = connected(lab)?;
        std::fs::remove_file(file(lab))?;
        nix::unistd::mkfifo(&file(lab), nix::sys::stat::Mode::S_IRWXU)?;
        let said = complaint(lab, "reload")?;
        assert!(said.contains("no regular file"), "{said}");
        assert_eq!(held[0].ask()?, "web1");
        Ok(())
    })
}

/// A row that had a backend before, or one that a failed change took back, reaches the next one all the same.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_backend_that_is_added_again() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let two = web("web").replace("{ address = \"10.0.0.12:8080\" }", "").replace(",  ]", " ]");
        write(lab, &two)?;
        let _lb = start(lab)?;
        let is_there = || -> Option<bool> {
            let status = ask(lab, "status").ok()?;
            let all = status["services"][0]["backends"].as_array()?.clone();
            Some(all.iter().any(|one| one["address"] == "10.0.0.12:8080"))
        };
        for _ in 0..3 {
            say(lab, "backend add web 10.0.0.12:8080")?;
            say(lab, "backend remove web 10.0.0.12:8080")?;
            within(Duration::from_secs(15), "it is gone", || (!is_there()?).then_some(()));
        }
        let mut fails = two.replace(" ]", ", \"10.0.0.12:8080\" ]");
        for n in 0..600 {
            fails += &format!("[[service]]\nvip = \"192.168.{}.{}:80\"\n", 10 + n / 200, 1 + n % 200);
        }
        write(lab, &fails)?;
        assert!(complaint(lab, "reload")?.contains("record"));
        say(lab, "backend add web 10.0.0.12:8080")?;
        let answers = requests(lab, &format!("http://{VIP}/?[1-60]"))?;
        assert_eq!(spread(&answers).values().collect::<Vec<_>>(), [&20, &20, &20]);
        Ok(())
    })
}
