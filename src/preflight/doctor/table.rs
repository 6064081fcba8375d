//! How full the connection table is.

use anyhow::Result;

use super::{Patient, State};
use crate::dataplane::{Class, Clock, Tables};
use crate::preflight::Finding;

const TABLE: &str = "table";
/// What part of the connections that were promised is a reason to say so, in percent.
const MUCH: u64 = 80;
/// What is counted where a connection found no slot.
const TURNED_AWAY: &str = "table_full";

struct Fill {
    live: u64,
    unconfirmed: u64,
    slots: u64,
}

pub(super) fn check(patient: &Patient) -> Vec<Finding> {
    if !patient.is_there() {
        return Vec::new();
    }
    let config = &patient.config;
    vec![match look(patient) {
        Ok(fill) => {
            // Without its process nobody knows what an instance was asked for: it made 3.5 slots for each.
            let promised = match patient.state {
                State::Runs => u64::from(config.max_connections),
                _ => fill.slots * 2 / 7,
            };
            judge(&fill, promised, turned_away(patient), &patient.command("connections --state unconfirmed"))
        }
        Err(error) => Finding::warning(
            TABLE,
            &format!("could not look at the connection table: {error:#}"),
            &format!("sudo {}", patient.command("doctor")),
        ),
    }]
}

fn look(patient: &Patient) -> Result<Fill> {
    let tables = Tables::open(&patient.config.pin_dir)?;
    let settings = tables.settings()?;
    let now = Clock::load()?.now(settings.clock_shift)?;
    let census = tables.sweeper(settings, now).count();
    let (live, unconfirmed) = (census.confirmed + census.unconfirmed, census.unconfirmed);
    Ok(Fill { live, unconfirmed, slots: census.slots })
}

/// First packets of connections that found no slot.
fn turned_away(patient: &Patient) -> u64 {
    let reasons = patient.figures.iter().flat_map(|figures| &figures.reasons);
    let full = |reason: &&crate::metrics::ReasonFigures| {
        reason.class == Class::Drop.name() && reason.name == TURNED_AWAY
    };
    reasons.filter(full).map(|reason| reason.counter.packets).sum()
}

/// Room for twice of what is needed now, as two digits.
fn enough(live: u64, promised: u64) -> u64 {
    let twice = live.max(promised) * 2;
    let unit = 10u64.pow(twice.max(1).ilog10().saturating_sub(1));
    twice.div_ceil(unit) * unit
}

/// `list`: the command that shows connections that are not confirmed.
fn judge(fill: &Fill, promised: u64, turned_away: u64, list: &str) -> Finding {
    let Fill { live, unconfirmed, slots } = *fill;
    let percent = live * 100 / promised.max(1);
    let message = format!(
        "{live} of the {promised} connections that there is room for are live ({percent} %; {slots} slots)"
    );
    let message = match turned_away {
        0 => message,
        _ => format!("{message}; {turned_away} packets found no slot so far ({TURNED_AWAY})"),
    };
    let basis = if live > promised { "what is live now" } else { "the present one" };
    // How many would have come is not to be known.
    let least = if turned_away > 0 { ", at least, as others were turned away: look again then" } else { "" };
    let flood = match unconfirmed > live / 2 {
        true => format!("; most are unconfirmed, which a flood looks like: {list}"),
        false => String::new(),
    };
    let fix = format!(
        "--max-connections {} (or max-connections in the file, and a reload: it moves them), twice {basis}{least}{flood}",
        enough(live, promised)
    );
    if live >= promised || live >= slots {
        return Finding::error(TABLE, &format!("{message}: new ones may find none"), &fix);
    }
    match percent > MUCH {
        true => Finding::warning(TABLE, &message, &fix),
        false => Finding::ok(TABLE, &message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;

    const LIST: &str = "xdp-lb connections --state unconfirmed";

    #[test]
    fn a_table_is_full_before_its_slots_are() {
        let level = |live| judge(&Fill { live, unconfirmed: 0, slots: 350 }, 100, 0, LIST).level;
        assert_eq!(level(0), Level::Ok);
        assert_eq!(level(80), Level::Ok);
        assert_eq!(level(81), Level::Warning);
        assert_eq!(level(99), Level::Warning);
        assert_eq!(level(100), Level::Error);
        assert_eq!(level(350), Level::Error);
    }

    #[test]
    fn room_is_asked_for_by_what_is_needed() {
        let fix = |live, unconfirmed, promised, turned_away| {
            judge(&Fill { live, unconfirmed, slots: 700 }, promised, turned_away, LIST)
                .fix
                .unwrap_or_default()
        };
        assert!(fix(90, 0, 100, 0).starts_with("--max-connections 200 "), "twice the present one");
        let over = fix(532, 0, 200, 0);
        assert!(
            over.starts_with("--max-connections 1100 ") && over.ends_with("twice what is live now"),
            "{over}"
        );
        assert!(fix(532, 0, 200, 9).contains("at least, as others were turned away"));
        assert!(fix(532, 300, 200, 0).contains("a flood"));
        assert_eq!((enough(0, 1), enough(9, 10), enough(1_234_567, 1)), (2, 20, 2_500_000));
        assert!(
            judge(&Fill { live: 1, unconfirmed: 0, slots: 700 }, 200, 9, LIST)
                .message
                .contains("9 packets found no slot")
        );
    }
}
