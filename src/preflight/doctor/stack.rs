//! What the kernel's own delivery needs, also where XDP delivers: a neighbour that is not resolved yet is left to the kernel.

use crate::config::Config;
use crate::net::read_sysctl;
use crate::preflight::{Finding, Level, Remedy, Scene, firewall};

const FORWARD: &str = "net.ipv4.ip_forward";

/// `is_there`: there is an instance that it is for. A host without one is made a router by its operator only.
pub(super) fn forwarding(is_there: bool) -> Option<Finding> {
    Some(judge(&read_sysctl(FORWARD).ok()?, is_there))
}

fn judge(value: &str, is_there: bool) -> Finding {
    const NAME: &str = "ip-forward";
    match value {
        "0" => {
            let message = format!(
                "{FORWARD} is 0: what is left to the kernel, as all that goes to a neighbour not resolved yet, is dropped where \
                 an interface does not forward by itself"
            );
            let finding = Finding::mendable(NAME, &message, Remedy::sysctl(FORWARD, "1"));
            Finding { remedy: finding.remedy.filter(|_| is_there), ..finding }
        }
        _ => Finding::ok(NAME, &format!("the kernel forwards what is left to it ({FORWARD} = {value})")),
    }
}

pub(super) fn firewall(scene: &Scene, config: &Config) -> Vec<Finding> {
    if scene.by_stack() {
        return firewall::check(scene, config);
    }
    let (mut findings, obstacles) = firewall::look(scene, config);
    // So few packets depend on it that not to know is no fault.
    findings.iter_mut().for_each(|finding| finding.level = Level::Ok);
    findings.extend(obstacles.into_iter().map(|finding| {
        let message =
            format!("{}; XDP delivers all but those to neighbours not resolved yet", finding.message);
        Finding { message, ..finding }
    }));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarding_matters_always() {
        let off = judge("0", true);
        assert_eq!(
            (off.level, off.fix.as_deref()),
            (Level::Warning, Some("sysctl -w net.ipv4.ip_forward=1"))
        );
        assert!(off.message.starts_with("net.ipv4.ip_forward is 0"));
        assert_eq!(off.remedy, Some(Remedy::sysctl(FORWARD, "1")));
        let without = judge("0", false);
        assert_eq!(without, Finding { remedy: None, ..off }, "the same, but nobody asked for a router");
        assert_eq!(judge("1", true).level, Level::Ok);
    }
}
