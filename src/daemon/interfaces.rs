//! The interfaces that have the program: those that were named, and those that face a backend, as they come and go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, bail, ensure};

use super::network::View;
use crate::config::{Config, Deliver, XdpMode};
use crate::dataplane::{Attached, Mode, Plane, Profile};
use crate::net::{Link, Netlink, RouteKind};

/// The interfaces that have the program.
pub struct Interfaces {
    /// The names of those that the clients' packets arrive on.
    named: Vec<String>,
    mode: XdpMode,
    deliver: Deliver,
    attached: BTreeMap<u32, AttachedInterface>,
}

/// An interface that is to have the program.
pub struct Wanted {
    pub link: Link,
    /// Backends behind it.
    pub backends: BTreeSet<SocketAddrV4>,
}

/// An interface that has it.
pub struct AttachedInterface {
    pub link: Link,
    pub backends: BTreeSet<SocketAddrV4>,
    /// How the program runs there.
    pub mode: Mode,
}

impl Interfaces {
    /// None yet. `named` are the names of those that the clients' packets arrive on; `config` may have others of their names.
    pub fn new(named: Vec<String>, config: &Config) -> Interfaces {
        Interfaces { named, mode: config.xdp_mode, deliver: config.deliver, attached: BTreeMap::new() }
    }

    /// Those that have it, the named ones first.
    pub fn attached(&self) -> impl Iterator<Item = &AttachedInterface> {
        let others = self.attached.values().filter(|interface| !self.is_named(interface));
        self.named().chain(others)
    }

    /// The named ones that are there, in the order in which they were named.
    fn named(&self) -> impl Iterator<Item = &AttachedInterface> {
        let find = |name: &String| self.attached.values().find(|interface| interface.link.name == *name);
        self.named.iter().filter_map(find)
    }

    /// Whether clients' packets arrive on it.
    pub fn is_named(&self, interface: &AttachedInterface) -> bool {
        self.named.contains(&interface.link.name)
    }

    /// The first named one, while it is there.
    pub fn main(&self) -> Option<&AttachedInterface> {
        let main = self.named.first()?;
        self.attached.values().find(|interface| interface.link.name == *main)
    }

    /// The profile that an interface would most likely have.
    pub fn first_profile(&self, link: &Link) -> Profile {
        let mode = if self.mode == XdpMode::Skb { Mode::Skb } else { Mode::Native };
        self.profile(link, mode)
    }

    /// Attaches the program to each of the interfaces that a start needs. Those last that must be detached first, because the
    /// instance before left the program there in another mode: nothing should fail after that.
    pub fn attach_all(&mut self, plane: &mut Plane, mut wanted: Vec<Wanted>) -> Result<()> {
        wanted.sort_by_key(|wanted| self.changes_mode(plane, &wanted.link));
        for wanted in wanted {
            if self.changes_mode(plane, &wanted.link) {
                tracing::info!("{} changes its mode: for a moment it has no program", wanted.link.name);
            }
            self.attach(plane, wanted)?;
        }
        Ok(())
    }

    fn changes_mode(&self, plane: &Plane, link: &Link) -> bool {
        match self.mode {
            XdpMode::Auto => false,
            XdpMode::Native => plane.left_mode(link.index) == Some(Mode::Skb),
            XdpMode::Skb => plane.left_mode(link.index) == Some(Mode::Native),
        }
    }

    /// Attaches the program to an interface, in native mode where that may and can be.
    fn attach(&mut self, plane: &mut Plane, wanted: Wanted) -> Result<()> {
        let Wanted { link, backends } = wanted;
        let name = link.name.clone();
        let mode = match self.mode {
            XdpMode::Native => {
                self.attach_in(plane, &link, Mode::Native)?
                    .map_err(|refused| refusal(&name, &refused, "skb, or auto"))?;
                Mode::Native
            }
            XdpMode::Skb => {
                self.attach_in(plane, &link, Mode::Skb)?
                    .map_err(|refused| refusal(&name, &refused, "native, or auto"))?;
                Mode::Skb
            }
            XdpMode::Auto => self.attach_as_it_can(plane, &link)?,
        };
        self.attached.insert(link.index, AttachedInterface { link, backends, mode });
        Ok(())
    }

