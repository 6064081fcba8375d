//! `xdp-lb tune`: what it sets, what it leaves alone, and how it is put back.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::balancer::XDP_LB;
use common::netns::{Lab, in_lab};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

const NO_TYPE: Option<&str> = None;
/// A veth with more queues than it uses.
const QUEUES: &str =
    "link add name fast numrxqueues 4 numtxqueues 4 type veth peer name far numrxqueues 4 numtxqueues 4
    link set fast up
    link set far up";

/// What `tune --json` said, step by step.
#[derive(Debug)]
struct Steps(Vec<Value>);

impl Steps {
    fn of(lab: &Lab, args: &str) -> Result<Steps> {
        let words: Vec<&str> =
            ["tune"].into_iter().chain(args.split_whitespace()).chain(["--json"]).collect();
        let text = lab.run("lb", XDP_LB, &words)?;
        let steps: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
        for step in &steps {
            let keys: Vec<&String> = step.as_object().context("an object")?.keys().collect();
            assert_eq!(keys, ["after", "before", "name", "note", "outcome", "what"], "{step}");
        }
        Ok(Steps(steps))
    }

    /// Panics unless there is such a step; its before and after.
    fn values(&self, outcome: &str, what: &str) -> (Value, Value) {
        let is_it = |step: &&Value| step["outcome"] == outcome && step["what"] == what;
        let step = self.0.iter().find(is_it).unwrap_or_else(|| panic!("no {outcome} {what} in {self:#?}"));
        (step["before"].clone(), step["after"].clone())
    }

    /// The same, and that it says why.
    fn note(&self, outcome: &str, what: &str) -> String {
        self.values(outcome, what);
        let is_it = |step: &&Value| step["outcome"] == outcome && step["what"] == what;
        let note = self.0.iter().find(is_it).and_then(|step| step["note"].as_str());
        note.unwrap_or_else(|| panic!("no note of {what} in {self:#?}")).to_owned()
    }
}

/// What belongs to the whole host: files in place of those of /proc, in this test's mounts.
struct Host(PathBuf);

impl Host {
    /// Two queues with an interrupt for each direction, one without a queue, and another device's.
    fn make(lab: &Lab) -> Result<Host> {
        const INTERRUPTS: &str = "           CPU0       CPU1\n \
            100:   1   0  PCI-MSI 1-edge   tap0-config\n \
            101:   1   0  PCI-MSI 2-edge   tap0-input.0\n \
            102:   1   0  PCI-MSI 3-edge   tap0-output.0\n \
            103:   1   0  PCI-MSI 4-edge   tap0-input.1\n \
            104:   1   0  PCI-MSI 5-edge   tap0-output.1\n \
            105:   1   0  PCI-MSI 6-edge   other-input.1\n";
        let host = Host(lab.dir().join("host"));
        fs::create_dir(&host.0)?;
        fs::write(host.0.join("interrupts"), INTERRUPTS)?;
        fs::create_dir(host.0.join("core"))?;
        fs::write(host.0.join("core/bpf_jit_enable"), "0\n")?;
        for irq in 100..=105 {
            fs::create_dir_all(host.0.join(format!("irq/{irq}")))?;
            fs::write(host.affinity_of(irq), "0\n")?;
        }
        let over = |file: &str, place: &str| {
            mount(Some(&host.0.join(file)), place, NO_TYPE, MsFlags::MS_BIND, NO_TYPE)
        };
        over("interrupts", "/proc/interrupts")?;
        over("irq", "/proc/irq")?;
        // Each network namespace has its own of that name.
        lab.within("lb", || over("core", "/proc/sys/net/core"))??;
        Ok(host)
    }

    fn affinity_of(&self, irq: u32) -> PathBuf {
        self.0.join(format!("irq/{irq}/smp_affinity_list"))
    }

    fn affinities(&self) -> Result<Vec<String>> {
        (100..=105).map(|irq| Ok(fs::read_to_string(self.affinity_of(irq))?.trim().to_owned())).collect()
    }

    fn jit(&self) -> Result<String> {
        Ok(fs::read_to_string(self.0.join("core/bpf_jit_enable"))?.trim().to_owned())
    }
}

