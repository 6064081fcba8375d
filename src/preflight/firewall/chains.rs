//! Firewall rules of either kind as one model, and what becomes in it of a packet that the kernel forwards.

use std::fmt;

/// The tables of one firewall that see forwarded IPv4 packets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) owner: Owner,
    /// `ip` or `inet`.
    pub(super) family: String,
    pub(super) name: String,
    pub(super) chains: Vec<Chain>,
}

/// With what a table is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Owner {
    #[default]
    Nft,
    /// By the command of this name: `iptables`, `iptables-legacy`, `iptables-nft`.
    Iptables(String),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Where forwarded packets come in by themselves; `None` for one that only rules lead to.
    pub(super) hook: Option<Hook>,
    pub(super) policy_drop: bool,
    pub(super) rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting,
    Forward,
    Postrouting,
}

impl Hook {
    pub(super) fn from_name(name: &str) -> Option<Hook> {
        match name.to_ascii_lowercase().as_str() {
            "prerouting" => Some(Hook::Prerouting),
            "forward" => Some(Hook::Forward),
            "postrouting" => Some(Hook::Postrouting),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// All must hold.
    pub(super) tests: Vec<Test>,
    pub(super) verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
    Return,
    /// It counts, logs or marks, and the next rule follows.
    Continue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// The field is in one of these ranges, or (negated) in none.
    Number { field: Field, ranges: Vec<(u32, u32)>, negated: bool },
    /// The interface has one of these names; one may end in `*`.
    Interface { side: Side, names: Vec<String>, negated: bool },
    /// Conntrack calls it one of these.
    State { states: Vec<String>, negated: bool },
    /// Nothing of IPv4 is so.
    Never,
    /// Something that is not understood here, or that differs from packet to packet.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Source,
    Destination,
    SourcePort,
    DestinationPort,
    Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    In,
    Out,
}

/// One direction of the connections to one backend, as the kernel sees them after the translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// TCP or UDP.
    pub(super) protocol: u8,
    pub(super) source: Option<u32>,
    pub(super) destination: Option<u32>,
    pub(super) source_port: Option<u16>,
    pub(super) destination_port: Option<u16>,
    pub(super) arrives_by: String,
    pub(super) leaves_by: String,
}

/// Why a chain stops packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    Policy,
    Invalid,
    Rule,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Obstacle::Policy => "its policy is drop",
            Obstacle::Invalid => "it drops what conntrack, which never sees both directions, calls invalid",
            Obstacle::Rule => "a rule of it drops them",
        })
    }
}

/// Deeper than any firewall nests its chains; the kernel allows 16.
const MAX_DEPTH: usize = 16;

/// How a rule's tests fit a flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// None of its packets.
    No,
    /// Not known here.
    Maybe,
    /// Some of its packets for certain, others not.
    Some,
    All,
}

enum Outcome {
    Accepted,
    Dropped(Obstacle),
    Returned,
}

impl Table {
    /// What stops a flow in a chain that has a hook. A rule that accepts is only believed if all packets fit it for certain,
    /// and one that drops if some do.
    pub(super) fn obstacle(&self, chain: &Chain, flow: &Flow) -> Option<Obstacle> {
        match self.walk(chain, chain.hook?, flow, 0) {
            Outcome::Accepted => None,
            Outcome::Dropped(obstacle) => Some(obstacle),
            Outcome::Returned => chain.policy_drop.then_some(Obstacle::Policy),
        }
    }

