//! The verbs that only read: status, stats, service list, backend list, connections, config show.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::source::{PATIENCE, Source, no_service, process};
use super::stdout::{say, write};
use super::{Instance, Show, rates, tables};
use crate::control::{Filter, backends_of, services_of};
use crate::metrics::{Snapshot, render};

/// Shows something of an instance, whether its process still runs or not.
pub fn show(show: &Show, instance: &Instance) -> Result<()> {
    match show {
        Show::Status => status(&Source::open(instance)?, instance.json),
        Show::Stats { interval, count } => stats(&Source::open(instance)?, instance.json, *interval, *count),
        Show::Services => {
            let services = services_of(&Source::open(instance)?.status()?);
            print(&services, instance.json, tables::services)
        }
        Show::Backends(service) => {
            let status = Source::open(instance)?.status()?;
            let backends = backends_of(&status, service.as_deref());
            let backends = backends.ok_or_else(|| no_service(service.as_deref().unwrap_or_default()))?;
            print(&backends, instance.json, tables::backends)
        }
        Show::Connections(filter) => connections(&Source::open(instance)?, filter, instance.json),
        Show::Config => {
            // Nobody else knows it.
            let text = process(instance)?.patient(PATIENCE).config()?;
            print(&json!({ "toml": text }), instance.json, |_| text.trim_end().to_owned())
        }
    }
}

fn status(source: &Source, json: bool) -> Result<()> {
    let status = source.status()?;
    match json {
        true => print(&status, json, tables::services),
        false => say(render(&snapshot(&status)?, None)),
    }
}

/// Until it is stopped, or nobody reads any more.
fn stats(source: &Source, json: bool, interval: Duration, count: Option<u64>) -> Result<()> {
    let mut last: Option<(Value, Instant)> = None;
    let mut due = Instant::now();
    for turn in 0.. {
        if count.is_some_and(|count| turn >= count) {
            break;
        }
        if turn > 0 {
            due = (due + interval).max(Instant::now());
            sleep(due.saturating_duration_since(Instant::now()));
        }
        let (status, now) = (source.status()?, Instant::now());
        let earlier = last.as_ref().map(|(status, at)| (status, now - *at));
        let text = match json {
            true => rates::with_rates(&status, earlier).to_string() + "\n",
            false => {
                let (snapshot, earlier) = (snapshot(&status)?, earlier_snapshot(earlier)?);
                let gap = if turn > 0 { "\n" } else { "" };
                gap.to_owned() + &render(&snapshot, earlier.as_ref().map(|(last, time)| (last, *time)))
            }
        };
        if !write(&text)? {
            break;
        }
        last = Some((status, now));
    }
    Ok(())
}

fn earlier_snapshot(earlier: Option<(&Value, Duration)>) -> Result<Option<(Snapshot, Duration)>> {
    earlier.map(|(status, time)| Ok((snapshot(status)?, time))).transpose()
}

pub(super) fn snapshot(status: &Value) -> Result<Snapshot> {
    Snapshot::deserialize(status)
        .context("the figures are of another version than this program: --json shows them as they are")
}

fn connections(source: &Source, filter: &Filter, json: bool) -> Result<()> {
    let found = source.connections(filter)?;
    print(&found, json, tables::connections)?;
    if !json && found["more"] == json!(true) {
        crate::log::notice("there are more: --limit lists more of them, --service and the like fewer");
    }
    Ok(())
}

/// Prints an answer as JSON, or for people.
pub(super) fn print(answer: &Value, json: bool, table: impl FnOnce(&Value) -> String) -> Result<()> {
    match json {
        true => {
            say(serde_json::to_string_pretty(answer).context("could not write the answer as JSON")? + "\n")
        }
        false => say(table(answer) + "\n"),
    }
}