    /// In native mode, else in SKB mode. One that was left in SKB mode stays so: to try whether its driver does native mode
    /// would mean to detach it first.
    fn attach_as_it_can(&self, plane: &mut Plane, link: &Link) -> Result<Mode> {
        let name = &link.name;
        if plane.left_mode(link.index) == Some(Mode::Skb) {
            tracing::info!("{name} stays in SKB mode, in which it was left; --xdp-mode native changes that");
        } else {
            let Err(refused) = self.attach_in(plane, link, Mode::Native)? else { return Ok(Mode::Native) };
            tracing::warn!(
                "the driver of {name} refuses native mode ({refused}){}: SKB mode is used there, which is slower",
                hint(&refused)
            );
        }
        match self.attach_in(plane, link, Mode::Skb)? {
            Ok(()) => Ok(Mode::Skb),
            Err(refused) => {
                bail!("could not attach the program to {name} in SKB mode either: {refused}")
            }
        }
    }

    /// The inner error: the driver does not do the mode.
    fn attach_in(&self, plane: &mut Plane, link: &Link, mode: Mode) -> Result<Result<(), io::Error>> {
        Ok(match plane.attach(link.index, &link.name, mode, self.profile(link, mode))? {
            Attached::Yes => Ok(()),
            Attached::Unsupported(error) => Err(error),
        })
    }

    /// What the program is specialised for on an interface. Virtual devices hand over frames of senders on this machine,
    /// whose checksums are still to be finished.
    fn profile(&self, link: &Link, mode: Mode) -> Profile {
        match mode {
            Mode::Skb if self.deliver == Deliver::Direct => Profile::SKB_DIRECT,
            Mode::Skb => Profile::SKB,
            Mode::Native if link.kind.is_some() => Profile::NATIVE_VIRTUAL,
            Mode::Native => Profile::NATIVE,
        }
    }

    /// Brings the program to interfaces that face a backend now, or that are back under their name; lets go of those that
    /// are gone. Returns what could not be done. Pins are the caller's to bring in step.
    pub fn follow(&mut self, plane: &mut Plane, view: &View) -> Vec<String> {
        // Also an interface that is there without its program: its link was detached by somebody, or it is another one that
        // got the index anew.
        let mut gone: BTreeSet<u32> = plane.forget_gone().into_iter().collect();
        gone.extend(self.attached.keys().filter(|index| !view.links.contains_key(index)));
        for index in gone {
            if let Some(gone) = self.attached.remove(&index) {
                let name = gone.link.name;
                match view.links.contains_key(&index) {
                    true => tracing::warn!("somebody detached the program from {name}"),
                    false => tracing::warn!("{name} is gone, and the program with it"),
                }
            }
        }
        let mut troubles = Vec::new();
        for wanted in self.wanted(plane, view) {
            match self.attached.get_mut(&wanted.link.index) {
                Some(known) => {
                    let (old, new) = (&known.link.name, &wanted.link.name);
                    if old != new {
                        tracing::info!("{old} has a new name: {new}");
                    }
                    self.named.iter_mut().filter(|name| *name == old).for_each(|name| name.clone_from(new));
                    (known.link, known.backends) = (wanted.link, wanted.backends);
                }
                None => {
                    let name = wanted.link.name.clone();
                    match check(&wanted.link).and_then(|()| self.attach(plane, wanted)) {
                        Ok(()) => tracing::info!("attached to {name} too"),
                        Err(error) => troubles.push(format!("{error:#}")),
                    }
                }
            }
        }
        for name in &self.named {
            if self.attached.values().all(|interface| interface.link.name != *name) {
                troubles.push(format!("{name} is not there: clients reach nothing by it until it is back"));
            }
        }
        troubles
    }

