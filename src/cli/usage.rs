//! What is said instead of doing something: help, version, and complaints about arguments that are wrong.

use std::ffi::OsStr;
use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use super::examples::{example, form};
use super::stdout::say;
use crate::log;

const TRY_HELP: &str = "Try 'xdp-lb --help' for all options and examples.";

/// Why there is no [`Command`](super::Command): help or version was asked for, or the arguments are wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What to print, without a newline at its end. For wrong arguments the first line names the part that is
    /// wrong and shows a right one.
    pub message: String,
    /// 0 or 2.
    pub exit_code: u8,
    /// Whether it was asked for and goes to stdout, rather than to stderr.
    pub to_stdout: bool,
}

impl Usage {
    /// Prints the message where it belongs and gives the process's exit code.
    pub fn report(&self) -> ExitCode {
        if !self.to_stdout {
            // Nobody is left to hear why not.
            let _ = writeln!(std::io::stderr(), "{}", self.message);
        } else if let Err(error) = say(format!("{}\n", self.message)) {
            log::failure(&format!("{error:#}"));
            return ExitCode::FAILURE;
        }
        ExitCode::from(self.exit_code)
    }

    /// `part` is what is wrong, `wrong` why, `right` what to write.
    pub(super) fn bad(part: &str, wrong: &str, right: &str) -> Usage {
        Usage::bad_with_hint(part, wrong, right, TRY_HELP)
    }

    /// The same with a second line of its own.
    pub(super) fn bad_with_hint(part: &str, wrong: &str, right: &str, hint: &str) -> Usage {
        let message = format!("xdp-lb: {part}: {wrong}; write {right}\n{hint}");
        Usage { message, exit_code: 2, to_stdout: false }
    }

    /// An option or argument without which there is nothing to do.
    pub(super) fn missing(name: &str, what: &str) -> Usage {
        let right = if name == "IFACE" { form("").to_owned() } else { example(name) };
        Usage::bad(name, what, &right)
    }

    pub(super) fn asked_for(text: &str) -> Usage {
        Usage { message: text.trim_end().to_owned(), exit_code: 0, to_stdout: true }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Usage {}

/// A word as it may stand in a line: in quotes, with everything escaped that is not plain text.
pub(super) fn quoted(word: &OsStr) -> String {
    format!("{word:?}")
}