/// Receive and transmit queues in use.
fn queues(lab: &Lab, interface: &str) -> Result<(String, String)> {
    let text = lab.run("lb", "ethtool", &["-l", interface])?;
    let current = text.split_once("Current").context("no current settings")?.1;
    let value = |name: &str| -> Result<String> {
        let line = current.lines().find_map(|line| line.strip_prefix(name)).context("no such queues")?;
        Ok(line.trim().to_owned())
    };
    Ok((value("RX:")?, value("TX:")?))
}

/// The settings of a device, as a mount of its own network namespace shows them.
fn device(lab: &Lab, interface: &str) -> Result<(String, String)> {
    let command = format!(
        "mount -t sysfs sysfs /sys && cat /sys/class/net/{interface}/gro_flush_timeout \
         /sys/class/net/{interface}/napi_defer_hard_irqs"
    );
    let text = lab.run("lb", "unshare", &["-m", "sh", "-c", &command])?;
    let mut lines = text.lines().map(str::to_owned);
    Ok((lines.next().context("no value")?, lines.next().context("no second value")?))
}

fn set_device(lab: &Lab, interface: &str, name: &str, value: &str) -> Result<()> {
    let command = format!("mount -t sysfs sysfs /sys && echo {value} > /sys/class/net/{interface}/{name}");
    lab.run("lb", "unshare", &["-m", "sh", "-c", &command]).map(drop)
}

fn pair(one: &str, other: &str) -> (String, String) {
    (one.to_owned(), other.to_owned())
}

