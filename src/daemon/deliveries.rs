//! Whether what leaves by an interface is sent by XDP or left to the kernel, and what the kernel needs for the latter.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::interfaces::{AttachedInterface, Interfaces};
use super::ledger::Ledger;
use super::network::View;
use crate::config::Deliver;
use crate::dataplane::{Egress, Mode, Plane};
use crate::egress::{EgressFacts, Signs, egress};
use crate::net::{Link, Netlink};
use crate::preflight::{StackInterface, sysctl_needs};

/// What was decided for each interface that frames may leave by.
pub struct Deliveries {
    deliver: Deliver,
    decided: BTreeMap<u32, Decision>,
    /// What it was decided by.
    signs: BTreeMap<u32, Signs>,
    /// The sysctls that are ours now.
    sysctls: BTreeSet<String>,
    /// Said once: sysctls that could not be set.
    refused: BTreeSet<String>,
}

/// How frames leave by an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decision {
    egress: Egress,
    why: String,
    /// What would make it faster.
    faster: Option<String>,
}

/// What matters of an attached interface to the sysctls.
struct Ingress<'a> {
    name: &'a str,
    ifindex: u32,
    /// Everything that arrives is left to the kernel.
    stack: bool,
    clients: bool,
    backends: bool,
}

impl Deliveries {
    /// Nothing is decided yet: everything is left to the kernel.
    pub fn new(deliver: Deliver) -> Deliveries {
        Deliveries {
            deliver,
            decided: BTreeMap::new(),
            signs: BTreeMap::new(),
            sysctls: BTreeSet::new(),
            refused: BTreeSet::new(),
        }
    }

    /// Decides for interfaces that are about to get the program, before the first packet meets it, unless an instance before
    /// has decided. What was decided wrongly [`Deliveries::follow`] puts right.
    pub fn foresee<'a>(
        &self,
        plane: &mut Plane,
        netlink: &mut Netlink,
        links: impl IntoIterator<Item = &'a Link>,
    ) -> Result<()> {
        let (hops, tables) = plane.next_hops();
        let known: BTreeSet<u32> = hops.egresses().collect();
        for link in links.into_iter().filter(|link| !known.contains(&link.index)) {
            let expected = self.decide(egress(netlink, link, true)?);
            hops.set_egress(tables, link.index, Some(expected.egress))?;
        }
        Ok(())
    }

    /// Decides for the interfaces that have the program, and with `all` for every other that a client may be reached by;
    /// sets what the kernel needs before anything is left to it. Ok(true): something is left to it that was not before.
    pub fn follow(
        &mut self,
        plane: &mut Plane,
        netlink: &mut Netlink,
        view: &View,
        interfaces: &Interfaces,
        ledger: &mut Ledger,
        all: bool,
    ) -> Result<bool> {
        let attached: BTreeSet<u32> = interfaces.attached().map(|interface| interface.link.index).collect();
        let mut news = Vec::new();
        for link in view.links.values().filter(|link| link.ethernet && link.up && !link.loopback) {
            if !all && !attached.contains(&link.index) && self.decided.contains_key(&link.index) {
                continue;
            }
            let signs = Signs::of(netlink, link)?;
            if signs.tell_all() && self.signs.get(&link.index) == Some(&signs) {
                continue;
            }
            self.signs.insert(link.index, signs);
            let now = self.decide(egress(netlink, link, false)?);
            let before = self.decided.insert(link.index, now.clone());
            if before.as_ref() != Some(&now) {
                news.push((link, before, now));
            }
        }
        let unneeded = self.set_sysctls(view, interfaces, ledger);
        let (hops, tables) = plane.next_hops();
        let mut slower = false;
        for (link, before, now) in news {
            hops.set_egress(tables, link.index, Some(now.egress))?;
            let changed = before.filter(|before| before.egress != now.egress);
            if let Some(before) = changed.filter(|_| attached.contains(&link.index)) {
                tracing::info!("from now on what leaves by {} is delivered {}", link.name, now.describe());
                slower |= before.egress.redirect && !now.egress.redirect;
            }
        }
        let gone: Vec<u32> = hops.egresses().filter(|index| !view.links.contains_key(index)).collect();
        for index in gone {
            self.decided.remove(&index);
            self.signs.remove(&index);
            hops.set_egress(tables, index, None)?;
        }
        // Only now nothing more is left to the kernel that needs them.
        for name in unneeded {
            ledger.put_back(&name);
            self.sysctls.remove(&name);
        }
        Ok(slower)
    }

    fn decide(&self, facts: EgressFacts) -> Decision {
        let EgressFacts { redirect, tx, why, faster } = facts;
        match self.deliver {
            Deliver::Stack => {
                Decision { egress: Egress::STACK, why: "--deliver stack".to_owned(), faster: None }
            }
            // Whatever arrives better: XDP_TX, if neither does.
            Deliver::Direct => Decision {
                egress: Egress { redirect: true, tx: tx || !redirect },
                why: match redirect {
                    true => "--deliver direct".to_owned(),
                    false => format!("--deliver direct, although what is redirected there vanishes: {why}"),
                },
                faster: None,
            },
            Deliver::Auto => Decision { egress: Egress { redirect, tx }, why, faster },
        }
    }

    /// How packets travel by an interface, for people.
    pub fn describe(&self, interface: &AttachedInterface) -> String {
        if interface.mode == Mode::Skb && self.deliver == Deliver::Auto {
            return "what arrives there is delivered by the kernel (only it can send frames above the MTU and unfinished \
                    checksums; faster: an interface whose driver does native XDP)"
                .to_owned();
        }
        match self.decided.get(&interface.link.index) {
            Some(decision) => format!("delivery {}", decision.describe()),
            None => "delivery by the kernel: nothing is known of it yet".to_owned(),
        }
    }

    /// Sets what is needed, and returns what is not any more. A sysctl that cannot be set is said once: what the kernel is
    /// left with may still do.
    fn set_sysctls(&mut self, view: &View, interfaces: &Interfaces, ledger: &mut Ledger) -> Vec<String> {
        let arriving: Vec<Ingress<'_>> = interfaces
            .attached()
            .map(|interface| Ingress {
                name: &interface.link.name,
                ifindex: interface.link.index,
                stack: is_stack(self.deliver, interface),
                clients: interfaces.is_named(interface),
                backends: !interface.backends.is_empty(),
            })
            .collect();
        let sends = |from: u32, to: u32| {
            self.decided.get(&to).is_some_and(|now| now.egress.redirect || (from == to && now.egress.tx))
        };
        let named = interfaces.attached().filter(|interface| interfaces.is_named(interface));
        let named = named.map(|interface| interface.link.index);
        let to_clients = view.client_ways.iter().copied().chain(named).collect();
        let needs = sysctl_needs(&handing_over(&arriving, &to_clients, sends));
        for need in needs.iter().filter(|need| !need.is_met_otherwise()) {
            match ledger.set_sysctl(&need.name, need.value, need.why) {
                Ok(()) => {
                    self.sysctls.insert(need.name.clone());
                }
                Err(error) => {
                    if self.refused.insert(need.name.clone()) {
                        tracing::warn!(
                            "{error:#}: {}; set it by hand (sysctl -w {}={})",
                            need.why,
                            need.name,
                            need.value
                        );
                    }
                }
            }
        }
        let is_unneeded = |name: &&String| needs.iter().all(|need| need.name != **name);
        self.sysctls.iter().filter(is_unneeded).cloned().collect()
    }
}

