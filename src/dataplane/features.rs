//! What the kernel tells about an interface's driver by the netdev netlink family: its XDP features. In the calling thread's
//! network namespace.
#![allow(unsafe_code)] // not wrapped by a crate that we use

use std::io;

use anyhow::{Context as _, Result};
use nix::sys::utsname::uname;

/// The first release with the netdev netlink family.
const NETDEV_FAMILY: (u32, u32) = (6, 3);

// enum netdev_xdp_act of linux/netdev.h.
const BASIC: u64 = 1 << 0;
const REDIRECT: u64 = 1 << 1;
const NDO_XMIT: u64 = 1 << 2;

/// What an interface's driver does with XDP, as it is set up now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Runs programs in native mode that pass, drop, or send back by `XDP_TX`.
    pub basic: bool,
    /// Its program may redirect to another interface.
    pub redirect: bool,
    /// Sends what others redirect to it. Of a veth: whether its far end receives such frames.
    pub ndo_xmit: bool,
}

/// What a driver can do. `None` where the kernel cannot tell: before Linux 6.3.
pub fn xdp_features(ifindex: u32) -> Result<Option<XdpFeatures>> {
    let doing = || format!("could not ask for the XDP features of interface {ifindex}");
    let index = i32::try_from(ifindex).with_context(doing)?;
    let mut options = libbpf_sys::bpf_xdp_query_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as _,
        ..Default::default()
    };
    // SAFETY: options of the size that they say, which outlive the call.
    let result = unsafe { libbpf_sys::bpf_xdp_query(index, 0, &raw mut options) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(-result)).with_context(doing);
    }
    let flags = options.feature_flags;
    if flags == 0 && kernel_release()? < NETDEV_FAMILY {
        return Ok(None);
    }
    let has = |feature| flags & feature != 0;
    Ok(Some(XdpFeatures { basic: has(BASIC), redirect: has(REDIRECT), ndo_xmit: has(NDO_XMIT) }))
}

/// The running kernel's major and minor number.
pub fn kernel_release() -> Result<(u32, u32)> {
    let release = uname().context("could not ask for the kernel's release")?;
    let release = release.release().to_string_lossy();
    parse_release(&release).with_context(|| format!("the kernel's release {release} is no version"))
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(parse_release("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(parse_release("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(parse_release("7.0"), Some((7, 0)));
        assert_eq!(parse_release("7.0-rc1"), Some((7, 0)));
        assert_eq!(parse_release("linux"), None);
        assert!(kernel_release().unwrap() >= (5, 0));
    }
}
