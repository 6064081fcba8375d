//! One word of the command line or the file to one value, or to a [`Fault`]: what is wrong with it, and a right one.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::{DEFAULT_PIN_DIR, Deliver, XdpMode};
use crate::model::{Backend, Protocol, Scheduler, Timeouts, Weight};

/// Why a word is refused, and what a right one looks like.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub wrong: String,
    /// What to write.
    pub right: String,
}

impl Fault {
    fn new(wrong: impl Into<String>, right: impl Into<String>) -> Fault {
        Fault { wrong: wrong.into(), right: right.into() }
    }
}

/// A virtual address with the protocols to balance at it.
#[derive(Debug, PartialEq, Eq)]
pub struct Vip {
    /// The address and port.
    pub address: SocketAddrV4,
    /// The protocols.
    pub protocols: &'static [Protocol],
}

/// What is particular to the two options that take an address and a port.
struct Role {
    noun: &'static str,
    address: &'static str,
    port: &'static str,
    /// Follows address and port in a second example.
    suffix: Option<&'static str>,
}

const VIP: Role = Role { noun: "a VIP", address: "192.168.1.100", port: "80", suffix: None };
const BACKEND: Role = Role { noun: "a backend", address: "10.0.0.10", port: "8080", suffix: Some(":50") };

impl Role {
    fn example(&self) -> String {
        self.examples(self.address, self.port)
    }

    fn examples(&self, address: impl std::fmt::Display, port: &str) -> String {
        match self.suffix {
            None => format!("{address}:{port}"),
            Some(suffix) => format!("{address}:{port} or {address}:{port}{suffix}"),
        }
    }
}

/// `ADDR:PORT[/tcp|/udp|/any]`
pub fn vip(value: &OsStr) -> Result<Vip, Fault> {
    let text = plain_word(value, &VIP)?;
    let (endpoint, suffix) = split_suffix(text);
    let (address, rest) = address_and_port(endpoint, &VIP)?;
    if rest.is_some() {
        return Err(Fault::new(
            "a VIP has no weight, only its backends have",
            format!("{address} or {address}/udp"),
        ));
    }
    let protocols: &[Protocol] = match suffix {
        None | Some("tcp") => &[Protocol::Tcp],
        Some("udp") => &[Protocol::Udp],
        Some("any") => &[Protocol::Tcp, Protocol::Udp],
        Some("") => {
            return Err(Fault::new("the protocol after the / is missing", format!("{address}/tcp")));
        }
        Some(other) => {
            let wrong = format!("the protocol {other:?} is none of tcp, udp and any");
            return Err(Fault::new(wrong, format!("{address}/tcp, {address}/udp or {address}/any")));
        }
    };
    Ok(Vip { address, protocols })
}

/// `ADDR:PORT[:WEIGHT]`
pub fn backend(value: &OsStr) -> Result<Backend, Fault> {
    let text = plain_word(value, &BACKEND)?;
    let (endpoint, suffix) = split_suffix(text);
    let (address, rest) = address_and_port(endpoint, &BACKEND)?;
    if suffix.is_some() {
        let wrong = "a backend has no protocol, it is the VIP's; there is something after a /";
        return Err(Fault::new(wrong, endpoint));
    }
    let weight = match rest {
        None => Weight::default(),
        Some(word) => weight(word).map_err(|wrong| Fault::new(wrong, format!("{address}:50")))?,
    };
    Ok(Backend::new(address, weight))
}

fn weight(word: &str) -> Result<Weight, String> {
    if word.is_empty() {
        return Err("the weight after the last colon is missing".into());
    }
    if word.contains(':') {
        return Err(format!("there is a part too many, the weight cannot be {word:?}"));
    }
    if !is_number(word) {
        return Err(format!("the weight {word:?} is not a number"));
    }
    let (min, max) = (Weight::MIN.get(), Weight::MAX.get());
    let weight = word.parse().ok().and_then(Weight::new);
    weight.ok_or_else(|| format!("the weight {word} is outside {min} to {max}"))
}

/// The word as text, without the mistakes that would make what follows guess wrong.
fn plain_word<'a>(value: &'a OsStr, role: &Role) -> Result<&'a str, Fault> {
    let fault = |wrong: &str| Err(Fault::new(wrong, role.example()));
    let text = utf8(value, &role.example())?;
    if text.is_empty() {
        return fault("it is empty, an address and a port are missing");
    }
    if is_ipv6(split_suffix(text).0) {
        return fault("IPv6 is not supported yet, an IPv4 address is needed");
    }
    if text.contains("://") {
        return fault("it is a URL, an address and a port are needed");
    }
    if text.contains(',') {
        return fault("it has a comma, each option takes one address and port");
    }
    Ok(text)
}

