//! A process that is stopped, or hangs: packets are balanced all the same, and what only reads goes on without it.

mod common;

use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::balancer::XDP_LB;
use common::clients::requests;
use common::live::{start, state, three_backends, write};
use common::netns::{Lab, in_lab};
use common::networks::{VIP, two_arms};
use common::servers::nginx_everywhere;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Whatever is asked is answered within this.
const LIMIT: Duration = Duration::from_secs(5);

fn web() -> String {
    format!(
        "interface = \"eth0\"\nassign-vip = true\nstats-interval = 0\nmax-connections = 10_000\n[[service]]\nname = \"web\"\n\
         vip = \"{VIP}:80\"\nscheduler = \"round-robin\"\nbackend = [ {} ]\n",
        three_backends()
    )
}

/// What a command says, in time.
fn ask(lab: &Lab, words: &str) -> Result<Output> {
    let begun = Instant::now();
    let output = lab.command("lb", XDP_LB)?.args(words.split_whitespace()).output()?;
    let took = begun.elapsed();
    assert!(took < LIMIT, "{words}: {took:?}");
    Ok(output)
}

/// The same on stdout, which must end well and say on stderr, in one line, who is silent.
fn told(lab: &Lab, words: &str, process: u32) -> Result<String> {
    let output = ask(lab, words)?;
    let (said, complaints) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words}: {said}{complaints}");
    let silent = format!(
        "process {process} (stopped: kill -CONT {process} has it go on), which listens at /run/xdp-lb/"
    );
    let lines: Vec<&str> = complaints.lines().filter(|line| line.contains(&silent)).collect();
    assert_eq!(lines.len(), 1, "{words}: {complaints}");
    Ok(said.into_owned())
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_stopped_process_keeps_nobody_waiting() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web())?;
        let lb = start(lab)?;
        let process = lb.process.id();
        assert_eq!(requests(lab, &format!("http://{VIP}/?[1-6]"))?.len(), 6);
        lb.process.signal(Signal::SIGSTOP)?;

        let explained = told(lab, &format!("explain 192.168.1.2:40000 {VIP}:80 --syn"), process)?;
        assert!(
            explained.contains("XDP_REDIRECT") && explained.contains(&format!("{VIP}:80")),
            "{explained}"
        );
        let status: Value = serde_json::from_str(&told(lab, "status --json", process)?)?;
        assert_eq!(status["running"], false, "as without a process");
        let service = &status["services"][0];
        assert_eq!(
            (&service["name"], &service["backends"][2]["connections"]),
            (&format!("{VIP}:80").into(), &2.into())
        );
        for words in ["status", "backend list", "service list", "stats --count 1"] {
            let said = told(lab, words, process)?;
            assert!(
                said.contains(&format!("{VIP}:80")) || said.contains("10.0.0.12:8080"),
                "{words}: {said}"
            );
        }
        let said = told(lab, "connections --json", process)?;
        assert!(serde_json::from_str::<Value>(&said)?["connections"].is_array(), "{said}");
        let said = told(lab, "top --once", process)?;
        assert!(said.contains("10.0.0.12:8080") && said.contains("read from its pins"), "{said}");
        // Packets pass meanwhile, and are seen.
        for words in ["trace --json", "capture -w -"] {
            let mut watching = lab.start("lb", XDP_LB, &words.split_whitespace().collect::<Vec<_>>())?;
            common::within(LIMIT, words, || {
                requests(lab, &format!("http://{VIP}/")).ok()?;
                // Of a capture it stands in the comments.
                watching.stdout().contains("192.168.1.2").then_some(())
            });
            let said = watching.stderr();
            assert_eq!(said.matches(&format!("process {process} (stopped")).count(), 1, "{said}");
            // One that is killed would keep others out for a time.
            watching.signal(Signal::SIGINT)?;
            assert!(watching.wait()?.success(), "{words}: {}", watching.stderr());
        }

        // What nobody else knows is not waited for, either.
        let output = ask(lab, "config show")?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(&format!("process {process} (stopped")), "{said}");

        // A change is waited for.
        let mut drain = lab.start("lb", XDP_LB, &["backend", "drain", "web", "10.0.0.11:8080"])?;
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(drain.ended()?, None, "{}", drain.stderr());
        lb.process.signal(Signal::SIGCONT)?;
        assert!(drain.wait()?.success(), "{}", drain.stderr());
        assert_eq!(state(lab, "10.0.0.11:8080")?, "drain");
        Ok(())
    })
}

/// An instance that is not the usual one is found, though it does not tell where its pins are.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_stopped_process_is_found_by_where_it_listens() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &format!("pin-dir = \"/sys/fs/bpf/other\"\n{}", web()))?;
        let lb = start(lab)?;
        lb.process.signal(Signal::SIGSTOP)?;
        for socket in ["", " --socket /run/xdp-lb/other.sock"] {
            for words in
                ["explain 192.168.1.2:40000 192.168.1.100:80", "top --once", "trace --duration 100ms"]
            {
                let said = told(lab, &format!("{words}{socket}"), lb.process.id());
                said.map_err(|error| error.context(words))?;
            }
        }
        // Pins by default are never those of a socket with another name: they would be another instance's.
        let elsewhere = lab.dir().join("elsewhere.sock");
        std::os::unix::fs::symlink("/run/xdp-lb/other.sock", &elsewhere)?;
        let output = ask(lab, &format!("status --socket {}", elsewhere.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("--pin-dir names its tables"), "{said}");
        lb.process.signal(Signal::SIGCONT)
    })
}
