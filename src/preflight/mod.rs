//! What would keep an instance from working on this host, found out before anything is attached, each with its fix.
//!
//! Nothing here changes anything: no program stays loaded, nothing is pinned, mounted or set. Everything that is found is
//! plain data, for whoever shows it.

mod backends;
mod doctor;
mod firewall;
mod interfaces;
mod kernel;
mod memory;
mod metrics;
mod pins;
mod privileges;
mod programs;
mod remedy;
mod scene;
mod sysctls;
mod vips;

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use crate::config::Config;
use crate::net::Netlink;
use scene::Scene;

pub use doctor::{Focus, Leftover, Patient, State, command, examine, worst};
pub use remedy::Remedy;
pub use sysctls::{StackInterface, SysctlNeed, needs as sysctl_needs};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about, one word for scripts.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What is so, for people.
    pub message: String,
    /// What to do about it, in one line; a command where there is one. Of what is ok: what would make it faster.
    pub fix: Option<String>,
    /// The fix as something that can be carried out without asking: it harms nothing and nobody.
    #[serde(skip)]
    pub remedy: Option<Remedy>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be, or good to know.
    Ok,
    /// It will start, but something will not work for somebody.
    Warning,
    /// It will not start.
    Error,
}

impl Finding {
    fn ok(name: &'static str, message: &str) -> Finding {
        Finding { name, level: Level::Ok, message: message.to_owned(), fix: None, remedy: None }
    }

    fn warning(name: &'static str, message: &str, fix: &str) -> Finding {
        Finding { level: Level::Warning, fix: Some(fix.to_owned()), ..Finding::ok(name, message) }
    }

    fn error(name: &'static str, message: &str, fix: &str) -> Finding {
        Finding { level: Level::Error, ..Finding::warning(name, message, fix) }
    }

    /// A warning about what can be mended without asking.
    fn mendable(name: &'static str, message: &str, remedy: Remedy) -> Finding {
        Finding { remedy: Some(remedy.clone()), ..Finding::warning(name, message, &remedy.to_string()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        // What is as it should be needs no mending.
        let word = if self.level == Level::Ok { "faster" } else { "fix" };
        self.fix.iter().try_for_each(|fix| write!(f, "; {word}: {fix}"))
    }
}

impl Level {
    /// Every level, the best first.
    pub const ALL: [Level; 3] = [Level::Ok, Level::Warning, Level::Error];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// Looks at everything that an instance with this configuration would need.
///
/// # Errors
/// When the kernel does not answer by netlink.
pub fn check(netlink: &mut Netlink, config: &Config) -> Result<Vec<Finding>> {
    let rights = privileges::Rights::of_this_process();
    let scene = Scene::look(netlink, config)?;
    let checks = [
        privileges::check(&rights, config),
        kernel::check(&rights),
        memory::check(config),
        pins::check(config, &rights),
        metrics::check(config),
        interfaces::check(&scene, config),
        programs::check(&scene, config),
        backends::check(&scene, config),
        vips::check(&scene, config, false),
        scene.delivery(),
        sysctls::check(&scene, false),
        firewall::check(&scene, config),
    ];
    Ok(checks.into_iter().flatten().collect())
}

/// What is wrong with a configuration that is to take the place of one that runs: only what it brings with it.
///
/// # Errors
/// When the kernel does not answer by netlink.
pub fn check_change(netlink: &mut Netlink, config: &Config) -> Result<Vec<Finding>> {
    let scene = Scene::look(netlink, config)?;
    let checks = [
        interfaces::check(&scene, config),
        programs::check(&scene, config),
        backends::check(&scene, config),
        vips::check(&scene, config, false),
        firewall::check(&scene, config),
    ];
    Ok(checks.into_iter().flatten().collect())
}

/// What of a configuration, new or old, takes the metrics from those who ask for them.
pub fn check_metrics(config: &Config) -> Vec<Finding> {
    metrics::check_services(config)
}

/// Only what a firewall does to packets that are left to the kernel: for when that begins while an instance runs.
///
/// # Errors
/// When the kernel does not answer by netlink.
pub fn check_firewall(netlink: &mut Netlink, config: &Config) -> Result<Vec<Finding>> {
    Ok(firewall::check(&Scene::look(netlink, config)?, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_plain_data() {
        let findings = [Finding::ok("vip", "on eth0"), Finding::warning("jit", "off", "sysctl -w x=1")];
        assert_eq!(findings[1].to_string(), "off; fix: sysctl -w x=1");
        let slow = Finding { fix: Some("ethtool".into()), ..Finding::ok("delivery", "by the kernel") };
        assert_eq!(slow.to_string(), "by the kernel; faster: ethtool");
        assert_eq!(
            serde_json::to_string(&findings).expect("JSON"),
            r#"[{"name":"vip","level":"ok","message":"on eth0","fix":null},"#.to_owned()
                + r#"{"name":"jit","level":"warning","message":"off","fix":"sysctl -w x=1"}]"#
        );
    }
}
