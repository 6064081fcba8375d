//! Settings that make a host that balances faster: each told with what it was and is, recorded, and put back on demand.
//!
//! What a device cannot do is said and left alone. Nothing here changes what is balanced, or how.

mod queues;
mod record;
mod setting;
mod undo;

use anyhow::{Context as _, Result};
use nix::libc;
use serde::Serialize;

use crate::dataplane::{Refused, bus_of};
use crate::net::{Link, Netlink, irqbalance, irqs_of, online_cpus};
use queues::queues;
use record::Record;
use setting::Setting;

pub use undo::undo;

/// What is said of a change that nobody knows beforehand whether the driver makes.
const TRIES: &str = "tries: whether the driver lets it be set shows only then";
const JIT: &str = "net.core.bpf_jit_enable";
/// Polls in a row that find nothing before the device may interrupt again.
const DEFER: (&str, &str) = ("napi_defer_hard_irqs", "2");
/// After so many nanoseconds it is polled again meanwhile: the most that a frame waits longer.
const POLL_AGAIN: (&str, &str) = ("gro_flush_timeout", "20000");

/// What became of a setting. The JSON is stable: fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What it is about: `jit`, `queues`, `irq`, `coalescing` or `busy-polling`.
    pub name: &'static str,
    /// What it is, for people.
    pub what: String,
    /// What it was.
    pub before: Option<String>,
    /// What it is, or would be.
    pub after: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, if there is something to say.
    pub note: Option<String>,
}

/// What became of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It has another value now.
    Changed,
    /// It would get another value.
    Planned,
    /// It has the value already.
    Kept,
    /// It is left alone: the device has no such thing, or somebody else set it.
    Skipped,
    /// It has the value of before again.
    Restored,
    /// It could not be set.
    Failed,
}

/// A setting that is to have a value, or the reason why it is left alone.
struct Wish {
    setting: Setting,
    value: Result<String, String>,
    note: Option<String>,
    /// Whether it is the driver's to say, when it is asked to, if it can have this value.
    may_be_refused: bool,
}

impl Wish {
    fn new(setting: Setting, value: &str) -> Wish {
        let may_be_refused = setting.is_of_driver();
        Wish { setting, value: Ok(value.to_owned()), note: None, may_be_refused }
    }

    fn none(setting: Setting, why: &str) -> Wish {
        Wish { setting, value: Err(why.to_owned()), note: None, may_be_refused: false }
    }
}

/// What looks at an interface for what could be better.
type Stage = fn(&Link) -> Result<Vec<Wish>>;

/// Interrupts come and go with queues: each stage looks when those before it are done.
const STAGES: [Stage; 5] = [jit, queues, interrupts, coalescing, busy_polling];

/// Makes the host faster for what an interface receives. `dry_run`: only tells. `warn` hears what the change of a setting does
/// to traffic, before it is made.
///
/// # Errors
/// When there is no such interface, or what is changed cannot be recorded.
pub fn tune(interface: &str, dry_run: bool, warn: &dyn Fn(&str)) -> Result<Vec<Step>> {
    let link = Netlink::open()?.link(interface)?;
    let link = link.with_context(|| format!("there is no interface {interface}"))?;
    let mut record = if dry_run { None } else { Some(Record::open(&link.name, link.index)?) };
    let mut steps = Vec::new();
    for stage in STAGES {
        for wish in stage(&link)? {
            steps.push(fulfil(&link, wish, record.as_mut(), warn)?);
        }
    }
    Ok(steps)
}

fn fulfil(link: &Link, wish: Wish, record: Option<&mut Record>, warn: &dyn Fn(&str)) -> Result<Step> {
    let interface = &link.name;
    let Wish { setting, value, note, may_be_refused } = wish;
    let step = Step {
        name: setting.group(),
        what: setting.what(interface),
        before: None,
        after: None,
        outcome: Outcome::Skipped,
        note,
    };
    let because = |why: String, step: Step| Ok(Step { note: Some(why), ..step });
    let value = match value {
        Ok(value) => value,
        Err(why) => return because(why, step),
    };
    let before = match setting.read(interface) {
        Ok(Some(before)) => before,
        Ok(None) => return because("there is no such setting here".to_owned(), step),
        Err(error) => return Ok(Step { outcome: Outcome::Failed, note: Some(format!("{error:#}")), ..step }),
    };
    let step = Step { before: Some(before.clone()), after: Some(before.clone()), ..step };
    if before == value {
        record.map_or(Ok(()), |record| share(record, &setting, &value))?;
        return Ok(Step { outcome: Outcome::Kept, ..step });
    }
    warn_of_flap(link, &setting, warn);
    let Some(record) = record else {
        let tries = may_be_refused.then(|| TRIES.to_owned());
        let note =
            [tries, step.note.clone()].into_iter().flatten().reduce(|tries, note| format!("{tries}; {note}"));
        return Ok(Step { after: Some(value), outcome: Outcome::Planned, note, ..step });
    };
    change(interface, &setting, value, record, step)
}

