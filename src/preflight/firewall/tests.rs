use super::*;
use crate::preflight::Level;

/// One TCP and one UDP backend, both directions.
fn flows() -> Vec<Flow> {
    let to = |protocol| Flow {
        protocol,
        source: None,
        source_port: None,
        destination: Some(Ipv4Addr::new(10, 0, 0, 10).into()),
        destination_port: Some(8080),
        arrives_by: "eth0".into(),
        leaves_by: "eth1".into(),
    };
    let back = |protocol| Flow {
        protocol,
        source: Some(Ipv4Addr::new(192, 168, 1, 100).into()),
        source_port: Some(80),
        destination: None,
        destination_port: None,
        arrives_by: "eth1".into(),
        leaves_by: "eth0".into(),
    };
    vec![to(6), back(6), to(17), back(17)]
}

fn nft(ruleset: &str) -> Vec<Finding> {
    obstacles(&nft::parse(&serde_json::from_str(ruleset).expect("JSON")), &flows())
}

fn fixes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().filter_map(|finding| finding.fix.as_deref()).collect()
}

/// A forward chain in nft's JSON.
fn forward(policy: &str, rules: &[&str]) -> String {
    let rules: String = rules
        .iter()
        .map(|expr| {
            format!(r#", {{"rule": {{"family": "inet", "table": "t", "chain": "f", "expr": [{expr}]}}}}"#)
        })
        .collect();
    format!(
        r#"{{"nftables": [{{"metainfo": {{}}}}, {{"table": {{"family": "inet", "name": "t"}}}},
        {{"chain": {{"family": "inet", "table": "t", "name": "f", "type": "filter", "hook": "forward", "prio": 0,
        "policy": "{policy}"}}}}{rules}]}}"#
    )
}

const TO_TCP: &str = "nft insert rule inet t f ip daddr 10.0.0.10 tcp dport 8080 accept";
const BACK_TCP: &str = "nft insert rule inet t f ip saddr 192.168.1.100 tcp sport 80 accept";
const TO_UDP: &str = "nft insert rule inet t f ip daddr 10.0.0.10 udp dport 8080 accept";
const BACK_UDP: &str = "nft insert rule inet t f ip saddr 192.168.1.100 udp sport 80 accept";

#[test]
fn a_policy_of_drop_stops_every_flow() {
    let findings = nft(&forward("drop", &[]));
    assert_eq!(fixes(&findings), [format!("{TO_TCP} && {BACK_TCP} && {TO_UDP} && {BACK_UDP}")]);
    assert_eq!(findings[0].level, Level::Warning);
    assert!(findings[0].message.contains("table inet t"), "{findings:?}");
    assert!(nft(&forward("accept", &[])).is_empty());
}

#[test]
fn invalid_is_what_tcp_is_to_conntrack() {
    const DROP: &str =
        r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}, {"drop": null}"#;
    const MAP: &str = r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}],
        ["established", {"accept": null}]]}}}"#;
    for rule in [DROP, MAP] {
        let findings = nft(&forward("accept", &[rule]));
        assert_eq!(fixes(&findings), [format!("{TO_TCP} && {BACK_TCP}")], "{findings:?}");
        assert!(findings[0].message.contains("invalid"), "{findings:?}");
    }
}

