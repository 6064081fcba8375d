//! News of the network: what changed, as the kernel tells everybody who listens.

use std::io;
use std::ops::BitOrAssign;

use anyhow::{Context, Result, bail};
use netlink_packet_core::{NLMSG_ALIGNTO, NetlinkBuffer};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteHeader, RouteType};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc::{
    RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_DELRULE, RTM_NEWADDR, RTM_NEWLINK,
    RTM_NEWNEIGH, RTM_NEWROUTE, RTM_NEWRULE, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE,
    RTNLGRP_LINK, RTNLGRP_NEIGH,
};

/// As [`super::Netlink`] has it; what does not fit is a change all the same.
const BUFFER_SIZE: usize = 128 * 1024;
/// The length of `struct nlmsghdr` in bytes.
const HEADER: usize = 16;

/// What changed since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces: made, gone, up, down, renamed, another MTU or MAC, another XDP program.
    pub links: bool,
    /// IPv4 addresses, routes and rules: a packet may go another way.
    pub routes: bool,
    /// Neighbours: what has which MAC, or whether it is there.
    pub neighbours: bool,
}

impl Changes {
    /// Everything may have changed.
    pub const ALL: Changes = Changes { links: true, routes: true, neighbours: true };

    /// Whether anything changed.
    pub fn any(self) -> bool {
        self.links || self.routes || self.neighbours
    }
}

impl BitOrAssign for Changes {
    fn bitor_assign(&mut self, other: Changes) {
        self.links |= other.links;
        self.routes |= other.routes;
        self.neighbours |= other.neighbours;
    }
}

/// A socket that hears of every change in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Events {
    /// Begins to listen. Needs no privileges.
    ///
    /// # Errors
    /// When the kernel has no such socket or group.
    pub fn open() -> Result<Events> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("opening a netlink socket")?;
        socket.bind(&SocketAddr::new(0, 0)).context("binding a netlink socket")?;
        let groups =
            [RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE];
        for group in groups {
            socket.add_membership(group).context("subscribing to changes of the network")?;
        }
        Ok(Events { socket, buffer: vec![0; BUFFER_SIZE] })
    }

    /// Waits for the next change. Where the kernel had to leave out some, everything counts as changed.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub fn wait(&mut self) -> Result<Changes> {
        loop {
            let mut space = &mut self.buffer[..];
            let changes = match self.socket.recv(&mut space, 0) {
                Ok(0) => bail!("the kernel closed the netlink socket"),
                Ok(size) => changes_in(&self.buffer[..size.min(BUFFER_SIZE)]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Changes::ALL,
                Err(error) => return Err(error).context("listening for changes of the network"),
            };
            if changes.any() {
                return Ok(changes);
            }
        }
    }
}

/// What the messages of one datagram say; one that cannot be read may say anything.
fn changes_in(mut datagram: &[u8]) -> Changes {
    let mut changes = Changes::default();
    while !datagram.is_empty() {
        let Ok(message) = NetlinkBuffer::new_checked(datagram) else { return Changes::ALL };
        let length = message.length() as usize;
        changes |= change_of(message.message_type(), datagram.get(HEADER..length).unwrap_or_default());
        datagram = datagram.get(length.next_multiple_of(usize::from(NLMSG_ALIGNTO))..).unwrap_or_default();
    }
    changes
}

fn change_of(kind: u16, payload: &[u8]) -> Changes {
    let routes = Changes { routes: true, ..Changes::default() };
    match kind {
        RTM_NEWLINK | RTM_DELLINK => Changes { links: true, ..Changes::default() },
        RTM_NEWNEIGH | RTM_DELNEIGH => Changes { neighbours: true, ..Changes::default() },
        RTM_NEWADDR | RTM_DELADDR | RTM_NEWRULE | RTM_DELRULE => routes,
        // Routes of the host's own addresses come with every address, which is told too.
        RTM_NEWROUTE | RTM_DELROUTE => match RouteHeader::parse(payload) {
            Ok(header) if is_of_no_interest(&header) => Changes::default(),
            _ => routes,
        },
        _ => Changes::default(),
    }
}

fn is_of_no_interest(header: &RouteHeader) -> bool {
    let own = matches!(
        header.kind,
        RouteType::Local | RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast
    );
    own || header.address_family != AddressFamily::Inet
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::thread::spawn;
    use std::time::{Duration, Instant};

    use super::super::testing::{PAIR, in_namespace, ip};
    use super::*;

    /// All that is heard until nothing came for a while.
    fn heard(news: &Receiver<Changes>) -> Changes {
        let mut all = Changes::default();
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Ok(changes) = news.recv_timeout(Duration::from_millis(300)) {
            all |= changes;
            assert!(Instant::now() < deadline, "it never ends");
        }
        all
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_each_change_is_told_as_what_it_is() -> Result<()> {
        in_namespace(|| {
            let mut events = Events::open()?;
            let (sender, news) = channel();
            spawn(move || {
                while let Ok(changes) = events.wait() {
                    if sender.send(changes).is_err() {
                        break;
                    }
                }
            });
            let of = |lines: &str| -> Result<Changes> {
                ip(lines)?;
                Ok(heard(&news))
            };
            assert!(of(PAIR)?.links);
            assert!(of("addr add 10.0.0.1/24 dev near")?.routes);
            let only = |links, routes, neighbours| Changes { links, routes, neighbours };
            assert_eq!(of("route add 10.9.0.0/16 via 10.0.0.2")?, only(false, true, false));
            assert_eq!(of("route del 10.9.0.0/16")?, only(false, true, false));
            assert_eq!(of("rule add pref 99 from 10.1.0.0/16 lookup main")?, only(false, true, false));
            let neighbour = "neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 nud permanent dev near";
            assert_eq!(of(neighbour)?, only(false, false, true));
            assert!(of("link set near mtu 1300")?.links);
            // Going down takes the routes away without a word about them.
            assert!(of("link set near down")?.links);
            assert_eq!(heard(&news), Changes::default(), "quiet again");
            Ok(())
        })
    }

    #[test]
    fn what_cannot_be_read_may_be_anything() {
        assert_eq!(changes_in(&[1, 2, 3]), Changes::ALL);
        assert_eq!(changes_in(&[]), Changes::default());
    }
}
