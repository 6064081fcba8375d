//! The rewriting of clap's own complaints into our shape.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::examples::{example, form, is_verb, nearest, owners, verb_of, verbs_in};
use super::usage::{Usage, quoted};
use crate::config::words::alternatives;

/// Arguments that are required, and what they are.
const REQUIRED: [(&str, &str); 11] = [
    ("IFACE", "the interface"),
    ("FILE", "the file"),
    ("NAME", "the service's name"),
    ("SERVICE", "the service"),
    ("ADDR:PORT", "the backend's address and port"),
    ("ADDR:PORT[:WEIGHT]", "the backend's address and port"),
    ("N", "the weight"),
    ("SHELL", "the shell"),
    ("CLIENT:PORT", "the client's address and port"),
    ("VIP:PORT", "the VIP and its port"),
    ("--write", "the file"),
];

/// Clap's complaint in our shape. `args` are the words that it is about.
pub(super) fn from_clap(error: &clap::Error, args: &[OsString]) -> Usage {
    let verb = verb_of(args.iter().skip(1).filter_map(|word| word.to_str()));
    let argument = context(error, ContextKind::InvalidArg).unwrap_or_default();
    // Clap names an option together with its value: `--vip <ADDR:PORT>`.
    let option = argument.split(' ').next().unwrap_or_default();
    match error.kind() {
        ErrorKind::DisplayHelp => Usage::asked_for(&error.render().to_string()),
        ErrorKind::DisplayVersion => Usage::asked_for(concat!("xdp-lb ", env!("CARGO_PKG_VERSION"))),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            let verbs = alternatives(&verbs_in(&verb));
            Usage::bad(&verb, &format!("what to do is missing: {verbs}"), form(&verb))
        }
        ErrorKind::UnknownArgument | ErrorKind::TooManyValues | ErrorKind::InvalidValue
            if verb.is_empty() && mistyped(args).is_some() =>
        {
            mistyped(args).unwrap_or_else(|| other(error, args, &verb))
        }
        ErrorKind::UnknownArgument if is_option(&argument) => {
            let suggestion = context(error, ContextKind::SuggestedArg);
            if let Some(usage) = negative(&argument, args) {
                return usage;
            }
            unknown_option(&typed(&argument, args), &verb, suggestion.as_deref())
        }
        ErrorKind::UnknownArgument => extra_word(OsStr::new(&argument), &verb),
        ErrorKind::ArgumentConflict => {
            Usage::bad(option, "it is given twice", &format!("it once: {}", example(option)))
        }
        ErrorKind::TooManyValues => {
            let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
            Usage::bad(&format!("{option} {value:?}"), "it takes no value", option)
        }
        ErrorKind::MissingRequiredArgument => missing(&argument, &verb),
        ErrorKind::InvalidValue => Usage::bad(option, "its value is missing", &example(option)),
        ErrorKind::InvalidSubcommand => {
            unknown_verb(&context(error, ContextKind::InvalidSubcommand).unwrap_or_default(), &verb)
        }
        _ => other(error, args, &verb),
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

fn missing(argument: &str, verb: &str) -> Usage {
    // An option is named together with its value.
    let name = argument.split(' ').next().unwrap_or_default().trim_start_matches('<').trim_end_matches('>');
    let what = REQUIRED.iter().find(|(known, _)| *known == name).map_or("it", |(_, what)| what);
    Usage::bad(name, &format!("{what} is missing"), form(verb))
}

/// The first word where it is near a verb and nothing says that it is an interface to balance on.
pub(super) fn mistyped(args: &[OsString]) -> Option<Usage> {
    let runs = |word: &OsString| {
        word.to_str().is_some_and(|word| ["--vip", "--backend"].iter().any(|option| word.starts_with(option)))
    };
    let word = args.get(1)?.to_str().filter(|word| !is_option(word))?;
    let verb = nearest(word, &verbs_in("")).filter(|_| !args.iter().any(runs))?;
    let hint = format!("If it is an interface, xdp-lb {word} needs --vip and --backend too.");
    let wrong = format!("there is no such command, did you mean {verb}?");
    Some(Usage::bad_with_hint(&format!("{word:?}"), &wrong, form(&verb), &hint))
}

/// A word that is no verb of `verb`.
fn unknown_verb(word: &str, verb: &str) -> Usage {
    let part = format!("{word:?}");
    // What follows `help` is any verb.
    let first = if verb == "help" { "" } else { verb.split(' ').next().unwrap_or_default() };
    match nearest(word, &verbs_in(first)) {
        Some(near) => {
            let wrong = format!("there is no such command, did you mean {near}?");
            Usage::bad(&part, &wrong, form(format!("{first} {near}").trim()))
        }
        None if first.is_empty() => Usage::bad(&part, "there is no such command", "xdp-lb --help"),
        None => {
            let verbs = alternatives(&verbs_in(first));
            Usage::bad(&part, &format!("there is no such command of {first}: {verbs}"), form(first))
        }
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

fn unknown_option(option: &str, verb: &str, suggestion: Option<&str>) -> Usage {
    let part = option.escape_debug().to_string();
    let owners = owners(option);
    match owners.first().map(String::as_str) {
        Some("") => {
            let wrong = format!("the command {verb} does not take it, running does");
            let interface = if option == "--interface" { "" } else { "eth0 " };
            let right = format!("{}, or xdp-lb {interface}{}", form(verb), example(option));
            let hint = format!("An interface that is named {verb} is given as --interface {verb}.");
            return Usage::bad_with_hint(&part, &wrong, &right, &hint);
        }
        Some(owner) => {
            let wrong = format!("it belongs to the command {owner}");
            let right = format!("{} {}", form(owner), example(option));
            return Usage::bad(&part, &wrong, &right);
        }
        None => {}
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
pub(super) fn extra_word(word: &OsStr, verb: &str) -> Usage {
    let part = quoted(word);
    let word = word.to_string_lossy();
    let is_address = word.starts_with(|c: char| c.is_ascii_digit()) && word.contains(':');
    match verb {
        "" if is_verb(&word) => {
            Usage::bad(&part, "a command is the first argument, before any interface", form(&word))
        }
        "" if is_address => {
            let right = [example("--vip"), example("--backend")];
            Usage::bad(&part, "an address comes after the option that it is for", &alternatives(&right))
        }
        "" => {
            Usage::bad(&part, "it is one too many, further interfaces are options", &example("--interface"))
        }
        verb => Usage::bad(&part, &format!("it is one too many for {verb}"), form(verb)),
    }
}

/// What clap can say beyond what is known here: its words, on one line.
fn other(error: &clap::Error, args: &[OsString], verb: &str) -> Usage {
    if let Some(word) = args.iter().find(|word| word.to_str().is_none()) {
        return Usage::bad(&quoted(word), "it is not valid UTF-8", form(verb));
    }
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default();
    Usage::bad("arguments", line.trim_start_matches("error: "), form(verb))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::super::args::Args;

    #[test]
    fn clap_finds_no_fault_with_our_definitions() {
        Args::command().debug_assert();
    }
}
