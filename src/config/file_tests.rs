use super::super::{health, render};
use super::*;

/// The sample that is installed.
const SAMPLE: &str = include_str!("../../deploy/xdp-lb.toml");

#[test]
fn the_sample_is_right_as_it_is() {
    let config = parse(SAMPLE, Path::new("xdp-lb.toml")).unwrap();
    let expected = Config::new(vec!["eth0".into()], config.services.clone());
    assert_eq!(config, expected, "every default is the default");
    assert_eq!(config.services.len(), 1);
}

/// The lines of the sample that could be keys, without the # before them.
fn sample_without_comments() -> String {
    let is_key = |line: &str| {
        let name: &str = line.split(" = ").next().unwrap_or_default();
        line.contains(" = ") && name.chars().all(|c| c.is_ascii_lowercase() || c == '-')
    };
    let mut text = String::new();
    for line in SAMPLE.lines() {
        let bare = line.trim_start_matches(['#', ' ']);
        // What can only be there in place of something else.
        let is_other = ["interfaces =", "health =", "port ="].iter().any(|begin| bare.starts_with(begin));
        let is_indented = line.starts_with("#     ");
        let keep = !line.starts_with('#') || (is_key(bare) || bare.starts_with('[')) && !is_other;
        if keep && !line.starts_with("health =") && !(is_indented && bare.starts_with("xdp-lb")) {
            text.push_str(if line.starts_with('#') { bare } else { line });
            text.push('\n');
        }
    }
    text
}

#[test]
fn the_sample_names_every_key_and_its_default() {
    let tables: [&[Key]; 4] = [&KEYS, &service::KEYS, &health::KEYS, &service::BACKEND_KEYS];
    for Key { name, .. } in tables.into_iter().flatten() {
        let is_there = SAMPLE.contains(&format!("[[{name}]]"))
            || SAMPLE.match_indices(&format!("{name} = ")).any(|(at, _)| {
                let before = SAMPLE[..at].chars().next_back();
                before.is_none_or(|c| c.is_whitespace() || c == '{')
            });
        assert!(is_there, "deploy/xdp-lb.toml does not mention {name}");
    }
}

#[test]
fn the_sample_tells_the_defaults() {
    // The backends come before the table of the health: that one would take them.
    let text = sample_without_comments();
    let (head, backends) = text.split_once("\nbackend = [").unwrap();
    let (head, table) = head.split_once("[service.health]").unwrap();
    let text = format!("{head}backend = [{backends}\n[service.health]{table}");
    let config = parse(&text, Path::new("xdp-lb.toml")).unwrap_or_else(|error| panic!("{error}\n{text}"));
    // Where metrics would be served has no default either.
    let metrics = Some("127.0.0.1:9105".parse().unwrap());
    let usual = Config { metrics, ..Config::new(vec!["eth0".into()], config.services.clone()) };
    assert_eq!(config, usual);
    let rendered = render(&config);
    let health = rendered.lines().find(|line| line.starts_with("health")).unwrap();
    let expected = r#"health = { type = "https", path = "/", host = "www.example.com", body = "ok", ca = "/etc/ssl/backends.pem" }"#;
    assert_eq!(health, expected);
    assert!(!rendered.contains("sticky") && !rendered.contains("slow-start"), "{rendered}");
}
