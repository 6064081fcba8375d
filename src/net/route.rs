//! The way to an IPv4 address.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use netlink_packet_core::Emitable;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::libc::RTM_NEWROUTE;

use super::Netlink;
use super::attributes::{attributes_after, ipv4_value, u32_value};

// Attribute types of linux/rtnetlink.h.
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;

/// How this host would send a packet to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Index of the interface it leaves by; for an address of this host that of the loopback interface.
    pub ifindex: u32,
    /// The router that takes it on; `None` when the destination is on the interface's own subnet.
    pub gateway: Option<Ipv4Addr>,
    /// The source address of packets that this host itself sends there.
    pub source: Option<Ipv4Addr>,
    /// What becomes of the packet.
    pub kind: RouteKind,
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// Sends it to the gateway or, without one, to the destination itself.
    Unicast,
    /// Delivers it to this host: the destination is one of its own addresses.
    Local,
    /// Anything that one frame to one IPv4 neighbour does not do: broadcast, multicast, a router named by an
    /// IPv6 address (RFC 5549), an encapsulation set on the route (MPLS, SRv6 and the like).
    Other,
}

impl Netlink {
    /// The route to `dst` that the kernel chooses now, by its routing rules and tables, for a packet of this
    /// host. `None` when it has none or one that refuses: no route (`ENETUNREACH`), an `unreachable` route
    /// (`EHOSTUNREACH`), a `prohibit` route (`EACCES`), a `blackhole` route (`EINVAL`).
    ///
    /// Of a route with several next hops, one is chosen.
    ///
    /// # Errors
    /// When the kernel does not answer, or its answer cannot be read.
    pub fn route_to(&mut self, dst: Ipv4Addr) -> Result<Option<Route>> {
        let doing = || format!("looking up the route to {dst}");
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(dst)));
        let message = RouteNetlinkMessage::GetRoute(message);
        match self.get(message, RTM_NEWROUTE, parse).with_context(doing)? {
            Ok(route) => Ok(Some(route)),
            Err(refusal) => match refusal.errno() {
                // EINVAL cannot mean a malformed request: only the address varies in it.
                Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL => Ok(None),
                _ => Err(refusal.into_error()).with_context(doing),
            },
        }
    }
}

/// The route in the payload of an `RTM_NEWROUTE`.
fn parse(payload: &[u8]) -> Result<Option<Route>> {
    let header = RouteHeader::parse(payload).context("a route's header")?;
    let mut kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        _ => RouteKind::Other,
    };
    let (mut ifindex, mut gateway, mut source) = (None, None, None);
    for attribute in attributes_after(header.buffer_len(), payload) {
        match attribute? {
            (RTA_OIF, value) => ifindex = Some(u32_value(value).context("a route's interface")?),
            (RTA_GATEWAY, value) => gateway = Some(ipv4_value(value).context("a route's gateway")?),
            (RTA_PREFSRC, value) => source = Some(ipv4_value(value).context("a route's source")?),
            (RTA_VIA, value) => match RouteVia::parse(value).context("a route's gateway")? {
                RouteVia::Inet(address) => gateway = Some(address),
                _ => kind = RouteKind::Other,
            },
            (RTA_ENCAP_TYPE, _) => kind = RouteKind::Other,
            _ => {}
        }
    }
    let ifindex = ifindex.context("a route without an interface")?;
    Ok(Some(Route { ifindex, gateway, source, kind }))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::super::testing::{PAIR, in_namespace, index, ip};
    use super::*;

    /// A unicast route by interface 3 with one more attribute, as the kernel would send it.
    fn route(attribute: RouteAttribute) -> Option<Route> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Oif(3), attribute];
        let mut payload = vec![0; message.buffer_len()];
        message.emit(&mut payload);
        parse(&payload).expect("a readable route")
    }

    #[test]
    fn a_gateway_may_be_given_as_via() {
        let gateway = Ipv4Addr::new(10, 0, 0, 1);
        let expected = Route { ifindex: 3, gateway: Some(gateway), source: None, kind: RouteKind::Unicast };
        assert_eq!(route(RouteAttribute::Via(RouteVia::Inet(gateway))), Some(expected));
        assert_eq!(route(RouteAttribute::Gateway(RouteAddress::Inet(gateway))), Some(expected));
    }

    #[test]
    fn an_ipv6_gateway_is_other() {
        let expected = Route { ifindex: 3, gateway: None, source: None, kind: RouteKind::Other };
        assert_eq!(route(RouteAttribute::Via(RouteVia::Inet6(Ipv6Addr::LOCALHOST))), Some(expected));
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_routes() -> Result<()> {
        in_namespace(|| {
            let mut netlink = Netlink::open()?;
            let far = Ipv4Addr::new(172, 16, 0, 1);
            assert_eq!(netlink.route_to(far)?, None, "no route at all");
            ip(PAIR)?;
            ip("addr add 10.0.0.1/24 dev near")?;
            let near = index(&mut netlink, "near")?;
            let lo = index(&mut netlink, "lo")?;
            let own = Ipv4Addr::new(10, 0, 0, 1);
            let router = Ipv4Addr::new(10, 0, 0, 254);
            let route = Route { ifindex: near, gateway: None, source: Some(own), kind: RouteKind::Unicast };
            assert_eq!(netlink.route_to(router)?, Some(route), "on the subnet");
            let local = Route { ifindex: lo, kind: RouteKind::Local, ..route };
            assert_eq!(netlink.route_to(own)?, Some(local), "this host");
            let broadcast = netlink.route_to(Ipv4Addr::new(10, 0, 0, 255))?.context("a broadcast route")?;
            assert_eq!((broadcast.ifindex, broadcast.kind), (near, RouteKind::Other));

            ip("route add 172.16.0.0/16 via 10.0.0.254")?;
            assert_eq!(netlink.route_to(far)?, Some(Route { gateway: Some(router), ..route }));
            ip("route replace 172.16.0.0/16 via inet6 fe80::1 dev near")?;
            assert_eq!(netlink.route_to(far)?, Some(Route { kind: RouteKind::Other, ..route }));
            for kind in ["unreachable", "prohibit", "blackhole"] {
                ip("route flush 172.16.0.0/16")?;
                ip(&format!("route add {kind} 172.16.0.0/16"))?;
                assert_eq!(netlink.route_to(far)?, None, "{kind}");
            }
            Ok(())
        })
    }
}
