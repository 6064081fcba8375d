use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anyhow::Result;

use super::Finding;
use crate::config::{Config, Deliver, XdpMode};
use crate::egress::{EgressFacts, FarEnd, egress};
use crate::net::{Address, Link, Netlink, Route, RouteKind};

/// One look at the network that an instance would work in.
pub(super) struct Scene {
    pub(super) links: BTreeMap<u32, Link>,
    pub(super) addresses: Vec<Address>,
    /// The interfaces that were named, those that exist.
    pub(super) named: Vec<Link>,
    /// The names of those that do not.
    pub(super) missing: Vec<String>,
    /// By address of a backend.
    pub(super) routes: BTreeMap<Ipv4Addr, Option<Route>>,
    /// Of the interfaces in use.
    pub(super) egress: BTreeMap<u32, EgressFacts>,
    /// Of those that are veths.
    pub(super) far_ends: BTreeMap<u32, FarEnd>,
    /// What is told of, if not everything.
    focus: Option<Focus>,
    /// Who delivers whatever is known of an interface; `None`: that decides.
    always: Option<Always>,
}

/// The interface that somebody asked about, and those that belong to it.
struct Focus {
    name: String,
    interfaces: BTreeSet<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Always {
    Xdp,
    Stack,
    SkbMode,
}

impl Scene {
    pub(super) fn look(netlink: &mut Netlink, config: &Config) -> Result<Scene> {
        let links = netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
        let backends = config.services.iter().flat_map(|service| &service.backends);
        let backends: BTreeSet<Ipv4Addr> = backends.map(|backend| *backend.address.ip()).collect();
        let mut routes = BTreeMap::new();
        for backend in backends {
            routes.insert(backend, netlink.route_to(backend)?);
        }
        let mut scene = Scene {
            links,
            addresses: netlink.addresses()?,
            named: Vec::new(),
            missing: Vec::new(),
            routes,
            egress: BTreeMap::new(),
            far_ends: BTreeMap::new(),
            focus: None,
            always: match config.deliver {
                Deliver::Direct => Some(Always::Xdp),
                Deliver::Stack => Some(Always::Stack),
                Deliver::Auto => (config.xdp_mode == XdpMode::Skb).then_some(Always::SkbMode),
            },
        };
        for name in &config.interfaces {
            match netlink.link(name)? {
                Some(link) => scene.named.push(link),
                None => scene.missing.push(name.clone()),
            }
        }
        for link in scene.in_use().into_iter().cloned().collect::<Vec<_>>() {
            scene.egress.insert(link.index, egress(netlink, &link, true)?);
            if let Some(peer) = link.peer {
                scene.far_ends.insert(link.index, FarEnd::find(netlink, peer)?);
            }
        }
        Ok(scene)
    }

    /// The named interfaces, and those that face backends; each once.
    pub(super) fn in_use(&self) -> Vec<&Link> {
        let mut used: Vec<&Link> = Vec::new();
        let facing = self.routes.keys().filter_map(|backend| self.link_to(*backend));
        for link in self.named.iter().chain(facing) {
            if !used.iter().any(|known| known.index == link.index) {
                used.push(link);
            }
        }
        used
    }

    /// Has only one interface told of; one that clients come by `with` those of the backends behind it.
    pub(super) fn focus(&mut self, netlink: &mut Netlink, name: &str, with_backends: bool) -> Result<()> {
        let mut interfaces: BTreeSet<u32> = netlink.link(name)?.map(|link| link.index).into_iter().collect();
        if with_backends {
            let facing = self.routes.keys().filter_map(|backend| self.link_to(*backend));
            interfaces.extend(facing.map(|link| link.index));
        }
        self.focus = Some(Focus { name: name.to_owned(), interfaces });
        Ok(())
    }

    /// Whether an interface is to be told of.
    pub(super) fn shows(&self, link: &Link) -> bool {
        self.focus.as_ref().is_none_or(|focus| focus.interfaces.contains(&link.index))
    }

    /// Those in use that are to be told of.
    pub(super) fn shown(&self) -> Vec<&Link> {
        self.in_use().into_iter().filter(|link| self.shows(link)).collect()
    }

    /// The names of those that do not exist and are to be told of.
    pub(super) fn shown_missing(&self) -> impl Iterator<Item = &String> {
        let is_shown = |name: &&String| self.focus.as_ref().is_none_or(|focus| focus.name == **name);
        self.missing.iter().filter(is_shown)
    }

    /// Whether an interface is one of those that were named, be it by another of its names.
    pub(super) fn is_named(&self, link: &Link) -> bool {
        self.named.iter().any(|named| named.index == link.index)
    }

    /// The interface by which a backend is reached.
    pub(super) fn link_to(&self, backend: Ipv4Addr) -> Option<&Link> {
        let route = self.routes.get(&backend)?.as_ref().filter(|route| route.kind == RouteKind::Unicast)?;
        self.links.get(&route.ifindex)
    }

    /// Whether an interface faces a backend.
    pub(super) fn faces_backends(&self, link: &Link) -> bool {
        self.routes.keys().any(|backend| self.link_to(*backend).is_some_and(|to| to.index == link.index))
    }

    /// Whether what leaves by an interface is left to the kernel to deliver, as far as can be told beforehand.
    pub(super) fn leaves_by_stack(&self, link: &Link) -> bool {
        match self.always {
            Some(always) => always != Always::Xdp,
            None => self.egress.get(&link.index).is_some_and(|facts| !facts.redirect),
        }
    }

    /// Whether the operator chose who delivers.
    pub(super) fn is_chosen(&self) -> bool {
        self.always.is_some()
    }

    /// Whether anything is.
    pub(super) fn by_stack(&self) -> bool {
        self.in_use().into_iter().any(|link| self.leaves_by_stack(link))
    }

    /// How frames leave by each interface in use, and what would make it faster.
    pub(super) fn delivery(&self) -> Vec<Finding> {
        let finding = |link: &Link| {
            let facts = self.egress.get(&link.index)?;
            let name = &link.name;
            let (message, fix) = match (self.always, facts.redirect) {
                (Some(Always::SkbMode), _) => (
                    format!("what leaves by {name} is left to the kernel to deliver, as always in SKB mode"),
                    Some("--xdp-mode auto".to_owned()),
                ),
                (Some(Always::Stack), _) => (
                    format!("what leaves by {name} is left to the kernel to deliver, by --deliver stack"),
                    None,
                ),
                (_, true) => (
                    format!("frames that XDP sends out of {name} arrive: {}", facts.why),
                    facts.faster.clone(),
                ),
                (Some(Always::Xdp), false) => {
                    let message = format!(
                        "frames that XDP sends out of {name}, by --deliver direct, vanish: {}",
                        facts.why
                    );
                    return Some(Finding::warning("delivery", &message, "--deliver auto"));
                }
                (None, false) => (
                    format!("what leaves by {name} is left to the kernel to deliver: {}", facts.why),
                    facts.faster.clone(),
                ),
            };
            Some(Finding { fix, ..Finding::ok("delivery", &message) })
        };
        self.shown().into_iter().filter_map(finding).collect()
    }
}