fn split_suffix(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((endpoint, suffix)) => (endpoint, Some(suffix)),
        None => (text, None),
    }
}

/// Whether it is meant as an IPv6 address, with or without brackets, zone, port and weight.
fn is_ipv6(text: &str) -> bool {
    let without_last = |text: &str| text.rsplit_once(':').map(|(head, _)| head.to_owned());
    let one = without_last(text);
    let two = one.as_deref().and_then(without_last);
    let is_address = |text: &str| {
        let address = text.split_once('%').map_or(text, |(address, _zone)| address);
        address.parse::<Ipv6Addr>().is_ok()
    };
    text.starts_with('[') || [Some(text.to_owned()), one, two].into_iter().flatten().any(|t| is_address(&t))
}

/// Address, port, and what follows a further colon.
fn address_and_port<'a>(text: &'a str, role: &Role) -> Result<(SocketAddrV4, Option<&'a str>), Fault> {
    let mut parts = text.splitn(3, ':');
    let (host, port, rest) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if port.is_none() && is_number(host) {
        return Err(Fault::new("the address is missing", role.examples(role.address, host)));
    }
    let address = address(host, role).map_err(|wrong| Fault::new(wrong, role.example()))?;
    let port = port_number(port.unwrap_or_default())
        .map_err(|wrong| Fault::new(wrong, role.examples(address, role.port)))?;
    Ok((SocketAddrV4::new(address, port), rest))
}

fn address(host: &str, role: &Role) -> Result<Ipv4Addr, String> {
    if host.is_empty() {
        return Err("the address is missing".into());
    }
    let Ok(address) = host.parse::<Ipv4Addr>() else {
        let in_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_name = host.chars().all(in_name) && host.contains(char::is_alphabetic);
        return Err(match is_name {
            true => format!("{host:?} is a host name; names are not looked up, an address is needed"),
            false => format!("{host:?} is not an IPv4 address of four numbers from 0 to 255"),
        });
    };
    let reason = if address.is_unspecified() {
        "is unspecified, it stands for no machine"
    } else if address.is_loopback() {
        "is a loopback address, its packets never leave the machine that sends them"
    } else if address.is_multicast() {
        "is a multicast address, it stands for many machines"
    } else if address.is_broadcast() {
        "is the broadcast address, it stands for many machines"
    } else {
        return Ok(address);
    };
    Err(format!("{address} cannot be {}: it {reason}", role.noun))
}

fn port_number(word: &str) -> Result<u16, String> {
    if word.is_empty() {
        return Err("the port is missing".into());
    }
    if !is_number(word) {
        return Err(format!("the port {word:?} is not a number"));
    }
    let port = word.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("the port {word} is outside 1 to 65535"))
}

/// An interface's name, by the kernel's rules.
pub fn interface(value: &OsStr) -> Result<String, Fault> {
    let name = utf8(value, "eth0")?;
    let wrong = if name.is_empty() {
        "the interface's name is empty"
    } else if name.len() > 15 {
        "an interface's name has at most 15 bytes"
    } else if name.contains('/') {
        "an interface's name has no / in it"
    } else if name.contains(char::is_whitespace) {
        "an interface's name has no spaces in it"
    } else if name.contains(':') || name == "." || name == ".." {
        "it is not an interface's name"
    } else {
        return Ok(name.to_owned());
    };
    Err(Fault::new(wrong, "eth0"))
}

/// One of [`Scheduler::NAMES`], full or short.
pub fn scheduler(value: &OsStr) -> Result<Scheduler, Fault> {
    let known = Scheduler::NAMES.iter().find(|(_, full, short)| value == *full || value == *short);
    known.map(|(scheduler, _, _)| *scheduler).ok_or_else(|| {
        let names = Scheduler::NAMES.map(|(_, full, short)| format!("{full} ({short})"));
        Fault::new("there is no such scheduler", alternatives(&names))
    })
}

/// `auto`, `native` or `skb`.
pub fn xdp_mode(value: &OsStr) -> Result<XdpMode, Fault> {
    match value.to_str() {
        Some("auto") => Ok(XdpMode::Auto),
        Some("native") => Ok(XdpMode::Native),
        Some("skb") => Ok(XdpMode::Skb),
        _ => Err(Fault::new("there is no such mode", "auto, native or skb")),
    }
}

