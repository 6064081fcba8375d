//! What `trace` and `capture` are to show: from words to a [`Watching`], and from that to what the programs are told.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::instance::{fault, interval_word, number, service_word};
use super::names::Names;
use super::resolve::option;
use super::usage::Usage;
use super::verbs::WatchArgs;
use crate::config::words::{Fault, alternatives};
use crate::dataplane::{Class, Happening, Reason, Seen, Watch, WatchFor};

/// How many records a second come where nothing else is said.
const RATE: u32 = 1000;
/// How long one look waits for something.
const PATIENCE: Duration = Duration::from_millis(200);

/// What is to be shown, and for how long. What is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watching {
    /// Clients in this network: address and how many bits count.
    pub client: Option<(Ipv4Addr, u8)>,
    /// Of the service with this name, or VIP.
    pub service: Option<String>,
    /// Of the backend with this address and port.
    pub backend: Option<(Ipv4Addr, Option<u16>)>,
    /// Packets that end like this; none: what is usual for the verb.
    pub reasons: Vec<&'static Reason>,
    /// Packets that do this to their connection.
    pub events: Vec<Happening>,
    /// Ends after so many.
    pub limit: Option<u64>,
    /// Ends after this time.
    pub duration: Option<Duration>,
    /// One connection in so many.
    pub sample: Option<u32>,
    /// Records a second at most.
    pub rate: u32,
}

impl Watching {
    pub(super) fn read(args: &WatchArgs) -> Result<Watching, Usage> {
        let mut watching = Watching {
            client: option("--client", args.client.as_deref(), network_word)?,
            service: option("--service", args.service.as_deref(), service_word)?,
            backend: option("--backend", args.backend.as_deref(), backend_word)?,
            limit: option("--limit", args.limit.as_deref(), |word| number(word, "100"))?,
            duration: option("--duration", args.duration.as_deref(), interval_word)?,
            sample: option("--sample", args.sample.as_deref(), small_number)?,
            rate: option("--rate", args.rate.as_deref(), small_number)?.unwrap_or(RATE),
            ..Watching::default()
        };
        for word in &args.reasons {
            let meant = option("--reason", Some(word), reason_word)?.unwrap_or_default();
            watching.reasons.extend(meant.reasons);
            watching.events.extend(meant.event);
        }
        Ok(watching)
    }

    /// What the programs are told. `usual` are the reasons, and what packets do, where none was named.
    pub(super) fn told(
        &self,
        names: &Names,
        usual: impl Fn(&Reason) -> bool,
        usual_events: &[Happening],
        frames: Option<u32>,
    ) -> Result<WatchFor> {
        let service = self.service.as_deref().map(|word| names.service_called(word)).transpose()?;
        self.backend.map(|word| names.backend_called(word, service)).transpose()?;
        let (reasons, events) = match self.reasons.is_empty() && self.events.is_empty() {
            true => (Reason::ALL.iter().filter(|reason| usual(reason)).collect(), usual_events.to_vec()),
            false => (self.reasons.clone(), self.events.clone()),
        };
        Ok(WatchFor {
            reasons,
            events,
            client: self.client,
            service,
            backend: self.backend,
            sample: self.sample,
            rate: self.rate,
            frames,
        })
    }

    /// Shows what is seen until `show` has had enough (returns false), the limit or the time is reached, or a signal comes.
    /// Says at the end what was left out.
    pub(super) fn go_on(&self, watch: &Watch, mut show: impl FnMut(&Seen) -> Result<bool>) -> Result<()> {
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = stopped.clone();
        ctrlc::set_handler(move || stop.store(true, Ordering::Relaxed))
            .context("could not wait for signals")?;
        let end = self.duration.map(|duration| Instant::now() + duration);
        let mut left = self.limit.unwrap_or(u64::MAX);
        'watch: while !stopped.load(Ordering::Relaxed) && left > 0 {
            if end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            for seen in watch.look(PATIENCE)? {
                if left == 0 || !show(&seen)? {
                    break 'watch;
                }
                left -= 1;
            }
        }
        if watch.lapses() > 0 {
            crate::log::notice(&format!(
                "nothing was recorded for a time, {} times: this process was stopped, or its output was not read",
                watch.lapses()
            ));
        }
        match watch.left_out() {
            (0, 0) => {}
            (suppressed, lost) => crate::log::notice(&format!(
                "{suppressed} more were left out by the rate of {} a second (--rate), {lost} were lost because they came \
                 faster than they were read",
                self.rate
            )),
        }
        Ok(())
    }
}

/// What one word after `--reason` means.
#[derive(Default)]
struct Meant {
    reasons: Vec<&'static Reason>,
    event: Option<Happening>,
}

