//! The dashboard and the alerting rules: what they ask for is what is there, and they say when they should.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use common::balancer::Balancer;
use common::metrics::{METRICS, Scrape};
use common::netns::{find, in_lab};
use common::networks::{VIP, two_arms};
use common::promql::{
    Rule, Shown, dashboard, documented, labels_shown, panels, rules, rules_dir, shown, uses, variables,
};
use serde_json::{Value, json};
use xdp_lb::metrics::{About, Snapshot, expose};

/// What Prometheus adds to whatever it scrapes, and alerts to what they are of.
const ADDED: [&str; 4] = ["job", "instance", "alertname", "alertstate"];
/// Each part of an expression that the unit tests must miss if it were another.
const FAULTS: [(&str, &str); 26] = [
    ("opened_total{service!=\"\"}", "opened_total"),
    ("seconds_bucket{service!=\"\"}", "seconds_bucket"),
    (">= 0\n", "\n"),
    ("up{service!=\"\"} == 0", "up == 0"),
    (" unless xdp_lb_backend_disabled == 1", ""),
    (" unless xdp_lb_backend_weight == 0", ""),
    ("on (job, instance, service, protocol) xdp", "on (job, service, protocol) xdp"),
    ("on (job, instance, service, protocol) xdp", "on (job, instance, service) xdp"),
    ("protocol) xdp_lb_backend_up == 1", "protocol) xdp_lb_backend_up"),
    ("drops:rate5m > 1\n", "drops:rate5m > 0\n"),
    ("<= 3 *", "<= 0 *"),
    ("<= 3 *", "<= 1000 *"),
    ("or rate(xdp_lb_errors_total[5m]) > 0", ""),
    ("> 0.9", ">= 0.9"),
    ("> 0.9", "> 0.96"),
    ("p99_5m > 0.05", "p99_5m > 0"),
    ("> 4 *", "> 0 *"),
    ("> 4 *", "> 1000 *"),
    (">= 100", ">= 0"),
    ("> 0.05 *", "> 0.01 *"),
    ("<= 4 *", "<= 0 *"),
    ("rate5m > 1000", "rate5m > 10"),
    ("> 5 *", "> 0 *"),
    (" or absent(up{job=\"xdp-lb\"})", ""),
    ("unless on (job, instance) xdp_lb_build_info", "== 0"),
    ("last_reload_successful == 0", "last_reload_successful"),
];

/// The labels of each series, by name.
type Known = BTreeMap<String, BTreeSet<String>>;

/// Complains about what an expression uses and nothing has.
fn check(known: &Known, place: &str, expression: &str, more: &BTreeSet<String>) {
    let uses = uses(expression);
    let mut there: BTreeSet<&str> = ADDED.into();
    for (name, asked) in &uses.series {
        let labels = known.get(name).unwrap_or_else(|| panic!("{place}: there is no {name}"));
        for label in asked {
            assert!(labels.contains(label) || is_added(label), "{place}: {name} has no label {label}");
        }
        there.extend(labels.iter().map(String::as_str));
    }
    // Alerts have the labels of what they are of.
    if !expression.contains("ALERTS") {
        for label in uses.grouping.iter().chain(more) {
            assert!(there.contains(label.as_str()), "{place}: nothing in {expression} has a label {label}");
        }
    }
}

fn is_added(label: &str) -> bool {
    ADDED.contains(&label)
}

/// What is known once the rules have made their series too, whose labels are those of what they are made of.
fn with_records(mut known: Known, rules: &[Rule]) -> Known {
    for rule in rules.iter().filter(|rule| !rule.alert) {
        let labels = uses(&rule.expression).series.iter().flat_map(|(name, _)| known[name].clone()).collect();
        known.insert(rule.name.clone(), labels);
    }
    known
}

/// Dashboard and rules against what is exported.
fn compare(known: Known) {
    let rules = rules();
    for rule in rules.iter().filter(|rule| !rule.alert) {
        check(&known, &rule.name, &rule.expression, &BTreeSet::new());
    }
    let known = with_records(known, &rules);
    for rule in rules.iter().filter(|rule| rule.alert) {
        let shown = rule.annotations.values().flat_map(|text| labels_shown(text)).collect();
        check(&known, &rule.name, &rule.expression, &shown);
    }
    let dashboard = dashboard();
    for shown in shown(&dashboard).into_iter().chain(documented()) {
        check(&known, &shown.place, &shown.expression, &labels_shown(&shown.legend));
    }
    for (name, series, label) in variables(&dashboard) {
        check(&known, &name, &series, &BTreeSet::from([label]));
    }
}

