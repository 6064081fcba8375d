//! What right arguments look like, for complaints about wrong ones.

use clap::CommandFactory as _;

use super::args::Args;
use crate::config::DEFAULT_PIN_DIR;

pub(super) const RUN_EXAMPLE: &str = "xdp-lb eth0 --vip 192.168.1.100:80 --backend 10.0.0.10:8080:50";

/// A right use of each option that takes a value.
pub(super) const EXAMPLES: [(&str, &str); 39] = [
    ("--interface", "eth1"),
    ("--vip", "192.168.1.100:80"),
    ("--backend", "10.0.0.10:8080:50"),
    ("--scheduler", "weighted-round-robin"),
    ("--sticky", "10m"),
    ("--health", "tcp"),
    ("--on-empty", "drop"),
    ("--on-down", "auto"),
    ("--slow-start", "30s"),
    ("--name", "web"),
    ("--xdp-mode", "auto"),
    ("--deliver", "auto"),
    ("--pin-dir", DEFAULT_PIN_DIR),
    ("--socket", "/run/xdp-lb/xdp_lb.sock"),
    ("--stats-interval", "5s"),
    ("--metrics", "127.0.0.1:9105"),
    ("--log-format", "json"),
    ("--ring-memory", "256MB"),
    ("--max-connections", "1_000_000"),
    ("--timeout-established", "5m"),
    ("--timeout-unconfirmed", "10s"),
    ("--timeout-closing", "30s"),
    ("--timeout-udp", "1m"),
    ("--config", "/etc/xdp-lb.toml"),
    ("--interval", "2s"),
    ("--count", "10"),
    ("--deadline", "60s"),
    ("--state", "established"),
    ("--service", "web"),
    ("--client", "198.51.100.7"),
    ("--limit", "100"),
    ("--reason", "table_full"),
    ("--duration", "10s"),
    ("--sample", "100"),
    ("--rate", "1000"),
    ("--write", "packets.pcapng"),
    ("--snaplen", "128"),
    ("--level", "warning"),
    ("--dir", "/usr/local/share/man/man1"),
];

/// A right use of each verb.
pub(super) const FORMS: [(&str, &str); 35] = [
    ("run", "xdp-lb run --config /etc/xdp-lb.toml"),
    ("check", "xdp-lb check /etc/xdp-lb.toml"),
    ("status", "xdp-lb status"),
    ("stats", "xdp-lb stats"),
    ("explain", "xdp-lb explain 198.51.100.7:40000 192.168.1.100:80 --syn"),
    ("trace", "xdp-lb trace --service web"),
    ("capture", "xdp-lb capture --write packets.pcapng --client 198.51.100.7"),
    ("top", "xdp-lb top"),
    ("service", "xdp-lb service list"),
    ("service list", "xdp-lb service list"),
    ("service add", "xdp-lb service add web --vip 192.168.1.100:80 --backend 10.0.0.10:8080:50"),
    ("service remove", "xdp-lb service remove web"),
    ("backend", "xdp-lb backend list"),
    ("backend list", "xdp-lb backend list"),
    ("backend add", "xdp-lb backend add web 10.0.0.10:8080:50"),
    ("backend remove", "xdp-lb backend remove web 10.0.0.10:8080"),
    ("backend drain", "xdp-lb backend drain web 10.0.0.10:8080"),
    ("backend enable", "xdp-lb backend enable web 10.0.0.10:8080"),
    ("backend disable", "xdp-lb backend disable web 10.0.0.10:8080"),
    ("backend weight", "xdp-lb backend weight web 10.0.0.10:8080 50"),
    ("connections", "xdp-lb connections"),
    ("connections kill", "xdp-lb connections kill --backend 10.0.0.10:8080"),
    ("config", "xdp-lb config show"),
    ("config show", "xdp-lb config show"),
    ("reload", "xdp-lb reload"),
    ("stop", "xdp-lb stop"),
    ("completions", "xdp-lb completions bash"),
    ("man", "xdp-lb man"),
    ("doctor", "xdp-lb doctor"),
    ("tune", "xdp-lb tune eth0"),
    ("verify", "xdp-lb verify"),
    ("veth-peer", "xdp-lb veth-peer eth0"),
    ("detach", "xdp-lb detach eth0"),
    ("help", "xdp-lb --help"),
    ("", RUN_EXAMPLE),
];

/// An option with a right value, if it takes one.
pub(super) fn example(option: &str) -> String {
    match EXAMPLES.iter().find(|(name, _)| *name == option) {
        Some((name, value)) => format!("{name} {value}"),
        None => option.to_owned(),
    }
}

/// A right use of a verb; running is the empty one.
pub(super) fn form(verb: &str) -> &'static str {
    FORMS.iter().find(|(name, _)| *name == verb).map_or("xdp-lb --help", |(_, form)| *form)
}

/// Whether a word is taken as a verb where it comes first.
pub(super) fn is_verb(word: &str) -> bool {
    word == "help" || Args::command().find_subcommand(word).is_some()
}

