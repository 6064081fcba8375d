//! What `iptables-save` prints.

use std::net::Ipv4Addr;

use super::chains::{Chain, Field, Hook, Owner, Rule, Side, Table, Test, Verdict};

/// The tables that may drop; `nat` sees the first packet of a connection only and is not for filtering.
const TABLES: [&str; 4] = ["raw", "mangle", "filter", "security"];

/// Reads the tables; `command` is what changes them.
pub(super) fn parse(text: &str, command: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let mut wanted = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            wanted = TABLES.contains(&name);
            if wanted {
                tables.push(Table {
                    owner: Owner::Iptables(command.to_owned()),
                    family: "ip".into(),
                    name: name.to_owned(),
                    chains: Vec::new(),
                });
            }
            continue;
        }
        let Some(table) = tables.last_mut().filter(|_| wanted) else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            let (name, policy) = (words.next().unwrap_or_default(), words.next());
            // A chain of the user's own has - for its policy.
            let hook = Hook::from_name(name).filter(|_| policy != Some("-"));
            let policy_drop = policy == Some("DROP");
            table.chains.push(Chain { name: name.to_owned(), hook, policy_drop, rules: Vec::new() });
        } else if let Some((chain, rule)) = rule(line) {
            if let Some(chain) = table.chains.iter_mut().find(|known| known.name == chain) {
                chain.rules.push(rule);
            }
        }
    }
    tables
}

/// A line `-A CHAIN ...`, with counters before it or not.
fn rule(line: &str) -> Option<(String, Rule)> {
    let mut words = words(line.split_once("-A ")?.1).into_iter();
    let chain = words.next()?;
    let mut rule = Rule { tests: Vec::new(), verdict: Verdict::Continue };
    let mut negated = false;
    while let Some(word) = words.next() {
        match word.as_str() {
            "!" => {
                negated = true;
                continue;
            }
            // The module that the next words are for; a comment is no condition.
            "-m" => drop(words.next()),
            "--comment" => drop(words.next()),
            "-j" | "-g" => {
                let target = words.next()?;
                rule.verdict = match (target.as_str(), word.as_str()) {
                    ("ACCEPT", _) => Verdict::Accept,
                    ("DROP" | "REJECT", _) => Verdict::Drop,
                    ("RETURN", _) => Verdict::Return,
                    // Targets are written in capitals, and so may chains be: a chain that is not there is passed by.
                    (_, "-g") => Verdict::Goto(target),
                    _ => Verdict::Jump(target),
                };
                // What follows belongs to the target.
                break;
            }
            option => {
                let test = known(option, negated, &mut words);
                rule.tests.push(test);
            }
        }
        negated = false;
    }
    Some((chain, rule))
}

/// The test of an option. One that is not known may take any number of values: each is then not known either.
fn known(option: &str, negated: bool, words: &mut impl Iterator<Item = String>) -> Test {
    let numbers = |field, ranges: Option<Vec<(u32, u32)>>| match ranges {
        Some(ranges) => Test::Number { field, ranges, negated },
        None => Test::Unknown,
    };
    let mut value = || words.next().unwrap_or_default();
    match option {
        "-s" => numbers(Field::Source, network(&value()).map(|range| vec![range])),
        "-d" => numbers(Field::Destination, network(&value()).map(|range| vec![range])),
        "-p" => numbers(Field::Protocol, protocol(&value()).map(|number| vec![(number, number)])),
        "--sport" | "--sports" => numbers(Field::SourcePort, ports(&value())),
        "--dport" | "--dports" => numbers(Field::DestinationPort, ports(&value())),
        "-i" | "-o" => {
            let side = if option == "-i" { Side::In } else { Side::Out };
            let name = value();
            let name = name.strip_suffix('+').map_or(name.clone(), |start| format!("{start}*"));
            Test::Interface { side, names: vec![name], negated }
        }
        "--ctstate" | "--state" => {
            let states = value().split(',').map(str::to_ascii_lowercase).collect();
            Test::State { states, negated }
        }
        _ => Test::Unknown,
    }
}

