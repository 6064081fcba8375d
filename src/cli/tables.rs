//! Answers as tables for people.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

/// A column: what stands above it, and what of an object stands in it.
type Column = (&'static str, fn(&Value) -> String);

/// Services, a line each.
pub(super) fn services(answer: &Value) -> String {
    const COLUMNS: [Column; 6] = [
        ("SERVICE", |service| text(service, "name")),
        ("VIP", |service| format!("{}/{}", text(service, "vip"), text(service, "protocol"))),
        ("SCHEDULER", |service| text(service, "scheduler")),
        ("BACKENDS", |service| backends_in(service).count().to_string()),
        ("UP", |service| {
            backends_in(service).filter(|backend| text(backend, "state") == "up").count().to_string()
        }),
        ("ACTIVE", |service| {
            let active = backends_in(service).filter_map(|backend| backend["active"].as_u64());
            active.sum::<u64>().to_string()
        }),
    ];
    table(&COLUMNS, 3, &answer["services"])
}

/// Backends, a line each.
pub(super) fn backends(answer: &Value) -> String {
    const COLUMNS: [Column; 6] = [
        ("SERVICE", |backend| format!("{}/{}", text(backend, "service"), text(backend, "protocol"))),
        ("BACKEND", |backend| text(backend, "address")),
        ("STATE", |backend| text(backend, "state")),
        ("WEIGHT", |backend| text(backend, "weight")),
        ("ACTIVE", |backend| text(backend, "active")),
        ("TOTAL", |backend| text(backend, "connections")),
    ];
    table(&COLUMNS, 3, &answer["backends"])
}

/// Connections, a line each.
pub(super) fn connections(answer: &Value) -> String {
    const COLUMNS: [Column; 5] = [
        ("CLIENT", |connection| text(connection, "client")),
        ("SERVICE", |connection| format!("{}/{}", text(connection, "service"), text(connection, "protocol"))),
        ("BACKEND", |connection| text(connection, "backend")),
        ("STATE", |connection| text(connection, "state")),
        ("IDLE", |connection| {
            connection["idle_seconds"].as_f64().map_or("-".into(), |idle| format!("{idle:.1} s"))
        }),
    ];
    table(&COLUMNS, 4, &answer["connections"])
}

/// Columns from `numbers` on are aligned to the right.
fn table(columns: &[Column], numbers: usize, objects: &Value) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(columns.iter().map(|(title, _)| *title));
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for object in objects.as_array().into_iter().flatten() {
        table.add_row(columns.iter().map(|(_, cell)| cell(object)));
    }
    table.trim_fmt()
}

fn backends_in(service: &Value) -> impl Iterator<Item = &Value> {
    service["backends"].as_array().into_iter().flatten()
}

fn text(object: &Value, key: &str) -> String {
    match &object[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_is_a_dash() {
        let answer = json!({"backends": [
            {"service": "web", "protocol": "tcp", "address": "10.0.0.1:80", "state": "up", "weight": 5, "active": 0},
        ]});
        let text = backends(&answer);
        let row: Vec<_> = text.lines().last().unwrap_or_default().split_whitespace().collect();
        assert_eq!(row, ["web/tcp", "10.0.0.1:80", "up", "5", "0", "-"]);
        assert_eq!(connections(&json!({})).lines().count(), 1);
    }

    #[test]
    fn services_tell_how_many_backends_are_up() {
        let backend = |state: &str, active: u64| json!({"state": state, "active": active});
        let answer = json!({"services": [{"name": "web", "vip": "192.0.2.1:80", "protocol": "tcp",
            "scheduler": "maglev", "backends": [backend("up", 3), backend("down", 0), backend("drain", 2)]}]});
        let text = services(&answer);
        let row: Vec<_> = text.lines().last().unwrap_or_default().split_whitespace().collect();
        assert_eq!(row, ["web", "192.0.2.1:80/tcp", "maglev", "3", "1", "5"]);
    }
}
