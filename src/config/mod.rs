//! The desired state of one instance as a value: command line and file make the same, the daemon carries it out.

mod clash;
pub mod edit;
mod error;
mod file;
mod health;
mod merge;
mod render;
mod service;
mod syntax;
mod tree;
pub mod words;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::{Service, Timeouts};

pub use clash::check;
pub use error::FileError;
pub use file::{parse, read, services};
pub use merge::merge;
pub use render::{render, render_services};

/// The pin directory where nothing else is said.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/xdp_lb";

/// How many backends a service may have.
pub const MAX_BACKENDS: usize = 1024;

/// How many services there may be; one of TCP and UDP counts twice.
pub const MAX_SERVICES: usize = 4096;

/// How many backends all services may have together.
pub const MAX_ALL_BACKENDS: usize = 65_535;

/// How many services of a protocol a backend's address and port may serve.
pub const MAX_SERVICES_PER_BACKEND: usize = 8;

const SOCKET_DIR: &str = "/run/xdp-lb";

/// Everything one running instance was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The interfaces that the clients' packets arrive on, at least one; the first gets the VIPs that are assigned.
    pub interfaces: Vec<String>,
    /// The services to balance; one for each protocol of a VIP.
    pub services: Vec<Service>,
    /// How the program is attached.
    pub xdp_mode: XdpMode,
    /// Who sends what was translated.
    pub deliver: Deliver,
    /// The directory in a bpffs that holds the pinned program, links and maps.
    pub pin_dir: PathBuf,
    /// Where the running process listens for the other commands.
    pub socket: PathBuf,
    /// How many connections the table promises to hold.
    pub max_connections: u32,
    /// How many bytes the rings of all services may take.
    pub ring_memory: u64,
    /// When idle connections may be evicted, of services that say nothing else.
    pub timeouts: Timeouts,
    /// How often the table of statistics is printed; `None` for never.
    pub stats_interval: Option<Duration>,
    /// Whether the VIPs are added to the interface while running.
    pub assign_vip: bool,
    /// Whether the data plane goes on when the process ends.
    pub persist: bool,
    /// Whether changes of the configuration file are carried out without being asked for.
    pub watch: bool,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// How log lines are written.
    pub log_format: LogFormat,
}

impl Config {
    /// What `--max-connections` is where nothing else is said.
    pub const MAX_CONNECTIONS: u32 = 1_000_000;
    /// What `--ring-memory` is where nothing else is said, in bytes.
    pub const RING_MEMORY: u64 = 256 << 20;
    /// What `--stats-interval` is where nothing else is said.
    pub const STATS_INTERVAL: Duration = Duration::from_secs(5);

    /// These services on these interfaces, with the usual settings.
    pub fn new(interfaces: Vec<String>, services: Vec<Service>) -> Config {
        let pin_dir = PathBuf::from(DEFAULT_PIN_DIR);
        Config {
            interfaces,
            services,
            xdp_mode: XdpMode::default(),
            deliver: Deliver::default(),
            socket: default_socket(&pin_dir),
            pin_dir,
            max_connections: Self::MAX_CONNECTIONS,
            ring_memory: Self::RING_MEMORY,
            timeouts: Timeouts::default(),
            stats_interval: Some(Self::STATS_INTERVAL),
            assign_vip: false,
            persist: false,
            watch: false,
            metrics: None,
            log_format: LogFormat::default(),
        }
    }

    /// The longest of all services' timeouts, each by itself; those of the configuration where there are no services.
    pub fn longest_timeouts(&self) -> Timeouts {
        let longer = |a: Timeouts, b: Timeouts| Timeouts {
            established: a.established.max(b.established),
            unconfirmed: a.unconfirmed.max(b.unconfirmed),
            closing: a.closing.max(b.closing),
            udp: a.udp.max(b.udp),
        };
        self.services.iter().map(|service| service.timeouts).reduce(longer).unwrap_or(self.timeouts)
    }

    /// The first interface.
    pub fn main_interface(&self) -> &str {
        self.interfaces.first().map_or("", String::as_str)
    }
}

/// The socket of the instance with these pins.
pub fn default_socket(pin_dir: &Path) -> PathBuf {
    let mut name = pin_dir.file_name().unwrap_or_default().to_owned();
    name.push(".sock");
    Path::new(SOCKET_DIR).join(name)
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

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl XdpMode {
    /// Every one, with its word in configurations.
    pub const NAMES: [(XdpMode, &'static str); 3] =
        [(XdpMode::Auto, "auto"), (XdpMode::Native, "native"), (XdpMode::Skb, "skb")];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            XdpMode::Auto => "auto",
            XdpMode::Native => "native",
            XdpMode::Skb => "skb",
        }
    }
}

impl Deliver {
    /// Every one, with its word in configurations.
    pub const NAMES: [(Deliver, &'static str); 3] =
        [(Deliver::Auto, "auto"), (Deliver::Direct, "direct"), (Deliver::Stack, "stack")];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Deliver::Auto => "auto",
            Deliver::Direct => "direct",
            Deliver::Stack => "stack",
        }
    }
}

impl LogFormat {
    /// Every one, with its word in configurations.
    pub const NAMES: [(LogFormat, &'static str); 2] =
        [(LogFormat::Human, "human"), (LogFormat::Json, "json")];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        }
    }
}
