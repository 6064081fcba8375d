//! The desired state of one instance as a value: command line (and later a file) make it, the daemon carries it out.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::{Service, Timeouts};

/// Everything one running instance was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The interface the clients' packets arrive on.
    pub interface: String,
    /// The services to balance; one for each protocol of a VIP.
    pub services: Vec<Service>,
    /// How the program is attached.
    pub xdp_mode: XdpMode,
    /// Who sends what was translated.
    pub deliver: Deliver,
    /// The directory in a bpffs that holds the pinned program, links and maps.
    pub pin_dir: PathBuf,
    /// How many connections the table promises to hold.
    pub max_connections: u32,
    /// When idle connections may be evicted.
    pub timeouts: Timeouts,
    /// How often the table of statistics is printed; `None` for never.
    pub stats_interval: Option<Duration>,
    /// Whether the VIPs are added to the interface while running.
    pub assign_vip: bool,
}

/// How the program is attached to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native, and where the driver cannot, SKB mode with a warning.
    #[default]
    Auto,
    /// In the driver, or fail.
    Native,
    /// After the kernel made a socket buffer of the frame: any driver, slower.
    Skb,
}

/// Who sends what was translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deliver {
    /// XDP where what it sends arrives, else the kernel.
    #[default]
    Auto,
    /// XDP, whatever is known of the interface.
    Direct,
    /// The kernel, always.
    Stack,
}
