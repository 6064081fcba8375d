//! A [`Config`] as the text of a file: what `config show` prints.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::does_something;
use super::health::usual_timeout;
use super::{Config, DEFAULT_PIN_DIR, default_socket};
use crate::model::{AdminState, Backend, Health, HttpProbe, Initial, Probe, Protocol, Service, Timeouts};

/// The file that means this configuration. What is as usual is left out, apart from what tells how a service works.
pub fn render(config: &Config) -> String {
    let mut lines = Lines::default();
    match config.interfaces.as_slice() {
        [only] => lines.text("interface", only),
        several => {
            let names: Vec<String> = several.iter().map(|name| string(name)).collect();
            lines.line("interfaces", &format!("[{}]", names.join(", ")));
        }
    }
    if config.pin_dir.as_os_str() != DEFAULT_PIN_DIR {
        lines.text("pin-dir", &config.pin_dir.to_string_lossy());
    }
    if config.socket != default_socket(&config.pin_dir) {
        lines.text("socket", &config.socket.to_string_lossy());
    }
    lines.word("xdp-mode", config.xdp_mode.name(), "auto");
    lines.word("deliver", config.deliver.name(), "auto");
    if config.stats_interval != Some(Config::STATS_INTERVAL) {
        lines.time("stats-interval", config.stats_interval.unwrap_or_default());
    }
    lines.flag("assign-vip", config.assign_vip);
    if config.max_connections != Config::MAX_CONNECTIONS {
        lines.line("max-connections", &config.max_connections.to_string());
    }
    if config.ring_memory != Config::RING_MEMORY {
        lines.line("ring-memory", &bytes(config.ring_memory));
    }
    lines.flag("persist", config.persist);
    lines.flag("watch", config.watch);
    if let Some(address) = config.metrics {
        lines.text("metrics", &address.to_string());
    }
    lines.word("log-format", config.log_format.name(), "human");
    lines.timeouts(&config.timeouts, &Timeouts::default());
    if !config.services.is_empty() {
        lines.text.push('\n');
    }
    lines.text + &tables(&config.services, &config.timeouts)
}

/// The `[[service]]` tables that mean these services. A timeout that is as usual is left to who reads them.
pub fn render_services(services: &[Service]) -> String {
    tables(services, &Timeouts::default())
}

/// The tables of services in a file with these timeouts.
pub(super) fn tables(services: &[Service], defaults: &Timeouts) -> String {
    let mut tables: Vec<String> = Vec::new();
    let mut rest = services;
    while let [service, after @ ..] = rest {
        let is_any = after.first().is_some_and(|next| are_one(service, next));
        let protocols: &[Protocol] =
            if is_any { &[Protocol::Tcp, Protocol::Udp] } else { std::slice::from_ref(&service.protocol) };
        tables.push(table(service, protocols, defaults));
        rest = if is_any { &after[1..] } else { after };
    }
    tables.join("\n")
}

/// Whether two services are what one table with `/any` makes.
fn are_one(tcp: &Service, udp: &Service) -> bool {
    let is_pair = tcp.protocol == Protocol::Tcp && udp.protocol == Protocol::Udp;
    is_pair && *udp == Service { protocol: Protocol::Udp, ..tcp.clone() }
}

fn table(service: &Service, protocols: &[Protocol], defaults: &Timeouts) -> String {
    let mut lines = Lines { text: "[[service]]\n".into() };
    if service.name != service.vip.to_string() {
        lines.text("name", &service.name);
    }
    let suffix = match protocols {
        [Protocol::Tcp] => "",
        [Protocol::Udp] => "/udp",
        _ => "/any",
    };
    lines.text("vip", &format!("{}{suffix}", service.vip));
    lines.text("scheduler", service.scheduler.name());
    if let Some(time) = service.sticky {
        lines.time("sticky", time);
    }
    lines.word("on-empty", service.on_empty.name(), "drop");
    lines.word("on-down", service.on_down.name(), "auto");
    if !service.slow_start.is_zero() {
        lines.time("slow-start", service.slow_start);
    }
    lines.timeouts(&service.timeouts, defaults);
    lines.line("health", &health(&service.health));
    lines.backends(&service.backends);
    lines.text
}

