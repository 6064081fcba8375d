//! The rules of the house that the compiler does not know.

use std::fs;
use std::path::{Path, PathBuf};

/// Who may use whom, inside the crate. What is not here may use everything.
const MAY_USE: [(&str, &[&str]); 17] = [
    ("log", &["config"]),
    ("testing", &[]),
    ("serve", &[]),
    ("model", &[]),
    ("config", &["model"]),
    ("ring", &["model"]),
    ("net", &[]),
    ("dataplane", &["model", "ring", "testing"]),
    ("health", &["model"]),
    ("metrics", &["model", "dataplane", "serve"]),
    ("control", &["model", "config", "serve"]),
    ("egress", &["net", "dataplane"]),
    ("preflight", &["model", "config", "net", "dataplane", "metrics", "egress"]),
    ("tune", &["net", "dataplane"]),
    (
        "daemon",
        &[
            "model",
            "config",
            "ring",
            "net",
            "dataplane",
            "health",
            "control",
            "metrics",
            "egress",
            "preflight",
            "testing",
        ],
    ),
    (
        "cli",
        &["model", "config", "net", "dataplane", "control", "metrics", "preflight", "tune", "daemon", "log"],
    ),
    ("main", &["cli", "daemon", "log"]),
];

fn sources(under: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut rooms = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(under)];
    while let Some(room) = rooms.pop() {
        for entry in fs::read_dir(&room).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rooms.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

fn room_of(path: &Path) -> String {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    inside.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// The modules that a file names, by `crate::` or from outside by `xdp_lb::`.
fn used(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    ["crate::", "xdp_lb::"]
        .iter()
        .flat_map(|prefix| code.match_indices(prefix).map(|(at, found)| &code[at + found.len()..]))
        .flat_map(|rest| match rest.strip_prefix('{') {
            Some(list) => list[..list.find('}').unwrap_or(list.len())].split(',').map(str::trim).collect(),
            None => vec![rest],
        })
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned())
        .collect()
}

#[test]
fn dependencies_go_one_way() {
    let rooms: Vec<&str> = MAY_USE.iter().map(|(room, _)| *room).collect();
    for (path, text) in sources("src") {
        let room = room_of(&path);
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == room) else {
            assert_eq!(room, "lib", "{}: a new room needs a line in MAY_USE", path.display());
            continue;
        };
        for name in used(&text) {
            let fine = name == room || allowed.contains(&name.as_str()) || !rooms.contains(&name.as_str());
            assert!(fine, "{}: {room} may not use {name}", path.display());
        }
    }
}

#[test]
fn the_rule_can_fail() {
    assert_eq!(
        used("use crate::net::Netlink;\n// crate::cli\nuse crate::{model::Backend, ring};"),
        ["net", "model", "ring"]
    );
}

#[test]
fn unsafe_code_stays_in_the_dataplane() {
    for (path, text) in sources("src") {
        let has = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains("unsafe {"));
        assert!(!has || room_of(&path) == "dataplane", "{} has unsafe code", path.display());
    }
}

#[test]
fn only_the_dataplane_speaks_to_libbpf() {
    for (path, text) in sources("src") {
        let room = room_of(&path);
        // The exit code's hint looks at the kind of an error.
        assert!(
            !text.contains("libbpf_") || ["dataplane", "main"].contains(&room.as_str()),
            "{} uses libbpf",
            path.display()
        );
    }
}

#[test]
fn the_readme_explains_every_reason() {
    let readme = include_str!("../README.md");
    for reason in xdp_lb::dataplane::Reason::ALL {
        let row = format!("| {} | `{}` | {} |", reason.class.name(), reason.name, reason.help);
        assert!(readme.contains(&row), "README.md lacks: {row}");
    }
}
