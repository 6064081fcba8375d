//! The file that a configuration was read from.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::change::How;
use super::running::Running;
use crate::config::{self, Config, merge};
use crate::control::{Done, Refusal};
use crate::model::diff;

/// A configuration file, and what it said when it was last read.
pub struct Source {
    pub path: PathBuf,
    pub config: Config,
    /// What it was like then.
    stamp: Option<Stamp>,
    /// What it was like at the last look, if it has changed.
    seen: Option<Stamp>,
}

/// Whoever writes a file changes one of these: inode, size, time of the last change in seconds and nanoseconds.
type Stamp = (u64, u64, i64, i64);

impl Source {
    /// A file that was read a moment ago.
    pub fn new(path: PathBuf, config: Config) -> Source {
        let stamp = stamp(&path);
        Source { path, config, stamp, seen: None }
    }

    /// What it says now is known.
    pub fn is(&mut self, config: Config) {
        (self.config, self.stamp) = (config, stamp(&self.path));
    }
}

fn stamp(path: &PathBuf) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

impl Running {
    /// Reads the file once more and carries out what changed in it. What was changed by other means meanwhile stays, where
    /// the file says nothing new of it.
    pub fn reload(&mut self, how: How) -> Result<Done, Refusal> {
        let source = self.source.as_mut().ok_or_else(|| {
            Refusal::invalid(
                "this instance was started without a configuration file: change it by the other commands, or start it by \
                 xdp-lb run --config FILE",
            )
        })?;
        // Before it is read: what is written meanwhile is found by the next look.
        let stamp = stamp(&source.path);
        let read = config::read(&source.path).map_err(|error| Refusal::invalid(error.to_string()));
        if !how.dry_run {
            source.stamp = stamp;
        }
        let reloaded = read.and_then(|read| self.carry_over(read, how));
        if !how.dry_run {
            self.plane.tables().past().reloaded(reloaded.is_ok());
        }
        reloaded
    }

    /// Carries out what a reading of the file has that the one before had not.
    fn carry_over(&mut self, read: Config, how: How) -> Result<Done, Refusal> {
        let Some(source) = &self.source else { return Err(Refusal::invalid("there is no file to read")) };
        let new = merge(&source.config, &read, &self.config);
        let kept = diff(&read.services, &new.services).len();
        let done = Done { kept, ..self.change(new, how)? };
        if let (false, Some(source)) = (how.dry_run, &mut self.source) {
            source.config = read;
        }
        Ok(done)
    }

    /// With `watch`, carries out what changed in the file since it was last read.
    pub fn follow_file(&mut self) {
        if !self.config.watch {
            return;
        }
        let Some(source) = &mut self.source else { return };
        let now = stamp(&source.path);
        if now.is_none() || now == source.stamp {
            return;
        }
        // Whoever writes it in place may be in the middle of that: half a file can be a right one.
        if std::mem::replace(&mut source.seen, now) != now {
            return;
        }
        let path = source.path.display().to_string();
        match self.reload(How::by("file")) {
            Ok(done) if done.steps.is_empty() => {
                tracing::info!("{path} was written, and says the same as before")
            }
            Ok(_) => tracing::info!("{path} was read again"),
            Err(refusal) => tracing::warn!("{path} was changed, but not carried out: {refusal}"),
        }
    }
}