    fn wanted(&self, plane: &Plane, view: &View) -> Vec<Wanted> {
        let named = self.named.iter().filter_map(|name| view.links.values().find(|link| link.name == *name));
        let mut all: Vec<Wanted> = named.map(Wanted::alone).collect();
        for backend in plane.backends() {
            let Some(link) = view.facing(*backend) else { continue };
            face(&mut all, link, backend.address);
        }
        // One that faced a backend keeps the program: a route that moved may move back.
        for known in self.attached.values() {
            let link = view.links.get(&known.link.index);
            if let Some(link) = link.filter(|link| all.iter().all(|wanted| wanted.link.index != link.index)) {
                all.push(Wanted::alone(link));
            }
        }
        all
    }

    /// Attaches the program to interfaces that face a backend which is about to be added. Returns which are new; all or none
    /// of them.
    pub fn extend(&mut self, plane: &mut Plane, view: &View) -> Result<Vec<u32>> {
        let mut new = Vec::new();
        for wanted in self.wanted(plane, view) {
            let index = wanted.link.index;
            if self.attached.contains_key(&index) {
                continue;
            }
            if let Err(error) = check(&wanted.link).and_then(|()| self.attach(plane, wanted)) {
                self.retract(plane, &new);
                return Err(error);
            }
            new.push(index);
        }
        Ok(new)
    }

    /// Takes the program off interfaces that [`Interfaces::extend`] attached it to.
    pub fn retract(&mut self, plane: &mut Plane, new: &[u32]) {
        for index in new {
            self.attached.remove(index);
            if let Err(error) = plane.detach(*index) {
                tracing::warn!("{error:#}");
            }
        }
    }
}

impl Wanted {
    /// One behind which no backend is known.
    fn alone(link: &Link) -> Wanted {
        Wanted { link: link.clone(), backends: BTreeSet::new() }
    }
}

/// Notes that a backend is behind an interface.
pub fn face(all: &mut Vec<Wanted>, link: &Link, backend: SocketAddrV4) {
    match all.iter_mut().find(|wanted| wanted.link.index == link.index) {
        Some(wanted) => _ = wanted.backends.insert(backend),
        None => all.push(Wanted { link: link.clone(), backends: BTreeSet::from([backend]) }),
    }
}

/// The interfaces that a start needs, the named ones first. What they must be like, [`crate::preflight`] has checked.
pub fn needed(netlink: &mut Netlink, config: &Config) -> Result<Vec<Wanted>> {
    let links: BTreeMap<u32, Link> = netlink.links()?.into_iter().map(|link| (link.index, link)).collect();
    let mut all = Vec::new();
    for name in &config.interfaces {
        let link = netlink.link(name)?.with_context(|| format!("there is no interface {name} any more"))?;
        all.push(Wanted::alone(&link));
    }
    let mut ways: HashMap<Ipv4Addr, &Link> = HashMap::new();
    for backend in config.services.iter().flat_map(|service| &service.backends) {
        let address = *backend.address.ip();
        let link = match ways.get(&address) {
            Some(link) => link,
            None => {
                let route = netlink.route_to(address)?.filter(|route| route.kind == RouteKind::Unicast);
                let link = route.and_then(|route| links.get(&route.ifindex));
                let link = link
                    .with_context(|| format!("there is no route to backend {} any more", backend.address))?;
                ways.entry(address).or_insert(link)
            }
        };
        face(&mut all, link, backend.address);
    }
    Ok(all)
}

/// Of one that appears later.
fn check(link: &Link) -> Result<()> {
    let name = &link.name;
    ensure!(link.ethernet, "{name} is not an Ethernet interface, so it carries no frames to balance");
    ensure!(link.up, "interface {name} is down: set it up (ip link set {name} up)");
    Ok(())
}

fn refusal(name: &str, refused: &io::Error, instead: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "could not attach the program to {name}: its driver refuses this mode ({refused}){}; use --xdp-mode {instead}",
        hint(refused)
    )
}

/// What a driver's refusal most likely means.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(code) if code == nix::errno::Errno::ERANGE as i32 => {
            ": the MTU of it or of its peer is too large"
        }
        _ => "",
    }
}
