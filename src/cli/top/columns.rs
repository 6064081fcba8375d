//! What the columns are, which of them fit, and what stands in them.

use super::diagnosis::Grade;
use super::figures::{Rates, Recent};
use super::text;

/// A column of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Name,
    State,
    Weight,
    Live,
    Total,
    Connections,
    P50,
    P99,
    Retransmits,
    Rsts,
    Resets,
    Packets,
    Out,
    Back,
    Check,
    Trend,
}

/// The figures of a backend, or of all backends of a service.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub weight: u64,
    pub live: u64,
    pub total: u64,
    pub rates: Option<Rates>,
    pub recent: Option<Recent>,
    /// How long the last good check took, in milliseconds.
    pub check: Option<f64>,
}

impl Figures {
    pub fn add(&mut self, other: &Figures) {
        self.weight += other.weight;
        self.live += other.live;
        self.total += other.total;
        if let Some(rates) = &other.rates {
            self.rates.get_or_insert_default().add(rates);
        }
        if let Some(recent) = &other.recent {
            self.recent.get_or_insert_default().add(recent);
        }
        if let Some(check) = other.check {
            self.check = Some(self.check.map_or(check, |most| most.max(check)));
        }
    }
}

impl Column {
    /// All, in the order in which they are shown.
    pub const ALL: [Column; 16] = [
        Column::Name,
        Column::State,
        Column::Weight,
        Column::Live,
        Column::Total,
        Column::Connections,
        Column::P50,
        Column::P99,
        Column::Retransmits,
        Column::Rsts,
        Column::Resets,
        Column::Packets,
        Column::Out,
        Column::Back,
        Column::Check,
        Column::Trend,
    ];
    /// All but the first two, which are always there, in the order in which they are given room.
    const BY_NEED: [Column; 14] = [
        Column::Connections,
        Column::Live,
        Column::P99,
        Column::P50,
        Column::Retransmits,
        Column::Rsts,
        Column::Total,
        Column::Weight,
        Column::Out,
        Column::Back,
        Column::Packets,
        Column::Trend,
        Column::Resets,
        Column::Check,
    ];
    /// The widest that a trend becomes: a cell a second.
    const TREND: u16 = 60;

    pub fn title(self) -> &'static str {
        match self {
            Column::Name => "BACKEND",
            Column::State => "STATE",
            Column::Weight => "WGT",
            Column::Live => "LIVE",
            Column::Total => "TOTAL",
            Column::Connections => "CONN/S",
            Column::P50 => "P50ms",
            Column::P99 => "P99ms",
            Column::Retransmits => "RETR/S",
            Column::Rsts => "RST/S",
            Column::Resets => "RESET/S",
            Column::Packets => "PKT/S",
            Column::Out => "OUT b/s",
            Column::Back => "BACK b/s",
            Column::Check => "CHECKms",
            Column::Trend => "CONN/S, 1 min",
        }
    }

    /// What it is, where the title does not say all.
    pub fn help(self) -> Option<&'static str> {
        Some(match self {
            Column::Total => "connections since the tables were made",
            Column::Connections => "new connections a second",
            Column::P50 => "half of the handshakes took no longer, P99ms: nearly all",
            Column::Retransmits => "SYNs that clients repeated",
            Column::Rsts => "RSTs that it sent",
            Column::Resets => "connections that it or an operator reset",
            Column::Out => "bits to it, BACK b/s: from it",
            Column::Check => "how long its last good check took",
            _ => return None,
        })
    }

    /// How wide it is at least, with the blank before it; the name's width is known by the names.
    fn width(self) -> u16 {
        match self {
            Column::Name => 0,
            Column::State => 9,
            Column::Weight => 4,
            Column::Live => 6,
            Column::Total => 10,
            Column::P50 | Column::P99 | Column::Rsts | Column::Packets => 6,
            Column::Connections | Column::Retransmits => 7,
            Column::Resets | Column::Out | Column::Check => 8,
            Column::Back => 9,
            Column::Trend => 14,
        }
    }

    /// The columns that fit beside a name, with their widths. The one that is sorted by is among them if any is.
    pub fn fitting(width: u16, name: u16, sort: Column) -> Vec<(Column, u16)> {
        let mut left = width.saturating_sub(name + Column::State.width());
        let mut chosen = vec![Column::Name, Column::State];
        let sorted = Some(sort).filter(|sort| !chosen.contains(sort));
        for column in sorted.into_iter().chain(Column::BY_NEED) {
            if !chosen.contains(&column) && column.width() <= left {
                chosen.push(column);
                left -= column.width();
            }
        }
        let more = left.min(Column::TREND + 1 - Column::Trend.width());
        let width = |column: Column| match column {
            Column::Name => name,
            Column::Trend => column.width() + more,
            column => column.width(),
        };
        Column::ALL.into_iter().filter(|one| chosen.contains(one)).map(|one| (one, width(one))).collect()
    }

    /// Columns that can be sorted by, one after the other.
    pub fn beside(self, step: isize) -> Column {
        let sorted = &Column::ALL[..Column::ALL.len() - 1];
        let at = sorted.iter().position(|one| *one == self).unwrap_or(0) as isize;
        sorted[(at + step).rem_euclid(sorted.len() as isize) as usize]
    }

    /// Whether the smallest value comes first where nothing else is said.
    pub fn ascends(self) -> bool {
        matches!(self, Column::Name | Column::State)
    }

    /// What is sorted by, of all but the name.
    pub fn value(self, figures: &Figures, grade: Grade) -> Option<f64> {
        let recent = figures.recent.as_ref();
        let rates = figures.rates.as_ref();
        let quantile = |share| Some(recent?.handshakes.quantile(share)?.as_secs_f64());
        match self {
            Column::Name | Column::Trend => None,
            Column::State => Some(f64::from(grade as u8)),
            Column::Weight => Some(figures.weight as f64),
            Column::Live => Some(figures.live as f64),
            Column::Total => Some(figures.total as f64),
            Column::Connections => Some(rates?.connections),
            Column::P50 => quantile(0.5),
            Column::P99 => quantile(0.99),
            Column::Retransmits => recent.map(|recent| recent.per_second(recent.syn_retransmits)),
            Column::Rsts => recent.map(|recent| recent.per_second(recent.rsts)),
            Column::Resets => Some(rates?.resets),
            Column::Packets => Some(rates?.packets),
            Column::Out => Some(rates?.out),
            Column::Back => Some(rates?.back),
            Column::Check => figures.check,
        }
    }

    /// What stands in it: a dash where nothing is known.
    pub fn text(self, figures: &Figures) -> String {
        match self {
            Column::Weight => text::count(figures.weight, 3),
            Column::Live => text::count(figures.live, 5),
            Column::Total => text::count(figures.total, 9),
            Column::Check => figures.check.map_or("-".into(), |check| format!("{check:.1}")),
            Column::P50 | Column::P99 => {
                let share = if self == Column::P50 { 0.5 } else { 0.99 };
                let time = figures.recent.as_ref().and_then(|recent| recent.handshakes.quantile(share));
                time.map_or("-".into(), text::millis)
            }
            _ => self.value(figures, Grade::Well).map_or("-".into(), text::rate),
        }
    }
}
