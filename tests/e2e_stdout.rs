//! What cannot be printed is an error of every verb; a reader that has seen enough is none.

mod common;

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::balancer::XDP_LB;
use common::live::{Visits, file, start, three_backends, write};
use common::netns::{Lab, in_lab};
use common::networks::{CLIENT, VIP, WEBS, two_arms};
use common::servers::{HTTP, nginx_everywhere};
use nix::unistd::pipe;

const FULL: &str = "xdp-lb: could not write to stdout: No space left on device";

/// All that print, but for those that need no instance, and `run`, which must not end because a disk is full.
fn verbs(lab: &Lab) -> Vec<String> {
    let web = format!("{}:{HTTP}", WEBS[0].1);
    let mut verbs: Vec<String> = [
        "status",
        "status --json",
        "stats --count 1",
        "stats --count 1 --json",
        "service list",
        "backend list",
        "connections",
        "connections --json",
        "config show",
        "reload --dry-run",
        "connections kill --client 198.51.100.1",
        "top --once --interval 100ms",
        "trace --limit 1",
        "trace --limit 1 --json",
        "capture --limit 1 --write -",
        "capture --duration 1s --client 198.51.100.1 --write -",
        "doctor",
        "doctor --json",
        "tune eth0 --dry-run",
        "tune eth0 --dry-run --json",
        "veth-peer spare --remove",
        "detach spare --pin-dir /sys/fs/bpf/nobody",
        "verify",
    ]
    .map(str::to_owned)
    .to_vec();
    verbs.push(format!("backend weight {VIP}:80 {web} 1"));
    verbs.push(format!("explain {CLIENT}:9 {VIP}:80 --syn"));
    verbs.push(format!("explain {CLIENT}:9 {VIP}:80 --syn --json"));
    verbs.push(format!("check {}", file(lab).display()));
    verbs.push(format!("eth0 --vip {VIP}:81 --backend {web} --check-only"));
    verbs
}

fn run(mut command: Command, words: &str, stdout: Stdio) -> Result<(Option<i32>, String)> {
    let command = command.args(words.split_whitespace()).stdin(Stdio::null()).stderr(Stdio::piped());
    let Output { status, stderr, .. } = command.stdout(stdout).spawn()?.wait_with_output()?;
    Ok((status.code(), String::from_utf8(stderr)?))
}

/// Exit code and stderr where stdout is full, and where nobody reads it.
fn full_and_closed(command: impl Fn() -> Result<Command>, words: &str) -> Result<()> {
    let full = OpenOptions::new().write(true).open("/dev/full")?;
    let (code, said) = run(command()?, words, full.into())?;
    ensure!(code == Some(1) && said.contains(FULL), "{words}: {code:?}, {said}");
    ensure!(!said.contains("reading"), "{words}: {said}");
    let (reader, writer) = pipe()?;
    drop(reader);
    let (code, said) = run(command()?, words, writer.into())?;
    // A doctor's findings, and whether an instance would start, are told by the exit code too.
    let is_finding = words.starts_with("doctor") || words.contains("--check-only");
    ensure!(code == Some(0) || code.is_some() && is_finding, "{words}: {code:?}, {said}");
    ensure!(!said.contains("could not write") && !said.contains("panicked"), "{words}: {said}");
    Ok(())
}

#[test]
fn what_needs_no_instance() -> Result<()> {
    let verbs = ["--help", "--version", "trace --help", "completions bash", "man", "man trace"];
    verbs.iter().try_for_each(|words| full_and_closed(|| Ok(Command::new(XDP_LB)), words))
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_is_asked_of_an_instance() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.ip("lb", "link add spare type veth peer name spared")?;
        let _servers = nginx_everywhere(lab)?;
        let text = format!(
            "interface = \"eth0\"\nassign-vip = true\n[[service]]\nvip = \"{VIP}:80\"\nbackend = [{}]\n",
            three_backends()
        );
        write(lab, &text)?;
        let _lb = start(lab)?;
        let visits = Visits::begin(lab, VIP, 80, Duration::from_secs(5))?;
        let told =
            verbs(lab).iter().try_for_each(|words| full_and_closed(|| lab.command("lb", XDP_LB), words));
        visits.end().into_iter().find_map(|visit| visit.outcome.ok()).context("nobody was served")?;
        told
    })
}
