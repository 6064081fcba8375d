//! The command line: from a process's arguments to a [`Command`], or to a [`Usage`] that says what is wrong.
//!
//! `args` and `verbs` are what clap reads, word by word; [`crate::config::words`] turns one word into a value; `resolve` and
//! `instance` are the only places where the words become a [`Command`]. None of these does I/O except [`Usage::report`], so
//! that bad arguments are found before anything else happens, without root too. The other modules carry commands out.

mod args;
mod capture;
mod change;
mod check;
mod complaints;
mod detach;
mod doctor;
mod examples;
mod explain;
mod find;
mod headers;
mod instance;
mod listening;
mod manual;
mod names;
mod obstacles;
mod patient;
mod rates;
mod resolve;
mod show;
mod source;
mod stdout;
mod tables;
mod top;
mod trace;
mod tune;
mod usage;
mod verbs;
mod verify;
mod veth_peer;
mod wait;
mod watching;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser as _;
use clap_complete::Shell;

use crate::config::Config;
use crate::control::{Ask, Filter};
use crate::preflight::Level;

pub use capture::capture;
pub use change::change;
pub use check::{check, check_file, load};
pub use detach::detach;
pub use doctor::doctor;
pub use explain::{Packet, explain};
pub use find::find;
pub use manual::{completions, manual};
pub use show::show;
pub use top::{Show as ShowTop, top};
pub use trace::trace;
pub use tune::tune;
pub use usage::Usage;
pub use verify::verify;
pub use veth_peer::veth_peer;
pub use watching::Watching;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach to the interfaces and balance until told to stop.
    Run {
        /// What to do.
        config: Box<Config>,
        /// The file that says so, if it was not the command line.
        file: Option<PathBuf>,
    },
    /// The same with what a file says, which is to be read: see [`load`].
    RunFile {
        /// The file.
        file: PathBuf,
        /// Look for what would keep this from working instead.
        check_only: bool,
    },
    /// Look for what would keep this from working, and change nothing.
    Check(Box<Config>),
    /// Tell whether a configuration file is right.
    CheckFile(PathBuf),
    /// Show something of an instance.
    Show(Show, Instance),
    /// Tell what would become of a packet.
    Explain {
        /// The packet.
        packet: Packet,
        /// On which interface it arrives.
        interface: Option<String>,
        /// Which instance.
        instance: Instance,
    },
    /// Show what becomes of packets.
    Trace(Watching, Instance),
    /// Write frames to a file.
    Capture {
        /// Which.
        watching: Watching,
        /// The file; `-` is stdout.
        file: PathBuf,
        /// Bytes of each frame at most.
        length: u32,
        /// Which instance.
        instance: Instance,
    },
    /// Show what an instance does now, on a screen.
    Top(ShowTop, Instance),
    /// Have an instance change something.
    Change {
        /// What.
        ask: Ask,
        /// Whether to wait until the backend has no connections any more.
        wait: bool,
        /// Which instance.
        instance: Instance,
    },
    /// Print the completions of a shell.
    Completions(Shell),
    /// Print a manual page, or write all of them.
    Manual {
        /// The verb that it is about: none for the first page.
        verb: Vec<String>,
        /// Where all of them are written to.
        dir: Option<PathBuf>,
    },
    /// Look for all that ails an instance or this host.
    Doctor {
        /// Only this interface, and the instance on it.
        interface: Option<String>,
        /// Which instance, where no interface says so.
        instance: Instance,
        /// Carry out what harms nothing.
        fix: bool,
        /// Show only what is so bad, or worse.
        level: Level,
    },
    /// Make this host faster, or as it was before.
    Tune {
        /// The interface.
        interface: String,
        /// Only tell what would be done.
        dry_run: bool,
        /// Put back what was there before.
        undo: bool,
        /// As JSON, not for people.
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

/// Which instance is asked, and how to print what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Where it has its pins.
    pub pin_dir: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
    /// As JSON, not for people.
    pub json: bool,
    /// By what it was named.
    pub named: Named,
}

/// By what an instance was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// By nothing: another than the usual one is meant if that is the only one that runs.
    No,
    /// By its socket: only its process knows where it has its pins.
    Socket,
    /// By its pins.
    Pins,
}

/// What is to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Show {
    /// Every figure.
    Status,
    /// Every figure again and again.
    Stats {
        /// How often.
        interval: Duration,
        /// How many times; `None` without an end.
        count: Option<u64>,
    },
    /// The services.
    Services,
    /// The backends, of one service or of all.
    Backends(Option<String>),
    /// Live connections.
    Connections(Filter),
    /// The running configuration.
    Config,
}

/// Reads a process's arguments, its own name first, as [`std::env::args_os`] gives them.
///
/// # Errors
/// A [`Usage`] for `--help` and `--version` (exit code 0) and for arguments that are wrong (exit code 2).
pub fn parse<I: IntoIterator<Item = OsString>>(args: I) -> Result<Command, Usage> {
    let args = verb_first(args.into_iter().collect());
    let raw = args::Args::try_parse_from(&args).map_err(|error| complaints::from_clap(&error, &args))?;
    resolve::resolve(&raw, &args)
}

/// `xdp-lb --socket PATH status` as `xdp-lb status --socket PATH`: these two options say which instance a command is for.
fn verb_first(mut args: Vec<OsString>) -> Vec<OsString> {
    let mut at = 1;
    while let Some(word) = args.get(at).and_then(|word| word.to_str()) {
        let name = word.split_once('=').map_or(word, |(name, _)| name);
        if !["--socket", "--pin-dir"].contains(&name) {
            break;
        }
        at += if word.contains('=') { 1 } else { 2 };
    }
    let is_verb =
        |word: &OsString| word.to_str().is_some_and(|word| examples::verbs_in("").iter().any(|v| v == word));
    // What follows belongs to running: the interface has a verb's name then.
    if at > 1 && args.get(at).is_some_and(is_verb) {
        let verb = args.remove(at);
        args.insert(1, verb);
    }
    args
}
