//! Whether frames that a native program sends out of an interface arrive: what the kernel tells about its driver and, of a
//! veth, about its far end, put together.

use anyhow::Result;

use crate::dataplane::{XdpFeatures, driver_of, driver_xdp, gro_of, xdp_features};
use crate::net::{Link, Namespace, Netlink, Peer, XdpAttached, XdpOnLink};

/// What becomes of frames that native XDP sends out of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressFacts {
    /// A redirect to it arrives, from its own program too.
    pub redirect: bool,
    /// `XDP_TX` of its own program arrives.
    pub tx: bool,
    /// Why, for people.
    pub why: String,
    /// What would make more arrive, as something to do.
    pub faster: Option<String>,
}

/// What the facts about an interface depend on, as far as it is quickly looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signs {
    features: Option<XdpFeatures>,
    program: Option<XdpOnLink>,
    far: Option<Link>,
}

impl Signs {
    /// Looks at an interface.
    ///
    /// # Errors
    /// When the kernel does not answer, or its answer cannot be read.
    pub fn of(netlink: &mut Netlink, link: &Link) -> Result<Signs> {
        let far = link.peer.map(|peer| netlink.link_of_peer(peer)).transpose()?.flatten();
        Ok(Signs { features: xdp_features(link.index)?, program: link.xdp, far })
    }

    /// Whether the same signs mean the same facts. Before Linux 6.3 GRO on a veth's far end is no sign.
    pub fn tell_all(&self) -> bool {
        self.features.is_some() || self.far.is_none()
    }
}

/// Finds out what becomes of frames sent out of an interface. `gets_program`: it has no program yet, but is about to get one
/// in native mode; many drivers have queues for redirected frames only then. Afterwards ask again without: the kernel knows.
///
/// # Errors
/// When the kernel does not answer, or its answer cannot be read.
pub fn egress(netlink: &mut Netlink, link: &Link, gets_program: bool) -> Result<EgressFacts> {
    let features = xdp_features(link.index)?;
    if let Some(peer) = link.peer {
        return veth(netlink, peer, features);
    }
    let driver = driver_of(&link.name)?.unwrap_or_else(|| "without a name".into());
    let native = match link.xdp {
        Some(xdp) => xdp.mode == XdpAttached::Native,
        None => gets_program,
    };
    Ok(by_driver(link, &driver, features, native))
}

/// `native`: it has a program in native mode, or is to be taken as if.
fn by_driver(link: &Link, driver: &str, features: Option<XdpFeatures>, native: bool) -> EgressFacts {
    let known = driver_xdp(driver);
    let by_table = known.is_some_and(|known| known.redirect && (native || !known.needs_program));
    let (redirect, tx) = match features {
        // What it will say once it has the program, only the table knows.
        Some(says) => (says.ndo_xmit || (link.xdp.is_none() && native && by_table), says.basic),
        None => (by_table, known.is_some_and(|known| known.tx)),
    };
    let takes = match (redirect, tx) {
        (true, true) => "takes redirected frames and XDP_TX",
        (true, false) => "takes redirected frames, but not XDP_TX",
        (false, true) => "takes XDP_TX, but no redirected frames",
        (false, false) => "takes neither redirected frames nor XDP_TX",
    };
    let why = match (features, known) {
        (Some(_), _) => format!("its driver {driver} {takes}"),
        (None, Some(_)) => format!("its driver {driver} {takes}, as far as is known of it in Linux 6.1"),
        (None, None) => format!("its driver {driver} is not among those known to send what XDP redirects"),
    };
    let needs_program = !redirect && !native && known.is_some_and(|known| known.redirect);
    let faster =
        needs_program.then(|| "a program in native mode on it: this driver needs one to send".into());
    EgressFacts { redirect, tx, why, faster }
}

/// What is known of a veth's far end.
#[derive(Debug)]
pub struct FarEnd {
    link: Option<Link>,
    namespace: Option<Namespace>,
    elsewhere: bool,
}

impl FarEnd {
    /// Looks for it, and for its namespace, among all processes if need be.
    ///
    /// # Errors
    /// When the kernel does not answer, or its answer cannot be read.
    pub fn find(netlink: &mut Netlink, peer: Peer) -> Result<FarEnd> {
        let namespace = peer.netns.map(|netns| netlink.namespace(netns)).transpose()?.flatten();
        Ok(FarEnd { link: netlink.link_of_peer(peer)?, namespace, elsewhere: peer.netns.is_some() })
    }

