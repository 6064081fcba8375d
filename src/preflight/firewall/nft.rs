//! What `nft -j list ruleset` prints (libnftables-json(5)). Only what a chain for forwarded packets can hold is understood;
//! everything else is an unknown condition, never an error: other people's rules hold anything.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::chains::{Chain, Field, Hook, Owner, Rule, Side, Table, Test, Verdict};

/// Reads the tables that see IPv4.
pub(super) fn parse(ruleset: &Value) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let objects = ruleset["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    for object in objects {
        if let Some(table) = object.get("table").filter(|table| sees_ipv4(table)) {
            let (family, name) = (text(&table["family"]), text(&table["name"]));
            tables.push(Table { owner: Owner::Nft, family, name, chains: Vec::new() });
        } else if let Some(chain) = object.get("chain") {
            if let Some(table) = table_of(&mut tables, chain) {
                let hook = chain["hook"].as_str().filter(|_| chain["type"] != "nat");
                table.chains.push(Chain {
                    name: text(&chain["name"]),
                    hook: hook.and_then(Hook::from_name),
                    policy_drop: chain["policy"] == "drop",
                    rules: Vec::new(),
                });
            }
        } else if let Some(rule) = object.get("rule") {
            let chain = table_of(&mut tables, rule)
                .and_then(|table| table.chains.iter_mut().find(|chain| chain.name == rule["chain"]));
            if let Some(chain) = chain {
                chain.rules.extend(rules(&rule["expr"]));
            }
        }
    }
    tables
}

fn sees_ipv4(table: &Value) -> bool {
    table["family"] == "ip" || table["family"] == "inet"
}

fn table_of<'a>(tables: &'a mut [Table], object: &Value) -> Option<&'a mut Table> {
    tables.iter_mut().find(|table| table.family == object["family"] && table.name == object["table"])
}

/// A rule; one with a verdict map becomes a rule for each of its elements.
fn rules(statements: &Value) -> Vec<Rule> {
    let mut tests = Vec::new();
    let mut rules = Vec::new();
    for statement in statements.as_array().into_iter().flatten() {
        let Some((kind, body)) = statement.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        match kind.as_str() {
            "match" => tests.extend(matching(body)),
            "vmap" => {
                for element in body["data"]["set"].as_array().into_iter().flatten() {
                    let Some(verdict) = verdict_of(&element[1]) else { continue };
                    let mut tests = tests.clone();
                    tests.extend(compared(&body["key"], &element[0], false));
                    rules.push(Rule { tests, verdict });
                }
            }
            // What changes nothing and holds for every packet.
            "counter" | "log" | "mangle" | "notrack" | "ct helper" | "meter" => {}
            _ => match verdict_of(statement) {
                Some(verdict) => {
                    rules.push(Rule { tests, verdict });
                    return rules;
                }
                // `limit`, `xt`, and what future versions bring.
                None => tests.push(Test::Unknown),
            },
        }
    }
    rules
}

fn verdict_of(statement: &Value) -> Option<Verdict> {
    let (kind, body) = statement.as_object()?.iter().next()?;
    match kind.as_str() {
        "accept" => Some(Verdict::Accept),
        "drop" | "reject" => Some(Verdict::Drop),
        "return" => Some(Verdict::Return),
        "jump" => Some(Verdict::Jump(text(&body["target"]))),
        "goto" => Some(Verdict::Goto(text(&body["target"]))),
        "continue" => Some(Verdict::Continue),
        _ => None,
    }
}

fn matching(body: &Value) -> Vec<Test> {
    let negated = match body["op"].as_str() {
        Some("==" | "in") => false,
        Some("!=") => true,
        _ => return vec![Test::Unknown],
    };
    // `ct state & (established | related) != 0`, as older versions print it.
    if let Some([left, mask]) = body["left"]["&"].as_array().map(Vec::as_slice) {
        if negated && body["right"] == 0 && is_state(left) {
            return compared(left, mask, false);
        }
        return vec![Test::Unknown];
    }
    compared(&body["left"], &body["right"], negated)
}

