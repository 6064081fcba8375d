//! Sysctls of the network namespace of the calling thread.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// The value of a sysctl (`net.ipv4.conf.lo.forwarding`); a `/` stands for a dot that is part of a name, as in
/// `net.ipv4.conf.eth0/100.forwarding`.
///
/// # Errors
/// Where there is no such sysctl, as for an interface that is gone.
pub fn read_sysctl(name: &str) -> Result<String> {
    let value =
        fs::read_to_string(sysctl_path(name)).with_context(|| format!("could not read the sysctl {name}"))?;
    Ok(value.trim().to_owned())
}

/// Gives a sysctl a value.
///
/// # Errors
/// Where there is no such sysctl or it cannot be written, as in a container with a read-only /proc/sys.
pub fn write_sysctl(name: &str, value: &str) -> Result<()> {
    fs::write(sysctl_path(name), value).with_context(|| format!("could not set the sysctl {name} to {value}"))
}

/// Where a sysctl is. As sysctl(8): dots and slashes change places.
pub fn sysctl_path(name: &str) -> PathBuf {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    PathBuf::from("/proc/sys").join(name.chars().map(swap).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_in_an_interfaces_name_is_written_as_a_slash() {
        let path = sysctl_path("net.ipv4.conf.eth0/100.rp_filter");
        assert_eq!(path, PathBuf::from("/proc/sys/net/ipv4/conf/eth0.100/rp_filter"));
    }

    #[test]
    fn what_is_not_there_is_an_error_that_names_it() {
        assert!(read_sysctl("net.ipv4.ip_forward").is_ok());
        let error = read_sysctl("net.ipv4.conf.no-such-if.forwarding").unwrap_err();
        assert!(error.to_string().contains("net.ipv4.conf.no-such-if.forwarding"));
    }
}
