//! The configuration file: what is in it, as a [`Config`] or as the first thing that is wrong with it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::clash::{self, Clash, Part};
use super::service::{self, Block};
use super::tree::{Key, Reader, Span, Table, Takes};
use super::words::{self, Fault};
use super::{Config, DEFAULT_PIN_DIR, FileError, default_socket, syntax};
use crate::model::{Service, Timeouts};

/// What a text without a file is called in messages.
const POSTED: &str = "services";

/// The longest file that is read: 65,535 backends, each with a line of comment, are a tenth of that.
const LONGEST: u64 = 64 << 20;

/// The keys above the services.
pub(super) const KEYS: [Key; 19] = [
    Key { name: "interface", takes: Takes::Text, example: r#""eth0""# },
    Key { name: "interfaces", takes: Takes::Other("an array of names"), example: r#"["eth0", "eth1"]"# },
    Key { name: "pin-dir", takes: Takes::Text, example: r#""/sys/fs/bpf/xdp_lb""# },
    Key { name: "socket", takes: Takes::Text, example: r#""/run/xdp-lb/xdp_lb.sock""# },
    Key { name: "xdp-mode", takes: Takes::Text, example: r#""auto""# },
    Key { name: "deliver", takes: Takes::Text, example: r#""auto""# },
    Key { name: "stats-interval", takes: Takes::TextOrNumber, example: r#""5s""# },
    Key { name: "assign-vip", takes: Takes::Flag, example: "true" },
    Key { name: "max-connections", takes: Takes::TextOrNumber, example: "1_000_000" },
    Key { name: "ring-memory", takes: Takes::TextOrNumber, example: r#""256MB""# },
    Key { name: "persist", takes: Takes::Flag, example: "true" },
    Key { name: "watch", takes: Takes::Flag, example: "true" },
    Key { name: "metrics", takes: Takes::Text, example: r#""127.0.0.1:9105""# },
    Key { name: "log-format", takes: Takes::Text, example: r#""human""# },
    Key { name: "timeout-established", takes: Takes::TextOrNumber, example: r#""5m""# },
    Key { name: "timeout-unconfirmed", takes: Takes::TextOrNumber, example: r#""10s""# },
    Key { name: "timeout-closing", takes: Takes::TextOrNumber, example: r#""30s""# },
    Key { name: "timeout-udp", takes: Takes::TextOrNumber, example: r#""1m""# },
    SERVICE,
];

const SERVICE: Key = Key {
    name: "service",
    takes: Takes::Other("several tables"),
    example: r#"[{ vip = "192.168.1.100:80" }]"#,
};

/// The only key of a text of services.
const SERVICES: [Key; 1] = [SERVICE];

/// The configuration in this file.
pub fn read(path: &Path) -> Result<Config, FileError> {
    parse(&text_of(path)?, path)
}

/// The file's text.
pub(super) fn text_of(path: &Path) -> Result<String, FileError> {
    let whole = |message: String| Err(FileError::whole(path, &message));
    let mut bytes = Vec::new();
    // One that is fed by another process might never end, or never begin.
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return whole("this is no regular file; write the path of one".to_owned());
    }
    // A directory can be opened, but not read.
    let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        let right = match error.kind() {
            io::ErrorKind::NotFound => "write the path of a file that exists",
            io::ErrorKind::PermissionDenied => "run this as a user who may read it, such as root",
            io::ErrorKind::IsADirectory => "write the path of a file in it",
            _ => "write the path of a file that can be read",
        };
        return whole(format!("cannot read the configuration: {error}; {right}"));
    }
    if bytes.len() as u64 > LONGEST {
        return whole("a configuration has at most 64 MB; write the path of another file".into());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes());
        // Up to there the text is the same, so the offset is right in it too.
        let message = "a byte that is not UTF-8; save the file as UTF-8";
        FileError::at(path, &text, &(valid..valid + 1), message)
    })
}

/// The configuration in this text; `name` is the file's, for messages.
pub fn parse(text: &str, name: &Path) -> Result<Config, FileError> {
    with_tables(text, name, config)
}

/// The services in a text that has nothing but `[[service]]` tables.
pub fn services(text: &str, defaults: &Timeouts) -> Result<Vec<Service>, FileError> {
    with_tables(text, Path::new(POSTED), |reader, root| {
        let elsewhere = |name: &str| {
            let is_known = KEYS.iter().any(|key| key.name == name);
            is_known.then(|| format!("{name} is not for a service; write only [[service]] tables"))
        };
        let table = Table::new(reader, 0..0, root, &SERVICES, elsewhere);
        Some(services_of(reader, &table, defaults))
    })
}

/// What the tables of a text mean, or what is wrong with it first.
fn with_tables<T>(
    text: &str,
    name: &Path,
    meaning: impl FnOnce(&mut Reader<'_>, &DeTable<'_>) -> Option<T>,
) -> Result<T, FileError> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if let Some((span, message)) = syntax::first(text, root.get_ref(), &errors) {
        return Err(FileError::at(name, text, &span, &message));
    }
    let mut reader = Reader::new(text);
    let value = meaning(&mut reader, root.get_ref());
    match (reader.problem(), value) {
        (Some((span, message)), _) => Err(FileError::at(name, text, &span, &message)),
        (None, Some(value)) => Ok(value),
        (None, None) => Err(FileError::whole(name, "it has no meaning; compare it with the sample")),
    }
}

fn config(reader: &mut Reader<'_>, root: &DeTable<'_>) -> Option<Config> {
    let elsewhere = |name: &str| {
        let is_known = service::KEYS.iter().any(|key| key.name == name);
        is_known.then(|| format!("{name} belongs to a service; write it below a [[service]]"))
    };
    let table = &Table::new(reader, 0..0, root, &KEYS, elsewhere);
    let interfaces = interfaces(reader, table);
    let pin_dir =
        table.value(reader, "pin-dir", words::pin_dir).unwrap_or_else(|| PathBuf::from(DEFAULT_PIN_DIR));
    let timeouts = timeouts(reader, table, &Timeouts::default());
    Some(Config {
        socket: table.value(reader, "socket", words::socket).unwrap_or_else(|| default_socket(&pin_dir)),
        pin_dir,
        xdp_mode: table.value(reader, "xdp-mode", words::xdp_mode).unwrap_or_default(),
        deliver: table.value(reader, "deliver", words::deliver).unwrap_or_default(),
        max_connections: table
            .value(reader, "max-connections", words::max_connections)
            .unwrap_or(Config::MAX_CONNECTIONS),
        ring_memory: table.value(reader, "ring-memory", words::bytes).unwrap_or(Config::RING_MEMORY),
        stats_interval: table
            .value(reader, "stats-interval", words::stats_interval)
            .unwrap_or(Some(Config::STATS_INTERVAL)),
        assign_vip: table.flag(reader, "assign-vip").unwrap_or_default(),
        persist: table.flag(reader, "persist").unwrap_or_default(),
        watch: table.flag(reader, "watch").unwrap_or_default(),
        metrics: table.value(reader, "metrics", words::metrics),
        log_format: table.value(reader, "log-format", words::log_format).unwrap_or_default(),
        timeouts,
        services: services_of(reader, table, &timeouts),
        interfaces: interfaces?,
    })
}

/// The timeouts of the file, or of a service.
pub(super) fn timeouts(reader: &mut Reader<'_>, table: &Table<'_, '_>, defaults: &Timeouts) -> Timeouts {
    let mut timeout = |name, default: Duration, usual: Duration| {
        table.value(reader, name, |word| words::timeout(word, usual)).unwrap_or(default)
    };
    let usual = Timeouts::default();
    Timeouts {
        established: timeout("timeout-established", defaults.established, usual.established),
        unconfirmed: timeout("timeout-unconfirmed", defaults.unconfirmed, usual.unconfirmed),
        closing: timeout("timeout-closing", defaults.closing, usual.closing),
        udp: timeout("timeout-udp", defaults.udp, usual.udp),
    }
}

fn interfaces(reader: &mut Reader<'_>, table: &Table<'_, '_>) -> Option<Vec<String>> {
    let (one, several) = (table.get("interface"), table.get("interfaces"));
    match (one, several) {
        (None, None) => {
            table.missing(reader, "interface");
            None
        }
        (Some(_), None) => table.value(reader, "interface", words::interface).map(|name| vec![name]),
        (None, Some((key, value))) => several_interfaces(reader, key, value),
        (Some((_, one)), Some((_, several))) => {
            let (first, second) = match one.span().start < several.span().start {
                true => (one.span(), several.span()),
                false => (several.span(), one.span()),
            };
            reader.report(&second, |reader| {
                let line = reader.line(&first);
                format!(
                    "the interfaces are given already, in line {line}; write one of interface and interfaces"
                )
            });
            None
        }
    }
}

fn several_interfaces(
    reader: &mut Reader<'_>,
    key: &Key,
    value: &Spanned<DeValue<'_>>,
) -> Option<Vec<String>> {
    let DeValue::Array(array) = value.get_ref() else {
        reader.wrong_type(key, value);
        return None;
    };
    if array.is_empty() {
        let fault = Fault::new("at least one interface is needed", r#"["eth0"]"#);
        reader.fault(&value.span(), &fault);
    }
    let element = Key { name: "an interface", takes: Takes::Text, example: r#""eth0""# };
    let mut names: Vec<(String, Span)> = Vec::new();
    for value in array.iter() {
        let Some(word) = reader.word(&element, value) else { continue };
        let Some(name) = reader.parse(&word, Takes::Text, words::interface) else { continue };
        if let Some((_, first)) = names.iter().find(|(other, _)| *other == name) {
            let span = value.span();
            reader.report(&span, |reader| {
                let (cited, line) = (reader.cite(&span), reader.line(first));
                format!("{cited}: it is in the list already, in line {line}; write every interface once")
            });
        }
        names.push((name, value.span()));
    }
    Some(names.into_iter().map(|(name, _)| name).collect())
}

/// The services of a file, and what is wrong with them together.
fn services_of(reader: &mut Reader<'_>, table: &Table<'_, '_>, defaults: &Timeouts) -> Vec<Service> {
    let blocks = match table.get("service") {
        Some((key, value)) => service::blocks(reader, key, value, defaults),
        None => Vec::new(),
    };
    // A service for each protocol, with the block that it came from.
    let mut services = Vec::new();
    let mut owners = Vec::new();
    for (number, block) in blocks.iter().enumerate() {
        owners.extend(block.services.iter().map(|_| number));
        services.extend(block.services.iter().cloned());
    }
    clash::find(&services, &mut |clash| report_clash(reader, &clash, |index| &blocks[owners[index]]));
    services
}

fn report_clash<'b>(reader: &mut Reader<'_>, clash: &Clash, block: impl Fn(usize) -> &'b Block) {
    let span = |(index, part): (usize, Part)| match part {
        Part::Name => &block(index).name,
        Part::Vip => &block(index).vip,
        Part::Backend(number) => &block(index).backends[number],
    };
    let at = span(clash.at);
    reader.report(at, |reader| {
        let place = match clash.with {
            Some(with) => format!(", in line {}", reader.line(span(with))),
            None => String::new(),
        };
        format!("{}: {}{place}; write {}", reader.cite(at), clash.wrong, clash.right)
    });
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
