//! What the kernel tells about an interface's driver: XDP features by the netdev netlink family, name and GRO by the ethtool
//! ioctl. All in the calling thread's network namespace.
#![allow(unsafe_code)] // neither is wrapped by a crate that we use

use std::io;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::utsname::uname;

/// The first release with the netdev netlink family.
const NETDEV_FAMILY: (u32, u32) = (6, 3);

// enum netdev_xdp_act of linux/netdev.h.
const BASIC: u64 = 1 << 0;
const REDIRECT: u64 = 1 << 1;
const NDO_XMIT: u64 = 1 << 2;

// linux/sockios.h, linux/ethtool.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GGRO: u32 = 0x2b;

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

/// The name of an interface's driver (`ethtool -i`). `None` for one without, or where there is no such interface.
pub fn driver_of(interface: &str) -> Result<Option<String>> {
    /// `struct ethtool_drvinfo`.
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    // SAFETY: ETHTOOL_GDRVINFO fills a struct ethtool_drvinfo: 4 + 32 * 5 + 12 + 5 * 4 bytes, the size of DriverInfo.
    let answered = unsafe { ethtool(interface, &raw mut info) }
        .with_context(|| format!("could not ask for the driver of {interface}"))?;
    let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(answered.then(|| String::from_utf8_lossy(name).into_owned()).filter(|name| !name.is_empty()))
}

/// Whether generic receive offload is on (`ethtool -k`). `None` where there is no such interface.
pub fn gro_of(interface: &str) -> Result<Option<bool>> {
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value { command: ETHTOOL_GGRO, data: 0 };
    // SAFETY: ETHTOOL_GGRO fills a struct ethtool_value, which Value is.
    let answered = unsafe { ethtool(interface, &raw mut value) }
        .with_context(|| format!("could not ask for the offloads of {interface}"))?;
    Ok(answered.then_some(value.data != 0))
}

/// Asks an interface's driver. Ok(false): there is no such interface, or its driver does not answer this.
///
/// # Safety
/// `request` points to the struct, live and writable, that the kernel reads and fills for the command that it begins with.
unsafe fn ethtool<T>(interface: &str, request: *mut T) -> Result<bool> {
    let mut interface_request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: request.cast() },
    };
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ {
        bail!("{interface:?} is no interface's name");
    }
    for (to, from) in interface_request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("could not open a socket")?;
    // SAFETY: a live descriptor and a live request, whose data is what the caller promises.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), SIOCETHTOOL, &raw mut interface_request) };
    match Errno::result(result) {
        Ok(_) => Ok(true),
        Err(Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error).context("the kernel refused an ethtool request"),
    }
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

    #[test]
    fn interfaces_that_are_not_there() {
        assert_eq!(gro_of("no-such-if").unwrap(), None);
        assert_eq!(driver_of("no-such-if").unwrap(), None);
        assert!(driver_of("a-name-that-is-too-long").is_err());
    }
}