impl Decision {
    fn describe(&self) -> String {
        let how = match self.egress {
            Egress { redirect: true, tx: true } => "direct (XDP_TX or redirect)",
            Egress { redirect: true, tx: false } => "direct (redirect)",
            Egress { redirect: false, tx: true } => {
                "direct where it came from there (XDP_TX), else by the kernel"
            }
            Egress { redirect: false, tx: false } => "by the kernel",
        };
        let faster = self.faster.as_ref().map_or(String::new(), |faster| format!("; faster: {faster}"));
        format!("{how}: {}{faster}", self.why)
    }
}

/// Whether everything that arrives on an interface is left to the kernel.
fn is_stack(deliver: Deliver, interface: &AttachedInterface) -> bool {
    deliver == Deliver::Stack || (interface.mode == Mode::Skb && deliver == Deliver::Auto)
}

/// Which interfaces leave what to the kernel. `to_clients`: the interfaces that clients are reached by, which may be others
/// than the one they arrive on. `sends(from, to)`: XDP sends what arrives on one interface by the other.
fn handing_over(
    arriving: &[Ingress<'_>],
    to_clients: &BTreeSet<u32>,
    sends: impl Fn(u32, u32) -> bool,
) -> Vec<StackInterface> {
    let left = |from: &Ingress<'_>, mut to: Box<dyn Iterator<Item = u32> + '_>| {
        from.stack || to.any(|to| !sends(from.ifindex, to))
    };
    let to_backends = || arriving.iter().filter(|to| to.backends).map(|to| to.ifindex);
    let of = |from: &Ingress<'_>| StackInterface {
        name: from.name.to_owned(),
        to_backends: from.clients && left(from, Box::new(to_backends())),
        to_clients: from.backends && left(from, Box::new(to_clients.iter().copied())),
        one_arm: from.backends && (from.clients || to_clients.contains(&from.ifindex)),
    };
    arriving.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_arms(stack: bool) -> [Ingress<'static>; 2] {
        [
            Ingress { name: "eth0", ifindex: 1, stack, clients: true, backends: false },
            Ingress { name: "eth1", ifindex: 2, stack, clients: false, backends: true },
        ]
    }

    /// By interface, whether it leaves clients' packets and replies to the kernel.
    fn left(arriving: &[Ingress<'_>], sends: impl Fn(u32, u32) -> bool) -> Vec<(bool, bool)> {
        let of = |interface: &StackInterface| (interface.to_backends, interface.to_clients);
        handing_over(arriving, &BTreeSet::from([1]), sends).iter().map(of).collect()
    }

    #[test]
    fn each_direction_by_itself() {
        assert_eq!(left(&two_arms(false), |_, _| true), [(false, false), (false, false)]);
        assert_eq!(left(&two_arms(true), |_, _| true), [(true, false), (false, true)]);
        assert_eq!(left(&two_arms(false), |_, to| to == 1), [(true, false), (false, false)]);
        assert_eq!(left(&two_arms(false), |_, to| to == 2), [(false, false), (false, true)]);
    }

    #[test]
    fn one_arm_by_xdp_tx() {
        let arm = [Ingress { name: "eth0", ifindex: 1, stack: false, clients: true, backends: true }];
        assert_eq!(left(&arm, |from, to| from == to), [(false, false)]);
        assert_eq!(left(&arm, |_, _| false), [(true, true)]);
    }

    #[test]
    fn clients_are_reached_by_another_interface_than_they_arrive_on() {
        let needs =
            |to_clients| handing_over(&two_arms(false), &BTreeSet::from([1, to_clients]), |_, to| to != 7);
        assert!(!needs(2)[1].to_clients && needs(2)[1].one_arm);
        assert!(needs(7)[1].to_clients && !needs(7)[1].one_arm);
        assert!(!needs(7)[0].to_backends);
    }
}
