//! Steps 5 and 6 of docs/packets.md: the rewritten frame, its checksums, and how it leaves.

use std::net::Ipv4Addr;

use crate::checksum::{finished, looks_partial, sent, transport_is_right, update, update_partial, words};
use crate::hash::{hash, raw_address};
use crate::machine::{Arrival, Machine, PARTIAL_SENDERS};
use crate::parse::{Packet, UDP, word};
use crate::reason::Reason;
use crate::way::Way;
use crate::world::Verdict;

/// A translated packet.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub verdict: Verdict,
    pub reason: Reason,
    pub frame: Vec<u8>,
    pub backend: u16,
    pub to_backend: bool,
}

/// The address and port that a packet gets: as destination to a backend, as source to a client.
#[derive(Clone, Copy, Debug)]
pub struct Translation {
    pub to_backend: bool,
    pub address: Ipv4Addr,
    pub port: u16,
}

/// What becomes of a transport checksum.
enum Field {
    None,
    Finish,
    Partial,
    Update,
}

fn put(frame: &mut [u8], at: usize, word: u16) {
    frame[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

impl Machine {
    /// Verdict, reason and frame.
    pub fn deliver(
        &mut self,
        arrival: &Arrival,
        packet: &Packet,
        way: &Way,
        to: Translation,
    ) -> Result<(Verdict, Reason, Vec<u8>), Reason> {
        match *way {
            Way::Stack(reason) => {
                let frame = self.rewrite(arrival, packet, false, to);
                Ok((Verdict::Pass, reason, frame))
            }
            Way::Direct { mtu, .. } if packet.total_length() > mtu => Err(Reason::DropTooBig),
            Way::Direct { verdict, destination, source, .. } => {
                let mut frame = self.rewrite(arrival, packet, true, to);
                frame[..6].copy_from_slice(&destination);
                frame[6..12].copy_from_slice(&source);
                let reason = if to.to_backend { Reason::SentToBackend } else { Reason::SentToClient };
                Ok((verdict, reason, frame))
            }
        }
    }

    /// Everything but the MACs.
    fn rewrite(&mut self, arrival: &Arrival, packet: &Packet, direct: bool, to: Translation) -> Vec<u8> {
        let old_frame = arrival.frame;
        let mut frame = old_frame.to_vec();
        let (old_address, old_port, address_at, port_at) = if to.to_backend {
            (packet.destination, packet.destination_port, packet.ip + 16, packet.transport + 2)
        } else {
            (packet.source, packet.source_port, packet.ip + 12, packet.transport)
        };
        frame[address_at..address_at + 4].copy_from_slice(&to.address.octets());
        put(&mut frame, port_at, to.port);
        if direct {
            frame[packet.ip + 8] = packet.ttl - 1;
        }

        let (old, new) = (words(old_address), words(to.address));
        let mut header = update(word(old_frame, packet.ip + 10), &old, &new);
        if direct {
            let ttl_at = packet.ip + 8;
            header = update(header, &[word(old_frame, ttl_at)], &[word(&frame, ttl_at)]);
        }
        put(&mut frame, packet.ip + 10, header);

        let at = packet.checksum_field();
        let before = word(old_frame, at);
        let after = match self.field(old_frame, packet, direct) {
            Field::None => 0,
            Field::Finish => sent(finished(&frame, packet), packet.protocol),
            Field::Partial => update_partial(before, &old, &new),
            Field::Update => {
                let updated = update(before, &[old[0], old[1], old_port], &[new[0], new[1], to.port]);
                sent(updated, packet.protocol)
            }
        };
        put(&mut frame, at, after);
        frame
    }

    /// The table of step 6, and what it says of packets that look partial.
    fn field(&mut self, frame: &[u8], packet: &Packet, direct: bool) -> Field {
        if packet.protocol == UDP && word(frame, packet.checksum_field()) == 0 {
            return Field::None;
        }
        if !self.world.partial_possible {
            return Field::Update;
        }
        let looks_partial = looks_partial(frame, packet);
        if direct && !self.world.skb_mode {
            return if looks_partial { Field::Finish } else { Field::Update };
        }
        let sender = self.sender(packet.source);
        let counts = looks_partial && (self.senders[sender] || !transport_is_right(frame, packet));
        self.senders[sender] = counts;
        if counts { Field::Partial } else { Field::Update }
    }

    /// The slot in which it is noted whether the last packet of a source counted as partial.
    pub fn sender(&self, source: Ipv4Addr) -> usize {
        let hash = hash(raw_address(source), self.world.key[2], self.world.key[3]);
        (hash % u64::from(PARTIAL_SENDERS)) as usize
    }
}
