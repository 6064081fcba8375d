//! A file's new text in the place of the old one, at once.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::process;

use super::super::file::text_of;
use super::EditError;

/// Puts a new text into a file whose text was `old` when it was read. Whoever reads it meanwhile gets all of the one or
/// all of the other; mode and owner stay. Where the path is a link, the file that it leads to is the one that changes.
pub fn write(path: &Path, old: &str, new: &str) -> Result<(), EditError> {
    let failed = |error: io::Error| {
        let right = match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "let this user write to its directory, or make the change by hand"
            }
            io::ErrorKind::ResourceBusy => {
                "mount its directory instead of the file, or make the change by hand"
            }
            io::ErrorKind::StorageFull => "make room there",
            _ => "make the change by hand",
        };
        EditError::Failed(format!("{}: cannot be written: {error}; {right}", path.display()))
    };
    let file = path.canonicalize().map_err(failed)?;
    unchanged(&file, old)?;
    let (temporary, name) = temporary(&file).map_err(failed)?;
    let written = fill(temporary, &file, new).map_err(failed).and_then(|()| {
        // Once more: what somebody saved meanwhile would be lost. The instant up to the rename remains.
        unchanged(&file, old)?;
        fs::rename(&name, &file).map_err(failed)
    });
    if written.is_err() {
        // It is already gone, or cannot be removed: the error that counts is the other one.
        let _ = fs::remove_file(&name);
    }
    written?;
    let directory = file.parent().unwrap_or(Path::new("/"));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn unchanged(file: &Path, old: &str) -> Result<(), EditError> {
    match text_of(file).map_err(EditError::File)? == old {
        true => Ok(()),
        false => Err(EditError::Conflict(format!(
            "{}: the file was changed after it was read; reload it, and try again",
            file.display()
        ))),
    }
}

/// A new file beside the other. Only its owner may read it before it has the other's mode.
fn temporary(file: &Path) -> io::Result<(File, PathBuf)> {
    let mut name = std::ffi::OsString::from(".");
    name.push(file.file_name().unwrap_or_default());
    name.push(format!(".{}.new", process::id()));
    let path = file.with_file_name(name);
    // One of a process that died with our number.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok((OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?, path))
}

fn fill(mut temporary: File, like: &Path, text: &str) -> io::Result<()> {
    let metadata = fs::metadata(like)?;
    temporary.write_all(text.as_bytes())?;
    // The owner first: a change of it takes away bits of the mode.
    fchown(&temporary, Some(metadata.uid()), Some(metadata.gid()))?;
    temporary.set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))?;
    temporary.sync_all()
}