fn records() -> usize {
    fs::read_dir("/run/xdp-lb").map_or(0, |dir| {
        dir.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("tune-")).count()
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_tuned_and_put_back() -> Result<()> {
    in_lab(|lab| {
        lab.add(&["lb"])?;
        lab.ip("lb", QUEUES)?;
        lab.run("lb", "ethtool", &["-L", "fast", "rx", "1", "tx", "1"])?;
        let host = Host::make(lab)?;
        let Some(cpus) = several_cpus()? else { return Ok(()) };
        let wanted = cpus.min(4).to_string();
        let state =
            || -> Result<_> { Ok((queues(lab, "fast")?, device(lab, "fast")?, host.jit()?, records())) };
        let before = state()?;
        assert_eq!(before, (pair("1", "1"), pair("0", "0"), "0".to_owned(), 0));

        let told = Steps::of(lab, "fast --dry-run")?;
        assert_eq!(told.values("planned", "receive queues of fast"), (json!("1"), json!(wanted)));
        assert_eq!(told.values("planned", "gro_flush_timeout of fast"), (json!("0"), json!("20000")));
        assert_eq!(state()?, before, "a dry run changed something");
        // Where /sys is that of this namespace already, as on a host without any.
        let command = format!("mount -t sysfs sysfs /sys && {XDP_LB} tune fast --dry-run");
        let text = lab.run("lb", "unshare", &["-m", "sh", "-c", &command])?;
        assert!(text.contains("busy-polling gro_flush_timeout of fast: 0 -> 20000"), "{text}");

        let done = Steps::of(lab, "fast")?;
        assert_eq!(done.values("changed", "net.core.bpf_jit_enable"), (json!("0"), json!("1")));
        assert_eq!(done.values("changed", "receive queues of fast"), (json!("1"), json!(wanted)));
        assert!(done.note("skipped", "adaptive-rx of fast").contains("no coalescing"), "{done:#?}");
        let tuned = state()?;
        assert_eq!(tuned, (pair(&wanted, &wanted), pair("20000", "2"), "1".to_owned(), 1));

        // A second time there is nothing to do, and the first record stays.
        let again = Steps::of(lab, "fast")?;
        again.values("kept", "receive queues of fast");
        assert!(again.0.iter().all(|step| step["outcome"] != "changed"), "{again:#?}");
        assert_eq!(state()?, tuned);

        // What somebody else sets meanwhile is his.
        set_device(lab, "fast", "gro_flush_timeout", "5000")?;
        let told = Steps::of(lab, "fast --undo --dry-run")?;
        assert_eq!(told.values("planned", "net.core.bpf_jit_enable"), (json!("1"), json!("0")));
        assert_eq!((host.jit()?.as_str(), records()), ("1", 1));
        // A new name makes no difference.
        lab.ip("lb", "link set fast down\nlink set fast name quick\nlink set quick up")?;
        let undone = Steps::of(lab, "quick --undo")?;
        assert_eq!(undone.values("restored", "receive queues of quick"), (json!(wanted), json!("1")));
        let note = undone.note("skipped", "gro_flush_timeout of quick");
        assert_eq!(note, "somebody else made it 5000 since it was made 20000; it was 0 before");
        assert_eq!((queues(lab, "quick")?, device(lab, "quick")?), (pair("1", "1"), pair("5000", "0")));
        assert_eq!((host.jit()?.as_str(), records()), ("0", 0));

        let text = lab.run("lb", XDP_LB, &["tune", "quick", "--undo"])?;
        assert_eq!(text, "nothing was changed for quick: there is nothing to put back\n");
        // In words.
        let text = lab.run("lb", XDP_LB, &["tune", "quick"])?;
        assert!(text.contains(&format!("queues       receive queues of quick: 1 -> {wanted}\n")), "{text}");
        assert!(
            text.contains("gro_flush_timeout of quick: left alone (it is 5000: somebody has set it already)"),
            "{text}"
        );
        Ok(())
    })
}

/// One with a device, so that it may have interrupts; the kernel knows of none, the files of the test do.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_interrupts() -> Result<()> {
    in_lab(|lab| {
        lab.add(&["lb"])?;
        if let Err(error) = lab.ip("lb", "tuntap add tap0 mode tap\nlink set tap0 up") {
            eprintln!("SKIPPED: no tap here: {error:#}");
            return Ok(());
        }
        let host = Host::make(lab)?;
        if several_cpus()?.is_none() {
            return Ok(());
        }
        let irq = || -> Result<Value> {
            let output = lab.command("lb", XDP_LB)?.args(["doctor", "tap0", "--json"]).output()?;
            let findings: Vec<Value> = serde_json::from_slice(&output.stdout)?;
            findings.into_iter().find(|finding| finding["name"] == "irq").context("no irq")
        };
        let found = irq()?;
        assert_eq!((&found["level"], &found["fix"]), (&json!("warning"), &json!("xdp-lb tune tap0")));
        let words = "the 4 interrupts of tap0, for 2 different queues, are served by 1 of";
        assert!(found["message"].as_str().is_some_and(|text| text.starts_with(words)), "{found}");

        let done = Steps::of(lab, "tap0")?;
        let moved = "processors of interrupt 103 (tap0-input.1)";
        assert_eq!(done.values("changed", moved), (json!("0"), json!("1")));
        done.values("kept", "processors of interrupt 101 (tap0-input.0)");
        done.note("skipped", "adaptive-rx of tap0");
        assert_eq!(host.affinities()?, ["0", "0", "0", "1", "1", "0"]);
        assert_eq!(irq()?["level"], "ok");

        fs::write(host.affinity_of(104), "0-1\n")?;
        let undone = Steps::of(lab, "tap0 --undo")?;
        assert_eq!(undone.values("restored", moved), (json!("1"), json!("0")));
        undone.note("skipped", "processors of interrupt 104 (tap0-output.1)");
        assert_eq!(host.affinities()?, ["0", "0", "0", "0", "0-1", "0"]);

        // Meanwhile a number has become another device's.
        Steps::of(lab, "tap0")?.values("changed", moved);
        let interrupts = fs::read_to_string(host.0.join("interrupts"))?;
        fs::write(host.0.join("interrupts"), interrupts.replace("tap0-input.1", "other-input.0"))?;
        let undone = Steps::of(lab, "tap0 --undo")?;
        assert_eq!(undone.note("skipped", moved), "it is gone");
        undone.values("restored", "processors of interrupt 104 (tap0-output.1)");
        assert_eq!(host.affinities()?, ["0", "0", "0", "1", "0-1", "0"]);
        fs::write(host.0.join("interrupts"), interrupts)?;
        fs::write(host.affinity_of(103), "0\n")?;

        // A veth of another namespace may have the name of this host's device.
        lab.ip("lb", "link del tap0\nlink add name tap0 type veth peer name far\nlink set tap0 up")?;
        let steps = Steps::of(lab, "tap0")?;
        assert!(steps.note("skipped", "interrupts of tap0").contains("no interrupts"), "{steps:#?}");
        assert_eq!(host.affinities()?, ["0", "0", "0", "0", "0-1", "0"]);
        Ok(())
    })
}

/// `None`, and said: with one processor there is nothing to spread.
fn several_cpus() -> Result<Option<usize>> {
    let cpus = std::thread::available_parallelism()?.get();
    if cpus < 2 {
        eprintln!("SKIPPED: there is one processor only");
    }
    Ok((cpus >= 2).then_some(cpus))
}

/// What a dry run promises is what is done: the driver of a veth takes no more queues that send than the far end receives by.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_far_end_with_a_program() -> Result<()> {
    in_lab(|lab| {
        lab.add(&["lb", "there"])?;
        lab.ip("lb", QUEUES)?;
        lab.ip("lb", "link set far netns there")?;
        lab.ip("there", "link set far up")?;
        let Some(cpus) = several_cpus()? else { return Ok(()) };
        let wanted = cpus.min(4).to_string();
        lab.run("lb", "ethtool", &["-L", "fast", "rx", "1", "tx", "1"])?;
        lab.run("there", "ethtool", &["-L", "far", "rx", "1", "tx", "1"])?;
        lab.run("there", XDP_LB, &["veth-peer", "far"])?;
        let told = Steps::of(lab, "fast --dry-run")?;
        let note = told.note("skipped", "transmit queues of fast");
        assert!(note.contains("receives by 1: the driver refuses more"), "{note}");
        assert_eq!(told.values("planned", "receive queues of fast"), (json!("1"), json!(wanted)));
        // It is known that this one will do.
        let text = lab.run("lb", XDP_LB, &["tune", "fast", "--dry-run"])?;
        assert!(text.contains(&format!("receive queues of fast: 1 -> {wanted}\n")), "{text}");
        let done = Steps::of(lab, "fast")?;
        done.values("changed", "receive queues of fast");
        assert_eq!(queues(lab, "fast")?, pair(&wanted, "1"));

        lab.run("there", "ethtool", &["-L", "far", "rx", "4"])?;
        let told = Steps::of(lab, "fast --dry-run")?;
        assert_eq!(told.values("planned", "transmit queues of fast"), (json!("1"), json!(wanted)));
        Steps::of(lab, "fast")?.values("changed", "transmit queues of fast");
        assert_eq!(queues(lab, "fast")?, pair(&wanted, &wanted));
        Ok(())
    })
}

