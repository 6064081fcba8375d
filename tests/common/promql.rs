//! The expressions of the dashboard and of the rules, and what they use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

/// Where Prometheus' own files are.
pub fn rules_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus")
}

/// The dashboard.
pub fn dashboard() -> Value {
    serde_json::from_str(include_str!("../../deploy/grafana/xdp-lb.json")).expect("JSON")
}

/// Its panels, those in collapsed rows too.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = dashboard["panels"].as_array().expect("panels").iter();
    all.flat_map(|panel| [panel].into_iter().chain(panel["panels"].as_array().into_iter().flatten()))
        .collect()
}

/// One rule of the file for Prometheus.
#[derive(Debug)]
pub struct Rule {
    /// Whether it is an alert; else it makes a series.
    pub alert: bool,
    /// Of the alert or of the series.
    pub name: String,
    pub expression: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// All rules, in their order.
pub fn rules() -> Vec<Rule> {
    let file = YamlLoader::load_from_str(include_str!("../../deploy/prometheus/alerts.yml")).expect("YAML");
    let groups = file[0]["groups"].as_vec().expect("groups").iter();
    groups.flat_map(|group| group["rules"].as_vec().expect("rules")).map(rule).collect()
}

fn rule(rule: &Yaml) -> Rule {
    let text = |key: &str| rule[key].as_str().map(str::to_owned);
    let map = |key: &str| {
        let pairs = rule[key].as_hash().into_iter().flatten();
        let text = |yaml: &Yaml| yaml.as_str().expect("a string").to_owned();
        pairs.map(|(name, value)| (text(name), text(value))).collect()
    };
    Rule {
        alert: text("alert").is_some(),
        name: text("alert").or_else(|| text("record")).expect("a name"),
        expression: text("expr").expect("an expression"),
        labels: map("labels"),
        annotations: map("annotations"),
    }
}

/// An expression of the dashboard.
#[derive(Debug)]
pub struct Shown {
    /// Which panel's, annotation's or variable's.
    pub place: String,
    pub expression: String,
    /// How its series are called: text with `{{label}}`.
    pub legend: String,
}

/// All that the dashboard asks Prometheus for by a query. What fills its variables is in [`variables`].
pub fn shown(dashboard: &Value) -> Vec<Shown> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let panels = panels(dashboard).into_iter().flat_map(|panel| {
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(|target| Shown {
            place: text(&panel["title"]),
            expression: text(&target["expr"]),
            legend: text(&target["legendFormat"]),
        })
    });
    let annotations = dashboard["annotations"]["list"].as_array().expect("annotations").iter();
    let annotations = annotations.filter(|annotation| annotation["builtIn"] != 1).map(|annotation| Shown {
        place: text(&annotation["name"]),
        expression: text(&annotation["expr"]),
        legend: annotation["tagKeys"].as_str().map(|key| format!("{{{{{key}}}}}")).unwrap_or_default(),
    });
    panels.chain(annotations).collect()
}

/// Of each variable that Prometheus fills: its name, the series that it is asked for, and the label whose values it takes.
pub fn variables(dashboard: &Value) -> Vec<(String, String, String)> {
    let list = dashboard["templating"]["list"].as_array().expect("variables").iter();
    let queries = list.filter(|variable| variable["type"] == "query").map(|variable| {
        let query = variable["query"]["query"].as_str().expect("a query");
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (series, label) =
            inner.and_then(|inner| inner.rsplit_once(", ")).expect("label_values(series, label)");
        (variable["name"].as_str().expect("a name").to_owned(), series.to_owned(), label.to_owned())
    });
    queries.collect()
}

/// What docs/metrics.md has people ask: each question with its expression.
pub fn documented() -> Vec<Shown> {
    let page = include_str!("../../docs/metrics.md");
    let (_, questions) = page.split_once("\n| question | PromQL |\n").expect("the table of questions");
    let rows = questions.lines().skip(1).take_while(|line| line.starts_with('|'));
    let row = |line: &str| {
        // An expression may have a | in it.
        let (question, rest) = line.trim_matches('|').split_once('|').expect("two cells");
        let expression = rest.trim().strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
        Shown {
            place: question.trim().to_owned(),
            expression: expression.expect("an expression in backticks").to_owned(),
            legend: String::new(),
        }
    };
    rows.map(row).collect()
}

/// What an expression uses.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Series by name, ours and those that rules make, with the labels that are asked of them.
    pub series: Vec<(String, BTreeSet<String>)>,
    /// Labels by which it groups or matches.
    pub grouping: BTreeSet<String>,
}

/// Reads an expression.
pub fn uses(expression: &str) -> Uses {
    let tokens = tokens(expression);
    let mut uses = Uses::default();
    for (at, token) in tokens.iter().enumerate() {
        let bracketed = |open: &str, close: &str| {
            let opens = tokens.get(at + 1).is_some_and(|next| next == open);
            let inside = tokens.iter().skip(at + 2).take_while(|token| *token != close);
            if opens { inside.cloned().collect() } else { Vec::new() }
        };
        match token.as_str() {
            "by" | "without" | "on" | "ignoring" | "group_left" | "group_right" => {
                uses.grouping.extend(bracketed("(", ")").into_iter().filter(|token| is_word(token)));
            }
            name if is_word(name) && name.contains("xdp_lb_") => {
                let matchers = bracketed("{", "}");
                let named =
                    matchers.windows(2).filter(|pair| is_word(&pair[0]) && ["=", "!"].contains(&&*pair[1]));
                uses.series.push((name.to_owned(), named.map(|pair| pair[0].clone()).collect()));
            }
            _ => {}
        }
    }
    uses
}

/// The labels in `{{label}}` of a legend, or in `{{ $labels.label }}` of an annotation.
pub fn labels_shown(text: &str) -> BTreeSet<String> {
    let parts = text.split("{{").skip(1).filter_map(|part| Some(part.split_once("}}")?.0));
    let of = |part: &str| {
        let words = tokens(part);
        let after = |n: usize| words[..n].ends_with(&["$labels".into(), ".".into()]);
        let named = words.iter().enumerate().filter(|(n, _)| after(*n)).map(|(_, word)| word.clone());
        let bare =
            words.first().filter(|first| words.len() == 1 && is_word(first) && !is_keyword(first)).cloned();
        named.chain(bare).collect::<Vec<_>>()
    };
    parts.flat_map(of).collect()
}

fn is_keyword(word: &str) -> bool {
    ["else", "end"].contains(&word)
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Words, whole strings with their quotes, and single signs.
fn tokens(text: &str) -> Vec<String> {
    let (mut tokens, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let of_word = |c: char| c.is_ascii_alphanumeric() || "_:$".contains(c);
        let length = match first {
            '"' => rest[1..].find('"').expect("the end of a string") + 2,
            c if of_word(c) => rest.find(|c| !of_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        tokens.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    tokens
}
