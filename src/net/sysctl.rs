use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// A sysctl of this network namespace that is to have a value; dropping this puts the one back that was there before.
#[derive(Debug)]
pub struct Sysctl {
    name: String,
    value: String,
    before: String,
}

impl Sysctl {
    /// Gives a sysctl (`net.ipv4.conf.lo.forwarding`) a value.
    ///
    /// Errors where there is no such sysctl or it cannot be written, as in a container with a read-only /proc/sys.
    pub fn set(name: &str, value: &str) -> Result<Sysctl> {
        let path = path_of(name);
        let before =
            fs::read_to_string(&path).with_context(|| format!("could not read the sysctl {name}"))?;
        let before = before.trim().to_owned();
        if before != value {
            fs::write(&path, value).with_context(|| format!("could not set the sysctl {name} to {value}"))?;
        }
        Ok(Sysctl { name: name.to_owned(), value: value.to_owned(), before })
    }

    /// Sets the value again if somebody changed it meanwhile; theirs is the one to put back then. Ok(true): it had to.
    pub fn keep(&mut self) -> Result<bool> {
        let path = path_of(&self.name);
        let now =
            fs::read_to_string(&path).with_context(|| format!("could not read the sysctl {}", self.name))?;
        if now.trim() == self.value {
            return Ok(false);
        }
        fs::write(&path, &self.value)
            .with_context(|| format!("could not set the sysctl {} to {} again", self.name, self.value))?;
        self.before = now.trim().to_owned();
        Ok(true)
    }

    /// The value that was there.
    pub fn before(&self) -> &str {
        &self.before
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        if self.before == self.value {
            return;
        }
        if let Err(error) = fs::write(path_of(&self.name), &self.before) {
            crate::note!("could not put the sysctl {} back to {}: {error}", self.name, self.before);
        }
    }
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}