/// The interface is gone: what belongs to the host is put back.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_an_interface_that_is_gone() -> Result<()> {
    in_lab(|lab| {
        lab.add(&["lb"])?;
        lab.ip("lb", QUEUES)?;
        let host = Host::make(lab)?;
        Steps::of(lab, "fast")?;
        assert_eq!((host.jit()?.as_str(), records()), ("1", 1));
        lab.ip("lb", "link del fast")?;
        let undone = Steps::of(lab, "fast --undo")?;
        undone.values("restored", "net.core.bpf_jit_enable");
        assert_eq!(undone.note("skipped", "gro_flush_timeout of fast"), "it is gone");
        assert_eq!((host.jit()?.as_str(), records()), ("0", 0));
        let output = lab.command("lb", XDP_LB)?.args(["tune", "fast", "--undo"]).output()?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1));
        assert!(said.contains("there is no interface fast, and nothing is recorded of one"), "{said}");
        Ok(())
    })
}

/// Made anew under its name: what was changed of the host is put back all the same, of it nothing.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_an_interface_that_was_made_anew() -> Result<()> {
    in_lab(|lab| {
        lab.add(&["lb"])?;
        lab.ip("lb", QUEUES)?;
        let host = Host::make(lab)?;
        Steps::of(lab, "fast")?;
        lab.ip("lb", "link del fast")?;
        lab.ip("lb", QUEUES)?;
        let undone = Steps::of(lab, "fast --undo")?;
        undone.values("restored", "net.core.bpf_jit_enable");
        assert_eq!(undone.note("skipped", "gro_flush_timeout of fast"), "it is gone");
        assert_eq!((host.jit()?.as_str(), records()), ("0", 0));

        // Tuned both times.
        Steps::of(lab, "fast")?;
        lab.ip("lb", "link del fast")?;
        lab.ip("lb", QUEUES)?;
        Steps::of(lab, "fast")?;
        assert_eq!((host.jit()?.as_str(), records()), ("1", 2));
        let told = Steps::of(lab, "fast --undo --dry-run")?;
        told.values("planned", "net.core.bpf_jit_enable");
        let undone = Steps::of(lab, "fast --undo")?;
        undone.values("restored", "net.core.bpf_jit_enable");
        undone.values("restored", "gro_flush_timeout of fast");
        assert_eq!((host.jit()?.as_str(), records()), ("0", 0));

        // One that has another name now is not gone.
        Steps::of(lab, "fast")?;
        lab.ip("lb", "link set fast down\nlink set fast name quick")?;
        let output = lab.command("lb", XDP_LB)?.args(["tune", "fast", "--undo"]).output()?;
        assert_eq!((output.status.code(), records()), (Some(1), 1));
        Steps::of(lab, "quick --undo")?.values("restored", "gro_flush_timeout of quick");
        Ok(())
    })
}

