//! How backends are checked, from words: those of the file's `health` table, and those of one `--health`.

use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::tree::{Key, Takes};
use super::words::{self, Fault, alternatives, is_number, utf8};
use crate::model::{Health, HttpProbe, Initial, Probe, TlsProbe};

/// The keys of the file's table, and of the option too.
pub(super) const KEYS: [Key; 15] = [
    Key { name: "type", takes: Takes::Text, example: r#""http""# },
    Key { name: "path", takes: Takes::Text, example: r#""/health""# },
    Key { name: "host", takes: Takes::Text, example: r#""www.example.com""# },
    Key { name: "method", takes: Takes::Text, example: r#""GET""# },
    Key {
        name: "status",
        takes: Takes::Other("a status or an array of them"),
        example: r#"["200-299", "301"]"#,
    },
    Key { name: "body", takes: Takes::Text, example: r#""ok""# },
    Key { name: "ca", takes: Takes::Text, example: r#""/etc/ssl/backends.pem""# },
    Key { name: "skip-verify", takes: Takes::Flag, example: "true" },
    Key { name: "port", takes: Takes::Number, example: "8081" },
    Key { name: "interval", takes: Takes::TextOrNumber, example: r#""5s""# },
    Key { name: "timeout", takes: Takes::TextOrNumber, example: r#""2s""# },
    Key { name: "rise", takes: Takes::Number, example: "2" },
    Key { name: "fall", takes: Takes::Number, example: "3" },
    Key { name: "initial", takes: Takes::Text, example: r#""up""# },
    Key { name: "passive", takes: Takes::Number, example: "3" },
];

/// The keys of some types only.
const OF_HTTP: [&str; 5] = ["path", "host", "method", "status", "body"];
const OF_TLS: [&str; 2] = ["ca", "skip-verify"];

const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60 * 60);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
const COUNTS: RangeInclusive<u32> = 1..=100;
const SYNS: RangeInclusive<u32> = 0..=100;
/// What is read of an answer's body: more cannot be found in it.
const BODY: usize = 64 << 10;

/// `TYPE[,KEY=VALUE...]`, such as `http,path=/health,interval=1s`. A value has no comma: the file's table has no such limit.
pub fn word(value: &OsStr) -> Result<Health, Fault> {
    let right = "http,path=/health,interval=5s";
    let mut parts = utf8(value, right)?.split(',');
    let mut draft = Draft::new(OsStr::new(parts.next().unwrap_or_default()))?;
    let mut seen: Vec<&str> = Vec::new();
    for part in parts {
        let (key, value) = match part.split_once('=') {
            Some(pair) => pair,
            None if part == "skip-verify" => (part, "true"),
            None => return Err(Fault::new(format!("{part:?} is not a key and a value"), right)),
        };
        if key == "type" || !KEYS.iter().any(|known| known.name == key) {
            let keys: Vec<String> = KEYS.iter().skip(1).map(|key| key.name.to_owned()).collect();
            return Err(Fault::new(format!("there is no key {key:?}"), alternatives(&keys)));
        }
        if seen.contains(&key) {
            return Err(Fault::new(format!("{key} is given twice"), format!("{key}={value} once")));
        }
        seen.push(key);
        if let Some((wrong, types)) = draft.misfit(key) {
            return Err(Fault::new(wrong, format!("it with {types}")));
        }
        draft
            .set(key, OsStr::new(value))
            .map_err(|fault| Fault::new(format!("{key} {value:?}: {}", fault.wrong), fault.right))?;
    }
    draft
        .finish()
        .map_err(|fault| Fault::new(format!("timeout: {}", fault.wrong), format!("timeout={}", fault.right)))
}

/// A check that is being described.
pub(super) struct Draft {
    health: Health,
    timeout: Option<Duration>,
}

impl Draft {
    /// Of this type, with the usual settings.
    pub(super) fn new(kind: &OsStr) -> Result<Draft, Fault> {
        let http = HttpProbe::default;
        let probe = match kind.to_str() {
            Some("none") => Probe::None,
            Some("tcp") => Probe::Tcp,
            Some("http") => Probe::Http(http()),
            Some("https") => Probe::Https(http(), TlsProbe::default()),
            Some("") => {
                return Err(Fault::new("the type of the check is missing", "tcp, http, https or none"));
            }
            _ => return Err(Fault::new("there is no such type of check", "tcp, http, https or none")),
        };
        Ok(Draft { health: Health::of(probe), timeout: None })
    }

    /// Why a key makes no sense for this type of check, if so, and for which types it does.
    pub(super) fn misfit(&self, key: &str) -> Option<(String, &'static str)> {
        let types = match (&self.health.probe, key) {
            (Probe::None | Probe::Tcp, key) if OF_HTTP.contains(&key) => "http or https",
            (Probe::None | Probe::Tcp | Probe::Http(_), key) if OF_TLS.contains(&key) => "https",
            (Probe::None, _) => "tcp, http or https",
            _ => return None,
        };
        Some((format!("{key} is not for a check of type {}", self.health.probe.name()), types))
    }

    /// Gives a key that fits, other than the type, its value.
    pub(super) fn set(&mut self, key: &str, value: &OsStr) -> Result<(), Fault> {
        match key {
            "interval" => self.health.interval = between(value, &INTERVALS, "5s")?,
            "timeout" => self.timeout = Some(between(value, &TIMEOUTS, "2s")?),
            "rise" => self.health.rise = number(value, &COUNTS, "2")?,
            "fall" => self.health.fall = number(value, &COUNTS, "3")?,
            "passive" => self.health.passive = number(value, &SYNS, "3")?,
            "port" => self.health.port = Some(port(value)?),
            "initial" => {
                let names = [(Initial::Up, "up"), (Initial::Down, "down")];
                self.health.initial =
                    words::one_of(value, &names, "a backend is not that before its first check")?;
            }
            "status" => {
                let ranges = utf8(value, "200-299")?.split('+').map(|word| status(OsStr::new(word)));
                self.set_status(ranges.collect::<Result<_, _>>()?);
            }
            _ => self.set_of_probe(key, value)?,
        }
        Ok(())
    }

    /// The statuses that are good.
    pub(super) fn set_status(&mut self, ranges: Vec<RangeInclusive<u16>>) {
        if let Probe::Http(http) | Probe::Https(http, _) = &mut self.health.probe {
            http.status = ranges;
        }
    }

    fn set_of_probe(&mut self, key: &str, value: &OsStr) -> Result<(), Fault> {
        let flag = [(true, "true"), (false, "false")];
        match (key, &mut self.health.probe) {
            ("path", Probe::Http(http) | Probe::Https(http, _)) => http.path = path(value)?,
            ("host", Probe::Http(http) | Probe::Https(http, _)) => http.host = Some(host(value)?),
            ("method", Probe::Http(http) | Probe::Https(http, _)) => http.method = method(value)?,
            ("body", Probe::Http(http) | Probe::Https(http, _)) => http.body = Some(body(value)?),
            ("ca", Probe::Https(_, tls)) => tls.ca = Some(ca(value)?),
            ("skip-verify", Probe::Https(_, tls)) => {
                tls.skip_verify = words::one_of(value, &flag, "it is neither true nor false")?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The check; what is wrong with it as a whole is wrong with its timeout.
    pub(super) fn finish(self) -> Result<Health, Fault> {
        let interval = self.health.interval;
        match self.timeout {
            Some(timeout) if timeout > interval => {
                let interval = humantime::format_duration(interval).to_string();
                Err(Fault::new(format!("a check is over before the next one, after {interval}"), interval))
            }
            timeout => {
                Ok(Health { timeout: timeout.unwrap_or_else(|| usual_timeout(interval)), ..self.health })
            }
        }
    }
}

/// How long a check may take where nothing else is said: no longer than the time to the next one.
pub(super) fn usual_timeout(interval: Duration) -> Duration {
    Health::TIMEOUT.min(interval)
}

fn between(value: &OsStr, range: &RangeInclusive<Duration>, right: &str) -> Result<Duration, Fault> {
    let time = words::duration(value, right)?;
    if range.contains(&time) {
        return Ok(time);
    }
    let [min, max] = [*range.start(), *range.end()].map(humantime::format_duration);
    Err(Fault::new(format!("it is outside {min} to {max}"), right))
}

fn number(value: &OsStr, range: &RangeInclusive<u32>, right: &str) -> Result<u32, Fault> {
    let word = utf8(value, right)?;
    if !is_number(word) && !word.starts_with('-') {
        return Err(Fault::new("it is not a number", right));
    }
    let number = word.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| Fault::new(format!("it is outside {} to {}", range.start(), range.end()), right))
}

fn port(value: &OsStr) -> Result<u16, Fault> {
    let right = "8081";
    words::port_number(utf8(value, right)?).map_err(|wrong| Fault::new(wrong, right))
}

/// A status, or the first and the last of some.
pub(super) fn status(value: &OsStr) -> Result<RangeInclusive<u16>, Fault> {
    let right = "200, or 200-299 for all of these";
    let word = utf8(value, right)?;
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    if !is_number(first) || !is_number(last) {
        return Err(Fault::new("it is neither a status nor a range of them", right));
    }
    let status = |word: &str| word.parse().ok().filter(|status| (100..=599).contains(status));
    match (status(first), status(last)) {
        (Some(first), Some(last)) if first > last => {
            Err(Fault::new("the range is the wrong way round", format!("{last}-{first}")))
        }
        (Some(first), Some(last)) => Ok(first..=last),
        _ => Err(Fault::new("a status is one of 100 to 599", right)),
    }
}

fn path(value: &OsStr) -> Result<String, Fault> {
    let right = "/health";
    let path = utf8(value, right)?;
    let wrong = if !path.starts_with('/') {
        "a path begins with /"
    } else if path.contains('#') {
        "what follows a # is never sent to a server"
    } else if !path.bytes().all(|byte| byte.is_ascii_graphic() && !br#"<>\^`{|}""#.contains(&byte)) {
        "it has a character in it that a request writes as % and two digits"
    } else {
        return Ok(path.to_owned());
    };
    Err(Fault::new(wrong, right))
}

fn host(value: &OsStr) -> Result<String, Fault> {
    let right = "www.example.com";
    let host = utf8(value, right)?;
    let wrong = if host.is_empty() {
        "the host is empty"
    } else if host.contains("://") || host.contains('/') {
        "it is a URL or a path, only the host is needed"
    } else if !host.bytes().all(|byte| byte.is_ascii_graphic()) {
        "a host has no spaces, control characters or letters beyond ASCII in it"
    } else {
        return Ok(host.to_owned());
    };
    Err(Fault::new(wrong, right))
}

fn method(value: &OsStr) -> Result<String, Fault> {
    // The token of RFC 9110, 5.6.2.
    let in_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let method = utf8(value, "GET")?;
    let wrong = if method.is_empty() {
        "the method is empty"
    } else if !method.bytes().all(in_token) {
        "it is not a method"
    } else {
        return Ok(method.to_owned());
    };
    Err(Fault::new(wrong, "GET"))
}

fn body(value: &OsStr) -> Result<String, Fault> {
    let body = utf8(value, "ok")?;
    let wrong = match body.len() {
        0 => "it is empty, every body contains that",
        1..=BODY => return Ok(body.to_owned()),
        _ => "it is longer than the 64 KB that are read of a body",
    };
    Err(Fault::new(wrong, "ok"))
}

fn ca(value: &OsStr) -> Result<PathBuf, Fault> {
    let right = "/etc/ssl/backends.pem";
    let path = PathBuf::from(utf8(value, right)?);
    let wrong = if path.as_os_str().is_empty() {
        "the path is missing"
    } else if !path.is_absolute() {
        "it is a relative path, one that begins with / is needed"
    } else if path.to_string_lossy().contains(char::is_control) {
        "it has a control character in it"
    } else {
        return Ok(path);
    };
    Err(Fault::new(wrong, right))
}
