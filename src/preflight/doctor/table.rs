//! How full the connection table is.

use anyhow::Result;

use super::{Patient, State};
use crate::dataplane::{Clock, Tables};
use crate::preflight::Finding;

const TABLE: &str = "table";
/// What part of the connections that were promised is a reason to say so, in percent.
const MUCH: u64 = 80;

struct Fill {
    live: u64,
    slots: u64,
}

pub(super) fn check(patient: &Patient) -> Vec<Finding> {
    if !matches!(patient.state, State::Runs | State::Dead) {
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
            judge(&fill, promised)
        }
        Err(error) => Finding::warning(
            TABLE,
            &format!("could not look at the connection table: {error:#}"),
            "sudo xdp-lb doctor",
        ),
    }]
}

fn look(patient: &Patient) -> Result<Fill> {
    let tables = Tables::open(&patient.config.pin_dir)?;
    let settings = tables.settings()?;
    let now = Clock::load()?.now(settings.clock_shift)?;
    let census = tables.sweeper(settings, now).count();
    Ok(Fill { live: census.confirmed + census.unconfirmed, slots: census.slots })
}

fn judge(fill: &Fill, promised: u64) -> Finding {
    let Fill { live, slots } = *fill;
    let percent = live * 100 / promised.max(1);
    let message = format!(
        "{live} of the {promised} connections that there is room for are live ({percent} %; {slots} slots)"
    );
    let fix =
        format!("--max-connections {} (or max-connections in the file): a reload moves them", promised * 2);
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

    #[test]
    fn a_table_is_full_before_its_slots_are() {
        let level = |live| judge(&Fill { live, slots: 350 }, 100).level;
        assert_eq!(level(0), Level::Ok);
        assert_eq!(level(80), Level::Ok);
        assert_eq!(level(81), Level::Warning);
        assert_eq!(level(99), Level::Warning);
        assert_eq!(level(100), Level::Error);
        assert_eq!(level(350), Level::Error);
        assert!(judge(&Fill { live: 90, slots: 350 }, 100).fix.unwrap().contains("--max-connections 200"));
    }
}