/// What two interfaces were tuned with stays until the last of them is as it was.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_two_interfaces() -> Result<()> {
    in_lab(|lab| {
        lab.add(&["lb"])?;
        lab.ip("lb", QUEUES)?;
        lab.ip("lb", "link add name other type veth peer name end\nlink set other up")?;
        let host = Host::make(lab)?;
        Steps::of(lab, "fast")?.values("changed", "net.core.bpf_jit_enable");
        Steps::of(lab, "other")?.values("kept", "net.core.bpf_jit_enable");
        let undone = Steps::of(lab, "fast --undo")?;
        let note = undone.note("skipped", "net.core.bpf_jit_enable");
        assert_eq!(note, "other was tuned with it too: it is put back with that");
        assert_eq!((host.jit()?.as_str(), records()), ("1", 1));
        Steps::of(lab, "other --undo")?.values("restored", "net.core.bpf_jit_enable");
        assert_eq!((host.jit()?.as_str(), records()), ("0", 0));
        Ok(())
    })
}

/// To change queues under a program costs traffic, so that it is said before.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_queues_under_a_program() -> Result<()> {
    in_lab(|lab| {
        lab.add(&["lb"])?;
        lab.ip("lb", QUEUES)?;
        for end in ["fast", "far"] {
            lab.run("lb", "ethtool", &["-L", end, "rx", "1", "tx", "1"])?;
        }
        if several_cpus()?.is_none() {
            return Ok(());
        }
        let said = |args: &[&str]| -> Result<String> {
            let output = lab.command("lb", XDP_LB)?.args(args).output()?;
            assert!(output.status.success(), "{output:?}");
            Ok(String::from_utf8(output.stderr)?)
        };
        assert_eq!(said(&["tune", "fast", "--dry-run"])?, "");
        said(&["veth-peer", "fast"])?;
        const FLAP: &str = "a program is on fast: to change its queues makes the link flap with most drivers";
        assert!(said(&["tune", "fast", "--dry-run"])?.contains(FLAP));
        assert!(said(&["tune", "fast"])?.contains(FLAP));
        assert_eq!(said(&["tune", "fast"])?, "", "there is nothing to change any more");
        assert!(said(&["tune", "fast", "--undo"])?.contains(FLAP));
        Ok(())
    })
}

/// In a namespace of its own the host's settings are out of sight, and a device may have next to none: no failure.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_cannot_be_tuned_is_left_alone() -> Result<()> {
    in_lab(|lab| {
        lab.add(&["lb"])?;
        lab.ip("lb", "link add name br0 type bridge\nlink set br0 up")?;
        let steps = Steps::of(lab, "br0")?;
        assert!(steps.note("skipped", "net.core.bpf_jit_enable").contains("not to be seen"), "{steps:#?}");
        assert!(steps.note("skipped", "queues of br0").contains("does not tell"), "{steps:#?}");
        assert!(steps.note("skipped", "interrupts of br0").contains("no interrupts"), "{steps:#?}");
        steps.note("skipped", "adaptive-rx of br0");
        Steps::of(lab, "br0 --undo")?;
        assert!(!Path::new("/run/xdp-lb").exists() || records() == 0);
        Ok(())
    })
}