    fn walk(&self, chain: &Chain, hook: Hook, flow: &Flow, depth: usize) -> Outcome {
        for rule in &chain.rules {
            let fit = rule.tests.iter().map(|test| test.fit(hook, flow)).min().unwrap_or(Fit::All);
            match (&rule.verdict, fit) {
                (_, Fit::No) | (Verdict::Continue, _) => {}
                (Verdict::Accept, Fit::All) => return Outcome::Accepted,
                (Verdict::Drop, Fit::All | Fit::Some) => return Outcome::Dropped(rule.obstacle()),
                (Verdict::Return, Fit::All) => return Outcome::Returned,
                (Verdict::Jump(target) | Verdict::Goto(target), fit) => {
                    match (self.follow(target, hook, flow, depth), fit) {
                        (Outcome::Accepted, Fit::All) => return Outcome::Accepted,
                        (Outcome::Dropped(obstacle), Fit::All | Fit::Some) => {
                            return Outcome::Dropped(rule.obstacle_or(obstacle));
                        }
                        (_, Fit::All) if matches!(rule.verdict, Verdict::Goto(_)) => {
                            return Outcome::Returned;
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        Outcome::Returned
    }

    fn follow(&self, target: &str, hook: Hook, flow: &Flow, depth: usize) -> Outcome {
        match self.chains.iter().find(|chain| chain.name == target) {
            Some(chain) if depth < MAX_DEPTH => self.walk(chain, hook, flow, depth + 1),
            _ => Outcome::Returned,
        }
    }
}

impl Rule {
    fn obstacle(&self) -> Obstacle {
        self.obstacle_or(Obstacle::Rule)
    }

    fn obstacle_or(&self, other: Obstacle) -> Obstacle {
        match self.tests.iter().any(|test| matches!(test, Test::State { .. })) {
            true => Obstacle::Invalid,
            false => other,
        }
    }
}

impl Flow {
    fn number(&self, field: Field) -> Option<u32> {
        match field {
            Field::Source => self.source,
            Field::Destination => self.destination,
            Field::SourcePort => self.source_port.map(u32::from),
            Field::DestinationPort => self.destination_port.map(u32::from),
            Field::Protocol => Some(self.protocol.into()),
        }
    }

    /// What conntrack calls packets of which it sees one direction only: of TCP all but the first are invalid.
    fn states(&self) -> &'static [&'static str] {
        if self.protocol == crate::model::Protocol::Tcp.number() { &["new", "invalid"] } else { &["new"] }
    }
}

impl Test {
    fn fit(&self, hook: Hook, flow: &Flow) -> Fit {
        let yes = |yes: bool| if yes { Fit::All } else { Fit::No };
        match self {
            Test::Unknown => Fit::Maybe,
            Test::Never => Fit::No,
            Test::Number { field, ranges, negated } => match flow.number(*field) {
                Some(value) => {
                    let inside = ranges.iter().any(|(first, last)| (*first..=*last).contains(&value));
                    yes(inside != *negated)
                }
                None => Fit::Maybe,
            },
            Test::Interface { side, names, negated } => {
                let name = match (side, hook) {
                    (Side::In, Hook::Postrouting) | (Side::Out, Hook::Prerouting) => return Fit::Maybe,
                    (Side::In, _) => &flow.arrives_by,
                    (Side::Out, _) => &flow.leaves_by,
                };
                yes(names.iter().any(|pattern| fits_name(pattern, name)) != *negated)
            }
            Test::State { states, negated } => {
                let of_flow = flow.states();
                let named = of_flow.iter().filter(|state| states.iter().any(|named| named == *state)).count();
                match if *negated { of_flow.len() - named } else { named } {
                    0 => Fit::No,
                    count if count == of_flow.len() => Fit::All,
                    _ => Fit::Some,
                }
            }
        }
    }
}

fn fits_name(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow {
            protocol: 6,
            source: None,
            destination: Some(u32::from(std::net::Ipv4Addr::new(10, 0, 0, 10))),
            source_port: None,
            destination_port: Some(8080),
            arrives_by: "eth0".into(),
            leaves_by: "eth1".into(),
        }
    }

    fn rule(tests: &[Test], verdict: Verdict) -> Rule {
        Rule { tests: tests.to_vec(), verdict }
    }

    fn verdict_of(policy_drop: bool, rules: Vec<Rule>) -> Option<Obstacle> {
        let sub = Chain {
            name: "sub".into(),
            rules: vec![rule(&[invalid()], Verdict::Drop), rule(&[], Verdict::Accept)],
            ..Default::default()
        };
        let base = Chain { name: "base".into(), hook: Some(Hook::Forward), policy_drop, rules };
        let table = Table { chains: vec![base, sub], ..Default::default() };
        table.obstacle(&table.chains[0], &flow())
    }

    fn invalid() -> Test {
        Test::State { states: vec!["invalid".into()], negated: false }
    }

    fn established() -> Test {
        Test::State { states: vec!["established".into(), "related".into()], negated: false }
    }

    #[test]
    fn policies_and_rules_that_drop_are_obstacles() {
        assert_eq!(verdict_of(false, vec![]), None);
        assert_eq!(verdict_of(true, vec![]), Some(Obstacle::Policy));
        assert_eq!(verdict_of(true, vec![rule(&[], Verdict::Accept)]), None);
        assert_eq!(verdict_of(false, vec![rule(&[], Verdict::Drop)]), Some(Obstacle::Rule));
        assert_eq!(verdict_of(false, vec![rule(&[invalid()], Verdict::Drop)]), Some(Obstacle::Invalid));
        // Accepted are some of a connection's packets only.
        let new = Test::State { states: vec!["new".into()], negated: false };
        assert_eq!(verdict_of(true, vec![rule(&[new], Verdict::Accept)]), Some(Obstacle::Policy));
        // Nothing of ours is ever established.
        assert_eq!(verdict_of(true, vec![rule(&[established()], Verdict::Accept)]), Some(Obstacle::Policy));
        assert_eq!(verdict_of(false, vec![rule(&[established()], Verdict::Drop)]), None);
    }

    #[test]
    fn what_is_not_certain_neither_accepts_nor_drops() {
        assert_eq!(verdict_of(true, vec![rule(&[Test::Unknown], Verdict::Accept)]), Some(Obstacle::Policy));
        assert_eq!(verdict_of(false, vec![rule(&[Test::Unknown], Verdict::Drop)]), None);
        let some = Test::Number { field: Field::Source, ranges: vec![(1, 2)], negated: false };
        assert_eq!(
            verdict_of(true, vec![rule(std::slice::from_ref(&some), Verdict::Accept)]),
            Some(Obstacle::Policy)
        );
        assert_eq!(verdict_of(false, vec![rule(&[some], Verdict::Drop)]), None);
    }

    #[test]
    fn jumps_are_followed() {
        let jump = |tests: &[Test]| rule(tests, Verdict::Jump("sub".into()));
        assert_eq!(verdict_of(true, vec![jump(&[])]), Some(Obstacle::Invalid));
        assert_eq!(verdict_of(false, vec![jump(&[Test::Unknown])]), None);
        assert_eq!(verdict_of(false, vec![rule(&[], Verdict::Accept), jump(&[])]), None);
        let lost = vec![rule(&[], Verdict::Goto("nowhere".into())), rule(&[], Verdict::Accept)];
        assert_eq!(verdict_of(true, lost), Some(Obstacle::Policy));
    }

    #[test]
    fn interfaces_and_numbers_are_compared() {
        let out =
            |name: &str, negated| Test::Interface { side: Side::Out, names: vec![name.into()], negated };
        for (test, fits) in [
            (out("eth1", false), true),
            (out("eth*", false), true),
            (out("eth0", false), false),
            (out("eth0", true), true),
            (
                Test::Number { field: Field::DestinationPort, ranges: vec![(8000, 9000)], negated: false },
                true,
            ),
            (Test::Number { field: Field::DestinationPort, ranges: vec![(80, 80)], negated: false }, false),
            (Test::Number { field: Field::Protocol, ranges: vec![(6, 6)], negated: true }, false),
            (Test::Never, false),
        ] {
            let accepted =
                verdict_of(true, vec![rule(std::slice::from_ref(&test), Verdict::Accept)]).is_none();
            assert_eq!(accepted, fits, "{test:?}");
        }
    }
}
