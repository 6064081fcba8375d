//! The life of the process: what it says and changes when it starts, and that it takes all of it back.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::balancer::{
    Balancer, Figures, LOOKUPS, PIN_DIR, XDP_LB, assert_nothing_left, has_address, has_xdp, refused, weighted,
};
use common::clients::{assert_weighted, requests, requests_with};
use common::eventually;
use common::netns::{Lab, in_lab};
use common::networks::{VIP, reachable, two_arms};
use common::servers::{HTTP, nginx_everywhere};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

fn args() -> String {
    format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP))
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_sigterm_takes_everything_back() -> Result<()> {
    in_lab(|lab| whole_life(lab, Signal::SIGTERM))
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_sigint_takes_everything_back() -> Result<()> {
    in_lab(|lab| whole_life(lab, Signal::SIGINT))
}

fn whole_life(lab: &Lab, signal: Signal) -> Result<()> {
    two_arms(lab)?;
    let _servers = nginx_everywhere(lab)?;
    assert_nothing_left(lab)?;
    let mut lb = Balancer::start(lab, &args())?;
    says_what_it_attached(&lb)?;
    assert!(has_xdp(lab, "lb", "eth0")? && has_xdp(lab, "lb", "eth1")?);
    assert!(has_address(lab, "lb", "eth0", VIP)?);
    // The rest of the host's routing stays off; this alone is what looks up the way to clients.
    assert_eq!(lab.sysctl("lb", LOOKUPS)?, "1");
    assert_eq!(lab.sysctl("lb", "net/ipv4/ip_forward")?, "0");
    assert_eq!(lab.sysctl("lb", "net/ipv4/conf/eth0/forwarding")?, "0");
    assert_mode(Path::new(PIN_DIR))?;
    assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
    status_is_for_people(lab)?;

    assert_eq!(lb.stop(signal)?, Some(0), "exit code after {signal}");
    assert_nothing_left(lab)?;
    let url = format!("http://{VIP}/");
    let gone = requests_with(lab, &["--connect-timeout", "2", &url]);
    assert!(gone.is_err(), "{gone:?}");
    Ok(())
}

fn says_what_it_attached(lb: &Balancer) -> Result<()> {
    let banner = lb.process.stdout();
    let lines: Vec<&str> = banner.lines().collect();
    let line = |start: &str| {
        let found = lines.iter().find(|line| line.starts_with(start));
        found.copied().with_context(|| format!("no line {start:?} in:\n{banner}"))
    };
    assert!(line(&format!("service {VIP}:80/tcp"))?.contains("weighted-round-robin"));
    for backend in ["10.0.0.10:8080", "10.0.0.11:8080", "10.0.0.12:8080"] {
        assert!(line(&format!("  backend {backend}"))?.contains("by eth1"), "{banner}");
        assert!(line("attached to eth1")?.contains(backend), "{banner}");
    }
    for interface in ["eth0", "eth1"] {
        let attached = line(&format!("attached to {interface}"))?;
        assert!(attached.contains("native mode") && attached.contains("XDP_TX or redirect"), "{banner}");
    }
    line(&format!("pinned in {PIN_DIR}"))?;
    assert!(lb.process.stderr().contains("net.ipv4.conf.lo.forwarding"), "{}", lb.process.stderr());
    Ok(())
}

/// After 100 connections: a row for each backend with its share.
fn status_is_for_people(lab: &Lab) -> Result<()> {
    let status = lab.run("lb", XDP_LB, &["status"])?;
    let row = |address: &str| {
        let row = status.lines().find(|line| line.trim_start().starts_with(address));
        row.map(|row| row.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    assert!(status.contains(&format!("{VIP}:80/tcp")), "{status}");
    for (address, share) in [("10.0.0.10:8080", "50"), ("10.0.0.11:8080", "30"), ("10.0.0.12:8080", "20")] {
        let row = row(address).with_context(|| format!("no row of {address} in:\n{status}"))?;
        // Address, state, weight, active, total.
        assert_eq!((&row[1][..], &row[2][..], &row[4][..]), ("up", share, share), "{status}");
    }
    Ok(())
}

/// Others must not read connections, and cannot write tables.
fn assert_mode(pin_dir: &Path) -> Result<()> {
    assert_eq!(fs::metadata(pin_dir)?.permissions().mode() & 0o7777, 0o700);
    Ok(())
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_second_instance_is_refused() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut first = Balancer::start(lab, &args())?;
        let mut answers = requests(lab, &format!("http://{VIP}/?[1-50]"))?;
        let (code, said) = refused(lab, &args())?;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("another xdp-lb is running") && said.contains("--pin-dir"), "{said}");
        // With pins of its own it still cannot have the interface.
        let (code, said) = refused(lab, &format!("{} --pin-dir /sys/fs/bpf/other", args()))?;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("eth0 already has another xdp-lb"), "{said}");
        assert!(!Path::new("/sys/fs/bpf/other").exists());

        answers.extend(requests(lab, &format!("http://{VIP}/?[1-150]"))?);
        assert_weighted(&answers, VIP);
        assert!(has_address(lab, "lb", "eth0", VIP)?);
        assert_eq!(lab.sysctl("lb", LOOKUPS)?, "1");
        assert_eq!(first.figures()?.connections("tcp").values().sum::<u64>(), 200);
        assert_eq!(first.stop(Signal::SIGTERM)?, Some(0));
        assert_nothing_left(lab)
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_killed_instance() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut first = Balancer::start(lab, &args())?;
        let mut answers = requests(lab, &format!("http://{VIP}/?[1-50]"))?;
        assert_eq!(first.stop(Signal::SIGKILL)?, None);

        // What was attached goes on, and can still be looked at.
        answers.extend(requests(lab, &format!("http://{VIP}/?[1-100]"))?);
        assert_weighted(&answers, VIP);
        assert_eq!(Figures::read(lab)?.connections("tcp").values().sum::<u64>(), 150);
        pins_are_read_without_a_process(lab)?;

        // The next one goes on where the first stopped: of any 100 connections each backend gets its share.
        let mut second = Balancer::start(lab, &args())?;
        assert!(second.process.stderr().contains("an instance before"), "{}", second.process.stderr());
        answers.extend(requests(lab, &format!("http://{VIP}/?[1-120]"))?);
        assert_weighted(&answers, VIP);
        assert_eq!(second.figures()?.connections("tcp").values().sum::<u64>(), 270);
        assert_eq!(second.stop(Signal::SIGTERM)?, Some(0));
        // What the first one set too: the VIP, the sysctl.
        assert_nothing_left(lab)
    })
}

