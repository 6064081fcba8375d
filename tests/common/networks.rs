//! The networks that the tests run in. In all of them xdp-lb runs in the namespace `lb`, and `web1` to `web3` are
//! 10.0.0.10 to 10.0.0.12, whose default route leads through `lb`.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;

use super::balancer::XDP_LB;
use super::eventually;
use super::netns::Lab;

/// The servers' namespaces and addresses.
pub const WEBS: [(&str, &str); 3] = [("web1", "10.0.0.10"), ("web2", "10.0.0.11"), ("web3", "10.0.0.12")];
/// The virtual address with two arms; in the client's network.
pub const VIP: &str = "192.168.1.100";
/// With one arm; in the servers' network.
pub const VIP_ONE_ARM: &str = "10.0.0.100";
/// The client in all networks.
pub const CLIENT: &str = "192.168.1.2";

/// `client` -- eth0 `lb` eth1 -- bridge in `switch` -- servers, with what helps on the far veth ends.
pub fn two_arms(lab: &Lab) -> Result<()> {
    two_arms_bare(lab)?;
    veth_peer(lab, "client", "eth0")?;
    veth_peer(lab, "switch", "lb")
}

/// The same without programs on the far ends.
pub fn two_arms_bare(lab: &Lab) -> Result<()> {
    lab.add(&["client", "lb", "switch", "web1", "web2", "web3"])?;
    client_at_lb(lab)?;
    servers_behind(lab, "eth1")?;
    no_forwarding(lab)?;
    reachable(lab, "client", "192.168.1.1")
}

/// A veth between `client` and `lb`, eth0 at both ends.
pub fn client_at_lb(lab: &Lab) -> Result<()> {
    lab.ip("", "link add eth0 netns client type veth peer name eth0 netns lb")?;
    lab.ip(
        "client",
        "address add 192.168.1.2/24 dev eth0
        link set eth0 up
        route add default via 192.168.1.1",
    )?;
    lab.ip("lb", "address add 192.168.1.1/24 dev eth0\nlink set eth0 up")
}

/// Two arms, and between `client` and `lb` a bridge in `front` with another host, `other` (192.168.1.66).
pub fn two_arms_shared_front(lab: &Lab) -> Result<()> {
    lab.add(&["client", "other", "front", "lb", "switch", "web1", "web2", "web3"])?;
    bridge(lab, "front")?;
    for (namespace, address) in [("client", CLIENT), ("other", "192.168.1.66"), ("lb", "192.168.1.1")] {
        plug_in(lab, "front", namespace, "eth0", address)?;
    }
    lab.ip("client", "route add default via 192.168.1.1")?;
    servers_behind(lab, "eth1")?;
    no_forwarding(lab)?;
    reachable(lab, "client", "192.168.1.1")?;
    veth_peer(lab, "front", "lb")?;
    veth_peer(lab, "switch", "lb")
}

/// `client` -- eth0 `lb`, where the servers hang on a bridge of its own, docker0, as containers do.
pub fn docker(lab: &Lab) -> Result<()> {
    lab.add(&["client", "lb", "web1", "web2", "web3"])?;
    client_at_lb(lab)?;
    lab.ip(
        "lb",
        "link add docker0 type bridge forward_delay 0
        address add 10.0.0.1/24 dev docker0
        link set docker0 up",
    )?;
    for (web, address) in WEBS {
        lab.ip("", &format!("link add eth0 netns {web} type veth peer name {web} netns lb"))?;
        lab.ip(web, &format!("address add {address}/24 dev eth0\nlink set eth0 up"))?;
        lab.ip(web, "route add default via 10.0.0.1")?;
        lab.ip("lb", &format!("link set {web} master docker0 up"))?;
    }
    no_forwarding(lab)?;
    reachable(lab, "client", "192.168.1.1")?;
    WEBS.iter().try_for_each(|(_, address)| reachable(lab, "lb", address))
}

/// `client` -- `router` -- bridge in `switch` -- servers, and `lb` with its only interface on the same bridge.
pub fn one_arm(lab: &Lab) -> Result<()> {
    one_arm_bare(lab)?;
    veth_peer(lab, "switch", "lb")
}

/// The same without a program on the far end.
pub fn one_arm_bare(lab: &Lab) -> Result<()> {
    lab.add(&["client", "router", "lb", "switch", "web1", "web2", "web3"])?;
    lab.ip("", "link add eth0 netns client type veth peer name eth1 netns router")?;
    lab.ip(
        "client",
        "address add 192.168.1.2/24 dev eth0
        link set eth0 up
        route add default via 192.168.1.1",
    )?;
    lab.ip("router", "address add 192.168.1.1/24 dev eth1\nlink set eth1 up")?;
    servers_behind(lab, "eth0")?;
    plug_in(lab, "switch", "router", "eth0", "10.0.0.254")?;
    lab.ip("lb", "route add default via 10.0.0.254")?;
    lab.set_sysctl("router", "net/ipv4/ip_forward", "1")?;
    no_forwarding(lab)?;
    reachable(lab, "client", "10.0.0.1")
}

/// A veth delivers what XDP sends into it only if its far end has a program too.
pub fn veth_peer(lab: &Lab, namespace: &str, interface: &str) -> Result<()> {
    lab.run(namespace, XDP_LB, &["veth-peer", interface]).map(drop)
}

/// Waits for a connection to be refused: both sides are up, and know each other's MAC.
pub fn reachable(lab: &Lab, namespace: &str, address: &str) -> Result<()> {
    let discard = SocketAddr::new(address.parse()?, 9);
    eventually(&format!("{address} from {namespace}"), || {
        let attempt =
            lab.within(namespace, || TcpStream::connect_timeout(&discard, Duration::from_millis(300)));
        matches!(attempt, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
    Ok(())
}

/// A bridge in `switch` with `lb` (10.0.0.1) and the servers.
pub fn servers_behind(lab: &Lab, lb_interface: &str) -> Result<()> {
    bridge(lab, "switch")?;
    plug_in(lab, "switch", "lb", lb_interface, "10.0.0.1")?;
    for (web, address) in WEBS {
        plug_in(lab, "switch", web, "eth0", address)?;
        lab.ip(web, "route add default via 10.0.0.1")?;
    }
    WEBS.iter().try_for_each(|(_, address)| reachable(lab, "lb", address))
}

/// forward_delay: else a new port of the bridge is mute for 15 s.
fn bridge(lab: &Lab, namespace: &str) -> Result<()> {
    lab.ip(namespace, "link add bridge type bridge forward_delay 0\nlink set bridge up")
}

/// Connects a namespace to a bridge; the port there is named like the namespace.
fn plug_in(lab: &Lab, switch: &str, namespace: &str, interface: &str, address: &str) -> Result<()> {
    lab.ip(
        "",
        &format!("link add {interface} netns {namespace} type veth peer name {namespace} netns {switch}"),
    )?;
    lab.ip(namespace, &format!("address add {address}/24 dev {interface}\nlink set {interface} up"))?;
    lab.ip(switch, &format!("link set {namespace} master bridge up"))
}

/// New namespaces inherit this from the machine; the default is what the tests want to see work.
fn no_forwarding(lab: &Lab) -> Result<()> {
    // Setting the value that is there changes nothing; setting it twice reaches every interface.
    lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
    lab.set_sysctl("lb", "net/ipv4/ip_forward", "0")
}
