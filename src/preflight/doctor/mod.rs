//! What ails an instance, or a host that is to have one: all that a start looks at, and what matters only to one that runs
//! or is to be fast. Each check gives at least one finding.

mod hardware;
mod instance;
mod neighbours;
mod ports;
mod replies;
mod serving;
mod stack;
mod table;
mod unserved;

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::privileges::Rights;
use super::{Finding, Level, Scene};
use super::{backends, interfaces, kernel, memory, privileges, programs, sysctls, vips};
use crate::config::{Config, DEFAULT_PIN_DIR, default_socket};
use crate::metrics::Snapshot;
use crate::net::Netlink;

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Patient {
    /// What the instance was asked to do. Without services where there is no instance.
    pub config: Config,
    /// How it is.
    pub state: State,
    /// What it counted, and what its backends are: told by its process, or without one by its tables.
    pub figures: Option<Box<Snapshot>>,
    /// What only is to be told of.
    pub focus: Option<Focus>,
    /// What other instances left.
    pub left: Vec<Leftover>,
}

impl Patient {
    /// One whose services are not known.
    pub fn new(config: Config, state: State) -> Patient {
        Patient { config, state, figures: None, focus: None, left: Vec::new() }
    }

    /// A command to advise, for this instance.
    fn command(&self, words: &str) -> String {
        command(words, &self.config.pin_dir, &self.config.socket)
    }

    /// Whether programs of an instance are at work, and known.
    fn is_there(&self) -> bool {
        match self.state {
            State::Runs | State::Dead => true,
            State::Silent(..) => self.figures.is_some(),
            State::None => false,
        }
    }
}

/// A command to advise, which names the instance where it would not be found without.
pub fn command(words: &str, pin_dir: &Path, socket: &Path) -> String {
    let named = match (socket == default_socket(pin_dir), pin_dir == Path::new(DEFAULT_PIN_DIR)) {
        (true, true) => String::new(),
        (true, false) => format!(" --pin-dir {}", pin_dir.display()),
        (false, _) => format!(" --socket {}", socket.display()),
    };
    format!("xdp-lb {words}{named}")
}

/// An interface that somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Focus {
    /// Its name.
    pub interface: String,
    /// Whether the interfaces of backends belong to it, as clients come by it.
    pub with_backends: bool,
}

/// What an instance without a process left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its pin directory.
    pub dir: PathBuf,
    /// The interfaces here that run its program.
    pub interfaces: Vec<String>,
    /// Whether its program runs in another network namespace.
    pub elsewhere: bool,
}

/// How an instance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// There is none, or it has nothing to do with the interface that was named.
    None,
    /// Its process answers.
    Runs,
    /// What it pinned goes on without a process.
    Dead,
    /// It cannot be asked: why, and what to do.
    Silent(String, String),
}

/// What a check needs to be looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Interface,
    Services,
}

/// A check: its name, and what is so where it found nothing. Scripts rely on the names: new ones are added, none is renamed.
struct Check {
    name: &'static str,
    needs: Needs,
    quiet: &'static str,
}

const fn check(name: &'static str, needs: Needs, quiet: &'static str) -> Check {
    Check { name, needs, quiet }
}

/// Every check, in the order in which they are shown.
const CHECKS: [Check; 32] = [
    check("instance", Needs::Nothing, "no instance runs"),
    check("service", Needs::Services, "not to be seen"),
    check("backend", Needs::Services, "none is down"),
    check("privileges", Needs::Nothing, "nothing is missing"),
    check("kernel", Needs::Nothing, "not to be seen"),
    check("btf", Needs::Nothing, "the kernel describes its types (/sys/kernel/btf/vmlinux)"),
    check("jit", Needs::Nothing, "net.core.bpf_jit_enable is not to be seen from this network namespace"),
    check("memory", Needs::Nothing, "the table is there already"),
    check("bpffs", Needs::Nothing, "not looked at"),
    check("pins", Needs::Nothing, "not looked at"),
    check("interface", Needs::Interface, "nothing is wrong"),
    check("driver", Needs::Interface, "not to be seen"),
    check("mtu", Needs::Interface, "no limit is known that is exceeded"),
    check("queues", Needs::Interface, "no driver tells its queues"),
    check("irq", Needs::Interface, "no interface has interrupts of its own"),
    check("lro", Needs::Interface, "off at each interface"),
    check("gro", Needs::Interface, "not to be seen"),
    check("offloads", Needs::Interface, "none is in the way"),
    check("veth", Needs::Interface, "no interface is a veth"),
    check("program", Needs::Interface, "nothing is in the way"),
    check("route", Needs::Services, "no backend is configured"),
    check("neighbour", Needs::Services, "no backend is reached by a neighbour"),
    check("clash", Needs::Services, "no two services or backends clash"),
    check("client-subnet", Needs::Services, "no backend is in a subnet of clients"),
    check("client-route", Needs::Services, "no reply lacked a route to its client"),
    check("vip", Needs::Services, "there is none"),
    check("delivery", Needs::Interface, "not to be told"),
    check("ip-forward", Needs::Nothing, "net.ipv4.ip_forward is not to be seen"),
    check("sysctl", Needs::Interface, "all that the kernel's delivery needs is set"),
    check("firewall", Needs::Services, "no rule is in the way"),
    check("ports", Needs::Services, "no VIP's port is among those that this host uses itself"),
    check("table", Needs::Services, "not looked at"),
];