fn is_state(left: &Value) -> bool {
    left["ct"]["key"] == "state" && left["ct"].get("dir").is_none()
}

/// What must hold for `left` to be one of the values in `right`.
fn compared(left: &Value, right: &Value, negated: bool) -> Vec<Test> {
    let values = values(right);
    if is_state(left) {
        let states = values.iter().map(|value| text(value)).collect();
        return vec![Test::State { states, negated }];
    }
    if let Some(key) = left["meta"]["key"].as_str() {
        return vec![meta(key, &values, negated)];
    }
    let (Some(protocol), Some(field)) =
        (left["payload"]["protocol"].as_str(), left["payload"]["field"].as_str())
    else {
        return vec![Test::Unknown];
    };
    let field = match (protocol, field) {
        ("ip6" | "icmpv6", _) => return vec![Test::Never],
        ("ip", "saddr") => Field::Source,
        ("ip", "daddr") => Field::Destination,
        ("ip", "protocol") => Field::Protocol,
        ("tcp" | "udp" | "th", "sport") => Field::SourcePort,
        ("tcp" | "udp" | "th", "dport") => Field::DestinationPort,
        _ => return vec![Test::Unknown],
    };
    // A port of TCP means that it is TCP, which goes without saying there.
    let mut tests = Vec::new();
    if let Some(number) = super::protocol(protocol) {
        tests.push(Test::Number { field: Field::Protocol, ranges: vec![(number, number)], negated: false });
    }
    tests.push(numbers(field, &values, negated));
    tests
}

fn meta(key: &str, values: &[&Value], negated: bool) -> Test {
    let names = || values.iter().map(|value| text(value)).collect::<Vec<_>>();
    match key {
        // A set of the user's own, whose elements are elsewhere.
        _ if names().iter().any(|name| name.starts_with('@')) => Test::Unknown,
        "iifname" | "iif" => Test::Interface { side: Side::In, names: names(), negated },
        "oifname" | "oif" => Test::Interface { side: Side::Out, names: names(), negated },
        "l4proto" => numbers(Field::Protocol, values, negated),
        "nfproto" | "protocol" => {
            let ipv4 = names().iter().any(|name| name == "ipv4" || name == "ip");
            // True of all that is looked at here, or of nothing.
            match ipv4 != negated {
                true => Test::Number { field: Field::Protocol, ranges: vec![(0, 255)], negated: false },
                false => Test::Never,
            }
        }
        _ => Test::Unknown,
    }
}

fn numbers(field: Field, values: &[&Value], negated: bool) -> Test {
    match values.iter().map(|value| range(value)).collect::<Option<Vec<_>>>() {
        Some(ranges) => Test::Number { field, ranges, negated },
        None => Test::Unknown,
    }
}

/// The alternatives of a right-hand side.
fn values(right: &Value) -> Vec<&Value> {
    let set = right.get("set").unwrap_or(right);
    match set.as_array() {
        Some(values) => {
            values.iter().map(|value| value.get("elem").map_or(value, |elem| &elem["val"])).collect()
        }
        None => vec![set],
    }
}

/// `80`, `"tcp"`, `"10.0.0.1"`, `{"prefix": ...}`, `{"range": [...]}`.
fn range(value: &Value) -> Option<(u32, u32)> {
    if let Some(prefix) = value.get("prefix") {
        let length = u32::try_from(prefix["len"].as_u64()?).ok()?;
        return super::network(number(&prefix["addr"])?, length);
    }
    if let Some([first, last]) = value["range"].as_array().map(Vec::as_slice) {
        return Some((number(first)?, number(last)?));
    }
    number(value).map(|number| (number, number))
}

fn number(value: &Value) -> Option<u32> {
    if let Some(number) = value.as_u64() {
        return u32::try_from(number).ok();
    }
    let word = value.as_str()?;
    word.parse::<Ipv4Addr>().map(u32::from).ok().or_else(|| super::protocol(word))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