#[test]
fn every_variable_that_is_used_is_there() {
    let dashboard = dashboard();
    let list = dashboard["templating"]["list"].as_array().unwrap().iter();
    let mut there: BTreeSet<&str> = list.map(|variable| variable["name"].as_str().unwrap()).collect();
    there.extend(["__rate_interval", "__range", "labels"]);
    let text = dashboard.to_string();
    for part in text.split('$').skip(1) {
        let part = part.trim_start_matches('{');
        let name = part.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
        // All of a variable's values.
        assert!(there.contains(name) || name == "__all", "there is no variable {name}");
    }
}

#[test]
fn the_dashboard_can_be_imported_and_read() {
    let dashboard = dashboard();
    assert_eq!(dashboard["__inputs"][0]["name"], "DS_PROMETHEUS");
    assert_eq!(dashboard["id"], Value::Null, "an id is the importing Grafana's to give");
    let (mut ids, mut rows) = (BTreeSet::new(), Vec::new());
    let mut cells = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: another panel has this id");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title} is too wide");
        for cell in
            (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(cells.insert(cell), "{title} lies over another panel");
        }
        if panel["type"] == "row" {
            rows.push((title, panel["repeat"].as_str()));
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${DS_PROMETHEUS}", "{title}");
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{title}: no description");
        let refs: Vec<&str> =
            panel["targets"].as_array().unwrap().iter().map(|t| t["refId"].as_str().unwrap()).collect();
        assert_eq!(refs.iter().collect::<BTreeSet<_>>().len(), refs.len(), "{title}: {refs:?}");
        assert!(
            panel["type"] == "table" || panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{title}: no unit"
        );
    }
    assert!(rows.contains(&("Service $service", Some("service"))), "{rows:?}");
}

/// What backends counted that were removed jumps when one is: totals of services must leave it out.
#[test]
fn what_was_removed_is_left_out() {
    let of_a_backend = [
        "xdp_lb_packets_total",
        "xdp_lb_bytes_total",
        "xdp_lb_connections_",
        "xdp_lb_handshake_",
        "xdp_lb_health_check",
    ];
    let leave_it_out = |all: Vec<Shown>| {
        let mut seen = 0;
        for shown in all {
            for (name, labels) in uses(&shown.expression).series {
                if of_a_backend.iter().any(|prefix| name.starts_with(prefix)) {
                    assert!(labels.contains("service"), "{}: {name} of no service", shown.place);
                    seen += 1;
                }
            }
        }
        seen
    };
    let (on_the_dashboard, documented) = (leave_it_out(shown(&dashboard())), leave_it_out(documented()));
    assert!(on_the_dashboard > 20 && documented >= 3, "{on_the_dashboard}, {documented}");
}

/// What people are told to ask is understood by Prometheus.
#[test]
fn documented_questions_can_be_asked() {
    let questions = documented();
    assert!(questions.len() >= 8, "{questions:?}");
    // JSON is YAML.
    let rule = |(at, shown): (usize, &Shown)| json!({ "record": format!("question_{at}"), "expr": shown.expression });
    let rules: Vec<Value> = questions.iter().enumerate().map(rule).collect();
    let scratch = tempfile::tempdir().unwrap();
    let group = json!({ "groups": [{ "name": "questions", "rules": rules }] });
    fs::write(scratch.path().join("questions.yml"), group.to_string()).unwrap();
    promtool(scratch.path(), &["check", "rules", "questions.yml"]).unwrap();
}

#[test]
fn alerts_say_what_to_do() {
    let expected = [
        "XdpLbBackendDown",
        "XdpLbServiceDown",
        "XdpLbDropsRising",
        "XdpLbTableNearlyFull",
        "XdpLbHandshakeSlow",
        "XdpLbFlood",
        "XdpLbMetricsMissing",
        "XdpLbReloadFailed",
    ];
    let alerts: Vec<Rule> = rules().into_iter().filter(|rule| rule.alert).collect();
    assert_eq!(alerts.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), expected);
    for Rule { name, labels, annotations, .. } in &alerts {
        assert!(["critical", "warning"].contains(&labels["severity"].as_str()), "{name}: {labels:?}");
        assert!(!annotations["summary"].is_empty() && !annotations["description"].is_empty(), "{name}");
        let runbook = format!("docs/troubleshooting.md#alert-{}", name.to_lowercase());
        assert_eq!(annotations["runbook"], runbook);
    }
}

/// What a heading of a page is called in a link to it.
fn anchor(line: &str) -> Option<String> {
    let title = line.strip_prefix('#')?.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    Some(title.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect())
}

#[test]
fn runbooks_are_there() {
    let Ok(page) = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/troubleshooting.md")) else {
        println!("SKIPPED: there is no docs/troubleshooting.md yet");
        return;
    };
    let anchors: BTreeSet<String> = page.lines().filter_map(anchor).collect();
    for rule in rules().iter().filter(|rule| rule.alert) {
        let runbook = &rule.annotations["runbook"];
        let (_, wanted) = runbook.split_once('#').unwrap();
        assert!(anchors.contains(wanted), "{}: there is no {runbook}", rule.name);
    }
}

