//! What happens in a test: frames come in, time passes, backends and next hops change.

use std::fmt::Write as _;
use std::net::SocketAddrV4;

use super::packets::frame::{Checksum, Frame, Mac, Transport, tcp};
use super::world::State;

/// One thing that happens.
#[derive(Clone)]
pub enum Op {
    Frame(Sent),
    /// The clock moves by so many units; back, too, as between two CPUs.
    Clock(i32),
    /// What the program takes for a random number from now on.
    Random(u32),
    /// What it takes for the time in microseconds from now on.
    Micros(u32),
    Sweep,
    State {
        row: usize,
        state: State,
    },
    /// Whether a service leaves to the kernel what no backend takes.
    Empty {
        service: u16,
        pass: bool,
    },
    Hop {
        row: usize,
        hop: Hop,
    },
    /// How frames leave by the clients' interface or by the backends'; `None`: nothing is known of it.
    Egress {
        front: bool,
        sends: Option<(bool, bool)>,
    },
    /// The row of a neighbour on the clients' side is retired, or in use again.
    Neighbour {
        which: usize,
        valid: bool,
    },
}

/// How a backend is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    Known,
    /// Its MAC is not known.
    Unknown,
    /// By the clients' interface.
    Front,
}

/// A frame, what is done to its bytes, and by which interface it comes in.
#[derive(Clone)]
pub struct Sent {
    pub front: bool,
    pub frame: Frame,
    pub edits: Vec<Edit>,
}

/// A change of a frame's bytes. One that lies beyond its end changes nothing.
#[derive(Clone, Copy)]
pub enum Edit {
    Set { at: usize, value: u8 },
    Flip { at: usize, bits: u8 },
    Cut { len: usize },
}

/// What is not a frame cannot be sent in.
const SHORTEST: usize = 14;

impl Sent {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.frame.bytes();
        for edit in &self.edits {
            match *edit {
                Edit::Set { at, value } => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
                Edit::Flip { at, bits } => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= bits;
                    }
                }
                Edit::Cut { len } => bytes.truncate(len.max(SHORTEST)),
            }
        }
        bytes
    }

    /// The frame as the tests of the packet table write it.
    pub fn row(&self) -> String {
        let frame = row_of(&self.frame);
        match self.edits.is_empty() {
            true => format!("&{frame}.bytes()"),
            false => format!("&{:?} /* {frame}, edited */", self.bytes()),
        }
    }
}

fn address(of: SocketAddrV4) -> String {
    format!("address({:?}, {})", of.ip().octets(), of.port())
}

/// The builder's expression.
fn row_of(frame: &Frame) -> String {
    let plain = tcp(frame.from, frame.to, frame.flags);
    let ends = format!("{}, {}", address(frame.from), address(frame.to));
    let start = match frame.transport {
        Transport::Tcp => format!("tcp({ends}, {:?})", frame.flags),
        Transport::Udp => format!("udp({ends})"),
    };
    let mut fields = String::new();
    let mut field = |name: &str, value: String| write!(fields, "{name}: {value}, ").expect("a string");
    let mac = |mac: Mac| format!("{mac:?}");
    if frame.to_mac != plain.to_mac {
        field("to_mac", mac(frame.to_mac));
    }
    if frame.from_mac != plain.from_mac {
        field("from_mac", mac(frame.from_mac));
    }
    if frame.ttl != plain.ttl {
        field("ttl", frame.ttl.to_string());
    }
    for (name, bytes) in [("ip_options", &frame.ip_options), ("tcp_options", &frame.tcp_options)] {
        if !bytes.is_empty() {
            field(name, format!("vec!{bytes:?}"));
        }
    }
    if !frame.tags.is_empty() {
        field("tags", format!("vec!{:?}", frame.tags));
    }
    if frame.padding != 0 {
        field("padding", frame.padding.to_string());
    }
    if frame.more_fragments {
        field("more_fragments", "true".to_owned());
    }
    if frame.fragment_offset != 0 {
        field("fragment_offset", frame.fragment_offset.to_string());
    }
    match frame.checksum {
        Checksum::Whole => {}
        Checksum::Partial => field("checksum", "Checksum::Partial".to_owned()),
        Checksum::Absent => field("checksum", "Checksum::Absent".to_owned()),
    }
    let udp = frame.transport == Transport::Udp;
    if frame.payload != if udp { b"hello".to_vec() } else { Vec::new() } {
        field("payload", format!("vec!{:?}", frame.payload));
    }
    if fields.is_empty() { start } else { format!("Frame {{ {fields}..{start} }}") }
}

/// For what is said about frames.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
