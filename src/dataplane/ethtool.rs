//! What the kernel tells about an interface's driver by the ethtool ioctl, and what can be set there. All in the calling
//! thread's network namespace.
#![allow(unsafe_code)] // no crate that we use asks for all of this, and none sets coalescing or offloads

use std::fmt;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

// linux/sockios.h, linux/ethtool.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GCOALESCE: u32 = 0xe;
const ETHTOOL_SCOALESCE: u32 = 0xf;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
// Bits of ETHTOOL_GFLAGS.
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_coalesce`: all its fields are `__u32`.
type Coalesce = [u32; 23];
/// `use_adaptive_rx_coalesce` in it.
const ADAPTIVE_RX: usize = 10;
/// `struct ethtool_value`: a command and a value.
type Value = [u32; 2];

/// How many queues an interface has, and could have. Most drivers have either combined ones or separate ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Queues for receiving only: how many there can be.
    pub max_rx: u32,
    /// Queues for sending only: how many there can be.
    pub max_tx: u32,
    /// Queues for both: how many there can be.
    pub max_combined: u32,
    /// Queues for receiving only.
    pub rx: u32,
    /// Queues for sending only.
    pub tx: u32,
    /// Queues for both.
    pub combined: u32,
}

impl Channels {
    /// The queues that receive.
    pub fn receiving(&self) -> u32 {
        self.rx + self.combined
    }

    /// As many of them as there can be.
    pub fn max_receiving(&self) -> u32 {
        self.max_rx.max(self.max_combined)
    }
}

/// The offloads that XDP has to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Large receive offload: the device makes one frame of many.
    pub lro: bool,
    /// The device takes VLAN tags out of frames before a program sees them.
    pub rx_vlan: bool,
}

/// A driver does not let something be set, or not to this value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(Errno);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Errno::EOPNOTSUPP => f.write_str("the driver has no such setting"),
            error => write!(f, "the driver refuses: {}", error.desc()),
        }
    }
}

impl std::error::Error for Refused {}

/// The name of an interface's driver (`ethtool -i`). `None` for one without, or where there is no such interface.
pub fn driver_of(interface: &str) -> Result<Option<String>> {
    Ok(driver_info(interface)?.map(|(driver, _)| driver).filter(|driver| !driver.is_empty()))
}

/// What some drivers of interfaces without a device say of their bus.
const NO_BUS: [&str; 2] = ["", "N/A"];

/// Where an interface's device is on its bus, such as `0000:00:03.0`. `None` for one without a device.
pub fn bus_of(interface: &str) -> Result<Option<String>> {
    Ok(driver_info(interface)?.map(|(_, bus)| bus).filter(|bus| !NO_BUS.contains(&bus.as_str())))
}

/// Name of the driver and place on the bus.
fn driver_info(interface: &str) -> Result<Option<(String, String)>> {
    /// `struct ethtool_drvinfo`.
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; 32],
        versions: [u8; 64],
        bus: [u8; 32],
        rest: [u8; 64],
    }
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        versions: [0; 64],
        bus: [0; 32],
        rest: [0; 64],
    };
    // SAFETY: ETHTOOL_GDRVINFO fills a struct ethtool_drvinfo: 4 + 32 * 5 + 12 + 5 * 4 bytes, the size of DriverInfo.
    let answered = unsafe { ethtool(interface, &raw mut info) }
        .with_context(|| format!("could not ask for the driver of {interface}"))?;
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    };
    Ok(answered.then(|| (text(&info.driver), text(&info.bus))))
}

/// Whether generic receive offload is on (`ethtool -k`). `None` where there is no such interface.
pub fn gro_of(interface: &str) -> Result<Option<bool>> {
    Ok(value(interface, ETHTOOL_GGRO)?.map(|value| value != 0))
}

/// Other offloads (`ethtool -k`). `None` where there is no such interface.
pub fn offloads(interface: &str) -> Result<Option<Offloads>> {
    let offloads = |flags| Offloads { lro: flags & ETH_FLAG_LRO != 0, rx_vlan: flags & ETH_FLAG_RXVLAN != 0 };
    Ok(value(interface, ETHTOOL_GFLAGS)?.map(offloads))
}

/// Switches large receive offload.
///
/// # Errors
/// [`Refused`] where the driver does not; without CAP_NET_ADMIN.
pub fn set_lro(interface: &str, on: bool) -> Result<()> {
    let flags = value(interface, ETHTOOL_GFLAGS)?
        .with_context(|| format!("there are no offloads of {interface} to be set"))?;
    let flags = if on { flags | ETH_FLAG_LRO } else { flags & !ETH_FLAG_LRO };
    let mut request: Value = [ETHTOOL_SFLAGS, flags];
    // SAFETY: ETHTOOL_SFLAGS reads a struct ethtool_value, which this is.
    unsafe { set(interface, &raw mut request) }
        .with_context(|| format!("could not switch large receive offload of {interface}"))
}

fn value(interface: &str, command: u32) -> Result<Option<u32>> {
    let mut request: Value = [command, 0];
    // SAFETY: the commands that this is called with fill a struct ethtool_value, which this is.
    let answered = unsafe { ethtool(interface, &raw mut request) }
        .with_context(|| format!("could not ask for the offloads of {interface}"))?;
    Ok(answered.then_some(request[1]))
}

/// The queues (`ethtool -l`). `None` where the driver does not tell.
pub fn channels(interface: &str) -> Result<Option<Channels>> {
    let told = raw_channels(interface)?;
    Ok(told.map(|[_, max_rx, max_tx, _, max_combined, rx, tx, _, combined]| Channels {
        max_rx,
        max_tx,
        max_combined,
        rx,
        tx,
        combined,
    }))
}

/// Changes how many queues there are, as said in `wanted`. Many drivers set the link down for a moment.
///
/// # Errors
/// [`Refused`] where the driver does not; without CAP_NET_ADMIN.
pub fn set_channels(interface: &str, wanted: Channels) -> Result<()> {
    let mut request = raw_channels(interface)?
        .with_context(|| format!("the driver of {interface} does not tell its queues"))?;
    request[0] = ETHTOOL_SCHANNELS;
    (request[5], request[6], request[8]) = (wanted.rx, wanted.tx, wanted.combined);
    // SAFETY: ETHTOOL_SCHANNELS reads a struct ethtool_channels, which this is.
    unsafe { set(interface, &raw mut request) }
        .with_context(|| format!("could not set the number of queues of {interface}"))
}

/// `struct ethtool_channels`: command; most of rx, tx, other, combined; now rx, tx, other, combined.
fn raw_channels(interface: &str) -> Result<Option<[u32; 9]>> {
    let mut request = [0; 9];
    request[0] = ETHTOOL_GCHANNELS;
    // SAFETY: ETHTOOL_GCHANNELS fills a struct ethtool_channels of nine __u32, which this is.
    let answered = unsafe { ethtool(interface, &raw mut request) }
        .with_context(|| format!("could not ask for the queues of {interface}"))?;
    Ok(answered.then_some(request))
}

/// Whether the device finds out by itself how many frames it collects before it interrupts (`ethtool -c`). `None` where the
/// driver has no coalescing.
pub fn adaptive_rx(interface: &str) -> Result<Option<bool>> {
    Ok(coalescing(interface)?.map(|settings| settings[ADAPTIVE_RX] != 0))
}

/// Switches that.
///
/// # Errors
/// [`Refused`] where the driver does not; without CAP_NET_ADMIN.
pub fn set_adaptive_rx(interface: &str, on: bool) -> Result<()> {
    let mut request = coalescing(interface)?
        .with_context(|| format!("the driver of {interface} has no coalescing to be set"))?;
    request[0] = ETHTOOL_SCOALESCE;
    request[ADAPTIVE_RX] = u32::from(on);
    // SAFETY: ETHTOOL_SCOALESCE reads a struct ethtool_coalesce, which this is.
    unsafe { set(interface, &raw mut request) }
        .with_context(|| format!("could not set the coalescing of {interface}"))
}

fn coalescing(interface: &str) -> Result<Option<Coalesce>> {
    let mut request: Coalesce = [0; 23];
    request[0] = ETHTOOL_GCOALESCE;
    // SAFETY: ETHTOOL_GCOALESCE fills a struct ethtool_coalesce of 23 __u32, which this is.
    let answered = unsafe { ethtool(interface, &raw mut request) }
        .with_context(|| format!("could not ask for the coalescing of {interface}"))?;
    Ok(answered.then_some(request))
}

/// Asks an interface's driver. Ok(false): there is no such interface, or its driver does not answer this.
///
/// # Safety
/// As [`request`].
unsafe fn ethtool<T>(interface: &str, request: *mut T) -> Result<bool> {
    // SAFETY: what the caller promises.
    match unsafe { self::request(interface, request) }? {
        Ok(()) => Ok(true),
        Err(Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error).context("the kernel refused an ethtool request"),
    }
}

/// Has an interface's driver set something.
///
/// # Safety
/// As [`request`].
unsafe fn set<T>(interface: &str, request: *mut T) -> Result<()> {
    // SAFETY: what the caller promises.
    match unsafe { self::request(interface, request) }? {
        Ok(()) => Ok(()),
        Err(error @ (Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EBUSY | Errno::ERANGE)) => {
            Err(Refused(error).into())
        }
        Err(error) => Err(error).context("the kernel refused an ethtool request"),
    }
}

/// Makes one ethtool request.
///
/// # Safety
/// `request` points to the struct, live and writable, that the kernel reads and fills for the command that it begins with.
unsafe fn request<T>(interface: &str, request: *mut T) -> Result<Result<(), Errno>> {
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
    Ok(Errno::result(result).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_that_are_not_there() {
        assert_eq!(gro_of("no-such-if").unwrap(), None);
        assert_eq!(driver_of("no-such-if").unwrap(), None);
        assert_eq!(bus_of("no-such-if").unwrap(), None);
        assert_eq!(channels("no-such-if").unwrap(), None);
        assert_eq!(offloads("no-such-if").unwrap(), None);
        assert_eq!(adaptive_rx("no-such-if").unwrap(), None);
        assert!(driver_of("a-name-that-is-too-long").is_err());
    }

    #[test]
    fn loopback_has_no_queues_to_set() {
        assert_eq!(offloads("lo").unwrap().map(|offloads| offloads.lro), Some(false));
        assert_eq!(channels("lo").unwrap(), None);
        assert_eq!(adaptive_rx("lo").unwrap(), None);
    }

    #[test]
    fn combined_queues_receive_too() {
        let separate = Channels { max_rx: 4, rx: 1, ..Channels::default() };
        assert_eq!((separate.receiving(), separate.max_receiving()), (1, 4));
        let combined = Channels { max_combined: 8, combined: 2, ..Channels::default() };
        assert_eq!((combined.receiving(), combined.max_receiving()), (2, 8));
    }
}