fn promtool(dir: &Path, args: &[&str]) -> Result<(), String> {
    let output = Command::new(find("promtool").unwrap()).args(args).current_dir(dir).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() { Ok(()) } else { Err(text) }
}

#[test]
fn promtool_is_content() {
    let dir = rules_dir();
    for args in [
        &["check", "config", "prometheus.yml"],
        &["check", "rules", "alerts.yml"],
        &["test", "rules", "alerts_test.yml"],
    ] {
        promtool(&dir, args).unwrap_or_else(|text| panic!("promtool {args:?}:\n{text}"));
    }
}

#[test]
#[ignore = "takes a minute: make test-all"]
fn every_fault_of_an_expression_is_found() {
    let rules = fs::read_to_string(rules_dir().join("alerts.yml")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    fs::copy(rules_dir().join("alerts_test.yml"), scratch.path().join("alerts_test.yml")).unwrap();
    for (right, wrong) in FAULTS {
        assert!(rules.contains(right), "there is no {right:?} any more");
        fs::write(scratch.path().join("alerts.yml"), rules.replace(right, wrong)).unwrap();
        let found = promtool(scratch.path(), &["test", "rules", "alerts_test.yml"]).expect_err(wrong);
        assert!(found.contains("FAILED"), "{wrong:?} instead of {right:?}: {found}");
    }
}

/// What is meant by the words of an expression, so that a comparison of nothing with nothing is noticed.
#[test]
fn expressions_are_read() {
    let text = r#"sum by (le, b) (rate(xdp_lb_a_bucket{x=~"xdp_lb_no", y!=""}[5m])) / on (c) group_left xdp_lb_d > s:xdp_lb_e:r"#;
    let read = uses(text);
    let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<String>>();
    assert_eq!(
        read.series,
        [
            ("xdp_lb_a_bucket".into(), set(&["x", "y"])),
            ("xdp_lb_d".into(), set(&[])),
            ("s:xdp_lb_e:r".into(), set(&[]))
        ]
    );
    assert_eq!(read.grouping, set(&["le", "b", "c"]));
    assert_eq!(
        labels_shown("{{a}}: {{ $labels.b }} {{ if $labels.c }}{{ $value | humanize }}{{ else }}{{ end }}"),
        set(&["a", "b", "c"])
    );
}

/// The labels of each series of a scrape.
fn known(scrape: &Scrape) -> Known {
    let mut known = Known::new();
    for sample in &scrape.samples {
        known.entry(sample.name.clone()).or_default().extend(sample.labels.keys().cloned());
    }
    known
}

#[test]
fn what_is_asked_for_is_exported() {
    let counter = json!({ "packets": 0, "bytes": 0 });
    let backend = json!({
        "address": "10.0.0.10:8080", "state": "up", "weight": 1, "active": 0, "connections": 0, "to_backend": counter,
        "to_client": counter,
    });
    let reason = |class| json!({ "class": class, "name": "any", "help": "", "packets": 0, "bytes": 0 });
    let reasons = ["sent", "stack", "pass", "drop", "error"].map(reason);
    let snapshot = json!({
        "services": [{ "name": "web", "vip": "192.0.2.1:80", "protocol": "tcp", "scheduler": "maglev", "backends": [backend] }],
        "reasons": reasons,
        "table": { "slots": 1, "confirmed": 0, "unconfirmed": 0, "replaceable": 0 },
    });
    let snapshot: Snapshot = serde_json::from_value(snapshot).unwrap();
    compare(known(&Scrape::of(expose(&snapshot, &About::default(), 0)).unwrap()));
}

/// The same of an instance that runs, by what it answers.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_is_asked_for_is_exported() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let args = format!("eth0 --vip {VIP}:80 --backend 10.0.0.10:8080 --assign-vip --metrics {METRICS}");
        let _lb = Balancer::start(lab, &args)?;
        compare(known(&Scrape::take(lab)?));
        Ok(())
    })
}

#[test]
#[should_panic(expected = "there is no xdp_lb_table_slot")]
fn what_is_not_exported_is_noticed() {
    check(
        &Known::from([("xdp_lb_table_slots".into(), BTreeSet::new())]),
        "here",
        "xdp_lb_table_slot > 1",
        &BTreeSet::new(),
    );
}

#[test]
#[should_panic(expected = "has no label reson")]
fn a_label_that_nothing_has_is_noticed() {
    let known = Known::from([("xdp_lb_drops_total".into(), BTreeSet::from(["reason".into()]))]);
    check(&known, "here", "rate(xdp_lb_drops_total{reson=\"ttl\"}[5m])", &BTreeSet::new());
}