/// A reason, `CLASS/REASON` where two classes have one of the name, a whole class, or what a packet does.
fn reason_word(value: &OsStr) -> Result<Meant, Fault> {
    let word = value.to_str().unwrap_or_default();
    let (class, name) = word.split_once('/').map_or((None, word), |(class, name)| (Some(class), name));
    let is_meant = |reason: &&Reason| match class {
        Some(class) => reason.class.name() == class && reason.name == name,
        None => reason.name == name || reason.class.name() == name,
    };
    let reasons: Vec<&'static Reason> = Reason::ALL.iter().filter(is_meant).collect();
    let event = Happening::NAMES.iter().find(|(_, known)| *known == word).map(|(event, _)| *event);
    if reasons.is_empty() && event.is_none() {
        let mut known: Vec<String> = Happening::NAMES.iter().map(|(_, name)| (*name).to_owned()).collect();
        known.extend(classes().map(|class| class.name().to_owned()));
        known.extend(Reason::ALL.iter().map(|reason| reason.name.to_owned()));
        known.sort();
        known.dedup();
        return Err(fault("no packet ends like that", &alternatives(&known)));
    }
    Ok(Meant { reasons, event })
}

fn classes() -> impl Iterator<Item = Class> {
    [Class::Sent, Class::Stack, Class::Pass, Class::Drop, Class::Error].into_iter()
}

/// `ADDR` or `ADDR/BITS`.
fn network_word(value: &OsStr) -> Result<(Ipv4Addr, u8), Fault> {
    let right = "198.51.100.7 or 198.51.100.0/24";
    let word = value.to_str().unwrap_or_default();
    let (address, bits) = word.split_once('/').unwrap_or((word, "32"));
    let address = address.parse().map_err(|_| fault("it is not an IPv4 address or network", right))?;
    let bits = bits.parse().ok().filter(|bits| *bits <= 32);
    Ok((address, bits.ok_or_else(|| fault("what follows the / is not a number from 0 to 32", right))?))
}

/// `ADDR` or `ADDR:PORT`.
fn backend_word(value: &OsStr) -> Result<(Ipv4Addr, Option<u16>), Fault> {
    let right = "10.0.0.10:8080 or 10.0.0.10";
    let word = value.to_str().unwrap_or_default();
    let (address, port) = word.split_once(':').map_or((word, None), |(address, port)| (address, Some(port)));
    let address = address.parse().map_err(|_| fault("it is not the address of a backend", right))?;
    let port = port.map(|port| port.parse().ok().filter(|port| *port != 0));
    match port {
        Some(None) => Err(fault("what follows the colon is not a port from 1 to 65535", right)),
        Some(port) => Ok((address, port)),
        None => Ok((address, None)),
    }
}

fn small_number(value: &OsStr) -> Result<u32, Fault> {
    let right = "1000";
    let read = number(value, right)?;
    u32::try_from(read).map_err(|_| fault("it is more than 4294967295", right))
}

/// The TCP flags that are set, as tcpdump has them.
pub(super) fn flags(bits: u8) -> String {
    const NAMES: [(u8, char); 8] =
        [(2, 'S'), (1, 'F'), (4, 'R'), (8, 'P'), (32, 'U'), (64, 'E'), (128, 'W'), (16, '.')];
    NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(word: &str) -> Option<(usize, Option<Happening>)> {
        reason_word(OsStr::new(word)).ok().map(|meant| (meant.reasons.len(), meant.event))
    }

    #[test]
    fn reasons_have_names() {
        assert_eq!(reason("table_full"), Some((1, None)));
        assert_eq!(reason("no_backend"), Some((2, None)));
        assert_eq!(reason("drop/no_backend"), Some((1, None)));
        assert_eq!(reason("opened"), Some((0, Some(Happening::Opened))));
        assert!(reason("drop").is_some_and(|(count, _)| count >= 9));
        assert_eq!([reason("full"), reason(""), reason("pass/ttl")], [None; 3]);
    }

    #[test]
    fn networks_and_backends_are_read() {
        let network = |word: &str| network_word(OsStr::new(word)).ok();
        assert_eq!(network("10.1.2.3"), Some((Ipv4Addr::new(10, 1, 2, 3), 32)));
        assert_eq!(network("10.1.2.3/8"), Some((Ipv4Addr::new(10, 1, 2, 3), 8)));
        assert_eq!(["10.1.2.3/33", "10.1.2", "10.1.2.3/"].map(network), [None; 3]);
        let backend = |word: &str| backend_word(OsStr::new(word)).ok();
        assert_eq!(backend("10.0.0.1"), Some((Ipv4Addr::new(10, 0, 0, 1), None)));
        assert_eq!(backend("10.0.0.1:80"), Some((Ipv4Addr::new(10, 0, 0, 1), Some(80))));
        assert_eq!(["10.0.0.1:0", "10.0.0.1:", "web"].map(backend), [None; 3]);
    }

    #[test]
    fn flags_are_those_of_tcpdump() {
        assert_eq!([0, 2, 0x12, 0x18, 0x11].map(flags), ["", "S", "S.", "P.", "F."]);
    }
}
