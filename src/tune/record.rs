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
    path: PathBuf,
    content: Content,
    _lock: Flock<File>,
}

impl Record {
    /// Waits until no other process has it. An interface is known by its index in this network namespace: its name may be
    /// another's tomorrow.
    pub(super) fn open(interface: &str, ifindex: u32) -> Result<Record> {
        Record::open_in(Path::new(DIR), interface, ifindex)
    }

    fn open_in(dir: &Path, interface: &str, ifindex: u32) -> Result<Record> {
        let doing = || format!("could not open the record of what is changed in {}", dir.display());
        DirBuilder::new().recursive(true).mode(0o755).create(dir).with_context(doing)?;
        let lock = Flock::lock(File::open(dir).with_context(doing)?, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(doing)?;
        let namespace = fs::metadata(OWN_NAMESPACE).with_context(doing)?.ino();
        let path = dir.join(format!("tune-{namespace}-{ifindex}.json"));
        let content = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is no record of this program: remove it", path.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(error).with_context(doing),
        };
        let content = Content { interface: interface.to_owned(), ..content };
        Ok(Record { path, content, _lock: lock })
    }

    /// The record of an interface of this name that is gone.
    pub(super) fn of_lost(interface: &str) -> Result<Option<Record>> {
        let namespace =
            fs::metadata(OWN_NAMESPACE).context("could not look at this network namespace")?.ino();
        let start = format!("tune-{namespace}-");
        for entry in fs::read_dir(DIR).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let index = name.strip_prefix(&start).and_then(|rest| rest.strip_suffix(".json"));
            let Some(ifindex) = index.and_then(|index| index.parse().ok()) else { continue };
            let content = fs::read(entry.path()).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if content.is_some_and(|content: Content| content.interface == interface) {
                return Record::open(interface, ifindex).map(Some);
            }
        }
        Ok(None)
    }

    pub(super) fn changes(&self) -> &[Change] {
        &self.content.changes
    }

    /// Remembers a change that is about to be made, or what it came to. The first value of a setting stays.
    pub(super) fn note(&mut self, setting: &Setting, before: &str, after: &str) -> Result<()> {
        let changes = &mut self.content.changes;
        match changes.iter_mut().find(|change| change.setting == *setting) {
            Some(known) => known.after = after.to_owned(),
            None => changes.push(Change {
                setting: setting.clone(),
                before: before.to_owned(),
                after: after.to_owned(),
            }),
        }
        self.write()
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
}
