//! What is said about arguments that are wrong, and the rewriting of clap's own complaints into that shape.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::args::Args;
use crate::config::DEFAULT_PIN_DIR;
use crate::config::words::alternatives;

const RUN_EXAMPLE: &str = "xdp-lb eth0 --vip 192.168.1.100:80 --backend 10.0.0.10:8080:50";
const TRY_HELP: &str = "Try 'xdp-lb --help' for all options and examples.";

/// A right use of each option that takes a value.
const EXAMPLES: [(&str, &str); 14] = [
    ("--interface", "eth0"),
    ("--vip", "192.168.1.100:80"),
    ("--backend", "10.0.0.10:8080:50"),
    ("--scheduler", "weighted-round-robin"),
    ("--sticky", "10m"),
    ("--xdp-mode", "auto"),
    ("--deliver", "auto"),
    ("--pin-dir", DEFAULT_PIN_DIR),
    ("--stats-interval", "5s"),
    ("--max-connections", "1_000_000"),
    ("--timeout-established", "5m"),
    ("--timeout-unconfirmed", "10s"),
    ("--timeout-closing", "30s"),
    ("--timeout-udp", "1m"),
];

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
    /// Prints the message where it belongs and gives the process's exit code. A closed pipe is no error.
    pub fn report(&self) -> ExitCode {
        let _closed_pipe = match self.to_stdout {
            true => writeln!(std::io::stdout(), "{}", self.message),
            false => writeln!(std::io::stderr(), "{}", self.message),
        };
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
        let right = if name == "IFACE" { RUN_EXAMPLE.to_owned() } else { example(name) };
        Usage::bad(name, what, &right)
    }

    fn asked_for(text: &str) -> Usage {
        Usage { message: text.trim_end().to_owned(), exit_code: 0, to_stdout: true }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Usage {}

/// Whether a word is taken as a verb where it comes first.
pub(super) fn is_verb(word: &str) -> bool {
    word == "help" || Args::command().find_subcommand(word).is_some()
}

/// An option with a right value, if it takes one.
pub(super) fn example(option: &str) -> String {
    match EXAMPLES.iter().find(|(name, _)| *name == option) {
        Some((name, value)) => format!("{name} {value}"),
        None => option.to_owned(),
    }
}

/// Clap's complaint in our shape. `args` are the words that it is about.
pub(super) fn from_clap(error: &clap::Error, args: &[OsString]) -> Usage {
    let verb = args.get(1).and_then(|word| word.to_str()).filter(|word| is_verb(word));
    let argument = context(error, ContextKind::InvalidArg).unwrap_or_default();
    // Clap names an option together with its value: `--vip <ADDR:PORT>`.
    let option = argument.split(' ').next().unwrap_or_default();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Usage::asked_for(&error.render().to_string())
        }
        ErrorKind::DisplayVersion => Usage::asked_for(concat!("xdp-lb ", env!("CARGO_PKG_VERSION"))),
        ErrorKind::UnknownArgument if is_option(&argument) => {
            let suggestion = context(error, ContextKind::SuggestedArg);
            if let Some(usage) = negative(&argument, args) {
                return usage;
            }
            unknown_option(&typed(&argument, args), verb, suggestion.as_deref())
        }
        ErrorKind::UnknownArgument => extra_word(OsStr::new(&argument), verb),
        ErrorKind::ArgumentConflict => {
            Usage::bad(option, "it is given twice", &format!("it once: {}", example(option)))
        }
        ErrorKind::TooManyValues => {
            let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
            Usage::bad(&format!("{option} {value:?}"), "it takes no value", option)
        }
        // Only commands have an argument that is required, and only one.
        ErrorKind::MissingRequiredArgument => Usage::bad("IFACE", "the interface is missing", form(verb)),
        ErrorKind::InvalidValue => Usage::bad(option, "its value is missing", &example(option)),
        ErrorKind::InvalidSubcommand => {
            let word = context(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            Usage::bad(&format!("{word:?}"), "there is no such command", "xdp-lb --help")
        }
        _ => other(error, args, verb),
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

fn is_option(word: &str) -> bool {
    word.len() > 1 && word.starts_with('-')
}

/// The word as it was typed: of `-vip` clap only names `-v`.
fn typed(argument: &str, args: &[OsString]) -> String {
    let is_short = argument.starts_with('-') && !argument.starts_with("--");
    let whole = args.iter().skip(1).filter_map(|word| word.to_str()).find(|word| word.starts_with(argument));
    match whole {
        Some(word) if is_short => word.to_owned(),
        _ => argument.to_owned(),
    }
}

/// `--max-connections -1`: clap takes a value that begins with a dash for an option.
fn negative(argument: &str, args: &[OsString]) -> Option<Usage> {
    let word = typed(argument, args);
    word.get(1..)?.starts_with(|c: char| c.is_ascii_digit()).then_some(())?;
    let before = args.iter().position(|arg| *arg == *word).and_then(|at| at.checked_sub(1));
    let option = args.get(before?)?.to_str().filter(|option| !owners(option).is_empty())?;
    Some(Usage::bad(&format!("{option} {word:?}"), "it is negative", &example(option)))
}

fn form(verb: Option<&str>) -> &'static str {
    match verb {
        Some("status") => "xdp-lb status",
        Some("verify") => "xdp-lb verify",
        Some("veth-peer") => "xdp-lb veth-peer eth0",
        Some("detach") => "xdp-lb detach eth0",
        Some(_) => "xdp-lb --help",
        None => RUN_EXAMPLE,
    }
}

/// The verbs that have this option; the empty one is running.
fn owners(option: &str) -> Vec<String> {
    let Some(long) = option.strip_prefix("--") else {
        return Vec::new();
    };
    let has = |command: &clap::Command| command.get_arguments().any(|arg| arg.get_long() == Some(long));
    let top = Args::command();
    let verbs = top.get_subcommands().filter(|verb| has(verb)).map(|verb| verb.get_name().to_owned());
    has(&top).then(String::new).into_iter().chain(verbs).collect()
}

fn unknown_option(option: &str, verb: Option<&str>, suggestion: Option<&str>) -> Usage {
    let part = option.escape_debug().to_string();
    let owners = owners(option);
    match (verb, owners.first().map(String::as_str)) {
        (Some(verb), Some("")) => {
            let wrong = format!("the command {verb} does not take it, running does");
            let interface = if option == "--interface" { "" } else { "eth0 " };
            let right = format!("{}, or xdp-lb {interface}{}", form(Some(verb)), example(option));
            let hint = format!("An interface that is named {verb} is given as --interface {verb}.");
            return Usage::bad_with_hint(&part, &wrong, &right, &hint);
        }
        (_, Some(owner)) => {
            let wrong = format!("it belongs to the command {owner}");
            let right = format!("{} {}", form(Some(owner)), example(option));
            return Usage::bad(&part, &wrong, &right);
        }
        (_, None) => {}
    }
    let two_dashes = format!("-{option}");
    let meant = match suggestion {
        Some(suggestion) => Some(suggestion),
        None => Some(two_dashes.as_str()).filter(|option| !self::owners(option).is_empty()),
    };
    let right = meant.map_or_else(|| form(verb).to_owned(), example);
    Usage::bad(&part, "there is no such option", &right)
}

/// A word that is no option, no option's value and not the one interface.
pub(super) fn extra_word(word: &OsStr, verb: Option<&str>) -> Usage {
    let part = quoted(word);
    let word = word.to_string_lossy();
    let is_address = word.starts_with(|c: char| c.is_ascii_digit()) && word.contains(':');
    match verb {
        Some(verb) => Usage::bad(&part, &format!("it is one too many for {verb}"), form(Some(verb))),
        None if is_verb(&word) => {
            Usage::bad(&part, "a command is the first argument, before any interface", form(Some(&word)))
        }
        None if is_address => {
            let right = [example("--vip"), example("--backend")];
            Usage::bad(&part, "an address comes after the option that it is for", &alternatives(&right))
        }
        None => Usage::bad(&part, "it is one too many, there is one interface", form(None)),
    }
}

/// What clap can say beyond what is known here: its words, on one line.
fn other(error: &clap::Error, args: &[OsString], verb: Option<&str>) -> Usage {
    if let Some(word) = args.iter().find(|word| word.to_str().is_none()) {
        return Usage::bad(&quoted(word), "it is not valid UTF-8", form(verb));
    }
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default();
    Usage::bad("arguments", line.trim_start_matches("error: "), form(verb))
}

/// A word as it may stand in a line: in quotes, with everything escaped that is not plain text.
pub(super) fn quoted(word: &OsStr) -> String {
    format!("{word:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_with_a_value_has_an_example_that_is_right() {
        let top = Args::command();
        for arg in top.get_subcommands().chain([&top]).flat_map(|command| command.get_arguments()) {
            let Some(long) = arg.get_long() else { continue };
            let words = example(&format!("--{long}"));
            assert_eq!(arg.get_action().takes_values(), words.contains(' '), "{words}");
        }
        for (name, value) in EXAMPLES.iter().filter(|(name, _)| *name != "--interface") {
            let line = RUN_EXAMPLE.replace(&example(name), "");
            let args = line.split_whitespace().chain([*name, *value]).map(OsString::from);
            assert!(super::super::parse(args).is_ok(), "{name} {value}");
        }
    }

    #[test]
    fn clap_finds_no_fault_with_our_definitions() {
        Args::command().debug_assert();
    }

    #[test]
    fn verbs_are_known() {
        for verb in ["status", "verify", "veth-peer", "detach", "help"] {
            assert!(is_verb(verb));
            assert!(form(Some(verb)).starts_with("xdp-lb "));
        }
        assert!(!is_verb("eth0"));
    }
}
