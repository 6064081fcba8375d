//! What `xdp-lb doctor` says of an instance, and faults that it is to find.

// Each test file uses a part of this.
#![allow(dead_code)]

use std::process::Output;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::common::balancer::{Balancer, XDP_LB, weighted};
use crate::common::eventually;
use crate::common::netns::Lab;
use crate::common::networks::VIP;
use crate::common::servers::HTTP;

/// An instance that nobody could find fault with; no server needs to be there.
pub fn healthy(lab: &Lab) -> Result<Balancer<'_>> {
    lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
    let args = format!("eth0 --vip {VIP}:8080/any {} --assign-vip --health none", weighted(HTTP));
    let lb = Balancer::start(lab, &args)?;
    settled(lab, "")?;
    Ok(lb)
}

/// What `doctor --json` found.
#[derive(Debug)]
pub struct Report {
    pub code: Option<i32>,
    pub findings: Vec<Value>,
    pub stderr: String,
}

impl Report {
    pub fn of(lab: &Lab, args: &str) -> Result<Report> {
        Report::seen_from(lab, "lb", args)
    }

    /// The same in another network namespace than that of the instance.
    pub fn seen_from(lab: &Lab, namespace: &str, args: &str) -> Result<Report> {
        let output = run_in(lab, namespace, &format!("{args} --json"))?;
        let text = String::from_utf8(output.stdout)?;
        let findings: Vec<Value> =
            serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
        for finding in &findings {
            let keys: Vec<&String> = finding.as_object().context("an object")?.keys().collect();
            assert_eq!(keys, ["fix", "level", "message", "name"], "{finding}");
        }
        let stderr = String::from_utf8(output.stderr)?;
        Ok(Report { code: output.status.code(), findings, stderr })
    }

    /// What is not ok: level, name, message.
    pub fn bad(&self) -> Vec<(&str, &str, &str)> {
        let all = self.findings.iter();
        all.map(|finding| (word(finding, "level"), word(finding, "name"), word(finding, "message")))
            .filter(|(level, ..)| *level != "ok")
            .collect()
    }

    /// Panics unless it has this, and exits by the worst; the fix.
    pub fn fix(&self, level: &str, name: &str, words: &[&str]) -> String {
        let is_it = |finding: &&Value| {
            finding["level"] == level
                && finding["name"] == name
                && words
                    .iter()
                    .all(|word| finding["message"].as_str().is_some_and(|text| text.contains(word)))
        };
        let found = self.findings.iter().find(is_it);
        let found = found.unwrap_or_else(|| panic!("no {level} {name} {words:?} in {self:#?}"));
        let worst = match self.bad() {
            bad if bad.iter().any(|(level, ..)| *level == "error") => 2,
            bad if bad.is_empty() => 0,
            _ => 1,
        };
        assert_eq!(self.code, Some(worst), "{self:#?}");
        found["fix"].as_str().unwrap_or_default().to_owned()
    }
}

fn word<'a>(finding: &'a Value, key: &str) -> &'a str {
    finding[key].as_str().unwrap_or_default()
}

pub fn run(lab: &Lab, args: &str) -> Result<Output> {
    run_in(lab, "lb", args)
}

fn run_in(lab: &Lab, namespace: &str, args: &str) -> Result<Output> {
    Ok(lab.command(namespace, XDP_LB)?.arg("doctor").args(args.split_whitespace()).output()?)
}

/// Waits until nothing is found any more: the instance follows the network within a second.
pub fn settled(lab: &Lab, args: &str) -> Result<()> {
    let mut last = String::new();
    eventually("a doctor without complaints", || {
        let report = Report::of(lab, args).ok()?;
        let bad = format!("{:?}", report.bad());
        if last != bad {
            println!("doctor says {bad}");
            last = bad;
        }
        (report.code == Some(0)).then_some(())
    });
    Ok(())
}

/// A fault that is planted by commands in namespaces, and mended by others.
pub struct Fault<'a> {
    pub plant: &'a [(&'a str, &'a str)],
    pub mend: &'a [(&'a str, &'a str)],
    pub level: &'a str,
    pub name: &'a str,
    /// What stands in the message.
    pub words: &'a [&'a str],
    /// What stands in the fix.
    pub fix: &'a str,
}

impl Fault<'_> {
    /// Panics unless it is found once it is planted, not before, and not when it is mended.
    pub fn assert_found(&self, lab: &Lab) -> Result<()> {
        let Fault { level, name, words, .. } = *self;
        println!("planting {name} {words:?}");
        settled(lab, "")?;
        carry_out(lab, self.plant)?;
        let report = eventually(&format!("{level} {name} {words:?}"), || {
            Report::of(lab, "").ok().filter(|report| report.bad().iter().any(|(_, found, _)| *found == name))
        });
        let fix = report.fix(level, name, words);
        assert!(fix.contains(self.fix), "{fix}");
        // In words too, on one line.
        let text = String::from_utf8(run(lab, "")?.stdout)?;
        let start = format!("{level:<8} {name}: ");
        let line = text.lines().find(|line| line.starts_with(&start) && line.contains(words[0]));
        let line = line.with_context(|| format!("no {start} in {text}"))?;
        assert!(line.ends_with(&format!("; fix: {fix}")), "{line}");
        assert!(!text.contains('\x1b'), "colours, though it is no terminal");
        carry_out(lab, self.mend)?;
        settled(lab, "")
    }
}

pub fn carry_out(lab: &Lab, commands: &[(&str, &str)]) -> Result<()> {
    let program = |command: &str| command.replace("xdp-lb ", &format!("{XDP_LB} "));
    commands.iter().try_for_each(|(at, command)| lab.run(at, "sh", &["-c", &program(command)]).map(drop))
}
