//! One `[[service]]` of the file.

use std::ffi::OsStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::file::{self, timeouts};
use super::health::{self, Draft};
use super::tree::{Key, Reader, Span, Table, Takes, quote};
use super::words::{self, Fault};
use crate::model::{Backend, Health, Protocol, Service, Timeouts};

/// The keys of a service.
pub(super) const KEYS: [Key; 13] = [
    Key { name: "name", takes: Takes::Text, example: r#""web""# },
    Key { name: "vip", takes: Takes::Text, example: r#""192.168.1.100:80""# },
    Key { name: "scheduler", takes: Takes::Text, example: r#""weighted-round-robin""# },
    Key { name: "sticky", takes: Takes::TextOrNumber, example: r#""10m""# },
    Key { name: "on-empty", takes: Takes::Text, example: r#""drop""# },
    Key { name: "on-down", takes: Takes::Text, example: r#""auto""# },
    Key { name: "slow-start", takes: Takes::TextOrNumber, example: r#""30s""# },
    Key { name: "timeout-established", takes: Takes::TextOrNumber, example: r#""5m""# },
    Key { name: "timeout-unconfirmed", takes: Takes::TextOrNumber, example: r#""10s""# },
    Key { name: "timeout-closing", takes: Takes::TextOrNumber, example: r#""30s""# },
    Key { name: "timeout-udp", takes: Takes::TextOrNumber, example: r#""1m""# },
    Key {
        name: "health",
        takes: Takes::Other("a type of check or a table"),
        example: r#"{ type = "http", path = "/health" }"#,
    },
    Key { name: "backend", takes: Takes::Other("an array of backends"), example: r#"["10.0.0.10:8080:50"]"# },
];

/// The keys of a backend that is a table.
pub(super) const BACKEND_KEYS: [Key; 3] = [
    Key { name: "address", takes: Takes::Text, example: r#""10.0.0.10:8080""# },
    Key { name: "weight", takes: Takes::Number, example: "50" },
    Key { name: "state", takes: Takes::Text, example: r#""enabled""# },
];

/// What one table makes, and where its parts are.
pub(super) struct Block {
    pub(super) services: Vec<Service>,
    pub(super) name: Span,
    pub(super) vip: Span,
    /// Of each backend, where its address is.
    pub(super) backends: Vec<Span>,
}

/// Every service that is right by itself.
pub(super) fn blocks(
    reader: &mut Reader<'_>,
    key: &Key,
    value: &Spanned<DeValue<'_>>,
    defaults: &Timeouts,
) -> Vec<Block> {
    let array = match value.get_ref() {
        DeValue::Array(array) => array,
        DeValue::Table(_) => {
            single_table(reader, &value.span(), "a service", "[[service]]");
            return Vec::new();
        }
        _ => {
            reader.wrong_type(key, value);
            return Vec::new();
        }
    };
    let mut blocks = Vec::with_capacity(array.len());
    for value in array.iter() {
        match value.get_ref() {
            DeValue::Table(entries) => blocks.extend(block(reader, value.span(), entries, defaults)),
            _ => reader.wrong_type(
                &Key {
                    name: "a service",
                    takes: Takes::Other("a table"),
                    example: r#"{ vip = "192.168.1.100:80" }"#,
                },
                value,
            ),
        }
    }
    blocks
}

/// `[service]` instead of `[[service]]`.
fn single_table(reader: &mut Reader<'_>, span: &Span, what: &str, right: &str) {
    reader.fault(span, &Fault::new(format!("{what} is one of several"), right));
}

fn block(reader: &mut Reader<'_>, span: Span, entries: &DeTable<'_>, defaults: &Timeouts) -> Option<Block> {
    let elsewhere = |name: &str| {
        let is_known = file::KEYS.iter().any(|key| key.name == name);
        is_known.then(|| format!("{name} is not for one service; write it above the first [[service]]"))
    };
    let table = &Table::new(reader, span, entries, &KEYS, elsewhere);
    if table.get("vip").is_none() {
        table.missing(reader, "vip");
    }
    let vip = table.value(reader, "vip", words::vip);
    let name = table.value(reader, "name", words::service_name);
    let protocols: &[Protocol] = vip.as_ref().map_or(&[Protocol::Tcp], |vip| vip.protocols);
    let scheduler = table.value(reader, "scheduler", words::scheduler);
    let sticky = table.value(reader, "sticky", words::sticky);
    let on_empty = table.value(reader, "on-empty", words::on_empty);
    let on_down = table.value(reader, "on-down", words::on_down);
    let slow_start = table.value(reader, "slow-start", words::slow_start);
    let timeouts = timeouts(reader, table, defaults);
    let health = health(reader, table);
    let (backends, spans) = backends(reader, table);
    let vip = vip?;
    let service = |protocol| Service {
        name: name.clone().unwrap_or_else(|| vip.address.to_string()),
        vip: vip.address,
        protocol,
        scheduler: scheduler.unwrap_or_default(),
        sticky: sticky.flatten(),
        timeouts,
        on_empty: on_empty.unwrap_or_default(),
        on_down: on_down.unwrap_or_default(),
        health: health.clone().unwrap_or_else(|| Health::usual(protocols)),
        slow_start: slow_start.unwrap_or_default(),
        backends: backends.clone(),
    };
    Some(Block {
        services: protocols.iter().copied().map(service).collect(),
        name: table.span_of(if table.get("name").is_some() { "name" } else { "vip" }),
        vip: table.span_of("vip"),
        backends: spans,
    })
}

fn backends(reader: &mut Reader<'_>, table: &Table<'_, '_>) -> (Vec<Backend>, Vec<Span>) {
    let Some((key, value)) = table.get("backend") else { return Default::default() };
    let array = match value.get_ref() {
        DeValue::Array(array) => array,
        DeValue::Table(_) => {
            single_table(reader, &value.span(), "a backend", "[[service.backend]]");
            return Default::default();
        }
        _ => {
            reader.wrong_type(key, value);
            return Default::default();
        }
    };
    array.iter().filter_map(|value| backend(reader, value)).unzip()
}

/// A backend, and where its address is.
fn backend(reader: &mut Reader<'_>, value: &Spanned<DeValue<'_>>) -> Option<(Backend, Span)> {
    let word = Key {
        name: "a backend",
        takes: Takes::Other("a string or a table"),
        example: r#""10.0.0.10:8080:50""#,
    };
    let entries = match value.get_ref() {
        DeValue::Table(entries) => entries,
        DeValue::String(_) => {
            let text = reader.word(&word, value)?;
            let backend = reader.parse(&text, Takes::Text, words::backend)?;
            return Some((backend, value.span()));
        }
        _ => {
            reader.wrong_type(&word, value);
            return None;
        }
    };
    let table = &Table::new(reader, value.span(), entries, &BACKEND_KEYS, |_| None);
    if table.get("address").is_none() {
        table.missing(reader, "address");
    }
    let backend = table.value(reader, "address", |word| {
        let backend = words::backend(word).map_err(|fault| {
            // The second example has a weight.
            let right = fault.right.split(" or ").next().unwrap_or_default().to_owned();
            Fault { right, ..fault }
        })?;
        let has_weight = word.to_str().is_some_and(|text| text.matches(':').count() > 1);
        match has_weight {
            true => Err(Fault::new("the weight has a key of its own here", backend.address.to_string())),
            false => Ok(backend),
        }
    });
    let weight = table.value(reader, "weight", words::weight_number);
    let state = table.value(reader, "state", words::admin_state);
    let backend = backend?;
    let backend =
        Backend { weight: weight.unwrap_or(backend.weight), state: state.unwrap_or_default(), ..backend };
    Some((backend, table.span_of("address")))
}

/// A table, or only the type.
fn health(reader: &mut Reader<'_>, table: &Table<'_, '_>) -> Option<Health> {
    let (key, value) = table.get("health")?;
    match value.get_ref() {
        DeValue::String(text) if text.contains(',') => {
            // As on the command line.
            reader
                .fault(&value.span(), &Fault::new("a check with more than its type is a table", key.example));
            None
        }
        DeValue::String(_) => {
            let word = reader.word(key, value)?;
            let draft = reader.parse(&word, Takes::Text, Draft::new)?;
            draft.finish().ok()
        }
        DeValue::Table(entries) => health_table(reader, value.span(), entries),
        _ => {
            reader.wrong_type(key, value);
            None
        }
    }
}

fn health_table(reader: &mut Reader<'_>, span: Span, entries: &DeTable<'_>) -> Option<Health> {
    let table = Table::new(reader, span, entries, &health::KEYS, |_| None);
    if table.get("type").is_none() {
        table.missing(reader, "type");
    }
    let mut draft = table.value(reader, "type", Draft::new)?;
    for (key, value) in table.entries() {
        let name = key.name;
        if name == "type" {
            continue;
        }
        if let Some((wrong, types)) = draft.misfit(name) {
            let fault = Fault::new(wrong, format!("type = {}", quote(types)));
            reader.fault(&value.span(), &fault);
            continue;
        }
        match value.get_ref() {
            DeValue::Boolean(flag) if key.takes == Takes::Flag => {
                let word = OsStr::new(if *flag { "true" } else { "false" });
                if let Err(fault) = draft.set(name, word) {
                    reader.fault(&value.span(), &fault);
                }
            }
            DeValue::Array(array) if name == "status" => statuses(reader, &mut draft, array, value),
            _ => {
                let word = reader.word(key, value);
                word.and_then(|word| reader.parse(&word, key.takes, |word| draft.set(name, word)));
            }
        }
    }
    match draft.finish() {
        Ok(health) => Some(health),
        Err(fault) => {
            let fault = Fault { right: quote(&fault.right), ..fault };
            reader.fault(&table.span_of("timeout"), &fault);
            None
        }
    }
}

fn statuses(
    reader: &mut Reader<'_>,
    draft: &mut Draft,
    array: &[Spanned<DeValue<'_>>],
    value: &Spanned<DeValue<'_>>,
) {
    if array.is_empty() {
        let fault = Fault::new("at least one status is needed", r#"["200-299"]"#);
        reader.fault(&value.span(), &fault);
    }
    let element = Key { name: "a status", takes: Takes::TextOrNumber, example: r#""200-299""# };
    let range = |value| {
        let word = reader.word(&element, value)?;
        reader.parse(&word, element.takes, health::status)
    };
    draft.set_status(array.iter().filter_map(range).collect());
}
