//! Connections that a server's kernel resets by itself.
//!
//! Seen with Linux 6.18 on two busy CPUs, once in some hundred thousand connections: a server answers a SYN, and some
//! microseconds later the client's next segment with a RST, though it has the connection, as its answer to the next SYN from
//! that port shows. It looks for connections without a lock, while another CPU puts one in the place of its half-open one.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::eventually;
use super::netns::{Lab, Process};
use super::networks::{CLIENT, WEBS};
use super::servers::HTTP;

/// What servers have sent.
pub struct Wires(Vec<(Process, PathBuf)>);

impl Wires {
    /// Notes the SYN-ACKs and RSTs that servers send to the client from now on.
    pub fn watch(lab: &Lab) -> Result<Wires> {
        let filter = format!(
            "src port {HTTP} and dst host {CLIENT} and (tcp[tcpflags] = tcp-rst or tcp[tcpflags] = (tcp-syn|tcp-ack))"
        );
        let watch = |(web, _): &(&str, &str)| {
            let file = lab.dir().join(format!("{web}.pcapng"));
            let path = file.display().to_string();
            let dumpcap =
                lab.start(web, "dumpcap", &["-i", "eth0", "-s", "96", "-f", &filter, "-w", &path])?;
            eventually("a capture", || dumpcap.stderr().contains("File:").then_some(()));
            Ok((dumpcap, file))
        };
        Ok(Wires(WEBS.iter().map(watch).collect::<Result<_>>()?))
    }

    /// How many connections servers have reset until now whose SYN they themselves had answered: the RST follows their
    /// SYN-ACK. It would not if it answered a segment that belongs to another server's connection.
    pub fn own_resets(self, lab: &Lab) -> Result<u64> {
        let mut own = 0;
        for (mut dumpcap, file) in self.0 {
            dumpcap.signal(Signal::SIGINT)?;
            dumpcap.wait()?;
            let path = file.display().to_string();
            let fields = ["-T", "fields", "-e", "tcp.dstport", "-e", "tcp.flags.reset", "-e", "tcp.seq_raw"];
            let text = lab.run("lb", "tshark", &[&["-n", "-r", &path][..], &fields].concat())?;
            let mut began = HashMap::new();
            for line in text.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [port, reset, sequence] = words[..] else { anyhow::bail!("tshark printed {line:?}") };
                let sequence: u32 = sequence.parse().with_context(|| line.to_owned())?;
                if ["0", "False"].contains(&reset) {
                    began.insert(port.to_owned(), sequence);
                } else {
                    own += u64::from(began.get(port).is_some_and(|began| began.wrapping_add(1) == sequence));
                }
            }
        }
        Ok(own)
    }
}