/// Looks at everything. What cannot be looked at is a finding too.
///
/// # Errors
/// When the kernel does not answer by netlink.
pub fn examine(netlink: &mut Netlink, patient: &Patient) -> Result<Vec<Finding>> {
    let config = &patient.config;
    let rights = Rights::of_this_process();
    let mut scene = Scene::look(netlink, config)?;
    if let Some(focus) = &patient.focus {
        scene.focus(netlink, &focus.interface, focus.with_backends)?;
    }
    let is_there = patient.is_there();
    let mut findings = instance::check(patient, &rights);
    findings.extend(serving::check(patient));
    findings.extend(unserved::check(patient));
    findings.extend(privileges::check(&rights, config));
    findings.extend(kernel::check(&rights));
    if !is_there {
        findings.extend(memory::check(config));
    }
    findings.extend(interfaces::check(&scene, config));
    findings.extend(hardware::check(&scene, config)?);
    findings.extend(instance::programs(&scene, patient, programs::check(&scene, config)));
    findings.extend(scene.delivery());
    findings.extend(stack::forwarding(is_there));
    findings.extend(sysctls::check(&scene, is_there));
    if !config.services.is_empty() {
        findings.extend(backends::check_briefly(&scene, config));
        findings.extend(neighbours::check(netlink, &scene)?);
        findings.extend(replies::check(netlink, patient)?);
        findings.extend(vips::check(&scene, config, true));
        findings.extend(stack::firewall(&scene, config));
        findings.extend(ports::check(&scene, config));
    }
    findings.extend(table::check(patient));
    Ok(complete(findings, patient))
}

/// Adds a line for each check that found nothing, and puts all in order.
fn complete(mut findings: Vec<Finding>, patient: &Patient) -> Vec<Finding> {
    let config = &patient.config;
    let unknown = match patient.state {
        State::None => "not looked at: no instance runs",
        State::Silent(..) => "not looked at: the instance cannot be asked",
        State::Runs | State::Dead => "not looked at: no service is known",
    };
    for check in &CHECKS {
        if findings.iter().any(|finding| finding.name == check.name) {
            continue;
        }
        let message = match check.needs {
            Needs::Services if config.services.is_empty() => unknown.to_owned(),
            Needs::Interface if config.interfaces.is_empty() => {
                format!("{unknown}, and no interface was named")
            }
            _ => check.quiet.to_owned(),
        };
        findings.push(Finding::ok(check.name, &message));
    }
    let place = |finding: &Finding| CHECKS.iter().position(|check| check.name == finding.name);
    findings.sort_by_key(|finding| place(finding).unwrap_or(CHECKS.len()));
    findings
}

/// How bad the worst finding is.
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_says_something_in_order() {
        let patient = |interfaces| Patient::new(Config::new(interfaces, vec![]), State::None);
        let findings = complete(
            vec![Finding::ok("table", "x"), Finding::warning("lro", "on", "off"), Finding::ok("kernel", "x")],
            &patient(vec!["eth0".into()]),
        );
        let names: Vec<&str> = findings.iter().map(|finding| finding.name).collect();
        let expected: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        assert_eq!(names, expected);
        let message = |name: &str| {
            findings.iter().find(|finding| finding.name == name).map(|finding| finding.message.as_str())
        };
        assert_eq!(message("vip"), Some("not looked at: no instance runs"));
        assert_eq!(message("offloads"), Some("none is in the way"));
        let none = complete(vec![], &patient(vec![]));
        assert!(none.iter().any(|finding| finding.message.contains("no interface was named")));
        assert_eq!(worst(&findings), Level::Warning);
        assert_eq!(worst(&none), Level::Ok);
    }

    #[test]
    fn every_name_is_documented() {
        let table = include_str!("../../../docs/doctor.md");
        for name in CHECKS.iter().map(|check| check.name) {
            assert!(table.contains(&format!("| `{name}` |")), "docs/doctor.md lacks {name}");
        }
    }
}
