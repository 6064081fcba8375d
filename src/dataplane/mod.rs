//! The kernel program and its tables: the only user of libbpf, and the only home of `unsafe`.

mod affinity;
mod attach;
mod batch;
mod budget;
mod capacity;
mod clock;
mod connections;
mod counters;
mod directory;
mod drivers;
mod entries;
mod ethtool;
mod events;
mod explain;
mod features;
mod hash;
mod history;
mod inspect;
mod left;
mod load;
mod loads;
mod mapped;
mod nexthops;
mod own_timeouts;
mod peer;
mod pin;
mod pinned;
mod plane;
mod reasons;
mod record;
mod retirement;
mod rings;
#[allow(missing_docs, unsafe_code, clippy::undocumented_unsafe_blocks, clippy::unwrap_used)] // generated code
mod skeleton;
mod tables;
mod usage;
mod verify;
mod watch;

pub use affinity::{Affinity, Client, ClientRecord, sweep_interval};
pub use attach::{Mode, program_name, program_on};
pub use budget::Budget;
pub use capacity::Capacity;
pub use clock::Clock;
pub use connections::{Census, Sweeper, Walked};
pub use directory::SERVICES_PER_BACKEND;
pub(crate) use directory::ipv4_of;
pub use drivers::{DriverXdp, driver_xdp, queues_with_xdp, xdp_sends_by_lock};
pub use entries::{Entries, Entry, LifeState, Listing, Which};
pub use ethtool::{
    Channels, Offloads, Refused, adaptive_rx, bus_of, channels, driver_of, gro_of, offloads, set_adaptive_rx,
    set_channels, set_lro,
};
pub use events::{BackendEvents, Events, Histogram};
pub use explain::{
    Choice, ConnectionFound, Explainer, Explanation, HopFound, OnInterface, ServiceFound, on_interfaces,
};
pub use features::{XdpFeatures, kernel_release, xdp_features};
pub use history::{CheckTally, Checks, History};
pub use inspect::{PinDirState, kernel_features, pins_of, xdp_link_on};
pub use left::Left;
pub use load::{PROGRAM, Profile, Program};
pub use loads::{Counted, Loads, Reconciler, recount};
pub use mapped::Rows;
pub use nexthops::{Egress, NamedRows, NextHop, NextHops};
pub use peer::{PEER, attach_peer, detach_peer};
pub use pin::{Busy, PinDir, bpffs_command, mount_bpffs, usual_place};
pub use pinned::{Pinned, on_empty, pin_dir_of, pinned};
pub(crate) use plane::scheduler_of;
pub use plane::{Attached, BackendId, Committed, Condition, Plane, Request, TakeOver, ring_memory};
pub use reasons::{Class, Reason};
pub use record::Record;
pub use skeleton::lb::types;
pub use tables::{Counter, Tables};
pub use verify::{Verified, verify_all};
pub use watch::{Happening, Seen, Watch, WatchFor, now_of_records};
