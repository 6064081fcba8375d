//! The kernel program and its tables: the only user of libbpf, and the only home of `unsafe`.

mod affinity;
mod attach;
mod clock;
mod connections;
mod directory;
mod drivers;
mod features;
mod hash;
mod inspect;
mod load;
mod loads;
mod mapped;
mod nexthops;
mod pin;
mod plane;
mod reasons;
mod record;
mod rings;
#[allow(missing_docs, unsafe_code, clippy::undocumented_unsafe_blocks, clippy::unwrap_used)] // generated code
mod skeleton;
mod tables;
mod verify;

pub use affinity::{Affinity, Client, ClientRecord, sweep_interval};
pub use attach::{Attachment, Mode, attach_peer, detach_peer, program_name};
pub use clock::Clock;
pub use connections::{Census, Sweeper, Walked};
pub use directory::SERVICES_PER_BACKEND;
pub(crate) use directory::ipv4_of;
pub use drivers::{DriverXdp, driver_xdp};
pub use features::{XdpFeatures, driver_of, gro_of, kernel_release, xdp_features};
pub use inspect::{PinDirState, kernel_features, pins_of, xdp_link_on};
pub use load::{Profile, Program};
pub use loads::{Counted, Loads, Reconciler, recount};
pub use mapped::Rows;
pub use nexthops::{Egress, NamedRows, NextHop, NextHops};
pub use pin::PinDir;
pub(crate) use plane::scheduler_of;
pub use plane::{Attached, BackendId, Plane};
pub use reasons::{Class, Reason};
pub use record::Record;
pub use skeleton::lb::types;
pub use tables::{Capacity, Counter, Tables};
pub use verify::{Verified, verify_all};
