//! Watching what becomes of packets: by a ring that the programs write to while somebody has asked for it.

use std::cell::Cell;
use std::mem::offset_of;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use libbpf_rs::{ErrorKind, RingBuffer, RingBufferBuilder};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

use super::Reason;
use super::tables::{Tables, from_bytes};
use super::types::{lb_constants, lb_event, lb_event_kind, lb_watch, lb_watch_wants};
use crate::model::Protocol;

/// How long the programs go on after the last sign of life of who watches.
const LEASE: Duration = Duration::from_secs(5);
/// Of a packet that is nobody's: its headers, so that whoever is shown it knows what it is.
const HEADERS: u32 = 128;
/// How often a sign of life is given, at least.
const RENEWAL: Duration = Duration::from_secs(1);
/// Records that are taken at once: who watches is to be heard, too, where more come than can be shown.
const BATCH: usize = 4096;

/// What is watched. What is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchFor {
    /// Packets that end like this.
    pub reasons: Vec<&'static Reason>,
    /// Packets that do something of this to their connection, however they end.
    pub events: Vec<Happening>,
    /// Clients in this network: its address, and how many bits of it count.
    pub client: Option<(Ipv4Addr, u8)>,
    /// Of the service with this address, with this port, of this protocol.
    pub service: Option<(Ipv4Addr, Option<u16>, Option<Protocol>)>,
    /// Of the backend with this address, with this port.
    pub backend: Option<(Ipv4Addr, Option<u16>)>,
    /// One connection in so many.
    pub sample: Option<u32>,
    /// Records a second at most, over all CPUs.
    pub rate: u32,
    /// Frames too: so many bytes of each at most.
    pub frames: Option<u32>,
}

/// What a packet does to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It is the first.
    Opened,
    /// It confirms the connection: packets of both sides were seen, the client's last.
    Confirmed,
    /// It is the last FIN of both.
    Closed,
    /// It is a RST of the backend.
    Reset,
    /// It comes after a sweep had found the connection over its timeout.
    Revived,
    /// It is a SYN that was sent before.
    SynRetransmit,
    /// It is a segment of the backend with RST, whatever that ends.
    Rst,
}

impl Happening {
    /// Every one, with its name.
    pub const NAMES: [(Happening, &'static str); 7] = [
        (Happening::Opened, "opened"),
        (Happening::Confirmed, "confirmed"),
        (Happening::Closed, "closed"),
        (Happening::Reset, "reset"),
        (Happening::Revived, "revived"),
        (Happening::SynRetransmit, "syn_retransmit"),
        (Happening::Rst, "rst"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(one, _)| *one == self).map_or("", |(_, name)| name)
    }

    fn bit(self) -> u32 {
        match self {
            Happening::Opened => lb_event_kind::LB_EVENT_OPENED.0,
            Happening::Confirmed => lb_event_kind::LB_EVENT_CONFIRMED.0,
            Happening::Closed => lb_event_kind::LB_EVENT_CLOSED.0,
            Happening::Reset => lb_event_kind::LB_EVENT_RESET.0,
            Happening::Revived => lb_event_kind::LB_EVENT_REVIVED.0,
            Happening::SynRetransmit => lb_event_kind::LB_EVENT_SYN_RETRANSMIT.0,
            Happening::Rst => lb_event_kind::LB_EVENT_RST.0,
        }
    }
}

/// A packet that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When, by the clock that counts from the start of the machine (`CLOCK_MONOTONIC`).
    pub time: Duration,
    /// The interface that it came by.
    pub ifindex: u32,
    /// That by which XDP sent it.
    pub out_ifindex: Option<u32>,
    /// What became of it.
    pub reason: &'static Reason,
    /// What it did to its connection.
    pub happenings: Vec<Happening>,
    /// Whether it is a reply.
    pub to_client: bool,
    /// The whole frame's bytes.
    pub length: u32,
    /// Protocol, source and destination as it came; `None` where they are not known, or not TCP's or UDP's over IPv4.
    pub packet: Option<(Protocol, SocketAddrV4, SocketAddrV4)>,
    /// Whether its ports are known; else they are 0.
    pub has_ports: bool,
    /// The TCP flags as in the header.
    pub tcp_flags: u8,
    /// The row of its service; 0: none.
    pub service: u16,
    /// The row of its backend; 0: none.
    pub backend: u16,
    /// What was kept of the frame as it came, if frames are watched; of one that is neither a client's nor a backend's its
    /// headers in any case.
    pub frame: Vec<u8>,
    /// And as it left, if it was rewritten.
    pub after: Option<Vec<u8>>,
}

