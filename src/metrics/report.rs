use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use super::{ServiceFigures, Snapshot};
use crate::dataplane::{Class, Counter};

/// The snapshot as text for people. With an earlier snapshot and the time between the two, rates are shown too.
pub fn render(now: &Snapshot, earlier: Option<(&Snapshot, Duration)>) -> String {
    let mut text = String::new();
    for service in &now.services {
        let same = |old: &&ServiceFigures| (old.vip, &old.protocol) == (service.vip, &service.protocol);
        let before = earlier.and_then(|(snapshot, time)| Some((snapshot.services.iter().find(same)?, time)));
        let vip = service.vip.to_string();
        let name = if service.name == vip { String::new() } else { format!("{}  ", service.name) };
        text += &format!("{name}{vip}/{}  {}\n", service.protocol, service.scheduler);
        text += &format!("{}\n", backends(service, before).trim_fmt());
    }
    text += &format!("{}\n", totals(now, earlier).trim_fmt());
    for (title, class) in [("by the kernel", Class::Stack), ("drops", Class::Drop), ("errors", Class::Error)]
    {
        text += &format!("{title}: {}\n", by_reason(now, class));
    }
    let table = &now.table;
    text += &format!(
        "connections: {} confirmed, {} unconfirmed, {} replaceable, in {} slots\n",
        table.confirmed, table.unconfirmed, table.replaceable, table.slots
    );
    text
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn backends(service: &ServiceFigures, before: Option<(&ServiceFigures, Duration)>) -> Table {
    let header = [
        "BACKEND",
        "STATE",
        "WEIGHT",
        "ACTIVE",
        "TOTAL",
        "CONN/S",
        "PKTS OUT",
        "BYTES OUT",
        "RATE OUT",
        "PKTS BACK",
        "BYTES BACK",
        "RATE BACK",
    ];
    let mut table = new_table(&header);
    for backend in &service.backends {
        let old = before.and_then(|(service, time)| {
            Some((service.backends.iter().find(|old| old.address == backend.address)?, time))
        });
        let rate = |count: fn(&super::BackendFigures) -> u64| {
            old.map(|(old, time)| per_second(count(backend), count(old), time))
        };
        table.add_row([
            backend.address.to_string(),
            backend.state.to_string(),
            backend.weight.to_string(),
            backend.active.to_string(),
            backend.connections.to_string(),
            rate(|b| b.connections).map_or("-".into(), |rate| format!("{rate:.1}")),
            backend.to_backend.packets.to_string(),
            bytes(backend.to_backend.bytes),
            rate(|b| b.to_backend.bytes).map_or("-".into(), bits),
            backend.to_client.packets.to_string(),
            bytes(backend.to_client.bytes),
            rate(|b| b.to_client.bytes).map_or("-".into(), bits),
        ]);
    }
    table
}

fn totals(now: &Snapshot, earlier: Option<(&Snapshot, Duration)>) -> Table {
    let mut table = new_table(&["PACKETS", "COUNT", "BYTES", "PKTS/S", "RATE"]);
    let rows = [
        ("balanced", Class::Sent),
        ("by the kernel", Class::Stack),
        ("passed on", Class::Pass),
        ("dropped", Class::Drop),
        ("errors", Class::Error),
    ];
    for (title, class) in rows {
        let count = now.class(class);
        let old = earlier.map(|(snapshot, time)| (snapshot.class(class), time));
        let rate = |of: fn(&Counter) -> u64| old.map(|(old, time)| per_second(of(&count), of(&old), time));
        table.add_row([
            title.to_string(),
            count.packets.to_string(),
            bytes(count.bytes),
            rate(|c| c.packets).map_or("-".into(), |rate| format!("{rate:.0}")),
            rate(|c| c.bytes).map_or("-".into(), bits),
        ]);
    }
    table
}

/// The reasons of a class that ever happened, most frequent first.
fn by_reason(snapshot: &Snapshot, class: Class) -> String {
    let mut seen: Vec<_> = snapshot
        .reasons
        .iter()
        .filter(|reason| reason.class == class.name() && reason.counter.packets > 0)
        .collect();
    seen.sort_by_key(|reason| std::cmp::Reverse(reason.counter.packets));
    if seen.is_empty() {
        return "none".into();
    }
    let texts: Vec<_> =
        seen.iter().map(|reason| format!("{} {}", reason.name, reason.counter.packets)).collect();
    texts.join(", ")
}

fn per_second(now: u64, old: u64, time: Duration) -> f64 {
    now.saturating_sub(old) as f64 / time.as_secs_f64().max(1e-3)
}

/// 1536 -> "1.54 kB": powers of a thousand.
fn bytes(count: u64) -> String {
    if count < 1000 { format!("{count} B") } else { scaled(count as f64, "B") }
}

fn bits(bytes_per_second: f64) -> String {
    scaled(bytes_per_second * 8.0, "bit/s")
}

fn scaled(value: f64, unit: &str) -> String {
    const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let mut value = value;
    let mut prefix = 0;
    while value >= 999.5 && prefix + 1 < PREFIXES.len() {
        value /= 1000.0;
        prefix += 1;
    }
    let digits = if value >= 100.0 || prefix == 0 { 0 } else { 2 };
    format!("{value:.digits$} {}{unit}", PREFIXES[prefix])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_scaled_by_thousands() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1536), "1.54 kB");
        assert_eq!(bytes(999_600_000), "1.00 GB");
        assert_eq!(bits(125_000_000.0), "1.00 Gbit/s");
        assert_eq!(bits(0.0), "0 bit/s");
        assert!(bytes(u64::MAX).ends_with(" PB"));
    }

    #[test]
    fn rates_need_no_time_to_pass() {
        assert_eq!(per_second(5, 10, Duration::ZERO), 0.0);
        assert_eq!(per_second(20, 10, Duration::from_secs(2)), 5.0);
    }
}
