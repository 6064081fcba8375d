//! As it was before.

use anyhow::{Result, ensure};

use super::record::{Change, Record};
use super::{Outcome, Step, warn_of_flap};
use crate::net::{Link, Netlink};

/// Puts back what was there before, the last change first; of interfaces of this name that are gone too, what was changed of
/// the host. `dry_run`: only tells. `warn` hears what the change of a setting does to traffic, before it is made.
///
/// # Errors
/// When there is no such interface and no record of one, or a record cannot be read.
pub fn undo(interface: &str, dry_run: bool, warn: &dyn Fn(&str)) -> Result<Vec<Step>> {
    let mut netlink = Netlink::open()?;
    let link = netlink.link(interface)?;
    let present: Vec<u32> = netlink.links()?.iter().map(|link| link.index).collect();
    let name = link.as_ref().map_or(interface, |link| link.name.as_str());
    // One that is there has another name by now.
    let lost = Record::indices_of(name)?.into_iter().filter(|index| !present.contains(index));
    let indices: Vec<u32> = link.iter().map(|link| link.index).chain(lost).collect();
    ensure!(!indices.is_empty(), "there is no interface {interface}, and nothing is recorded of one");
    let mut steps = Vec::new();
    for (place, index) in indices.iter().enumerate() {
        let link = link.as_ref().filter(|link| link.index == *index);
        let mut record = Record::open(name, *index)?;
        for change in record.changes().to_vec().into_iter().rev() {
            let keeper = keeper(&record, &change, &indices[..place])?;
            let step = put_back(name, link, &change, keeper.as_deref(), dry_run, warn);
            if !dry_run && step.outcome != Outcome::Failed {
                record.forget(&change.setting)?;
            }
            steps.push(step);
        }
    }
    Ok(steps)
}

/// The interface that a setting of the whole host stays for. Those that are `done` keep nothing any more.
fn keeper(record: &Record, change: &Change, done: &[u32]) -> Result<Option<String>> {
    if change.setting.is_of_interface() {
        return Ok(None);
    }
    let others = record.others_with(&change.setting)?;
    Ok(others.into_iter().find(|(index, ..)| !done.contains(index)).map(|(_, name, _)| name))
}

/// `keeper`: the other interface that it stays for.
fn put_back(
    interface: &str,
    link: Option<&Link>,
    change: &Change,
    keeper: Option<&str>,
    dry_run: bool,
    warn: &dyn Fn(&str),
) -> Step {
    let Change { setting, before: first, after: ours } = change;
    let mut step = Step {
        name: setting.group(),
        what: setting.what(interface),
        before: None,
        after: None,
        outcome: Outcome::Skipped,
        note: None,
    };
    let now = match setting.read(interface) {
        Ok(now) if link.is_some() || !setting.is_of_interface() => now,
        Ok(_) => None,
        Err(error) => {
            return Step { outcome: Outcome::Failed, note: Some(format!("{error:#}")), ..step };
        }
    };
    step.before.clone_from(&now);
    step.after.clone_from(&now);
    let Some(now) = now else {
        return Step { note: Some("it is gone".to_owned()), ..step };
    };
    if now == *first {
        return Step { outcome: Outcome::Kept, ..step };
    }
    if now != *ours {
        let note = format!("somebody else made it {now} since it was made {ours}; it was {first} before");
        return Step { note: Some(note), ..step };
    }
    if let Some(keeper) = keeper {
        let note = format!("{keeper} was tuned with it too: it is put back with that");
        return Step { note: Some(note), ..step };
    }
    if let Some(link) = link {
        warn_of_flap(link, setting, warn);
    }
    if dry_run {
        return Step { after: Some(first.clone()), outcome: Outcome::Planned, ..step };
    }
    match setting.write(interface, first) {
        Ok(()) => Step { after: Some(first.clone()), outcome: Outcome::Restored, ..step },
        Err(error) => Step { outcome: Outcome::Failed, note: Some(format!("{error:#}")), ..step },
    }
}
