//! Changes under load: no client notices any of them.

mod common;

use std::process::Child;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::balancer::{Balancer, FOUND};
use common::live::{say, start, write};
use common::netns::{Lab, in_lab};
use common::networks::{VIP, two_arms};
use common::resets::Wires;
use common::servers::nginx_everywhere;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Reloads that change a timeout have the programs loaded anew and swapped; others only change tables.
fn file(scheduler: &str, timeout: u32, weight: u32) -> String {
    format!(
        "interface = \"eth0\"\nassign-vip = true\nstats-interval = 0\ntimeout-udp = {timeout}\n[[service]]\n\
         name = \"web\"\nvip = \"{VIP}:80\"\nscheduler = \"{scheduler}\"\n\
         health = {{ type = \"http\", interval = \"500ms\", timeout = \"500ms\" }}\n\
         backend = [ {{ address = \"10.0.0.10:8080\", weight = {weight} }}, {{ address = \"10.0.0.11:8080\" }} ]\n"
    )
}

/// wrk in the client's namespace, until it is interrupted.
fn load(lab: &Lab, more: &[&str]) -> Result<Child> {
    let url = format!("http://{VIP}/");
    let common = ["-t", "1", "-c", "16", "-d", "1h", "--timeout", "5s"];
    let mut wrk = lab.command("client", "wrk")?;
    wrk.args(common).args(more).arg(url).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(wrk.spawn()?)
}

/// How many requests were answered until now, and how many ended with a reset.
fn answered(wrk: Child) -> Result<[u64; 2]> {
    kill(Pid::from_raw(wrk.id().try_into()?), Signal::SIGINT)?;
    let output = wrk.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk: {text}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(!text.contains("Non-2xx"), "requests failed:\n{text}");
    let number =
        |line: &str| Ok::<u64, anyhow::Error>(line.split_whitespace().next().unwrap_or_default().parse()?);
    let answered = text.lines().find(|line| line.contains(" requests in ")).context("wrk counted nothing")?;
    let Some(errors) =
        text.lines().find_map(|line| line.trim().strip_prefix("Socket errors: connect 0, read "))
    else {
        ensure!(!text.contains("Socket errors"), "connections failed:\n{text}");
        return Ok([number(answered)?, 0]);
    };
    let (resets, others) = errors.split_once(", ").unwrap_or_default();
    ensure!(others == "write 0, timeout 0", "connections failed:\n{text}");
    Ok([number(answered)?, number(resets)?])
}

/// One change, one after the other in rounds of ten.
fn change<'a>(lab: &'a Lab, mut lb: Balancer<'a>, number: usize) -> Result<Balancer<'a>> {
    let round = (number / 10) as u32;
    match number % 10 {
        0 => say(lab, "backend add web 10.0.0.12:8080:3").map(drop)?,
        1 => say(lab, "backend weight web 10.0.0.10:8080 70").map(drop)?,
        2 => say(lab, "backend drain web 10.0.0.11:8080").map(drop)?,
        3 => say(lab, "backend remove web 10.0.0.10:8080").map(drop)?,
        4 => say(lab, "backend enable web 10.0.0.11:8080").map(drop)?,
        5 => say(lab, "backend add web 10.0.0.10:8080:5").map(drop)?,
        6 => {
            let scheduler =
                ["maglev", "least-conn", "round-robin", "weighted-round-robin"][round as usize % 4];
            write(lab, &file(scheduler, 60 + round, 10 + round))?;
            let said = say(lab, "reload")?;
            ensure!(said.contains("scheduler"), "{said}");
        }
        7 => {
            ensure!(lb.stop(Signal::SIGKILL)?.is_none());
            lb = start(lab)?;
            ensure!(lb.process.stderr().contains(FOUND), "{}", lb.process.stderr());
        }
        8 => say(lab, "backend disable web 10.0.0.11:8080").map(drop)?,
        _ => say(lab, "backend enable web 10.0.0.11:8080").map(drop)?,
    }
    Ok(lb)
}

fn changes_under_load(lab: &Lab, count: usize, seconds: u64) -> Result<()> {
    two_arms(lab)?;
    let _servers = nginx_everywhere(lab)?;
    write(lab, &file("weighted-round-robin", 60, 10))?;
    let mut lb = start(lab)?;
    let wires = Wires::watch(lab)?;
    let begun = Instant::now();
    let kept = load(lab, &[])?;
    let anew = load(lab, &["-H", "Connection: close"])?;
    let each = Duration::from_secs(seconds).mul_f64(0.9) / count as u32;
    for number in 0..count {
        std::thread::sleep((each * number as u32).saturating_sub(begun.elapsed()));
        let at = Instant::now();
        lb = change(lab, lb, number).with_context(|| format!("change {number}"))?;
        println!("change {number}: {:?}", at.elapsed());
    }
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(begun.elapsed()));
    let ([kept, kept_reset], [anew, anew_reset]) = (answered(kept)?, answered(anew)?);
    println!("{count} changes: {kept} requests over kept connections, {anew} over new ones");
    ensure!(kept_reset == 0, "{kept_reset} connections that lived were reset");
    let own = wires.own_resets(lab)?;
    println!("{anew_reset} new connections were reset, {own} by the server that had just accepted them");
    ensure!(anew_reset <= own, "{anew_reset} connections were reset, {own} of them by their own server");
    ensure!(kept > 1000 && anew > 200, "{kept} and {anew} requests are no load");
    assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
    Ok(())
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_thirty_changes_under_load() -> Result<()> {
    in_lab(|lab| changes_under_load(lab, 30, 60))
}

#[test]
#[ignore = "takes minutes: make test-all"]
fn root_two_hundred_changes_under_load() -> Result<()> {
    in_lab(|lab| changes_under_load(lab, 200, 240))
}
