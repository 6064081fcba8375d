//! One word of the command line or the file to one value, or to a [`Fault`]: what is wrong with it, and a right one.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::error::does_something;
use super::{DEFAULT_PIN_DIR, Deliver, LogFormat, XdpMode};
use crate::model::{AdminState, Backend, OnDown, OnEmpty, Protocol, Scheduler, Timeouts, Weight};

pub use super::health::word as health;

/// Why a word is refused, and what a right one looks like.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub wrong: String,
    /// What to write.
    pub right: String,
}

impl Fault {
    pub(super) fn new(wrong: impl Into<String>, right: impl Into<String>) -> Fault {
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

/// 1 to 100.
pub fn weight_number(value: &OsStr) -> Result<Weight, Fault> {
    let wrong = match utf8(value, "50")? {
        "" => "the weight is missing".into(),
        word => match weight(word) {
            Ok(weight) => return Ok(weight),
            Err(wrong) => wrong,
        },
    };
    Err(Fault::new(wrong, "50"))
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

pub(super) fn port_number(word: &str) -> Result<u16, String> {
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
    } else if name.contains(char::is_control) {
        "an interface's name has no control characters in it"
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
    one_of(value, &XdpMode::NAMES, "there is no such mode")
}

/// `auto`, `direct` or `stack`.
pub fn deliver(value: &OsStr) -> Result<Deliver, Fault> {
    one_of(value, &Deliver::NAMES, "there is no such way to deliver")
}

/// `human` or `json`.
pub fn log_format(value: &OsStr) -> Result<LogFormat, Fault> {
    one_of(value, &LogFormat::NAMES, "there is no such format")
}

/// `drop` or `pass`.
pub fn on_empty(value: &OsStr) -> Result<OnEmpty, Fault> {
    one_of(value, &OnEmpty::NAMES, "that cannot be done with a connection that no backend takes")
}

/// `auto`, `keep` or `reset`.
pub fn on_down(value: &OsStr) -> Result<OnDown, Fault> {
    one_of(value, &OnDown::NAMES, "that cannot be done with the connections of a backend that is down")
}

/// `enabled`, `drain` or `disabled`.
pub fn admin_state(value: &OsStr) -> Result<AdminState, Fault> {
    one_of(value, &AdminState::ALL.map(|state| (state, state.name())), "there is no such state")
}

/// The value that has this name.
pub(super) fn one_of<T: Copy>(value: &OsStr, names: &[(T, &str)], wrong: &str) -> Result<T, Fault> {
    let known = names.iter().find(|(_, name)| value == *name);
    known.map(|(value, _)| *value).ok_or_else(|| {
        let names: Vec<String> = names.iter().map(|(_, name)| (*name).to_owned()).collect();
        Fault::new(wrong, alternatives(&names))
    })
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
    if path.to_string_lossy().contains(char::is_control) {
        return fault("it has a control character in it");
    }
    let below = path.strip_prefix(bpffs).unwrap_or(Path::new(""));
    if below.to_string_lossy().contains('.') {
        return fault("a bpffs has no names with a dot");
    }
    Ok(path)
}

/// An absolute path that fits into a socket's address.
pub fn socket(value: &OsStr) -> Result<PathBuf, Fault> {
    // `sun_path` of unix(7) has 108 bytes, the last of them for the NUL.
    const LONGEST: usize = 107;
    let right = "/run/xdp-lb/xdp_lb.sock";
    let text = utf8(value, right)?;
    let path = Path::new(text);
    let wrong = if text.is_empty() {
        "the path is missing"
    } else if !path.is_absolute() {
        "it is a relative path, one that begins with / is needed"
    } else if text.len() > LONGEST {
        "a socket's path has at most 107 bytes"
    } else if text.contains(char::is_control) {
        "it has a control character in it"
    } else if path.file_name().is_none() || text.ends_with('/') {
        "it is a directory, the socket needs a name in it"
    } else {
        return Ok(path.to_owned());
    };
    Err(Fault::new(wrong, right))
}

/// `ADDR:PORT` of this host, or `[ADDR]:PORT`.
pub fn metrics(value: &OsStr) -> Result<SocketAddr, Fault> {
    let right = "127.0.0.1:9105";
    let text = utf8(value, right)?;
    let wrong = match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => "the port is 0".to_owned(),
        Ok(address) if address.ip().is_multicast() || address.ip() == IpAddr::V4(Ipv4Addr::BROADCAST) => {
            return Err(Fault::new("nobody can listen at this address", right));
        }
        Ok(address) => return Ok(address),
        Err(_) if text.is_empty() => "address and port are missing".to_owned(),
        Err(_) if text.parse::<IpAddr>().is_ok() => "the port is missing".to_owned(),
        Err(_) if is_number(text.trim_start_matches(':')) => "the address is missing".to_owned(),
        Err(_) if text.contains('/') => "it is ADDR:PORT, not a URL".to_owned(),
        Err(_) => "it is not ADDR:PORT".to_owned(),
    };
    Err(Fault::new(wrong, right))
}

/// 1 to 64 characters that need no quotes in a shell's word or a label, and no `/`: that begins a protocol.
pub fn service_name(value: &OsStr) -> Result<String, Fault> {
    const LONGEST: usize = 64;
    let name = utf8(value, "web")?;
    let wrong = if name.is_empty() {
        "the name is empty"
    } else if name.chars().count() > LONGEST {
        "a service's name has at most 64 characters"
    } else if name.contains(char::is_whitespace) {
        "a service's name has no spaces in it"
    } else if name.contains(does_something) {
        "a service's name has no control characters in it"
    } else if name.contains('/') {
        "a service's name has no / in it"
    } else if name.contains(['"', '\'', '`', '\\']) {
        "a service's name has no quotes or backslashes in it"
    } else {
        return Ok(name.to_owned());
    };
    Err(Fault::new(wrong, "web"))
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

/// As a timeout, up to an hour; zero is at once.
pub fn slow_start(value: &OsStr) -> Result<Duration, Fault> {
    const MAX: Duration = Duration::from_secs(60 * 60);
    let right = "30s, or 0 for at once";
    let time = duration(value, right)?;
    if !time.is_zero() && !(Timeouts::MIN..=MAX).contains(&time) {
        return Err(Fault::new("it is outside 1s to 1h", right));
    }
    Ok(time)
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
pub(super) fn duration(value: &OsStr, right: &str) -> Result<Duration, Fault> {
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

/// 1 MB to 64 GB: a number of bytes, or of KB, MB or GB, of which each is 1024 of the one before.
pub fn bytes(value: &OsStr) -> Result<u64, Fault> {
    const RANGE: std::ops::RangeInclusive<u64> = 1 << 20..=64 << 30;
    let right = "256MB";
    let text = utf8(value, right)?;
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "B" => 1,
        "KB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return Err(Fault::new("the unit is none of KB, MB and GB", right)),
    };
    if text.is_empty() {
        return Err(Fault::new("the number is missing", right));
    }
    let digits = digits.replace('_', "");
    if !is_number(&digits) {
        return Err(Fault::new("it is not a number of bytes", right));
    }
    let bytes = digits.parse().ok().and_then(|number: u64| number.checked_mul(unit));
    let bytes = bytes.filter(|bytes| RANGE.contains(bytes));
    bytes.ok_or_else(|| Fault::new("it is outside 1MB to 64GB", right))
}

pub(super) fn utf8<'a>(value: &'a OsStr, right: &str) -> Result<&'a str, Fault> {
    value.to_str().ok_or_else(|| Fault::new("it is not valid UTF-8", right))
}

/// Digits only: Rust's own parsers take a plus sign too.
pub(super) fn is_number(text: &str) -> bool {
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