/// Somebody who watches; there is at most one. The programs stop when this is dropped, or a few seconds after it was killed.
///
/// The time until which it holds is the lease: whoever swaps a new one in for what was there holds it.
pub struct Watch {
    tables: Tables,
    ring: RingBuffer<'static>,
    records: Receiver<Seen>,
    /// How many of them are waiting.
    waiting: Rc<Cell<usize>>,
    until: Cell<u64>,
    wants: u32,
    pin: PathBuf,
    /// How often the lease ran out, because this process was stopped: what came then was not seen.
    lapses: Cell<u64>,
}

impl Watch {
    /// Begins to watch an instance. Waits for the end of one that was killed.
    ///
    /// # Errors
    /// Somebody watches already, or the instance's tables cannot be used.
    pub fn begin(pin_dir: &Path, what: &WatchFor) -> Result<Watch> {
        Watch::on(Tables::open(pin_dir)?, pin_dir.join("data_watch"), what)
    }

    /// The same of tables, as long as there is something at `pin`.
    fn on(tables: Tables, pin: PathBuf, what: &WatchFor) -> Result<Watch> {
        let (sender, records) = channel();
        let waiting = Rc::new(Cell::new(0));
        let counted = waiting.clone();
        let mut builder = RingBufferBuilder::new();
        let record = move |bytes: &[u8]| {
            if let Some(seen) = seen(bytes) {
                // The receiver lives as long as the ring.
                let _ = sender.send(seen);
            }
            counted.set(counted.get() + 1);
            if counted.get() < BATCH { 0 } else { -(Errno::EAGAIN as i32) }
        };
        builder.add(&tables.watched, record).context("could not read the ring of what is watched")?;
        let ring = builder.build().context("could not make a reader of the ring of what is watched")?;
        let wants = match what.frames {
            Some(_) => lb_watch_wants::LB_WATCH_PACKETS.0 | lb_watch_wants::LB_WATCH_FRAMES.0,
            None => lb_watch_wants::LB_WATCH_PACKETS.0,
        };
        let until = Cell::new(claim(&tables)?);
        let watch = Watch { tables, ring, records, waiting, until, wants, pin, lapses: Cell::new(0) };
        // What nobody read of an earlier watch.
        while watch.take(Duration::ZERO)? == BATCH {
            watch.records.try_iter().for_each(drop);
        }
        watch.records.try_iter().for_each(drop);
        watch.ask_for(what)?;
        Ok(watch)
    }

    /// What was seen since the last look; waits for something so long at most.
    ///
    /// # Errors
    /// Somebody else watches now, because this process was stopped for too long; or the instance is gone.
    pub fn look(&self, patience: Duration) -> Result<Vec<Seen>> {
        self.renew()?;
        self.take(patience.min(RENEWAL))?;
        Ok(self.records.try_iter().collect())
    }

    /// Moves records from the ring. Returns how many.
    fn take(&self, patience: Duration) -> Result<usize> {
        self.waiting.set(0);
        match self.ring.poll(patience) {
            // A signal: whoever looks has its own way to hear of it. Or a batch.
            Err(error) if ![ErrorKind::Interrupted, ErrorKind::WouldBlock].contains(&error.kind()) => {
                Err(error).context("could not read the ring of what is watched")
            }
            _ => Ok(self.waiting.get()),
        }
    }

    /// How often this process was stopped for so long that nothing was recorded for it.
    pub fn lapses(&self) -> u64 {
        self.lapses.get()
    }

    /// How many records were left out because of the rate, and how many because they were not read in time.
    pub fn left_out(&self) -> (u64, u64) {
        let read = |offset| self.word(offset).map_or(0, |word| word.load(Ordering::Relaxed));
        (read(offset_of!(lb_watch, suppressed)), read(offset_of!(lb_watch, lost)))
    }

