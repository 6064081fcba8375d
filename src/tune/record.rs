//! What was changed, so that it can be put back by another process, later.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::setting::Setting;

/// Gone with a reboot, as the settings are.
const DIR: &str = "/run/xdp-lb";
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// One setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    pub setting: Setting,
    /// What it was before the first time.
    pub before: String,
    /// What it was made last.
    pub after: String,
}

/// What was changed for one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    interface: String,
    changes: Vec<Change>,
}

/// The record of an interface, held by this process alone.
pub(super) struct Record {
    dir: PathBuf,
    path: PathBuf,
    ifindex: u32,
    content: Content,
    _lock: Flock<File>,
}

impl Record {
    /// Waits until no other process has it. An interface is known by its index in this network namespace: its name may be
    /// another's tomorrow.
    pub(super) fn open(interface: &str, ifindex: u32) -> Result<Record> {
        Record::open_in(Path::new(DIR), interface, ifindex)
    }

    pub(super) fn open_in(dir: &Path, interface: &str, ifindex: u32) -> Result<Record> {
        let doing = || format!("could not open the record of what is changed in {}", dir.display());
        DirBuilder::new().recursive(true).mode(0o755).create(dir).with_context(doing)?;
        let lock = Flock::lock(File::open(dir).with_context(doing)?, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(doing)?;
        let path = dir.join(format!("{}{ifindex}.json", prefix()?));
        let content = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is no record of this program: remove it", path.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(error).with_context(doing),
        };
        let content = Content { interface: interface.to_owned(), ..content };
        Ok(Record { dir: dir.to_owned(), path, ifindex, content, _lock: lock })
    }

    /// The indices that interfaces of this name had when they were tuned, the last first.
    pub(super) fn indices_of(interface: &str) -> Result<Vec<u32>> {
        let mut all = all_in(Path::new(DIR))?;
        all.retain(|(_, content)| content.interface == interface);
        Ok(all.into_iter().map(|(ifindex, _)| ifindex).collect())
    }

    /// What the other records of this network namespace have of a setting, with index and name of the interface.
    pub(super) fn others_with(&self, setting: &Setting) -> Result<Vec<(u32, String, Change)>> {
        let mut all = all_in(&self.dir)?;
        all.retain(|(ifindex, _)| *ifindex != self.ifindex);
        let with = |(ifindex, content): (u32, Content)| {
            let change = content.changes.into_iter().find(|change| change.setting == *setting)?;
            Some((ifindex, content.interface, change))
        };
        Ok(all.into_iter().filter_map(with).collect())
    }

    pub(super) fn changes(&self) -> &[Change] {
        &self.content.changes
    }

    /// Remembers a change that is about to be made, or what it came to. The first value of a setting stays.
    pub(super) fn note(&mut self, setting: &Setting, before: &str, after: &str) -> Result<()> {
        let former = self.content.clone();
        let changes = &mut self.content.changes;
        match changes.iter_mut().find(|change| change.setting == *setting) {
            Some(known) => known.after = after.to_owned(),
            None => changes.push(Change {
                setting: setting.clone(),
                before: before.to_owned(),
                after: after.to_owned(),
            }),
        }
        let written = self.write();
        if written.is_err() {
            self.content = former;
        }
        written
    }

    /// Forgets a change that was put back, or never was made.
    pub(super) fn forget(&mut self, setting: &Setting) -> Result<()> {
        self.content.changes.retain(|change| change.setting != *setting);
        self.write()
    }

    /// In one step: whoever is killed in the middle leaves the old record or the new one.
    fn write(&self) -> Result<()> {
        let doing = || format!("could not write the record {}", self.path.display());
        if self.content.changes.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(doing),
                _ => Ok(()),
            };
        }
        let bytes = serde_json::to_vec_pretty(&self.content).with_context(doing)?;
        let temporary = self.path.with_extension("new");
        let mut file = File::create(&temporary).with_context(doing)?;
        file.write_all(&bytes).with_context(doing)?;
        fs::rename(&temporary, &self.path).with_context(doing)
    }
}

/// How the names of records of this network namespace begin.
fn prefix() -> Result<String> {
    let namespace = fs::metadata(OWN_NAMESPACE).context("could not look at this network namespace")?;
    Ok(format!("tune-{}-", namespace.ino()))
}

/// The records of this network namespace with the interfaces' indices, the greatest first. What is no record is left out.
fn all_in(dir: &Path) -> Result<Vec<(u32, Content)>> {
    let start = prefix()?;
    let of_file = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ifindex = name.strip_prefix(&start)?.strip_suffix(".json")?.parse().ok()?;
        Some((ifindex, serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()?))
    };
    let mut all: Vec<(u32, Content)> =
        fs::read_dir(dir).into_iter().flatten().flatten().filter_map(of_file).collect();
    all.sort_by_key(|(ifindex, _)| std::cmp::Reverse(*ifindex));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_stays_until_it_is_put_back() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let open = || Record::open_in(dir.path(), "eth0", 7);
        let setting = Setting::Device("gro_flush_timeout".into());
        open()?.note(&setting, "0", "10")?;
        open()?.note(&setting, "10", "20")?;
        let change = Change { setting: setting.clone(), before: "0".into(), after: "20".into() };
        assert_eq!(open()?.changes(), [change]);
        assert!(Record::open_in(dir.path(), "eth0", 8)?.changes().is_empty(), "another interface");
        open()?.forget(&setting)?;
        assert_eq!(fs::read_dir(dir.path())?.count(), 0);
        Ok(())
    }

    #[test]
    fn what_cannot_be_written_is_not_remembered() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut record = Record::open_in(dir.path(), "eth0", 7)?;
        let setting = Setting::AdaptiveRx;
        record.note(&setting, "off", "on")?;
        let before = record.changes().to_vec();
        // A directory in the place of the file that is to be written.
        fs::create_dir(record.path.with_extension("new"))?;
        assert!(record.note(&setting, "off", "other").is_err());
        assert_eq!(record.changes(), before);
        Ok(())
    }

    #[test]
    fn others_are_those_of_this_namespace() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let setting = Setting::Sysctl("net.core.bpf_jit_enable".into());
        Record::open_in(dir.path(), "eth0", 7)?.note(&setting, "0", "1")?;
        fs::copy(dir.path().join(format!("{}7.json", prefix()?)), dir.path().join("tune-1-9.json"))?;
        assert!(Record::open_in(dir.path(), "eth0", 7)?.others_with(&setting)?.is_empty());
        let others = Record::open_in(dir.path(), "eth1", 8)?.others_with(&setting)?;
        let names: Vec<(u32, &str)> = others.iter().map(|(index, name, _)| (*index, name.as_str())).collect();
        assert_eq!(names, [(7, "eth0")]);
        Ok(())
    }
}
