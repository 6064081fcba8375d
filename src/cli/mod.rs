//! The command line: from a process's arguments to a [`Command`], or to a [`Usage`] that says what is wrong.
//!
//! `args` is what clap reads, word by word; [`crate::config::words`] turns one word into a value; `resolve` is the only place
//! where the words become a [`Command`]. Nothing here does I/O except [`Usage::report`], so that bad
//! arguments are found before anything else happens, without root too.

mod args;
mod check;
mod resolve;
mod status;
mod usage;
mod verify;
mod veth_peer;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser as _;

use crate::config::Config;

pub use check::check;
pub use status::status;
pub use usage::Usage;
pub use verify::verify;
pub use veth_peer::veth_peer;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach to the interface and balance until told to stop.
    Run(Box<Config>),
    /// Look for what would keep this from working, and change nothing.
    Check(Box<Config>),
    /// Show what an instance is doing.
    Status {
        /// Where that instance has its pins.
        pin_dir: PathBuf,
        /// As JSON, not as a table.
        json: bool,
    },
    /// Have the kernel verify the programs without attaching them.
    Verify,
    /// Make the far end of a veth accept frames sent by native XDP.
    VethPeer {
        /// The near or far end, as named in the present network namespace.
        interface: String,
        /// Detach the program instead.
        remove: bool,
    },
    /// Remove everything of an instance that died.
    Detach {
        /// An interface that its program is on.
        interface: String,
        /// Where it has its pins.
        pin_dir: PathBuf,
    },
}

/// Reads a process's arguments, its own name first, as [`std::env::args_os`] gives them.
///
/// # Errors
/// A [`Usage`] for `--help` and `--version` (exit code 0) and for arguments that are wrong (exit code 2).
pub fn parse<I: IntoIterator<Item = OsString>>(args: I) -> Result<Command, Usage> {
    let args: Vec<OsString> = args.into_iter().collect();
    let raw = args::Args::try_parse_from(&args).map_err(|error| usage::from_clap(&error, &args))?;
    resolve::resolve(&raw)
}
