//! All that is known of one backend.

use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::widgets::{Sparkline, Widget as _};

use super::canvas::Canvas;
use super::diagnosis::{last_error, since};
use super::figures::cells;
use super::text;
use super::view::{BackendRow, ServiceRow, View};
use crate::dataplane::{Counter, Histogram};

/// How wide what stands before a fact is.
const LABEL: u16 = 14;
/// As high as the trend is drawn at most.
const TREND: u16 = 6;

pub(super) fn draw(view: &View, service: &ServiceRow, backend: &BackendRow, canvas: &mut Canvas<'_>) {
    let theme = canvas.theme;
    let width = usize::from(canvas.area.width.saturating_sub(LABEL)).max(1);
    let mut y = 0;
    for (label, fact) in facts(view, service, backend) {
        canvas.put(0, y, LABEL - 1, label, theme.strong());
        let style = match label {
            "condition" => theme.of_grade(backend.diagnosis.grade),
            _ => Style::new(),
        };
        for line in text::wrap(&fact, width) {
            canvas.put(LABEL, y, u16::MAX, &line, style);
            y += 1;
        }
    }
    let cells = cells(&backend.trend, view.at, usize::from(canvas.area.width).min(60));
    let most = cells.iter().copied().fold(0.0, f64::max);
    let title = format!("new connections a second, the last minute (at most {})", text::rate(most));
    canvas.put(0, y, u16::MAX, &title, theme.strong());
    let height = canvas.area.height.saturating_sub(y + 1).min(TREND);
    let width = u16::try_from(cells.len()).unwrap_or(0);
    let place = Rect { y: canvas.area.y + y + 1, height, width, ..canvas.area };
    if height > 0 {
        // Whole numbers are drawn, and there may be less than one a second.
        let scaled: Vec<u64> = cells.iter().map(|cell| (cell * 1000.0) as u64).collect();
        let line = Sparkline::default().data(&scaled).bar_set(theme.bars()).style(theme.trend());
        line.render(place.intersection(canvas.area), canvas.buffer);
    }
}

fn facts(view: &View, service: &ServiceRow, backend: &BackendRow) -> Vec<(&'static str, String)> {
    let counted = &backend.counted;
    let events = &counted.events;
    let mut facts = vec![
        ("backend", counted.address.to_string()),
        (
            "service",
            format!(
                "{}, {}, {} of {} up",
                service.title(),
                service.scheduler,
                service.up,
                service.backends.len()
            ),
        ),
        (
            "condition",
            match backend.diagnosis.grade {
                grade if backend.diagnosis.why.is_empty() => grade.word().to_owned(),
                _ => backend.diagnosis.why.clone(),
            },
        ),
        ("state", state(backend)),
    ];
    let load = counted.load.map_or(String::new(), |load| format!(", {load} for the scheduler"));
    let rates = backend.figures.rates.unwrap_or_default();
    facts.push((
        "connections",
        format!(
            "{} live{load}, {} in all, {}/s new",
            counted.active,
            counted.connections,
            text::rate(rates.connections)
        ),
    ));
    facts.push((
        "ended",
        format!(
            "{} closed, {} reset, {} expired, {} evicted, {} moved; {} revived",
            events.closed, events.reset, events.expired, events.evicted, events.moved, events.revived
        ),
    ));
    let way = |counter: &Counter, bits: f64| {
        format!("{} packets, {} bytes, {} bit/s", counter.packets, counter.bytes, text::rate(bits))
    };
    facts.push(("to it", way(&counted.to_backend, rates.out)));
    facts.push(("from it", way(&counted.to_client, rates.back)));
    facts.extend(trouble(backend));
    facts.extend(checks(view, backend));
    facts
}

/// What connections met, lately and in all.
fn trouble(backend: &BackendRow) -> [(&'static str, String); 2] {
    let events = &backend.counted.events;
    let recent = backend.figures.recent.clone().unwrap_or_default();
    let lately = format!("in the last {:.0} s", recent.seconds);
    let handshakes = (
        "handshakes",
        format!("{lately} {}; in all {}", quantiles(&recent.handshakes), quantiles(&events.handshakes)),
    );
    let trouble = (
        "trouble",
        format!(
            "{lately} {} SYNs repeated, {} RSTs; in all {} and {}",
            recent.syn_retransmits, recent.rsts, events.syn_retransmits, events.rsts
        ),
    );
    [handshakes, trouble]
}

fn state(backend: &BackendRow) -> String {
    let counted = &backend.counted;
    let Some(health) = &counted.health else {
        return format!("{}, weight {}", counted.state, counted.weight);
    };
    let weight = match health.weight {
        weight if weight == counted.weight => weight.to_string(),
        weight => format!("{} of {weight}", counted.weight),
    };
    let reset = health.reset_in_seconds;
    let reset = reset.map_or(String::new(), |seconds| format!(", connections are reset in {seconds:.0} s"));
    format!("{}, set to {}, weight {weight}{reset}", counted.state, health.admin)
}

fn quantiles(times: &Histogram) -> String {
    let at = |share| times.quantile(share).map(text::millis);
    match (at(0.5), at(0.99)) {
        (Some(half), Some(most)) => format!("{} (p50 {half} ms, p99 {most} ms)", times.count()),
        _ => "0".to_owned(),
    }
}

fn checks(view: &View, backend: &BackendRow) -> Vec<(&'static str, String)> {
    let Some(health) = &backend.counted.health else {
        let why = match view.silent {
            true => "the process that checks it does not answer",
            false => "no process runs that checks it",
        };
        return vec![("checks", format!("unknown: {why}"))];
    };
    let up = match health.up {
        _ if health.check == "none" => return vec![("checks", "none".into())],
        Some(true) => "finds it up",
        Some(false) => "finds it down",
        None => "not now",
    };
    let since = match health.up {
        Some(_) => format!(" {}", since(&backend.counted, view.wall)),
        None => String::new(),
    };
    let took =
        health.latency_ms.map_or(String::new(), |took| format!(", the last good one took {took:.1} ms"));
    let counts = format!(
        "{} {up}{since}: {} of {} failed, {:.0} % of the last 100{took}",
        health.check,
        health.failures,
        health.checks,
        health.failure_rate * 100.0
    );
    let error = last_error(&backend.counted, view.wall).unwrap_or_else(|| "none".into());
    vec![("checks", counts), ("last error", error)]
}