    /// `None`: not to be known.
    fn native_program(&self) -> Option<bool> {
        let link = self.link.as_ref()?;
        Some(link.xdp.is_some_and(|xdp| xdp.mode == XdpAttached::Native))
    }

    fn gro(&self) -> Result<Option<bool>> {
        let Some(link) = &self.link else { return Ok(None) };
        match &self.namespace {
            Some(namespace) => namespace.run(|| gro_of(&link.name)).unwrap_or(Ok(None)),
            None if self.elsewhere => Ok(None),
            None => gro_of(&link.name),
        }
    }

    fn name(&self) -> String {
        match &self.link {
            Some(link) => format!("its far end {}", link.name),
            None => "its far end".into(),
        }
    }

    /// The interface there; `None` without the right to look.
    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// A command about the interface of this name, to be run from here wherever that is.
    pub fn command(&self, about: impl FnOnce(&str) -> String) -> String {
        let command = about(self.link.as_ref().map_or("IFACE", |link| &link.name));
        match &self.namespace {
            Some(namespace) => format!("nsenter --net={} {command}", namespace.path().display()),
            None if self.elsewhere => format!("{command} (in the namespace of the far end)"),
            None => command,
        }
    }
}

/// Frames arrive if the far end polls a ring for them: it does with a native program and, but for `XDP_TX`, with GRO.
fn veth(netlink: &mut Netlink, peer: Peer, features: Option<XdpFeatures>) -> Result<EgressFacts> {
    let far = FarEnd::find(netlink, peer)?;
    let program = far.native_program();
    let tx = program == Some(true);
    let gro = if tx { None } else { far.gro()? };
    // NDO_XMIT is set for exactly the same reasons; it is all there is where the far end is out of sight.
    let redirect = features.map_or(tx || gro == Some(true), |says| says.ndo_xmit);
    let name = far.name();
    let mut why = match (program, redirect) {
        (Some(true), true) => format!("{name} has an XDP program"),
        (Some(true), false) => {
            format!("{name} has an XDP program, but the kernel says that none arrive at it")
        }
        (Some(false), true) => format!("{name} has GRO, but no XDP program in native mode"),
        (Some(false), false) => format!("{name} has neither an XDP program in native mode nor GRO"),
        (None, true) => {
            "the kernel says that its far end, which is out of sight, takes redirected frames".into()
        }
        (None, false) if features.is_some() => {
            "the kernel says that its far end, which is out of sight, has neither an XDP program nor GRO"
                .into()
        }
        (None, false) => "its far end is out of sight".into(),
    };
    if far.link.as_ref().is_some_and(|far| !far.up) {
        why += ", and is down";
    }
    let faster = (!tx || !redirect).then(|| far.command(|interface| format!("xdp-lb veth-peer {interface}")));
    Ok(EgressFacts { redirect, tx, why, faster })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(xdp: Option<XdpAttached>) -> Link {
        Link { xdp: xdp.map(|mode| XdpOnLink { program: 1, mode }), ..Link::ethernet(2, "eth0") }
    }

    fn arrives(driver: &str, features: Option<XdpFeatures>, native: bool) -> (bool, bool) {
        let facts = by_driver(&link(None), driver, features, native);
        (facts.redirect, facts.tx)
    }

    #[test]
    fn the_kernel_knows_best_and_the_table_else() {
        let says = |basic, ndo_xmit| Some(XdpFeatures { basic, redirect: basic, ndo_xmit });
        assert_eq!(arrives("new_driver", says(true, true), true), (true, true));
        assert_eq!(arrives("new_driver", says(true, false), true), (false, true));
        // It has queues for them once it has a program.
        assert_eq!(arrives("ice", says(true, false), true), (true, true));
        assert_eq!(arrives("ice", says(true, false), false), (false, true));
        let has_it = by_driver(&link(Some(XdpAttached::Skb)), "ice", says(true, false), false);
        assert!(!has_it.redirect && has_it.faster.is_some(), "{has_it:?}");
        // Before 6.3.
        assert_eq!(arrives("new_driver", None, true), (false, false));
        assert_eq!(arrives("ice", None, true), (true, true));
        assert_eq!(arrives("ice", None, false), (false, true));
        assert_eq!(arrives("mlx4_en", None, true), (false, true));
        assert_eq!(arrives("bridge", None, true), (false, false));
    }
}
