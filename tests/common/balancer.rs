//! The program under test, in the namespace `lb`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::eventually;
use super::netns::{Lab, Process};
use super::networks::VIP;

/// The binary.
pub const XDP_LB: &str = env!("CARGO_BIN_EXE_xdp-lb");
/// Where it pins by default.
pub const PIN_DIR: &str = "/sys/fs/bpf/xdp_lb";
/// The last line of what it prints once it is attached.
const READY: &str = "pinned in ";

/// A running instance.
pub struct Balancer<'a> {
    lab: &'a Lab,
    pub process: Process,
}

impl<'a> Balancer<'a> {
    /// Starts one, and waits until it balances.
    pub fn start(lab: &'a Lab, args: &str) -> Result<Balancer<'a>> {
        let mut process = spawn(lab, args)?;
        let ready = eventually("xdp-lb attached", || match process.ended() {
            Ok(None) => process.stdout().contains(READY).then_some(true),
            _ => Some(false),
        });
        if !ready {
            bail!("xdp-lb ended by itself:\n{}{}", process.stdout(), process.stderr());
        }
        Ok(Balancer { lab, process })
    }

    /// The instance's figures, as `xdp-lb status --json` tells them.
    pub fn figures(&self) -> Result<Figures> {
        Figures::read(self.lab)
    }

    /// Ends it by a signal; its exit code.
    pub fn stop(&mut self, signal: Signal) -> Result<Option<i32>> {
        self.process.signal(signal)?;
        Ok(self.process.wait()?.code())
    }
}

/// Starts one that is expected to end by itself; its exit code and stderr.
pub fn refused(lab: &Lab, args: &str) -> Result<(Option<i32>, String)> {
    let mut process = spawn(lab, args)?;
    let status = process.wait()?;
    Ok((status.code(), process.stderr()))
}

fn spawn(lab: &Lab, args: &str) -> Result<Process> {
    let args: Vec<&str> = args.split_whitespace().collect();
    lab.start("lb", XDP_LB, &args)
}

/// The three servers as backends, on one port and with the weights of the README.
pub fn weighted(port: u16) -> String {
    format!("--backend 10.0.0.10:{port}:50 --backend 10.0.0.11:{port}:30 --backend 10.0.0.12:{port}:20")
}

/// Whether a namespace's interface has any XDP program.
pub fn has_xdp(lab: &Lab, namespace: &str, interface: &str) -> Result<bool> {
    Ok(lab.ip_show(namespace, &format!("-d link show dev {interface}"))?.contains("prog/xdp"))
}

/// Whether an interface has an address.
pub fn has_address(lab: &Lab, namespace: &str, interface: &str, address: &str) -> Result<bool> {
    Ok(lab
        .ip_show(namespace, &format!("address show dev {interface}"))?
        .contains(&format!("inet {address}/")))
}

/// The output of `xdp-lb status --json`.
#[derive(Debug)]
pub struct Figures(pub Value);

impl Figures {
    /// Of the instance with the default pins.
    pub fn read(lab: &Lab) -> Result<Figures> {
        let text = lab.run("lb", XDP_LB, &["status", "--json"])?;
        Ok(Figures(serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?))
    }

    /// Connections since the start of a protocol's service, by backend address.
    pub fn connections(&self, protocol: &str) -> BTreeMap<String, u64> {
        let backend = |backend: &Value| {
            (string(&backend["address"]), backend["connections"].as_u64().expect("a number of connections"))
        };
        self.backends(protocol).iter().map(backend).collect()
    }

    /// The backends of a protocol's service.
    pub fn backends(&self, protocol: &str) -> &[Value] {
        let services = self.0["services"].as_array().expect("services");
        let service = services.iter().find(|service| service["protocol"] == protocol).expect("the protocol");
        service["backends"].as_array().expect("backends")
    }

    /// How many packets a class of reasons counted (`sent`, `stack`, `pass`, `drop`, `error`), by reason; those with
    /// none are left out.
    pub fn reasons(&self, class: &str) -> BTreeMap<String, u64> {
        let reasons = self.0["reasons"].as_array().expect("reasons").iter();
        reasons
            .filter(|reason| reason["class"] == class)
            .map(|reason| (string(&reason["name"]), reason["packets"].as_u64().expect("a number of packets")))
            .filter(|(_, packets)| *packets > 0)
            .collect()
    }

    /// Panics unless every packet of a service was sent by XDP itself: none lost, none left to the kernel.
    pub fn assert_all_direct(&self) {
        for class in ["stack", "drop", "error"] {
            assert_eq!(self.reasons(class), BTreeMap::new(), "packets counted as {class}");
        }
        let sent = self.reasons("sent");
        assert!(sent.contains_key("to_backend") && sent.contains_key("to_client"), "{sent:?}");
    }
}

fn string(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// What the program's route look-ups need, and nothing else of the host's routing.
pub const LOOKUPS: &str = "net/ipv4/conf/lo/forwarding";
/// What a start says that takes over.
pub const FOUND: &str = "an instance before left its programs running";

/// Kills an instance and starts another one over what it left.
pub fn restart<'a>(lab: &'a Lab, mut lb: Balancer<'a>, args: &str) -> Result<Balancer<'a>> {
    assert_eq!(lb.stop(Signal::SIGKILL)?, None);
    let lb = Balancer::start(lab, args)?;
    assert!(lb.process.stderr().contains(FOUND), "{}", lb.process.stderr());
    Ok(lb)
}

/// What is pinned.
pub fn pins() -> Result<BTreeSet<String>> {
    fs::read_dir(PIN_DIR)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// As after a clean end, with the VIP of two arms.
pub fn assert_nothing_left(lab: &Lab) -> Result<()> {
    for interface in ["eth0", "eth1"] {
        assert!(!has_xdp(lab, "lb", interface)?, "a program on {interface}");
    }
    assert!(!Path::new(PIN_DIR).exists(), "pins");
    assert!(!has_address(lab, "lb", "eth0", VIP)?, "the VIP");
    assert_eq!(lab.sysctl("lb", LOOKUPS)?, "0");
    Ok(())
}
