//! "Answers" of docs/connections.md.

use crate::machine::{Answers, Machine};
use crate::parse::{ACK, FIN, Packet, RST, SYN, TCP};
use crate::state::{Key, Phase, State};

impl Machine {
    /// A packet of a client has made an entry of this backend.
    pub fn asked(&mut self, key: Key, backend: u16, packet: &Packet, now: u16) {
        let others = [FIN, RST, ACK].into_iter().any(|flag| packet.has(flag));
        if packet.protocol == TCP && packet.has(SYN) && !others {
            let answers = self.answers.entry(backend).or_default();
            answers.unanswered = answers.unanswered.wrapping_add(1);
            self.handshake_begins(key, backend, now);
        }
    }

    /// A packet of the backend meets its entry.
    pub fn answered(&mut self, key: Key, state: State, packet: &Packet) {
        if packet.protocol != TCP || !packet.has(ACK) {
            return;
        }
        let answers = self.answers.entry(state.backend).or_default();
        match (packet.has(SYN), packet.has(RST)) {
            (true, false) if state.is_unconfirmed() => {
                *answers = Answers::default();
                self.handshake_ends(key, state.backend);
            }
            (false, true) if state.phase == Phase::Unconfirmed => {
                answers.refused = answers.refused.wrapping_add(1);
            }
            _ => (),
        }
    }
}
