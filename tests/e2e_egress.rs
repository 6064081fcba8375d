//! What is known of a veth's far end, against what really arrives there.

mod common;

use anyhow::{Context as _, Result};
use common::netns::{Lab, in_lab};
use common::networks::veth_peer;
use xdp_lb::egress::{EgressFacts, egress};
use xdp_lb::net::Netlink;

fn facts(lab: &Lab) -> Result<EgressFacts> {
    lab.within("lb", || {
        let mut netlink = Netlink::open()?;
        let link = netlink.link("eth0")?.context("no eth0")?;
        egress(&mut netlink, &link, true)
    })?
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_far_ends_of_veths() -> Result<()> {
    in_lab(|lab| {
        lab.add(&["client", "lb"])?;
        lab.ip("", "link add inside netns client type veth peer name eth0 netns lb")?;
        lab.ip("client", "link set inside up")?;
        lab.ip("lb", "link set eth0 up")?;
        let gro = |state| lab.run("client", "ethtool", &["-K", "inside", "gro", state]);
        gro("off")?;

        let bare = facts(lab)?;
        assert_eq!((bare.redirect, bare.tx), (false, false), "{bare:?}");
        assert!(bare.why.contains("its far end inside has neither"), "{bare:?}");
        let faster = "nsenter --net=/run/netns/client xdp-lb veth-peer inside";
        assert_eq!(bare.faster.as_deref(), Some(faster));

        gro("on")?;
        let with_gro = facts(lab)?;
        assert_eq!((with_gro.redirect, with_gro.tx), (true, false), "{with_gro:?}");
        assert!(with_gro.why.contains("GRO"), "{with_gro:?}");
        assert_eq!(with_gro.faster.as_deref(), Some(faster));

        gro("off")?;
        veth_peer(lab, "client", "inside")?;
        let whole = facts(lab)?;
        assert_eq!((whole.redirect, whole.tx, whole.faster), (true, true, None), "{}", whole.why);
        Ok(())
    })
}

/// The far end in the same namespace, where no name of one is needed.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_both_ends_here() -> Result<()> {
    in_lab(|lab| {
        lab.add(&["lb"])?;
        lab.ip("lb", "link add eth0 type veth peer name far\nlink set eth0 up\nlink set far up")?;
        lab.run("lb", "ethtool", &["-K", "far", "gro", "off"])?;
        let bare = facts(lab)?;
        assert_eq!((bare.redirect, bare.tx), (false, false), "{bare:?}");
        assert_eq!(bare.faster.as_deref(), Some("xdp-lb veth-peer far"));
        veth_peer(lab, "lb", "far")?;
        assert!(facts(lab)?.tx);
        Ok(())
    })
}

/// No native mode at all, and none that redirected frames could be sent by.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_bridge_takes_nothing() -> Result<()> {
    in_lab(|lab| {
        lab.add(&["lb"])?;
        lab.ip("lb", "link add eth0 type bridge\nlink set eth0 up")?;
        let bridge = facts(lab)?;
        assert_eq!((bridge.redirect, bridge.tx), (false, false), "{bridge:?}");
        assert!(bridge.why.contains("its driver bridge"), "{bridge:?}");
        Ok(())
    })
}