fn health(health: &Health) -> String {
    let mut pairs = vec![format!("type = {}", string(health.probe.name()))];
    let mut pair = |key: &str, value: String| pairs.push(format!("{key} = {value}"));
    if let Probe::Http(http) | Probe::Https(http, _) = &health.probe {
        http_probe(http, &mut pair);
    }
    if let Probe::Https(_, tls) = &health.probe {
        if let Some(ca) = &tls.ca {
            pair("ca", string(&ca.to_string_lossy()));
        }
        if tls.skip_verify {
            pair("skip-verify", "true".into());
        }
    }
    if let Some(port) = health.port {
        pair("port", port.to_string());
    }
    if health.interval != Health::INTERVAL {
        pair("interval", time(health.interval));
    }
    if health.timeout != usual_timeout(health.interval) {
        pair("timeout", time(health.timeout));
    }
    let counts = [
        ("rise", health.rise, Health::RISE),
        ("fall", health.fall, Health::FALL),
        ("passive", health.passive, Health::PASSIVE),
    ];
    for (key, value, usual) in counts {
        if value != usual {
            pair(key, value.to_string());
        }
    }
    if health.initial == Initial::Down {
        pair("initial", string("down"));
    }
    match pairs.len() {
        1 => string(health.probe.name()),
        _ => format!("{{ {} }}", pairs.join(", ")),
    }
}

fn http_probe(http: &HttpProbe, pair: &mut impl FnMut(&str, String)) {
    let usual = HttpProbe::default();
    pair("path", string(&http.path));
    if let Some(host) = &http.host {
        pair("host", string(host));
    }
    if http.method != usual.method {
        pair("method", string(&http.method));
    }
    if http.status != usual.status {
        let ranges: Vec<String> = http.status.iter().map(status).collect();
        pair("status", format!("[{}]", ranges.join(", ")));
    }
    if let Some(body) = &http.body {
        pair("body", string(body));
    }
}

fn status(range: &RangeInclusive<u16>) -> String {
    match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("\"{}-{}\"", range.start(), range.end()),
    }
}

#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn line(&mut self, key: &str, value: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.line(key, &string(value));
    }

    fn word(&mut self, key: &str, value: &str, usual: &str) {
        if value != usual {
            self.text(key, value);
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        if value {
            self.line(key, "true");
        }
    }

    fn time(&mut self, key: &str, value: Duration) {
        self.line(key, &time(value));
    }

    fn timeouts(&mut self, timeouts: &Timeouts, defaults: &Timeouts) {
        for (key, value, default) in [
            ("timeout-established", timeouts.established, defaults.established),
            ("timeout-unconfirmed", timeouts.unconfirmed, defaults.unconfirmed),
            ("timeout-closing", timeouts.closing, defaults.closing),
            ("timeout-udp", timeouts.udp, defaults.udp),
        ] {
            if value != default {
                self.time(key, value);
            }
        }
    }

    fn backends(&mut self, backends: &[Backend]) {
        if backends.is_empty() {
            return;
        }
        self.text.push_str("backend = [\n");
        for backend in backends {
            let _ = writeln!(self.text, "    {},", backend_table(backend));
        }
        self.text.push_str("]\n");
    }
}

/// A backend as a table in one line.
pub(super) fn backend_table(backend: &Backend) -> String {
    let Backend { address, weight, state } = backend;
    let state = match state {
        AdminState::Enabled => String::new(),
        state => format!(", state = \"{state}\""),
    };
    format!("{{ address = \"{address}\", weight = {}{state} }}", weight.get())
}

fn time(value: Duration) -> String {
    match value.is_zero() {
        true => "0".into(),
        false => string(&humantime::format_duration(value).to_string()),
    }
}

/// In the largest unit that says it without a point.
fn bytes(value: u64) -> String {
    for (unit, name) in [(1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")] {
        if value % unit == 0 {
            return format!("\"{}{name}\"", value / unit);
        }
    }
    value.to_string()
}

/// A string of TOML, in one line and without characters that do something to a terminal.
fn string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            '\n' => quoted.push_str("\\n"),
            c if does_something(c) => {
                let _ = write!(quoted, "\\U{:08X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
