use std::fs::OpenOptions;

use super::{Finding, Remedy, Scene};
use crate::net::{read_sysctl, sysctl_path};

const NAME: &str = "sysctl";
/// The kernel looks up routes in a program only on behalf of an interface that forwards.
const LOOKUPS: &str = "net.ipv4.conf.lo.forwarding";

/// A sysctl that is to have a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysctlNeed {
    /// Its name; an interface's name in it may have dots, which stand as slashes.
    pub name: String,
    /// What it must be.
    pub value: &'static str,
    /// What for, for people.
    pub why: &'static str,
}

/// What stack delivery wants to know about an interface in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackInterface {
    /// Its name.
    pub name: String,
    /// Packets of clients that arrive on it are left to the kernel to deliver, at least some.
    pub to_backends: bool,
    /// Replies that arrive on it are.
    pub to_clients: bool,
    /// What is handed over may leave by the interface that it came in by.
    pub one_arm: bool,
}

/// The sysctls that the kernel's delivery needs: the interfaces' own switches, not `ip_forward`, whose writing sets those of
/// all interfaces.
pub fn needs(interfaces: &[StackInterface]) -> Vec<SysctlNeed> {
    let mut needs = Vec::new();
    let conf = |interface: &str, key: &str| format!("net.ipv4.conf.{}.{key}", interface.replace('.', "/"));
    let mut one_arm = false;
    for interface in interfaces.iter().filter(|interface| interface.to_backends || interface.to_clients) {
        let name = &interface.name;
        let mut need = |key: &str, value, why| needs.push(SysctlNeed { name: conf(name, key), value, why });
        need("forwarding", "1", "the kernel forwards what it is to deliver");
        if interface.to_clients {
            need("accept_local", "1", "replies have the VIP, which is local, as their source");
            need("rp_filter", "2", "the way back to that source is not by this interface");
        }
        if interface.one_arm {
            need("send_redirects", "0", "hosts would be told to bypass this one");
            one_arm = true;
        }
    }
    if one_arm {
        let why = "the kernel sends redirects if either this or the interface's own is 1";
        needs.push(SysctlNeed { name: conf("all", "send_redirects"), value: "0", why });
    }
    needs
}

impl SysctlNeed {
    /// Whether another value than the one asked for does too: the kernel takes the larger of an interface's and everybody's
    /// rp_filter, and only 1 stops replies.
    pub fn is_met_otherwise(&self) -> bool {
        self.name.ends_with(".rp_filter")
            && read_sysctl(&self.name).is_ok_and(|now| now != self.value)
            && strict_filter(&self.name) != Some(true)
    }
}

/// `nobody_sets`: an instance has started already, or ended, so that what is not right stays so.
pub(super) fn check(scene: &Scene, nobody_sets: bool) -> Vec<Finding> {
    let mut all = vec![SysctlNeed {
        name: LOOKUPS.to_owned(),
        value: "1",
        why: "the program looks up the way to clients",
    }];
    let mut interfaces = stack_interfaces(scene);
    interfaces.retain(|interface| scene.shown().iter().any(|link| link.name == interface.name));
    all.extend(needs(&interfaces));
    all.iter().filter_map(|need| judge(need, nobody_sets)).collect()
}

/// Which interfaces hand packets over to the kernel, as far as can be told beforehand.
fn stack_interfaces(scene: &Scene) -> Vec<StackInterface> {
    let in_use = scene.in_use();
    let to_backends = in_use.iter().any(|link| scene.faces_backends(link) && scene.leaves_by_stack(link));
    let to_clients = scene.named.iter().any(|link| scene.leaves_by_stack(link));
    let of = |link: &&crate::net::Link| {
        let faces_backends = scene.faces_backends(link);
        let faces_clients = scene.is_named(link);
        StackInterface {
            name: link.name.clone(),
            to_backends: faces_clients && to_backends,
            to_clients: faces_backends && to_clients,
            one_arm: faces_clients && faces_backends,
        }
    };
    in_use.iter().map(of).collect()
}

/// `None` if it has the value already, or one that does.
fn judge(need: &SysctlNeed, nobody_sets: bool) -> Option<Finding> {
    let SysctlNeed { name, value, why } = need;
    let now = read_sysctl(name).ok()?;
    if now == *value || need.is_met_otherwise() {
        return None;
    }
    let remedy = Remedy::sysctl(name, value);
    if nobody_sets {
        let message = format!("{name} is {now}, must be {value}: {why}");
        return Some(Finding::mendable(NAME, &message, remedy));
    }
    // Opening changes nothing, and goes by what decides: access(2) knows neither the effective user nor capabilities.
    if OpenOptions::new().write(true).open(sysctl_path(name)).is_ok() {
        let message = format!("{name} is {now} and will be set to {value} while it runs: {why}");
        return Some(Finding::ok(NAME, &message));
    }
    let message = format!("{name} is {now}, must be {value} and cannot be set from here: {why}");
    Some(Finding::mendable(NAME, &message, remedy))
}

/// Whether the greater of the interface's and everybody's value is 1.
fn strict_filter(name: &str) -> Option<bool> {
    let value = |name: &str| read_sysctl(name).ok()?.parse::<u8>().ok();
    Some(value(name)?.max(value("net.ipv4.conf.all.rp_filter")?) == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, to_backends: bool, to_clients: bool) -> StackInterface {
        StackInterface { name: name.into(), to_backends, to_clients, one_arm: false }
    }

    fn names(interfaces: &[StackInterface]) -> Vec<String> {
        let short = |need: SysctlNeed| format!("{}={}", need.name, need.value).replace("net.ipv4.conf.", "");
        needs(interfaces).into_iter().map(short).collect()
    }

    #[test]
    fn each_direction_needs_its_own() {
        assert!(names(&[interface("eth0", false, false), interface("eth1", false, false)]).is_empty());
        let two_arms = [interface("eth0", true, false), interface("eth1.5", false, true)];
        assert_eq!(
            names(&two_arms),
            ["eth0.forwarding=1", "eth1/5.forwarding=1", "eth1/5.accept_local=1", "eth1/5.rp_filter=2"]
        );
        assert_eq!(names(&two_arms[..1]), ["eth0.forwarding=1"]);
    }

    #[test]
    fn one_arm_sends_no_redirects() {
        let arm = StackInterface { one_arm: true, ..interface("eth0", true, true) };
        let needed = names(&[arm]);
        assert!(needed.contains(&"eth0.send_redirects=0".into()), "{needed:?}");
        assert!(needed.contains(&"all.send_redirects=0".into()), "{needed:?}");
        let direct = StackInterface { one_arm: true, ..interface("eth0", false, false) };
        assert!(names(&[direct]).is_empty());
    }
}
