//! The backends of a service's table, in each of the ways that they can be written.

use std::ffi::OsStr;
use std::net::SocketAddrV4;

use toml_edit::{Array, InlineTable, Item, Table, TableLike, Value};

use super::super::render::backend_table;
use super::super::words;
use super::{last_value, set};
use crate::model::{AdminState, Backend, Weight};

/// What a backend's indentation is where there is no other to go by.
const INDENT: &str = "\n    ";

/// Adds a backend, in the way of the one before it.
pub(super) fn add(service: &mut dyn TableLike, backend: &Backend) {
    match service.get_mut("backend") {
        Some(Item::ArrayOfTables(tables)) => tables.push(table(backend)),
        Some(Item::Value(Value::Array(array))) => push(array, backend),
        _ => {
            let mut array = Array::new();
            push(&mut array, backend);
            service.insert("backend", Item::Value(Value::Array(array)));
        }
    }
}

fn table(backend: &Backend) -> Table {
    let mut table = Table::new();
    set(&mut table, "address", backend.address.to_string());
    set(&mut table, "weight", i64::from(backend.weight.get()));
    if backend.state != AdminState::Enabled {
        set(&mut table, "state", backend.state.name());
    }
    table
}

fn push(array: &mut Array, backend: &Backend) {
    let is_text = array.iter().last().is_some_and(Value::is_str) && backend.state == AdminState::Enabled;
    let mut value: Value = match is_text {
        true => format!("{}:{}", backend.address, backend.weight.get()).into(),
        // What is rendered is TOML, so there is nothing to fall back to but the text.
        false => backend_table(backend).parse().unwrap_or_else(|_| backend.address.to_string().into()),
    };
    let trailing = raw(array.trailing().as_str());
    let Some(last) = array.iter_mut().last() else {
        *value.decor_mut() = toml_edit::Decor::new(if trailing.contains('\n') { INDENT } else { "" }, "");
        array.push_formatted(value);
        return;
    };
    // What follows the last one, up to the ], is a comment on it, and ends its line.
    let before = raw(last.decor().prefix().and_then(|prefix| prefix.as_str()));
    let after = raw(last.decor().suffix().and_then(|suffix| suffix.as_str())) + &trailing;
    last.decor_mut().set_suffix("");
    let indent = before.rfind('\n').map(|at| before[at..].to_owned());
    let prefix = match (indent, after.rfind('\n')) {
        (Some(indent), Some(end)) => {
            array.set_trailing(&after[end..]);
            format!("{}{indent}", &after[..end])
        }
        (None, Some(end)) => {
            array.set_trailing(&after[end..]);
            format!("{}{INDENT}", &after[..end])
        }
        (_, None) => {
            array.set_trailing(after);
            " ".into()
        }
    };
    *value.decor_mut() = toml_edit::Decor::new(prefix, "");
    array.push_formatted(value);
}

/// Removes a backend, if it is there.
pub(super) fn remove(service: &mut dyn TableLike, address: SocketAddrV4) -> bool {
    match service.get_mut("backend") {
        Some(Item::ArrayOfTables(tables)) => {
            let index = position(tables.iter().map(|table| address_of_table(table)), address);
            index.map(|index| tables.remove(index)).is_some()
        }
        Some(Item::Value(Value::Array(array))) => {
            let index = position(array.iter().map(address_of), address);
            index.map(|index| take(array, index)).is_some()
        }
        _ => false,
    }
}

/// Removes one element, with the comments on it and not those on the one before.
pub(super) fn take(array: &mut Array, index: usize) {
    let Some(value) = array.get(index) else { return };
    let before = raw(value.decor().prefix().and_then(|prefix| prefix.as_str()));
    let suffix = raw(value.decor().suffix().and_then(|suffix| suffix.as_str()));
    // The rest of the line before is about the element before.
    let about_previous = before.find('\n').map_or("", |end| &before[..end]).to_owned();
    array.remove(index);
    let own = |text: &str| text.find('\n').map(|end| text[end..].to_owned());
    if let Some(next) = array.get_mut(index) {
        let prefix = raw(next.decor().prefix().and_then(|prefix| prefix.as_str()));
        let prefix = match own(&prefix) {
            Some(rest) => about_previous + &rest,
            None => before,
        };
        next.decor_mut().set_prefix(prefix);
        return;
    }
    let trailing = suffix + &raw(array.trailing().as_str());
    array.set_trailing(own(&trailing).map_or(String::new(), |rest| about_previous + &rest));
    if array.is_empty() {
        array.set_trailing_comma(false);
    }
}

/// Changes what is wanted of a backend, if it is there.
pub(super) fn set_state(service: &mut dyn TableLike, address: SocketAddrV4, state: AdminState) -> bool {
    change(
        service,
        address,
        |backend| (state != AdminState::Enabled).then(|| backend_table(&Backend { state, ..backend })),
        |table| match state {
            AdminState::Enabled if !table.contains_key("state") => {}
            state => set(table, "state", state.name()),
        },
    )
}

/// Changes a backend's share, if it is there.
pub(super) fn set_weight(service: &mut dyn TableLike, address: SocketAddrV4, weight: Weight) -> bool {
    change(
        service,
        address,
        |backend| Some(format!("\"{}:{}\"", backend.address, weight.get())),
        |table| set(table, "weight", i64::from(weight.get())),
    )
}

/// Changes one backend: by new text if it is a string, else in its table.
fn change(
    service: &mut dyn TableLike,
    address: SocketAddrV4,
    text: impl FnOnce(Backend) -> Option<String>,
    in_table: impl FnOnce(&mut dyn TableLike),
) -> bool {
    match service.get_mut("backend") {
        Some(Item::ArrayOfTables(tables)) => {
            let table = tables.iter_mut().find(|table| address_of_table(*table) == Some(address));
            table.map(|table| in_table(table)).is_some()
        }
        Some(Item::Value(Value::Array(array))) => {
            let Some(value) = array.iter_mut().find(|value| address_of(value) == Some(address)) else {
                return false;
            };
            if let Value::InlineTable(table) = value {
                keep_end(table, |table| in_table(table));
                return true;
            }
            let backend = value.as_str().and_then(|text| words::backend(OsStr::new(text)).ok());
            let new: Option<Value> = backend.and_then(text).and_then(|text| text.parse().ok());
            if let Some(mut new) = new {
                *new.decor_mut() = value.decor().clone();
                *value = new;
            }
            true
        }
        _ => false,
    }
}

/// Changes a table in one line, and leaves what is before its } there.
fn keep_end(table: &mut InlineTable, change: impl FnOnce(&mut InlineTable)) {
    let suffix = last_value(table).and_then(|value| value.decor().suffix().cloned());
    if let Some(last) = last_value(table) {
        last.decor_mut().set_suffix("");
    }
    change(table);
    if let (Some(last), Some(suffix)) = (last_value(table), suffix) {
        last.decor_mut().set_suffix(suffix);
    }
}

fn position(addresses: impl Iterator<Item = Option<SocketAddrV4>>, address: SocketAddrV4) -> Option<usize> {
    addresses.into_iter().position(|other| other == Some(address))
}

fn address_of(value: &Value) -> Option<SocketAddrV4> {
    match value {
        Value::String(text) => words::backend(OsStr::new(text.value())).ok().map(|backend| backend.address),
        Value::InlineTable(table) => address_of_table(table),
        _ => None,
    }
}

fn address_of_table(table: &dyn TableLike) -> Option<SocketAddrV4> {
    let text = table.get("address").and_then(Item::as_str)?;
    words::backend(OsStr::new(text)).ok().map(|backend| backend.address)
}

fn raw(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}