#[test]
fn rules_that_accept_are_recognised() {
    let with = |left: &str, right: &str| {
        format!(r#"{{"match": {{"op": "==", "left": {left}, "right": {right}}}}}, {{"accept": null}}"#)
    };
    let meta = |key: &str| format!(r#"{{"meta": {{"key": "{key}"}}}}"#);
    let payload = |protocol: &str, field: &str| {
        format!(r#"{{"payload": {{"protocol": "{protocol}", "field": "{field}"}}}}"#)
    };
    let udp = format!("{TO_UDP} && {BACK_UDP}");
    let back = format!("{BACK_TCP} && {BACK_UDP}");
    let all = format!("{TO_TCP} && {BACK_TCP} && {TO_UDP} && {BACK_UDP}");
    for (rule, left) in [
        (with(&payload("ip", "daddr"), r#"{"prefix": {"addr": "10.0.0.0", "len": 24}}"#), &back),
        (
            with(&payload("ip", "daddr"), r#"{"set": ["10.0.0.11", {"range": ["10.0.0.1", "10.0.0.10"]}]}"#),
            &back,
        ),
        (with(&payload("th", "dport"), "8080"), &back),
        (with(&payload("ip", "protocol"), r#""tcp""#), &udp),
        (with(&meta("l4proto"), "6"), &udp),
        (with(&meta("oifname"), r#""eth1""#), &back),
        (with(&meta("iifname"), r#"{"set": ["lo", "eth0"]}"#), &back),
        (with(&payload("ip", "daddr"), r#""@list""#), &all),
        (with(&payload("ip6", "daddr"), r#""::1""#), &all),
        (with(&meta("mark"), "1"), &all),
        (with(r#"{"ct": {"key": "state"}}"#, r#"{"set": ["established", "related"]}"#), &all),
    ] {
        assert_eq!(fixes(&nft(&forward("drop", &[&rule]))), [left], "{rule}");
    }
    assert!(nft(&forward("drop", &[&with(&meta("nfproto"), r#""ipv4""#)])).is_empty());
    assert!(nft(&forward("drop", &[&with(&meta("iifname"), r#""eth*""#)])).is_empty());
}

/// A table of all that nft 1.0.6 can print, from a real one: nothing of it is an error.
#[test]
fn every_kind_of_rule_is_read() {
    let ruleset = serde_json::from_str(include_str!("fixtures/everything.json")).expect("JSON");
    let tables = nft::parse(&ruleset);
    let [table] = &tables[..] else { panic!("{tables:?}") };
    assert_eq!(table.chains.iter().map(|chain| chain.name.as_str()).collect::<Vec<_>>(), ["sub", "f"]);
    // And two with verdict maps, of 3 and 2 elements.
    assert_eq!(table.chains[1].rules.len(), 15 + 3 + 2, "{:?}", table.chains[1].rules);
    assert_eq!(obstacles(&tables, &flows()).len(), 1);
}

#[test]
fn each_iptables_chain_that_drops_has_its_own_commands() {
    let saved = "*mangle\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n\
                 *filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n\
                 -A DOCKER-USER -d 10.0.0.0/24 -j ACCEPT\n-A DOCKER-USER -j RETURN\n\
                 -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n";
    let findings = obstacles(&iptables::parse(saved, "iptables"), &flows());
    let expected = [
        "iptables -t mangle -I FORWARD -d 10.0.0.10 -p tcp --dport 8080 -j ACCEPT \
         && iptables -t mangle -I FORWARD -s 192.168.1.100 -p tcp --sport 80 -j ACCEPT",
        "iptables -I FORWARD -s 192.168.1.100 -p tcp --sport 80 -j ACCEPT \
         && iptables -I FORWARD -s 192.168.1.100 -p udp --sport 80 -j ACCEPT",
    ];
    assert_eq!(fixes(&findings), expected);
}

/// Docker since 28 keeps others from routing to its containers, before the forward hook.
#[test]
fn rules_before_the_forward_hook_count_too() {
    let saved = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 10.0.0.10/32 ! -i docker0 -j DROP\nCOMMIT\n\
                 *nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j DROP\nCOMMIT\n";
    let findings = obstacles(&iptables::parse(saved, "iptables"), &flows());
    let expected = "iptables -t raw -I PREROUTING -d 10.0.0.10 -p tcp --dport 8080 -j ACCEPT \
                    && iptables -t raw -I PREROUTING -d 10.0.0.10 -p udp --dport 8080 -j ACCEPT";
    assert_eq!(fixes(&findings), [expected]);
}

#[test]
fn networks_have_bounds() {
    let ten = u32::from(Ipv4Addr::new(10, 0, 0, 0));
    assert_eq!(network(ten + 5, 24), Some((ten, ten + 255)));
    assert_eq!(network(ten, 32), Some((ten, ten)));
    assert_eq!(network(ten, 0), Some((0, u32::MAX)));
    assert_eq!(network(ten, 33), None);
}