/// `10.0.0.0/8`, also with a mask in dots.
fn network(text: &str) -> Option<(u32, u32)> {
    let (address, length) = text.split_once('/').unwrap_or((text, "32"));
    let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
    let length = match length.parse::<u32>() {
        Ok(length) => length,
        Err(_) => u32::from(length.parse::<Ipv4Addr>().ok()?).leading_ones(),
    };
    super::network(address, length)
}

fn protocol(text: &str) -> Option<u32> {
    super::protocol(text).or_else(|| text.parse().ok())
}

/// `80`, `80:90`, `80,443,8000:9000`.
fn ports(text: &str) -> Option<Vec<(u32, u32)>> {
    let range = |word: &str| {
        let (first, last) = word.split_once(':').unwrap_or((word, word));
        let bound = |text: &str, open: u32| if text.is_empty() { Some(open) } else { text.parse().ok() };
        Some((bound(first, 0)?, bound(last, 65_535)?))
    };
    text.split(',').map(range).collect()
}

/// Words, some of them in double quotes with backslashes inside.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let (mut quoted, mut escaped) = (false, false);
    for c in line.chars() {
        match c {
            _ if escaped => {
                escaped = false;
                word.get_or_insert_default().push(c);
            }
            '\\' if quoted => escaped = true,
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save v1.8.9 (nf_tables) on Tue Nov 24 07:14:14 2026
*nat
:PREROUTING DROP [0:0]
-A PREROUTING -j DROP
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:FORWARDED - [0:0]
[3:180] -A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -s 10.0.0.0/8 ! -d 1.2.3.4/32 -i eth+ -p tcp -m multiport --dports 80,443:445 -m comment --comment "a \"-j DROP\" c" -j ACCEPT
-A FORWARD ! -o docker0 -m addrtype --dst-type LOCAL -g FORWARDED
-A FORWARDED -m limit --limit 5/sec -j LOG --log-prefix "-j DROP"
-A FORWARDED -p 17 -j REJECT --reject-with icmp-port-unreachable
COMMIT
"#;

    #[test]
    fn saved_rules_are_read() {
        let tables = parse(SAVED, "iptables");
        let [filter] = &tables[..] else { panic!("{tables:?}") };
        assert_eq!((filter.name.as_str(), filter.chains.len()), ("filter", 3));
        let [_, forward, own] = &filter.chains[..] else { panic!("{filter:?}") };
        assert_eq!((forward.hook, forward.policy_drop), (Some(Hook::Forward), true));
        assert_eq!((own.hook, own.policy_drop), (None, false));
        let invalid = Test::State { states: vec!["invalid".into()], negated: false };
        assert_eq!(forward.rules[0], Rule { tests: vec![invalid], verdict: Verdict::Drop });
        let number =
            |field, ranges: &[(u32, u32)], negated| Test::Number { field, ranges: ranges.to_vec(), negated };
        let ten = u32::from(Ipv4Addr::new(10, 0, 0, 0));
        let one = u32::from(Ipv4Addr::new(1, 2, 3, 4));
        let tests = vec![
            number(Field::Source, &[(ten, ten + 0xff_ffff)], false),
            number(Field::Destination, &[(one, one)], true),
            Test::Interface { side: Side::In, names: vec!["eth*".into()], negated: false },
            number(Field::Protocol, &[(6, 6)], false),
            number(Field::DestinationPort, &[(80, 80), (443, 445)], false),
        ];
        assert_eq!(forward.rules[1], Rule { tests, verdict: Verdict::Accept });
        assert_eq!(forward.rules[2].verdict, Verdict::Goto("FORWARDED".into()));
        assert!(forward.rules[2].tests.contains(&Test::Unknown));
        assert_eq!(own.rules[0].verdict, Verdict::Jump("LOG".into()), "no such chain: passed by");
        assert_eq!(own.rules[1].verdict, Verdict::Drop);
        assert_eq!(own.rules[1].tests, [number(Field::Protocol, &[(17, 17)], false)]);
    }

    #[test]
    fn values_of_all_kinds() {
        assert_eq!(network("10.0.0.0/255.255.0.0"), network("10.0.0.0/16"));
        assert_eq!(network("0.0.0.0/0"), Some((0, u32::MAX)));
        assert_eq!(network("::1/128"), None);
        assert_eq!(ports("1024:"), Some(vec![(1024, 65_535)]));
        assert_eq!(ports("x"), None);
    }
}
