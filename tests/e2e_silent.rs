//! A process that is stopped, or hangs: packets are balanced all the same, and what only reads goes on without it.

mod common;

use std::os::fd::AsRawFd as _;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::balancer::XDP_LB;
use common::clients::requests;
use common::live::{start, state, three_backends, write};
use common::netns::{Lab, in_lab};
use common::networks::{VIP, two_arms};
use common::servers::nginx_everywhere;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};
use serde_json::Value;

/// Whatever is asked is answered within this, on a machine that is busy; `explain` has programs to load.
const LIMIT: Duration = Duration::from_secs(9);

/// Where the usual instance listens.
const SOCKET: &str = "/run/xdp-lb/xdp_lb.sock";

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
    let silent = format!(
        "process {process} (stopped: kill -CONT {process} has it go on), which listens at /run/xdp-lb/"
    );
    told_that(lab, words, &silent)
}

/// The same with what is to be said in one line.
fn told_that(lab: &Lab, words: &str, silent: &str) -> Result<String> {
    let output = ask(lab, words)?;
    let (said, complaints) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words}: {said}{complaints}");
    let lines: Vec<&str> = complaints.lines().filter(|line| line.contains(silent)).collect();
    assert_eq!(lines.len(), 1, "{words}: {complaints}");
    Ok(said.into_owned())
}

/// Takes all the room for connections that nobody has accepted; how much that was.
fn fill(path: &str) -> Result<usize> {
    for count in 0..1000 {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // One that is closed stays until it is accepted.
        match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
            Err(Errno::EAGAIN) => return Ok(count),
            done => done.with_context(|| format!("connecting to {path}"))?,
        }
    }
    anyhow::bail!("there is room for any number of connections at {path}")
}

/// A process whose main thread does nothing while its others go on.
struct Hung(Pid);

impl Hung {
    fn hang(process: u32) -> Result<Hung> {
        let main = Pid::from_raw(process.try_into()?);
        ptrace::seize(main, ptrace::Options::empty()).context("taking hold of the main thread")?;
        let hung = Hung(main);
        ptrace::interrupt(main)?;
        let stopped = waitpid(main, None)?;
        assert!(matches!(stopped, WaitStatus::PtraceEvent(..)), "{stopped:?}");
        Ok(hung)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
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
        assert!(said.contains("PROCESS DOES NOT ANSWER, read from its pins"), "{said}");
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

/// Each look at a stopped process leaves a connection that it has not accepted: when there is no room for more, it is looked at
/// all the same.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_stopped_process_can_be_looked_at_any_number_of_times() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web())?;
        let lb = start(lab)?;
        let process = lb.process.id();
        lb.process.signal(Signal::SIGSTOP)?;
        // Its threads stop one after the other: one may have taken connections meanwhile.
        while fill(SOCKET)? > 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
        let full = format!(
            "the process that listens at {SOCKET} takes no more connections (process {process} is stopped: kill -CONT \
             {process} has it go on): this is read from the tables"
        );
        let explain = format!("explain 192.168.1.2:40000 {VIP}:80 --syn");
        for words in
            ["status", "backend list", "stats --count 2 --interval 100ms", "connections", "top --once"]
        {
            told_that(lab, words, &full)?;
        }
        let names =
            format!("the process that listens at {SOCKET} takes no more connections: services are called");
        assert!(told_that(lab, &explain, &names)?.contains("XDP_REDIRECT"));
        let output = ask(lab, "backend drain web 10.0.0.11:8080")?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("takes no more connections"), "{said}");
        assert!(!said.contains("it may still do"), "it was not asked: {said}");

        lb.process.signal(Signal::SIGCONT)?;
        common::within(LIMIT, "the process answers again", || {
            let status: Value = serde_json::from_slice(&ask(lab, "status --json").ok()?.stdout).ok()?;
            (status["running"] == true).then_some(())
        });
        assert_eq!(state(lab, "10.0.0.11:8080")?, "up");
        Ok(())
    })
}

/// One whose main loop hangs still takes connections, and shows that it lives.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_hung_main_loop_keeps_nobody_waiting_for_long() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web())?;
        let lb = start(lab)?;
        let process = lb.process.id();
        let hung = Hung::hang(process)?;
        let silent = format!(
            "process {process} (traced by process {}, as a debugger does), which listens at {SOCKET},",
            gettid()
        );
        let explain = format!("explain 192.168.1.2:40000 {VIP}:80 --syn");
        for words in ["status", "stats --count 3 --interval 100ms", "top --once", "connections", &explain] {
            let said = told_that(lab, words, &silent)?;
            assert!(said.contains(VIP) || words == "connections", "{words}: {said}");
        }
        drop(hung);
        let status: Value = serde_json::from_slice(&ask(lab, "status --json")?.stdout)?;
        assert_eq!(status["running"], true);
        Ok(())
    })
}

/// The only instance is found by its pins and its process.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_one_that_listens_elsewhere_is_found() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let socket = lab.dir().join("b.sock");
        write(lab, &format!("socket = \"{}\"\npin-dir = \"/sys/fs/bpf/b\"\n{}", socket.display(), web()))?;
        let mut lb = start(lab)?;
        let output = ask(lab, "backend enable web 10.0.0.11:8080")?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("no process"), "{said}");
        let status: Value = serde_json::from_slice(&ask(lab, "status --json")?.stdout)?;
        assert_eq!(status["running"], true);
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        let output = ask(lab, "backend enable web 10.0.0.11:8080")?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("goes on without a process"), "{said}");
        told_that(lab, "status", "no process listens at /run/xdp-lb/b.sock: this is read from the tables")?;
        ask(lab, "detach eth0 --pin-dir /sys/fs/bpf/b").map(drop)
    })
}
