//! What is measured: packets of one kind, at a program in a certain state, and what must become of them.

use xdp_lb::dataplane::Profile;

use crate::frame::{Checksum, Frame, tcp, udp};
use crate::lab::{LB_BACK_MAC, VIP, address, backend, backend_mac};
use crate::scene::Spec;
use crate::wrapper::{Draw, Shot};

/// Of the lab's interfaces.
const FRONT: u32 = 10;
const BACK: u32 = 20;

/// Without options and payload, but for the padding to the least that Ethernet sends.
const SMALL: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Syn,
    SynAck,
    Ack,
    /// An ACK of the client with a segment that makes a frame of so many bytes, its checksum whole or not.
    Data(usize, bool),
    /// The same of the backend.
    Reply(usize),
    Rst,
    Udp,
    /// To a port of the VIP that is not balanced.
    Elsewhere,
    /// Whose TTL allows no other hop.
    Dying,
}

impl Kind {
    fn is_reply(self) -> bool {
        matches!(self, Kind::SynAck | Kind::Reply(_))
    }

    /// Of a client 0.0.0.0:0.
    fn frame(self) -> Frame {
        let nobody = address([0, 0, 0, 0], 0);
        let from_client = |flags| tcp(nobody, VIP, flags);
        let from_backend = |flags| tcp(backend(0), nobody, flags).macs(LB_BACK_MAC, backend_mac(0));
        match self {
            Kind::Syn => from_client("S"),
            Kind::SynAck => from_backend("SA"),
            Kind::Ack => from_client("A"),
            Kind::Data(_, true) => from_client("PA").checksum(Checksum::Partial),
            Kind::Data(_, false) => from_client("PA"),
            Kind::Reply(_) => from_backend("PA"),
            Kind::Rst => from_client("R"),
            Kind::Udp => udp(nobody, VIP),
            Kind::Elsewhere => tcp(nobody, address([192, 168, 1, 100], 81), "S"),
            Kind::Dying => from_client("A").ttl(1),
        }
    }

    fn bytes(self) -> Vec<u8> {
        let frame = self.frame();
        match self {
            Kind::Data(length, _) | Kind::Reply(length) => {
                let headers = frame.bytes().len();
                frame.payload(vec![0x5a; length - headers]).bytes()
            }
            _ => {
                let headers = frame.bytes().len();
                frame.padded(SMALL - headers).bytes()
            }
        }
    }
}

/// Packets of a kind, of clients drawn in some way, where replies come from so many backends in turn.
pub fn shot(kind: Kind, draw: Draw, backends: u32) -> Shot {
    Shot {
        frame: kind.bytes(),
        draw,
        reply: kind.is_reply(),
        tcp: kind != Kind::Udp,
        partial: matches!(kind, Kind::Data(_, true)),
        backends,
        ifindex: if kind.is_reply() { BACK } else { FRONT },
    }
}

/// What a figure is hoped to be.
#[derive(Clone, Debug)]
pub enum Aim {
    /// At most so many nanoseconds above the base program.
    Net(f64),
    /// At most so many times what another case takes.
    Times(f64, String),
}

#[derive(Clone)]
pub struct Case {
    pub name: String,
    pub spec: Spec,
    pub profile: Profile,
    pub kind: Kind,
    pub draw: Draw,
    /// Sent first by the same clients, and not measured.
    pub before: Vec<Kind>,
    pub packets: u32,
    /// Whether each round begins with an empty table.
    pub fresh: bool,
    /// What must become of each packet.
    pub reason: &'static str,
    /// Whether each packet must make a new connection.
    pub opens: bool,
    pub aim: Option<Aim>,
    /// On the plot: which curve, and at how many connections.
    pub plot: Option<(&'static str, u32)>,
}

impl Case {
    pub fn new(name: impl Into<String>, spec: Spec, kind: Kind, packets: u32, reason: &'static str) -> Case {
        Case {
            name: name.into(),
            spec,
            profile: Profile::NATIVE,
            kind,
            draw: Draw::Count,
            before: Vec::new(),
            packets,
            fresh: false,
            reason,
            opens: false,
            aim: None,
            plot: None,
        }
    }

    pub fn profile(self, profile: Profile) -> Case {
        Case { profile, ..self }
    }

    pub fn draw(self, draw: Draw) -> Case {
        Case { draw, ..self }
    }

    pub fn after(self, before: &[Kind]) -> Case {
        Case { before: before.to_vec(), ..self }
    }

    pub fn fresh(self) -> Case {
        Case { fresh: true, ..self }
    }

    pub fn opens(self) -> Case {
        Case { opens: true, ..self }
    }

    pub fn aim(self, aim: Aim) -> Case {
        Case { aim: Some(aim), ..self }
    }

    pub fn plot(self, curve: &'static str, connections: u32) -> Case {
        Case { plot: Some((curve, connections)), ..self }
    }
}