/// `auto`, `direct` or `stack`.
pub fn deliver(value: &OsStr) -> Result<Deliver, Fault> {
    match value.to_str() {
        Some("auto") => Ok(Deliver::Auto),
        Some("direct") => Ok(Deliver::Direct),
        Some("stack") => Ok(Deliver::Stack),
        _ => Err(Fault::new("there is no such way to deliver", "auto, direct or stack")),
    }
}

/// A directory of our own in a bpffs: the last part of its name also names the instance.
pub fn pin_dir(value: &OsStr) -> Result<PathBuf, Fault> {
    let fault = |wrong: &str| Err(Fault::new(wrong, DEFAULT_PIN_DIR));
    let path: PathBuf = Path::new(utf8(value, DEFAULT_PIN_DIR)?).components().collect();
    let bpffs = Path::new("/sys/fs/bpf");
    if path.as_os_str().is_empty() {
        return fault("the directory is missing");
    }
    if !path.is_absolute() {
        return fault("it is a relative path, one that begins with / is needed");
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return fault("it has .. in it");
    }
    if path.file_name().is_none() || path == bpffs {
        return fault("it is not a directory of our own");
    }
    let below = path.strip_prefix(bpffs).unwrap_or(Path::new(""));
    if below.to_string_lossy().contains('.') {
        return fault("a bpffs has no names with a dot");
    }
    Ok(path)
}

/// At least 100 ms; zero is never.
pub fn stats_interval(value: &OsStr) -> Result<Option<Duration>, Fault> {
    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    let interval = duration(value, "5s, 500ms, or 0 for never")?;
    if interval.is_zero() {
        return Ok(None);
    }
    if !(MIN..=MAX).contains(&interval) {
        return Err(Fault::new("it is outside 100ms to 365days", "5s, 500ms, or 0 for never"));
    }
    Ok(Some(interval))
}

/// Within [`Timeouts::MIN`] and [`Timeouts::MAX`].
pub fn timeout(value: &OsStr, default: Duration) -> Result<Duration, Fault> {
    let right = humantime::format_duration(default).to_string();
    in_range(duration(value, &right)?, &right)
}

fn in_range(timeout: Duration, right: &str) -> Result<Duration, Fault> {
    if (Timeouts::MIN..=Timeouts::MAX).contains(&timeout) {
        return Ok(timeout);
    }
    let [min, max] = [Timeouts::MIN, Timeouts::MAX].map(humantime::format_duration);
    Err(Fault::new(format!("it is outside {min} to {max}"), right))
}

/// As a timeout; zero is not at all.
pub fn sticky(value: &OsStr) -> Result<Option<Duration>, Fault> {
    let right = "10m, or 0 for not at all";
    let sticky = duration(value, right)?;
    if sticky.is_zero() {
        return Ok(None);
    }
    in_range(sticky, right).map(Some)
}

/// Seconds, or humantime's syntax.
fn duration(value: &OsStr, right: &str) -> Result<Duration, Fault> {
    let text = utf8(value, right)?;
    if is_number(text) {
        return Ok(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    humantime::parse_duration(text).map_err(|_| {
        let wrong = match text.is_empty() {
            true => "the duration is missing",
            false => "it is not a duration (a number with ms, s, m, h, or without for seconds)",
        };
        Fault::new(wrong, right)
    })
}

/// 1 to 500 million, underscores allowed.
pub fn max_connections(value: &OsStr) -> Result<u32, Fault> {
    const MAX: u32 = 500_000_000;
    let right = "1_000_000";
    let text = utf8(value, right)?;
    let digits = text.replace('_', "");
    if text.is_empty() {
        return Err(Fault::new("the number is missing", right));
    }
    if !is_number(&digits) {
        return Err(Fault::new("it is not a number", right));
    }
    let number = digits.parse().ok().filter(|number| (1..=MAX).contains(number));
    number.ok_or_else(|| Fault::new("it is outside 1 to 500_000_000", right))
}

fn utf8<'a>(value: &'a OsStr, right: &str) -> Result<&'a str, Fault> {
    value.to_str().ok_or_else(|| Fault::new("it is not valid UTF-8", right))
}

/// Digits only: Rust's own parsers take a plus sign too.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// "a, b or c"
pub fn alternatives(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

#[cfg(test)]
#[path = "words_tests.rs"]
mod tests;
