use caps::{CapSet, Capability};

use super::Finding;
use crate::config::Config;

const NAME: &str = "privileges";

/// The capabilities of this process, in effect.
pub(super) struct Rights(caps::CapsHashSet);

impl Rights {
    /// None, where the kernel does not tell.
    pub(super) fn of_this_process() -> Rights {
        Rights(caps::read(None, CapSet::Effective).unwrap_or_default())
    }

    /// CAP_SYS_ADMIN stands in for the two that were cut out of it.
    fn has(&self, capability: Capability) -> bool {
        let part = matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON);
        self.0.contains(&capability) || (part && self.0.contains(&Capability::CAP_SYS_ADMIN))
    }

    /// Whether programs may be loaded, and others' be looked at.
    pub(super) fn can_load(&self) -> bool {
        self.has(Capability::CAP_BPF)
            && self.has(Capability::CAP_NET_ADMIN)
            && self.has(Capability::CAP_PERFMON)
    }

    /// Whether a bpffs may be mounted.
    pub(super) fn can_mount(&self) -> bool {
        self.has(Capability::CAP_SYS_ADMIN)
    }
}

pub(super) fn check(rights: &Rights, config: &Config) -> Vec<Finding> {
    let mut needed = vec![Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];
    // To announce the address.
    needed.extend(config.assign_vip.then_some(Capability::CAP_NET_RAW));
    let missing: Vec<String> =
        needed.into_iter().filter(|one| !rights.has(*one)).map(|one| one.to_string()).collect();
    if missing.is_empty() {
        return vec![Finding::ok(NAME, "all capabilities that are needed are there")];
    }
    let message = format!("missing: {}", missing.join(", "));
    vec![Finding::error(NAME, &message, "run it as root (sudo xdp-lb ...), or give it these capabilities")]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::preflight::backends::tests::config;

    fn missing(rights: &[Capability], assign_vip: bool) -> String {
        let rights = Rights(HashSet::from_iter(rights.iter().copied()));
        let config = Config { assign_vip, ..config(&[]) };
        check(&rights, &config)[0].message.clone()
    }

    #[test]
    fn what_is_missing_is_named() {
        use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_SYS_ADMIN};
        assert_eq!(missing(&[], false), "missing: CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON");
        assert_eq!(missing(&[CAP_SYS_ADMIN], false), "missing: CAP_NET_ADMIN");
        assert_eq!(missing(&[CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON], true), "missing: CAP_NET_RAW");
        let all = [CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_NET_RAW];
        assert!(missing(&all, true).contains("are there"));
    }
}