    fn ask_for(&self, what: &WatchFor) -> Result<()> {
        let service = what.service.unwrap_or((Ipv4Addr::UNSPECIFIED, None, None));
        let backend = what.backend.unwrap_or((Ipv4Addr::UNSPECIFIED, None));
        let (client, mask) = what.client.map_or((0, 0), |(address, bits)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            (address.to_bits() & mask, mask)
        });
        let before = self.tables.data_watch.get(0).context("the table data_watch is empty")?;
        let row = lb_watch {
            // Not yet: packets look at the rest once this is not 0.
            wants: 0,
            holder: std::process::id(),
            until: self.until.get(),
            reasons: bits(&what.reasons),
            events: what.events.iter().fold(0, |bits, event| bits | event.bit()),
            client: client.to_be(),
            client_mask: mask.to_be(),
            vip: service.0.to_bits().to_be(),
            vip_port: service.1.unwrap_or(0).to_be(),
            proto: service.2.map_or(0, Protocol::number),
            backend: backend.0.to_bits().to_be(),
            backend_port: backend.1.unwrap_or(0).to_be(),
            sample: what.sample.unwrap_or(1),
            rate: what.rate,
            length: what.frames.unwrap_or(HEADERS).min(lb_constants::LB_SNAPSHOT_LENGTH.0),
            generation: before.generation.wrapping_add(1),
            ..Default::default()
        };
        self.tables.data_watch.set(0, row)?;
        self.store_wants(self.wants);
        Ok(())
    }

    fn renew(&self) -> Result<()> {
        let (old, new) = (self.until.get(), until());
        let word = lease(&self.tables)?;
        if word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_err() {
            bail!(
                "another xdp-lb trace or capture watches this instance now: this one was stopped for too long"
            );
        }
        self.until.set(new);
        let lapsed = now() > old;
        if lapsed {
            self.lapses.set(self.lapses.get() + 1);
        }
        // A packet that came too late has switched it off; one that was held up since may do so after the lease was renewed.
        // What was kept of others by then has lost its end.
        if lapsed || !self.is_wanted() {
            begin_generation(&self.tables);
            self.store_wants(self.wants);
        }
        if !self.pin.exists() {
            bail!("the instance has ended: {} is gone", self.pin.display());
        }
        Ok(())
    }

    fn is_wanted(&self) -> bool {
        let wants = self.tables.data_watch.quad(0, offset_of!(lb_watch, wants));
        wants.is_some_and(|wants| wants.load(Ordering::Acquire) == self.wants)
    }

    fn store_wants(&self, wants: u32) {
        store_wants(&self.tables, wants);
    }

    fn word(&self, offset: usize) -> Option<&AtomicU64> {
        self.tables.data_watch.word(0, offset)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Ok(word) = lease(&self.tables) else { return };
        if word.load(Ordering::Acquire) == self.until.get() {
            self.store_wants(0);
            let _ = word.compare_exchange(self.until.get(), 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// What was kept of frames before this is of no use any more. Only the one who holds the lease writes it.
fn begin_generation(tables: &Tables) {
    if let Some(word) = tables.data_watch.half(0, offset_of!(lb_watch, generation)) {
        word.fetch_add(1, Ordering::AcqRel);
    }
}

fn store_wants(tables: &Tables, wants: u32) {
    if let Some(word) = tables.data_watch.quad(0, offset_of!(lb_watch, wants)) {
        word.store(wants, Ordering::Release);
    }
}

fn lease(tables: &Tables) -> Result<&AtomicU64> {
    tables.data_watch.word(0, offset_of!(lb_watch, until)).context("the table data_watch is empty")
}

/// Takes the lease; waits for the end of one that is not renewed. Returns until when it holds.
fn claim(tables: &Tables) -> Result<u64> {
    const LOOK: Duration = Duration::from_millis(50);
    let word = lease(tables)?;
    let first = word.load(Ordering::Acquire);
    loop {
        let there = word.load(Ordering::Acquire);
        if there <= now() {
            let mine = until();
            if word.compare_exchange(there, mine, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Ok(mine);
            }
        } else if there != first {
            let holder = tables.data_watch.get(0).map_or(0, |row| row.holder);
            bail!(
                "the process {holder} watches this instance already, and there can be only one: end that xdp-lb trace or \
                 capture first"
            );
        } else {
            sleep(LOOK);
        }
    }
}

/// The time by the clock that records have.
pub fn now_of_records() -> Duration {
    Duration::from_nanos(now())
}

fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

fn until() -> u64 {
    now() + LEASE.as_nanos() as u64
}

fn bits(reasons: &[&'static Reason]) -> [u64; lb_constants::LB_REASON_WORDS.0 as usize] {
    let mut words = [0; lb_constants::LB_REASON_WORDS.0 as usize];
    for code in reasons.iter().map(|reason| reason.code()) {
        if let Some(word) = words.get_mut(code as usize / 64) {
            *word |= 1 << (code % 64);
        }
    }
    words
}

fn seen(bytes: &[u8]) -> Option<Seen> {
    let (head, frame) = bytes.split_at_checked(size_of::<lb_event>())?;
    let event: lb_event = from_bytes(head).ok()?;
    let (before, rest) = frame.split_at_checked(event.captured as usize)?;
    let after = rest.get(..event.captured_after as usize)?;
    let address =
        |raw: u32, port: u16| SocketAddrV4::new(Ipv4Addr::from(raw.to_ne_bytes()), u16::from_be(port));
    let ends = (address(event.source, event.sport), address(event.destination, event.dport));
    let happened = |(one, _): &(Happening, &str)| one.bit() & u32::from(event.events) != 0;
    Some(Seen {
        time: Duration::from_nanos(event.time),
        ifindex: event.ifindex,
        out_ifindex: (event.out_ifindex != 0).then_some(event.out_ifindex),
        reason: Reason::of_code(u32::from(event.reason))?,
        happenings: Happening::NAMES.iter().filter(|one| happened(one)).map(|(one, _)| *one).collect(),
        to_client: event.to_client != 0,
        length: event.frame_len,
        packet: Protocol::from_number(event.proto).map(|protocol| (protocol, ends.0, ends.1)),
        has_ports: event.has_ports != 0,
        tcp_flags: event.tcp_flags,
        service: event.service,
        backend: event.backend,
        frame: before.to_vec(),
        after: (!after.is_empty()).then(|| after.to_vec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Class;
    use crate::dataplane::tables::as_bytes;

    #[test]
    fn reasons_are_bits() {
        let words = bits(&[]);
        assert_eq!(words, [0; 3]);
        for reason in Reason::ALL {
            let words = bits(&[reason]);
            let code = reason.code() as usize;
            assert_eq!(words[code / 64] >> (code % 64) & 1, 1, "{}", reason.name);
        }
    }

    /// A frame without a VIP, of which its source port tells which it is.
    fn frame(port: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        let macs = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
        let builder = etherparse::PacketBuilder::ethernet2(macs[0], macs[1]);
        let udp = builder.ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64).udp(port, 9);
        udp.write(&mut frame, &[0; 18]).expect("a frame");
        frame
    }

    /// Whoever begins and ends while packets are under way is never told one packet's frame as another's.
    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_a_kept_frame_is_of_its_own_packet() -> Result<()> {
        const PACKETS: u16 = 60_000;
        let mut plane = crate::dataplane::Plane::load_for(&crate::dataplane::Request {
            max_connections: 1000,
            timeouts: &crate::model::Timeouts::default(),
            services: &[],
            profile: crate::dataplane::Profile::NATIVE,
            key: None,
        })?;
        let own = |plane: &crate::dataplane::Plane| {
            let mut there = plane.tables().shared()?;
            Tables::from_handles(|name| there.remove(name).with_context(|| format!("there is no {name}")))
        };
        let what = WatchFor {
            reasons: Reason::ALL.iter().filter(|reason| reason.class == Class::Pass).collect(),
            rate: u32::MAX,
            frames: Some(64),
            ..WatchFor::default()
        };
        let (watched, other) = (own(&plane)?, own(&plane)?);
        let watch = Watch::on(watched, PathBuf::from("/"), &what)?;
        let (wants, stop) = (watch.wants, std::sync::atomic::AtomicBool::new(false));
        let program = plane.program(crate::dataplane::Profile::NATIVE)?;
        let mut seen = Vec::new();
        std::thread::scope(|scope| -> Result<()> {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    store_wants(&other, 0);
                    std::hint::spin_loop();
                    begin_generation(&other);
                    store_wants(&other, wants);
                    std::hint::spin_loop();
                }
            });
            let run = (1..=PACKETS).try_for_each(|port| {
                program.test_run(&frame(port), 1)?;
                if port % 1000 == 0 {
                    seen.extend(watch.look(Duration::ZERO)?);
                }
                anyhow::Ok(())
            });
            stop.store(true, Ordering::Relaxed);
            run
        })?;
        assert!(seen.len() > 100, "{} of {PACKETS} were watched", seen.len());
        let port = |seen: &Seen| seen.packet.map(|(_, source, _)| source.port());
        let wrong = seen.iter().filter(|seen| seen.frame != frame(port(seen).unwrap_or(0)));
        assert_eq!(wrong.count(), 0, "of {}", seen.len());
        Ok(())
    }

    #[test]
    fn records_are_read() {
        let reason = Reason::ALL.iter().find(|reason| reason.class == Class::Drop).expect("a reason");
        let event = lb_event {
            time: 7,
            ifindex: 3,
            frame_len: 60,
            captured: 2,
            captured_after: 1,
            reason: reason.code() as u16,
            events: (lb_event_kind::LB_EVENT_OPENED.0 | lb_event_kind::LB_EVENT_RST.0) as u8,
            proto: 6,
            source: u32::from_ne_bytes([10, 0, 0, 1]),
            sport: 80u16.to_be(),
            ..Default::default()
        };
        let mut bytes = as_bytes(&event).to_vec();
        assert_eq!(seen(&bytes[1..]), None);
        bytes.extend([1, 2, 3, 4]);
        let seen = seen(&bytes).expect("a record");
        assert_eq!((seen.reason, seen.frame, seen.length), (reason, vec![1, 2], 60));
        assert_eq!(seen.after, Some(vec![3]));
        assert_eq!(seen.happenings, [Happening::Opened, Happening::Rst]);
        let (protocol, source, _) = seen.packet.expect("addresses");
        assert_eq!((protocol, source), (Protocol::Tcp, "10.0.0.1:80".parse().expect("an address")));
    }
}
