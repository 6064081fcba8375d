use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

use crate::config::{Config, XdpMode};
use crate::dataplane::{Attached, Attachment, Mode, Plane, Profile};
use crate::net::{Link, Netlink, RouteKind};

/// The interfaces that get the program: the one that was named, and those that face a backend.
pub struct Interfaces {
    /// The named one first.
    all: Vec<Interface>,
}

/// One of them.
pub struct Interface {
    pub link: Link,
    /// Backends behind it, as they were given; for people.
    backends: Vec<String>,
}

/// An interface that has the program.
pub struct AttachedInterface<'a> {
    interface: &'a Interface,
    pub attachment: Attachment,
}

impl Interfaces {
    /// Looks up the named interface, and the route to each backend.
    pub fn find(netlink: &mut Netlink, config: &Config) -> Result<Interfaces> {
        let links: BTreeMap<u32, Link> =
            netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
        let main =
            netlink.link(&config.interface)?.with_context(|| no_such_interface(&config.interface, &links))?;
        let mut all = vec![Interface { link: main, backends: Vec::new() }];
        for backend in config.services.iter().flat_map(|service| &service.backends) {
            let address = *backend.address.ip();
            let route = netlink.route_to(address)?.with_context(|| {
                format!(
                    "no route to backend {}: add one (ip route add {address} via GATEWAY)",
                    backend.address
                )
            })?;
            match route.kind {
                RouteKind::Unicast => {}
                RouteKind::Local => {
                    bail!(
                        "backend {} is an address of this host: a backend must be another machine",
                        backend.address
                    )
                }
                RouteKind::Other => {
                    bail!(
                        "the route to backend {} is not one to a machine (ip route get {address})",
                        backend.address
                    )
                }
            }
            let name = backend.address.to_string();
            match all.iter_mut().find(|interface| interface.link.index == route.ifindex) {
                Some(interface) if interface.backends.contains(&name) => {}
                Some(interface) => interface.backends.push(name),
                None => {
                    let link = links.get(&route.ifindex).cloned().with_context(|| {
                        format!(
                            "the route to backend {name} names interface {}, which is gone",
                            route.ifindex
                        )
                    })?;
                    all.push(Interface { link, backends: vec![name] });
                }
            }
        }
        for interface in &all {
            interface.check()?;
        }
        Ok(Interfaces { all })
    }

    /// The indexes of all.
    pub fn indexes(&self) -> Vec<u32> {
        self.all.iter().map(|interface| interface.link.index).collect()
    }

    /// The interface that was named.
    pub fn main(&self) -> &Interface {
        &self.all[0]
    }

    /// Attaches the program to each. With `auto`, one driver without native mode puts all into SKB mode: a program in native
    /// mode cannot send to it.
    pub fn attach(&self, plane: &mut Plane, mode: XdpMode) -> Result<Vec<AttachedInterface<'_>>> {
        let wanted = first_mode(mode);
        let (refusing, error) = match self.attach_all(plane, wanted)? {
            Ok(attached) => return Ok(attached),
            Err(refused) => refused,
        };
        let name = &refusing.link.name;
        ensure!(
            mode == XdpMode::Auto,
            "could not attach the program to {name}: its driver refuses this mode ({error}){}; use --xdp-mode {}",
            hint(&error),
            if wanted == Mode::Native { "skb, or auto" } else { "native, or auto" }
        );
        crate::note!(
            "warning: the driver of {name} refuses native mode ({error}){}: SKB mode is used on all interfaces, which \
             is slower",
            hint(&error)
        );
        match self.attach_all(plane, Mode::Skb)? {
            Ok(attached) => Ok(attached),
            Err((refusing, error)) => {
                bail!(
                    "could not attach the program to {} in native or in SKB mode: {error}",
                    refusing.link.name
                )
            }
        }
    }

    /// The inner error is an interface whose driver does not do the mode; what was attached until then is detached.
    fn attach_all(
        &self,
        plane: &mut Plane,
        mode: Mode,
    ) -> Result<Result<Vec<AttachedInterface<'_>>, Refused<'_>>> {
        let mut attached = Vec::new();
        for interface in &self.all {
            let link = &interface.link;
            match plane.attach(link.index, &link.name, mode, interface.profile(mode))? {
                Attached::Yes(attachment) => attached.push(AttachedInterface { interface, attachment }),
                Attached::Unsupported(error) => return Ok(Err((interface, error))),
            }
        }
        Ok(Ok(attached))
    }
}

/// An interface whose driver does not do a mode, and the kernel's error.
type Refused<'a> = (&'a Interface, std::io::Error);

impl Interface {
    fn check(&self) -> Result<()> {
        let name = &self.link.name;
        ensure!(!self.link.loopback, "{name} is the loopback interface: name the one that faces the clients");
        ensure!(
            self.link.ethernet,
            "{name} is not an Ethernet interface, so it carries no frames to balance"
        );
        ensure!(self.link.up, "interface {name} is down: set it up (ip link set {name} up)");
        Ok(())
    }

    /// What the program is specialised for here. Virtual devices hand over frames of senders on this machine, whose
    /// checksums are still to be finished.
    pub fn profile(&self, mode: Mode) -> Profile {
        match mode {
            Mode::Skb => Profile::SKB,
            Mode::Native if self.link.kind.is_some() => Profile::NATIVE_VIRTUAL,
            Mode::Native => Profile::NATIVE,
        }
    }
}

impl AttachedInterface<'_> {
    /// One line for people.
    pub fn describe(&self) -> String {
        let link = &self.interface.link;
        let mode = match self.attachment.mode {
            Mode::Native => "native mode",
            Mode::Skb => "SKB mode",
        };
        let mut text = format!("{} in {mode}, delivery direct (XDP_TX or redirect)", link.name);
        if !self.interface.backends.is_empty() {
            text += &format!(", faces {}", self.interface.backends.join(" "));
        }
        if link.kind.as_deref() == Some("veth") && self.attachment.mode == Mode::Native {
            text +=
                "; a veth: its far end must have an XDP program to receive (xdp-lb veth-peer IFACE, there)";
        }
        text
    }
}

/// What a driver's refusal most likely means.
fn hint(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(code) if code == nix::errno::Errno::ERANGE as i32 => {
            ": the MTU of it or of its peer is too large"
        }
        _ => "",
    }
}

/// The mode that is tried first.
pub fn first_mode(mode: XdpMode) -> Mode {
    match mode {
        XdpMode::Auto | XdpMode::Native => Mode::Native,
        XdpMode::Skb => Mode::Skb,
    }
}

fn no_such_interface(name: &str, links: &BTreeMap<u32, Link>) -> String {
    let names: Vec<&str> =
        links.values().filter(|link| !link.loopback).map(|link| link.name.as_str()).collect();
    format!("there is no interface {name}; there are: {}", names.join(", "))
}
