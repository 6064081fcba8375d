use std::fmt;
use std::path::PathBuf;

use anyhow::Result;

use crate::dataplane::{bpffs_command, mount_bpffs, set_lro};
use crate::net::write_sysctl;

/// What mends something without harming anything. As text it is the command that does the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// A sysctl gets a value.
    Sysctl {
        /// Its name.
        name: String,
        /// What it is to be.
        value: String,
    },
    /// A bpffs is mounted.
    MountBpffs(PathBuf),
    /// Large receive offload of an interface is switched off.
    LroOff(String),
}

impl Remedy {
    pub(super) fn sysctl(name: &str, value: &str) -> Remedy {
        Remedy::Sysctl { name: name.to_owned(), value: value.to_owned() }
    }

    /// Carries it out.
    ///
    /// # Errors
    /// When the kernel refuses, or may not be asked by this process.
    pub fn apply(&self) -> Result<()> {
        match self {
            Remedy::Sysctl { name, value } => write_sysctl(name, value),
            Remedy::MountBpffs(at) => mount_bpffs(at),
            Remedy::LroOff(interface) => set_lro(interface, false),
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::Sysctl { name, value } => write!(f, "sysctl -w {name}={value}"),
            Remedy::MountBpffs(at) => f.write_str(&bpffs_command(at)),
            Remedy::LroOff(interface) => write!(f, "ethtool -K {interface} lro off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_a_command() {
        assert_eq!(Remedy::sysctl("net.ipv4.ip_forward", "1").to_string(), "sysctl -w net.ipv4.ip_forward=1");
        let bpffs = Remedy::MountBpffs("/sys/fs/bpf".into());
        assert_eq!(bpffs.to_string(), "mount -t bpf -o mode=0700 bpf /sys/fs/bpf");
        assert_eq!(Remedy::LroOff("eth0".into()).to_string(), "ethtool -K eth0 lro off");
        let error = Remedy::sysctl("net.ipv4.conf.no-such-if.forwarding", "1").apply().unwrap_err();
        assert!(error.to_string().contains("no-such-if"), "{error:#}");
    }
}