/// Every verb that only reads falls back to what is pinned, and says so; those that change something need the process.
fn pins_are_read_without_a_process(lab: &Lab) -> Result<()> {
    let run = |line: &str| -> Result<(Option<i32>, String, String)> {
        let output = lab.command("lb", XDP_LB)?.args(line.split(' ')).output()?;
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok((output.status.code(), stdout, stderr))
    };
    let vip = format!("{VIP}:80");
    let lines = [
        "status",
        "stats --count 1",
        "service list",
        "backend list",
        &format!("backend list {vip}"),
        "connections",
    ];
    for line in lines {
        let (code, stdout, stderr) = run(line)?;
        assert_eq!(code, Some(0), "{line}: {stderr}");
        assert!(
            stderr.starts_with("xdp-lb: no process listens at ") && stderr.lines().count() == 1,
            "{stderr}"
        );
        assert!(line == "connections" || stdout.contains(&vip), "{line}: {stdout}");
    }
    let (_, stdout, _) = run("status --json")?;
    let status: serde_json::Value = serde_json::from_str(&stdout)?;
    assert_eq!(status["running"], false);
    let (code, _, stderr) = run("connections --service nobody")?;
    assert!(code == Some(1) && stderr.contains("there is no service \"nobody\""), "{stderr}");
    let (code, _, stderr) = run("reload")?;
    assert!(code == Some(1) && stderr.contains("goes on without a process"), "{stderr}");
    Ok(())
}

