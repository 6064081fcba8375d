//! What verbs print. A reader that has seen enough is no error; a full disk is one, or scripts would go on with half of it.

use std::io::{ErrorKind, Write as _};

use anyhow::{Context as _, Result};

/// Writes text as it is. False: nobody reads any more.
///
/// # Errors
/// It could not be written, for any other reason.
pub(super) fn write(text: impl AsRef<[u8]>) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("could not write to stdout"),
    }
}

/// The same, where nothing else would be written.
pub(super) fn say(text: impl AsRef<[u8]>) -> Result<()> {
    write(text).map(drop)
}
