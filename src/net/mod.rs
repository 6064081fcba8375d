//! What the control plane asks of and tells the kernel's network stack: interfaces, IPv4 addresses, routes
//! and neighbours over rtnetlink (RFC 3549), and gratuitous ARP for an address that has just moved here.
//!
//! Everything is synchronous and bounded in time. Nothing here reads the `/sys/class/net` of everybody: that tree shows the
//! devices of the namespace it was mounted in, which after `nsenter --net` is not the one we run in (`device` mounts its own). A
//! [`Netlink`] socket belongs to the network namespace of the thread that opened it, and stays there.
//!
//! Replies are read attribute by attribute, only those that we need: a newer kernel that adds attributes, or
//! makes known ones longer, changes nothing for us.

mod address;
mod announce;
mod attributes;
mod device;
mod events;
mod irqs;
mod link;
mod listen;
mod namespace;
mod neighbour;
mod route;
mod socket;
mod sysctl;
#[cfg(test)]
mod testing;

pub use address::Address;
pub use announce::announce;
pub use device::{device_setting, set_device_setting};
pub use events::{Changes, Events};
pub use irqs::{Irq, irqbalance, irqs_of, online_cpus};
pub use link::{Link, Peer, XdpAttached, XdpOnLink};
pub use listen::listen;
pub use namespace::Namespace;
pub use neighbour::Neighbour;
pub use route::{Route, RouteKind};
pub use socket::Netlink;
pub use sysctl::{read_sysctl, sysctl_path, write_sysctl};