/// Records and makes a change of what is `step.before` now.
fn change(
    interface: &str,
    setting: &Setting,
    value: String,
    record: &mut Record,
    step: Step,
) -> Result<Step> {
    let before = step.before.clone().unwrap_or_default();
    let known = record.changes().iter().find(|change| change.setting == *setting);
    let former = known.map(|change| change.after.clone());
    // Before it is so: a process that is killed in between leaves a record of what is as it was.
    record.note(setting, &before, &value)?;
    match setting.write(interface, &value) {
        Ok(()) => {
            // As the kernel writes it, for the comparison when it is put back.
            let after = setting.read(interface).ok().flatten().unwrap_or(value);
            record.note(setting, &before, &after)?;
            Ok(Step { after: Some(after), outcome: Outcome::Changed, ..step })
        }
        Err(error) => {
            match former {
                None => record.forget(setting)?,
                Some(after) => record.note(setting, &before, &after)?,
            }
            let (outcome, why) = failure(&error);
            Ok(Step { outcome, note: Some(why), ..step })
        }
    }
}

/// What the whole host was made for another interface serves this one too: it is put back with the last of them.
fn share(record: &mut Record, setting: &Setting, now: &str) -> Result<()> {
    if setting.is_of_interface() || record.changes().iter().any(|change| change.setting == *setting) {
        return Ok(());
    }
    let others = record.others_with(setting)?;
    let other = others.iter().map(|(_, _, change)| change).find(|change| change.after == now);
    other.map_or(Ok(()), |change| record.note(setting, &change.before, now))
}

/// Drivers make their queues anew, and most set the link down for it; with a program on it there is traffic to lose.
fn warn_of_flap(link: &Link, setting: &Setting, warn: &dyn Fn(&str)) {
    if matches!(setting, Setting::Queues(_)) && link.xdp.is_some() {
        warn(&format!(
            "a program is on {}: to change its queues makes the link flap with most drivers",
            link.name
        ));
    }
}

/// What a device cannot do is no failure.
fn failure(error: &anyhow::Error) -> (Outcome, String) {
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return (Outcome::Skipped, refused.to_string());
    }
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
        // So does the kernel with interrupts that it manages itself.
        Some(libc::EIO) => (Outcome::Skipped, "the kernel does not let it be changed".to_owned()),
        _ => (Outcome::Failed, format!("{error:#}")),
    }
}

fn jit(_: &Link) -> Result<Vec<Wish>> {
    let setting = Setting::Sysctl(JIT.to_owned());
    Ok(vec![match setting.read("")?.as_deref() {
        None => Wish::none(setting, "it is not to be seen from this network namespace"),
        Some("0") => Wish {
            note: Some("programs that are loaded already stay as they are until the next start".to_owned()),
            ..Wish::new(setting, "1")
        },
        // 2 compiles too.
        Some(on) => Wish::new(setting, on),
    }])
}

/// One processor for each queue, in turn.
fn interrupts(link: &Link) -> Result<Vec<Wish>> {
    let irqs = irqs_of(&link.name, bus_of(&link.name)?.as_deref())?;
    let cpus = online_cpus()?;
    if irqs.is_empty() || cpus.is_empty() {
        let setting = Setting::Irq { number: 0, name: link.name.clone() };
        return Ok(vec![Wish::none(setting, "the interface has no interrupts of its own")]);
    }
    let note = irqbalance().map(|process| {
        format!("irqbalance (process {process}) may move it again: stop it, or have it leave these alone (--banirq)")
    });
    let wish = |(place, irq): (usize, crate::net::Irq)| {
        let cpu = cpus[irq.queue.unwrap_or(place) % cpus.len()];
        let setting = Setting::Irq { number: irq.number, name: irq.name };
        Wish { note: note.clone(), ..Wish::new(setting, &cpu.to_string()) }
    };
    Ok(irqs.into_iter().enumerate().map(wish).collect())
}

/// The device finds out how many frames to collect: few when there are few, so that they do not wait.
fn coalescing(link: &Link) -> Result<Vec<Wish>> {
    Ok(vec![match Setting::AdaptiveRx.read(&link.name)? {
        None => Wish::none(Setting::AdaptiveRx, "the driver has no coalescing"),
        Some(_) => Wish::new(Setting::AdaptiveRx, "on"),
    }])
}

/// Under load the device is polled rather than let interrupt. `net.core.busy_read` and `busy_poll` are of no use here: they
/// are for processes that wait at sockets, which balanced packets never get to.
fn busy_polling(link: &Link) -> Result<Vec<Wish>> {
    let wish = |(name, value): (&str, &str)| {
        let setting = Setting::Device(name.to_owned());
        match setting.read(&link.name) {
            Ok(Some(now)) if now != "0" && now != value => {
                Wish::none(setting, &format!("it is {now}: somebody has set it already"))
            }
            _ => Wish::new(setting, value),
        }
    };
    Ok(vec![wish(POLL_AGAIN), wish(DEFER)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_fails_leaves_the_record_as_it_was() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut record = Record::open_in(dir.path(), "eth0", 7)?;
        // Nobody may write it.
        let setting = Setting::Sysctl("kernel.ostype".into());
        let step = Step {
            name: setting.group(),
            what: String::new(),
            before: setting.read("")?,
            after: None,
            outcome: Outcome::Skipped,
            note: None,
        };
        let fail = |record: &mut Record| change("eth0", &setting, "Other".into(), record, step.clone());
        assert_eq!(fail(&mut record)?.outcome, Outcome::Failed);
        assert!(record.changes().is_empty());
        record.note(&setting, "First", "Linux")?;
        let before = record.changes().to_vec();
        assert_eq!(fail(&mut record)?.outcome, Outcome::Failed);
        assert_eq!(record.changes(), before, "what it was made last is what it still is");
        Ok(())
    }
}
