//! Changes of a configuration file, made in its text: what people wrote in it, and how they laid it out, stays.

mod backends;
mod store;

use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddrV4;
use std::path::Path;

use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use super::render::tables;
use super::words::{self, Vip};
use super::{Config, FileError, check, parse};
use crate::model::{AdminState, Backend, Protocol, Service, Weight};

pub use store::write;

/// A change. A service is named by its name, or by its VIP as `ADDR:PORT` or `ADDR:PORT/PROTOCOL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Adds services at the end.
    AddService(Vec<Service>),
    /// Removes a service.
    RemoveService(String),
    /// Adds a backend to a service.
    AddBackend {
        /// The service.
        service: String,
        /// The backend.
        backend: Backend,
    },
    /// Removes a backend from a service.
    RemoveBackend {
        /// The service.
        service: String,
        /// The backend.
        address: SocketAddrV4,
    },
    /// Changes what is wanted of a backend.
    State {
        /// The service.
        service: String,
        /// The backend.
        address: SocketAddrV4,
        /// What is wanted.
        state: AdminState,
    },
    /// Changes a backend's share of new connections.
    Weight {
        /// The service.
        service: String,
        /// The backend.
        address: SocketAddrV4,
        /// The share.
        weight: Weight,
    },
}

/// Why a file was not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EditError {
    /// There is no such service or backend in it.
    NotFound(String),
    /// It would not be right any more, or was changed by somebody else.
    Conflict(String),
    /// It is not right as it is.
    File(FileError),
    /// It cannot be written.
    Failed(String),
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EditError::NotFound(error) | EditError::Conflict(error) | EditError::Failed(error) => {
                f.write_str(error)
            }
            EditError::File(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EditError {}

/// The text of the file `name` after these changes, one after the other. It is a right configuration before and after.
pub fn apply(text: &str, name: &Path, edits: &[Edit]) -> Result<String, EditError> {
    const BOM: &str = "\u{feff}";
    let (mark, plain) = text.strip_prefix(BOM).map_or(("", text), |plain| (BOM, plain));
    let mut changed = plain.to_owned();
    for edit in edits {
        let config = parse(&changed, name).map_err(EditError::File)?;
        changed = step(&changed, &config, edit)?;
        // The lines of the new text would tell nobody anything: it does not exist.
        parse(&changed, name).map_err(|error| EditError::Conflict(error.message().to_owned()))?;
    }
    if plain.contains("\r\n") {
        changed = changed.replace("\r\n", "\n").replace('\n', "\r\n");
    }
    Ok(format!("{mark}{changed}"))
}

fn step(text: &str, config: &Config, edit: &Edit) -> Result<String, EditError> {
    let mut document: DocumentMut =
        text.parse().map_err(|error| EditError::Failed(format!("the file cannot be edited: {error}")))?;
    match edit {
        Edit::AddService(services) => return add_services(text, document, config, services),
        Edit::RemoveService(service) => remove_service(&mut document, service)?,
        Edit::AddBackend { service, backend } => {
            for index in owned(&mut document, service)? {
                with(&mut document, index, |table| backends::add(table, backend))?;
            }
        }
        Edit::RemoveBackend { service, address } => {
            each(&mut document, service, *address, |table| backends::remove(table, *address))?;
        }
        Edit::State { service, address, state } => {
            each(&mut document, service, *address, |table| backends::set_state(table, *address, *state))?;
        }
        Edit::Weight { service, address, weight } => {
            each(&mut document, service, *address, |table| backends::set_weight(table, *address, *weight))?;
        }
    }
    Ok(document.to_string())
}

fn add_services(
    text: &str,
    mut document: DocumentMut,
    config: &Config,
    services: &[Service],
) -> Result<String, EditError> {
    let all: Vec<Service> = config.services.iter().chain(services).cloned().collect();
    check(&all).map_err(|fault| EditError::Conflict(format!("{}; write {}", fault.wrong, fault.right)))?;
    if services.is_empty() {
        return Ok(text.to_owned());
    }
    let new = tables(services, &config.timeouts);
    if let Some(Item::Value(Value::Array(array))) = document.get_mut("service") {
        let new: DocumentMut = new
            .parse()
            .map_err(|error| EditError::Failed(format!("the service cannot be added: {error}")))?;
        let new = new.get("service").and_then(Item::as_array_of_tables);
        for table in new.into_iter().flat_map(ArrayOfTables::iter) {
            array.push(table.clone().into_inline_table());
        }
        return Ok(document.to_string());
    }
    let gap = match text {
        "" => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    Ok(format!("{text}{gap}{new}"))
}

fn remove_service(document: &mut DocumentMut, service: &str) -> Result<(), EditError> {
    // From the last to the first: the numbers of those before stay right.
    for (index, only) in found(document, service)?.into_iter().rev() {
        match (only, document.get_mut("service")) {
            (Some(protocol), _) => {
                let rest = if protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
                with(document, index, |table| narrow(table, rest))?;
            }
            (None, Some(Item::ArrayOfTables(tables))) => {
                tables.remove(index);
            }
            (None, Some(Item::Value(Value::Array(array)))) => backends::take(array, index),
            _ => {}
        }
    }
    Ok(())
}

/// Changes a backend in every table of the service; it has to be in one of them.
fn each(
    document: &mut DocumentMut,
    service: &str,
    address: SocketAddrV4,
    change: impl Fn(&mut dyn TableLike) -> bool,
) -> Result<(), EditError> {
    let mut has_changed = false;
    for index in owned(document, service)? {
        has_changed |= with(document, index, |table| change(table))?;
    }
    match has_changed {
        true => Ok(()),
        false => Err(EditError::NotFound(format!(
            "the service {service:?} has no backend {address} in the file; write one of its backends"
        ))),
    }
}

/// The tables that are this service. Where one is another service too, of the other protocol, it becomes two.
fn owned(document: &mut DocumentMut, service: &str) -> Result<Vec<usize>, EditError> {
    let mut indices = Vec::new();
    for (index, only) in found(document, service)? {
        // Only one table can be of two protocols at the VIP that was asked for, and then it is the only one.
        indices.push(match only {
            Some(protocol) => split(document, index, protocol)?,
            None => index,
        });
    }
    Ok(indices)
}

/// The tables that a service is meant by, with the protocol if it is only one of two.
fn found(document: &DocumentMut, service: &str) -> Result<Vec<(usize, Option<Protocol>)>, EditError> {
    let asked = words::vip(OsStr::new(service)).ok();
    let has_suffix = service.contains('/');
    let matching = |table: &dyn TableLike| {
        let vip = vip_of(table)?;
        let name = table.get("name").and_then(Item::as_str);
        if name == Some(service) {
            return Some(None);
        }
        let asked = asked.as_ref().filter(|asked| asked.address == vip.address)?;
        match (asked.protocols, vip.protocols) {
            _ if !has_suffix => Some(None),
            ([only], [_, _]) => Some(Some(*only)),
            (asked, own) => own.iter().any(|protocol| asked.contains(protocol)).then_some(None),
        }
    };
    let found: Vec<_> = services(document)
        .into_iter()
        .enumerate()
        .filter_map(|(index, table)| matching(table).map(|only| (index, only)))
        .collect();
    match found.is_empty() {
        true => Err(EditError::NotFound(format!(
            "there is no service {service:?} in the file; write the name or the VIP of one"
        ))),
        false => Ok(found),
    }
}

fn vip_of(table: &dyn TableLike) -> Option<Vip> {
    let vip = table.get("vip").and_then(Item::as_str)?;
    words::vip(OsStr::new(vip)).ok()
}

fn services(document: &DocumentMut) -> Vec<&dyn TableLike> {
    match document.get("service") {
        Some(Item::ArrayOfTables(tables)) => tables.iter().map(|table| table as &dyn TableLike).collect(),
        Some(Item::Value(Value::Array(array))) => {
            let tables = array.iter().filter_map(Value::as_inline_table);
            tables.map(|table| table as &dyn TableLike).collect()
        }
        _ => Vec::new(),
    }
}

/// Does something to one service's table.
fn with<T>(
    document: &mut DocumentMut,
    index: usize,
    change: impl FnOnce(&mut dyn TableLike) -> T,
) -> Result<T, EditError> {
    let table = match document.get_mut("service") {
        Some(Item::ArrayOfTables(tables)) => tables.get_mut(index).map(|table| table as &mut dyn TableLike),
        Some(Item::Value(Value::Array(array))) => {
            let table = array.get_mut(index).and_then(Value::as_inline_table_mut);
            table.map(|table| table as &mut dyn TableLike)
        }
        _ => None,
    };
    table.map(change).ok_or_else(|| EditError::Failed(format!("the file has no service number {index}")))
}

/// Leaves one protocol to a service of two.
fn narrow(table: &mut dyn TableLike, protocol: Protocol) {
    let Some(vip) = vip_of(table) else { return };
    set(table, "vip", format!("{}/{protocol}", vip.address));
    // What was usual for both is not for UDP alone.
    if protocol == Protocol::Udp && !table.contains_key("health") {
        set(table, "health", "tcp");
    }
}

/// Makes two tables of one, and gives the number of the one that is left with this protocol.
fn split(document: &mut DocumentMut, index: usize, protocol: Protocol) -> Result<usize, EditError> {
    match document.get_mut("service") {
        Some(Item::ArrayOfTables(tables)) => {
            let copy = tables.get(index).cloned().map(unplaced);
            copy.into_iter().for_each(|copy| tables.insert(index + 1, copy));
        }
        Some(Item::Value(Value::Array(array))) => {
            let copy = array.get(index).cloned();
            copy.into_iter().for_each(|copy| array.insert_formatted(index + 1, copy));
        }
        _ => {}
    }
    with(document, index, |table| narrow(table, Protocol::Tcp))?;
    with(document, index + 1, |table| narrow(table, Protocol::Udp))?;
    Ok(if protocol == Protocol::Tcp { index } else { index + 1 })
}

/// The table without its place in the text: it comes after the one before it.
fn unplaced(mut table: Table) -> Table {
    table.set_position(None);
    for (_, item) in table.iter_mut() {
        match item {
            Item::Table(inner) => *inner = unplaced(std::mem::take(inner)),
            Item::ArrayOfTables(inner) => {
                for table in inner.iter_mut() {
                    *table = unplaced(std::mem::take(table));
                }
            }
            _ => {}
        }
    }
    table
}

/// Gives a key a value; what stands around the one that it had stays.
fn set(table: &mut dyn TableLike, key: &str, value: impl Into<Value>) {
    let mut value = value.into();
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

/// The last value of a table in one line, which has the blank before the } as its own.
fn last_value(table: &mut InlineTable) -> Option<&mut Value> {
    table.iter_mut().last().map(|(_, value)| value)
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