/// A client that knows the VIP at another machine, as after a fail-over, learns better by the announcement.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_assigned_vip_is_announced() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let wrong = "02:00:00:00:00:99";
        lab.ip("client", &format!("neighbour replace {VIP} lladdr {wrong} dev eth0 nud stale"))?;
        let mut lb = Balancer::start(lab, &args())?;
        let link = lab.ip_show("lb", "-br link show dev eth0")?;
        let mac = link.split_whitespace().nth(2).context("no MAC")?;
        let shown = || lab.ip_show("client", &format!("neighbour show {VIP}")).unwrap_or_default();
        // Before any packet of the client, which would ask by itself.
        eventually("the client learns the VIP's MAC", || shown().contains(mac).then_some(()));
        assert!(!shown().contains(wrong));
        assert!(has_address(lab, "lb", "eth0", VIP)?);
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert!(!has_address(lab, "lb", "eth0", VIP)?);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_vip_that_was_there_stays() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.ip("lb", &format!("address add {VIP}/32 dev eth0"))?;
        // With --assign-vip, which then has nothing to do, and without.
        for args in [args(), args().replace("--assign-vip", "")] {
            let mut lb = Balancer::start(lab, &args)?;
            assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
            assert!(!lb.process.stderr().contains("is on no interface"), "{}", lb.process.stderr());
            assert_eq!(lb.stop(Signal::SIGINT)?, Some(0));
            assert!(has_address(lab, "lb", "eth0", VIP)?);
        }
        // On no interface: the program works, but the operator is told that nobody will find it.
        lab.ip("lb", &format!("address delete {VIP}/32 dev eth0"))?;
        let lb = Balancer::start(lab, &args().replace("--assign-vip", ""))?;
        let told =
            || lb.process.stderr().contains(&format!("the VIP {VIP} is on no interface")).then_some(());
        eventually("a warning", told);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_statistics_are_printed() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &format!("{} --stats-interval 300ms", args()))?;
        requests(lab, &format!("http://{VIP}/?[1-100]"))?;
        let tables = || {
            let text = lb.process.stdout();
            text.split("\n\n").skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        // The last may be half written.
        let before = tables().len();
        let printed =
            eventually("two more tables", || Some(tables()).filter(|tables| tables.len() > before + 2));
        let table = &printed[printed.len() - 2];
        for part in ["BACKEND", "10.0.0.10:8080", "PACKETS", "balanced", "drops: none", "connections: "] {
            assert!(table.contains(part), "no {part:?} in:\n{table}");
        }
        // There is an earlier one to compare with.
        let row = table.lines().find(|line| line.trim_start().starts_with("balanced")).context("no row")?;
        assert!(row.ends_with("bit/s"), "no rate in {row:?}");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_pins_elsewhere() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let bpffs = lab.dir().join("bpf");
        fs::create_dir(&bpffs)?;
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        let pin_dir = bpffs.join("mine");
        let option = format!("--pin-dir {}", pin_dir.display());
        let mut lb = Balancer::start(lab, &format!("{} {option}", args()))?;
        assert_mode(&pin_dir)?;
        assert!(!Path::new(PIN_DIR).exists());
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        let pin_dir_text = pin_dir.display().to_string();
        let status = lab.run("lb", XDP_LB, &["status", "--pin-dir", &pin_dir_text])?;
        assert!(status.contains("10.0.0.10:8080"), "{status}");
        // In the usual place there is nobody: where nothing else is said, the only one is meant. What is
        // passed on, as the neighbours' questions, goes on being counted between the two.
        let balanced = |status: &str| status.split("passed on").next().unwrap_or_default().to_owned();
        assert_eq!(balanced(&lab.run("lb", XDP_LB, &["status"])?), balanced(&status));
        let usual = lab.command("lb", XDP_LB)?.args(["status", "--pin-dir", PIN_DIR]).output()?;
        let said = String::from_utf8_lossy(&usual.stderr);
        assert_eq!(usual.status.code(), Some(1), "{said}");
        assert!(said.contains(PIN_DIR) && said.contains("--pin-dir"), "{said}");
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert!(!pin_dir.exists() && bpffs.exists());
        reachable(lab, "client", "192.168.1.1")
    })
}