/// The verb that words begin with, with the verb in it if it has some: empty for running.
pub(super) fn verb_of<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut words = words;
    let Some(first) = words.next().filter(|word| is_verb(word)) else { return String::new() };
    let top = Args::command();
    let nested =
        top.find_subcommand(first).and_then(|verb| words.find(|word| verb.find_subcommand(word).is_some()));
    nested.map_or_else(|| first.to_owned(), |nested| format!("{first} {nested}"))
}

/// The verbs in a verb, or those that come first.
pub(super) fn verbs_in(verb: &str) -> Vec<String> {
    let top = Args::command();
    let command = if verb.is_empty() { Some(&top) } else { top.find_subcommand(verb) };
    let verbs = command.into_iter().flat_map(clap::Command::get_subcommands);
    verbs.map(|verb| verb.get_name().to_owned()).collect()
}

/// The verb that a mistyped word is meant as, if it is near one.
pub(super) fn nearest(word: &str, verbs: &[String]) -> Option<String> {
    let distance = |verb: &String| strsim::damerau_levenshtein(word, verb);
    let other_length = |verb: &String| verb.chars().count().abs_diff(word.chars().count());
    let near = if word.chars().count() < 5 { 1 } else { 2 };
    let best = verbs.iter().min_by_key(|verb| (distance(verb), other_length(verb)))?;
    (distance(best) <= near).then(|| best.clone())
}

/// The verbs that have this option; the empty one is running.
pub(super) fn owners(option: &str) -> Vec<String> {
    let Some(long) = option.strip_prefix("--") else {
        return Vec::new();
    };
    let has = |command: &clap::Command| command.get_arguments().any(|arg| arg.get_long() == Some(long));
    let top = Args::command();
    let mut owners: Vec<String> = has(&top).then(String::new).into_iter().collect();
    for verb in top.get_subcommands() {
        owners.extend(has(verb).then(|| verb.get_name().to_owned()));
        let nested = verb.get_subcommands().filter(|nested| has(nested));
        owners.extend(nested.map(|nested| format!("{} {}", verb.get_name(), nested.get_name())));
    }
    owners
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::parse;
    use super::*;

    fn all_options(command: &clap::Command) -> Vec<(String, bool)> {
        let own = command
            .get_arguments()
            .filter_map(|arg| Some((format!("--{}", arg.get_long()?), arg.get_action().takes_values())));
        own.chain(command.get_subcommands().flat_map(all_options)).collect()
    }

    #[test]
    fn every_option_with_a_value_has_an_example_that_is_right() {
        for (option, takes_values) in all_options(&Args::command()) {
            assert_eq!(takes_values, example(&option).contains(' '), "{option}");
        }
        for (name, value) in EXAMPLES {
            for owner in owners(name) {
                let right = match (name, owner.as_str()) {
                    ("--state", "backend add") => "drain",
                    ("--backend", "connections" | "trace" | "capture") => "10.0.0.10:8080",
                    _ => value,
                };
                let line = form(&owner).replace(&example(name), "");
                let line = line.replace("--backend 10.0.0.10:8080 ", "");
                let args = line.split_whitespace().chain([name, right]).map(OsString::from);
                assert!(parse(args).is_ok(), "{owner}: {name} {right}");
            }
        }
    }

    #[test]
    fn every_verb_has_a_form_that_is_right() {
        let firsts = verbs_in("");
        let nested = firsts
            .iter()
            .flat_map(|verb| verbs_in(verb).into_iter().map(move |nested| format!("{verb} {nested}")));
        for verb in firsts.iter().cloned().chain(nested).chain([String::new()]) {
            let line = form(&verb);
            assert!(FORMS.iter().any(|(name, _)| *name == verb), "{verb}");
            assert!(parse(line.split_whitespace().map(OsString::from)).is_ok(), "{verb}: {line}");
        }
    }

    #[test]
    fn mistyped_verbs_and_interfaces_are_told_apart() {
        let verbs = verbs_in("");
        for (word, verb) in [
            ("statsu", "status"),
            ("stat", "stats"),
            ("bakcend", "backend"),
            ("services", "service"),
            ("connection", "connections"),
            ("relaod", "reload"),
            ("detatch", "detach"),
            ("sotp", "stop"),
        ] {
            assert_eq!(nearest(word, &verbs).as_deref(), Some(verb), "{word}");
        }
        for word in ["eth0", "ens18", "enp3s0", "bond0", "br-lan", "wg0", "lo", "veth-web1", "vlan100"] {
            assert_eq!(nearest(word, &verbs), None, "{word}");
        }
        assert_eq!(nearest("drian", &verbs_in("backend")).as_deref(), Some("drain"));
    }

    #[test]
    fn verbs_are_known() {
        for verb in verbs_in("").iter().map(String::as_str).chain(["help"]) {
            assert!(is_verb(verb));
        }
        assert!(!is_verb("eth0"));
        for (line, verb) in [
            ("eth0 --vip", ""),
            ("status --json", "status"),
            ("backend --socket /x drain web", "backend drain"),
            ("backend drian", "backend"),
            ("help me", "help"),
        ] {
            assert_eq!(verb_of(line.split(' ')), verb, "{line}");
        }
    }
}
