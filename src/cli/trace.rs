//! `xdp-lb trace`: what becomes of packets, as it happens.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde_json::{Value, json};

use super::Instance;
use super::headers::{End, Headers};
use super::names::Names;
use super::source::pinned;
use super::stdout::write;
use super::watching::{Watching, flags};
use crate::dataplane::{Class, Happening, Reason, Seen, Tables, Watch, ipv4_of, now_of_records};
use crate::model::Protocol;

/// What is shown where nothing else is asked for: the life of connections, and every packet that is dropped, or that only the kernel may
/// know a way for.
const USUAL: [Happening; 4] = [Happening::Opened, Happening::Confirmed, Happening::Closed, Happening::Reset];

/// Shows what is seen, a line each, until it is stopped or has shown enough.
pub fn trace(watching: &Watching, instance: &Instance) -> Result<()> {
    let mut teller = Teller::new(instance)?;
    let told = watching.told(&teller.names, is_usual, &USUAL, None)?;
    let watch = Watch::begin(&instance.pin_dir, &told)?;
    crate::log::notice("watching; Ctrl-C ends it");
    watching.go_on(&watch, |seen| {
        let told = teller.tell(seen);
        let line = if instance.json { told.json().to_string() } else { told.text() };
        write(line + "\n")
    })
}

/// Puts what was seen into words.
pub(super) struct Teller<'a> {
    instance: &'a Instance,
    pub names: Names,
    tables: Tables,
    /// From the records' clock to that of people.
    epoch: SystemTime,
    /// When it was last looked whether the tables are still those of the instance.
    looked: Instant,
}

/// What was seen, in words.
pub(super) struct Told<'a> {
    seen: &'a Seen,
    headers: Headers,
    pub time: SystemTime,
    interface: String,
    /// Name, VIP.
    service: Option<(String, SocketAddrV4)>,
    backend: Option<SocketAddrV4>,
}

impl Teller<'_> {
    pub fn new(instance: &Instance) -> Result<Teller<'_>> {
        let tables = pinned(instance)?;
        let epoch = SystemTime::now().checked_sub(now_of_records()).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Teller { instance, names: Names::of(instance, &tables)?, tables, epoch, looked: Instant::now() })
    }

    /// A reload may have made tables anew, and names.
    fn keep_up(&mut self) {
        const INTERVAL: Duration = Duration::from_secs(1);
        if self.looked.elapsed() < INTERVAL {
            return;
        }
        self.looked = Instant::now();
        // In the middle of a swap, or at the end, those that are there must do.
        let Ok(tables) = Tables::open(&self.instance.pin_dir) else { return };
        if !tables.are_the_same(&self.tables) || !self.names.know(&tables) {
            if let Ok(names) = Names::of(self.instance, &tables) {
                self.names = names;
            }
        }
        self.tables = tables;
    }

    pub fn tell<'a>(&mut self, seen: &'a Seen) -> Told<'a> {
        self.keep_up();
        let service = self.tables.services.get(usize::from(seen.service)).filter(|_| seen.service != 0);
        let backend = self.tables.backends.get(usize::from(seen.backend)).filter(|_| seen.backend != 0);
        let endpoint = |addr, port| SocketAddrV4::new(ipv4_of(addr), u16::from_be(port));
        let service = service.and_then(|row| {
            let vip = endpoint(row.addr, row.port);
            Some((self.names.service(vip, Protocol::from_number(row.proto)?), vip))
        });
        Told {
            seen,
            headers: Headers::of(seen),
            time: self.epoch + seen.time,
            interface: self.names.interface(seen.ifindex),
            service,
            backend: backend.map(|row| endpoint(row.addr, row.port)),
        }
    }
}

impl Told<'_> {
    /// The client, where the packet is known to be of one or for one.
    fn client(&self) -> Option<End> {
        let (source, destination) = self.headers.ends?;
        self.service.as_ref()?;
        Some(if self.seen.to_client { destination } else { source })
    }

    /// What happened, in as few words as it takes.
    pub fn what(&self) -> String {
        let reason = self.seen.reason;
        let mut words: Vec<String> = self.seen.happenings.iter().map(|one| one.name().to_owned()).collect();
        if words.is_empty() || is_usual(reason) || reason.class == Class::Pass {
            words.push(format!("{} {}", reason.class.name(), reason.name));
        }
        words.join(", ")
    }

    /// Who talks to whom: the client first, whichever way the packet goes.
    pub fn way(&self) -> String {
        let Some((source, destination)) = self.headers.ends else {
            let what = self.headers.other().map_or(String::new(), |what| what + ", ");
            return format!("{what}{} bytes", self.seen.length);
        };
        let protocol = self.headers.protocol.as_deref().unwrap_or("?");
        let arrow = if self.seen.to_client { "<" } else { ">" };
        let flags = self.headers.tcp_flags.map_or(String::new(), |bits| format!(" [{}]", flags(bits)));
        let Some((name, vip)) = &self.service else {
            return format!("{protocol} {source} > {destination}{flags}");
        };
        let service = match *name == vip.to_string() {
            true => name.clone(),
            false => format!("{name} {vip}"),
        };
        let client = self.client().map_or_else(String::new, |client| client.to_string());
        let backend = self.backend.map_or_else(String::new, |backend| format!(" {arrow} {backend}"));
        format!("{protocol} {client} {arrow} {service}{backend}{flags}")
    }

    fn text(&self) -> String {
        let time = humantime::format_rfc3339_micros(self.time);
        let reason = self.seen.reason;
        let help = match reason.class {
            Class::Drop | Class::Error => format!(": {}", reason.help),
            Class::Stack if is_usual(reason) => format!(": {}", reason.help),
            _ => String::new(),
        };
        format!("{time} {} {} {}{help}", self.interface, self.what(), self.way())
    }

    fn json(&self) -> Value {
        let since = self.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let ends = self.headers.ends;
        let events: Vec<&str> = self.seen.happenings.iter().map(|one| one.name()).collect();
        json!({
            "time": humantime::format_rfc3339_nanos(self.time).to_string(),
            "timestamp": since.as_secs_f64(),
            "interface": self.interface,
            "events": events,
            "class": self.seen.reason.class.name(),
            "reason": self.seen.reason.name,
            "direction": self.service.as_ref().map(|_| match self.seen.to_client {
                true => "to_client",
                false => "to_backend",
            }),
            "protocol": self.headers.protocol,
            "ether_type": self.headers.ether_type.map(|number| format!("0x{number:04x}")),
            "client": self.client().map(|client| client.to_string()),
            "source": ends.map(|(source, _)| source.to_string()),
            "destination": ends.map(|(_, destination)| destination.to_string()),
            "service": self.service.as_ref().map(|(name, _)| name),
            "vip": self.service.as_ref().map(|(_, vip)| vip),
            "backend": self.backend,
            "tcp_flags": flags(self.headers.tcp_flags.unwrap_or(0)),
            "length": self.seen.length,
        })
    }
}

/// What is dropped, and replies that the kernel may have no route for: who waits for them sees as little of them.
fn is_usual(reason: &Reason) -> bool {
    match reason.class {
        Class::Drop | Class::Error => true,
        Class::Stack => reason.name == "route_by_kernel",
        Class::Sent | Class::Pass => false,
    }
}
