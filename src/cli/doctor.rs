//! `xdp-lb doctor`: what ails an instance or this host, and what to do about it.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};

use super::Instance;
use super::patient::find;
use super::show::print;
use super::stdout::say;
use crate::log;
use crate::net::Netlink;
use crate::preflight::{Finding, Level, Remedy, examine, worst};

/// Looks at everything and prints a line for each thing that is this bad at `least`. The exit code is that of all: 0, 1 for
/// warnings, 2 for errors.
///
/// # Errors
/// When what was found cannot be written.
pub fn doctor(interface: Option<&str>, instance: &Instance, fix: bool, least: Level) -> Result<u8> {
    let look = || look(interface, instance);
    let mut findings = look();
    if fix && mend(&findings) {
        findings = look();
    }
    show(&findings, least, instance.json)?;
    Ok(match worst(&findings) {
        Level::Ok => 0,
        Level::Warning => 1,
        Level::Error => 2,
    })
}

/// A host that cannot be looked at is not well either.
fn look(interface: Option<&str>, instance: &Instance) -> Vec<Finding> {
    let looked = Netlink::open().and_then(|mut netlink| {
        let patient = find(&mut netlink, interface, instance)?;
        examine(&mut netlink, &patient)
    });
    looked.unwrap_or_else(|error| {
        let message = format!("could not look: {error:#}");
        vec![Finding { name: "doctor", level: Level::Error, message, fix: None, remedy: None }]
    })
}

/// Carries out what harms nothing. False if there was nothing of that.
fn mend(findings: &[Finding]) -> bool {
    let mut remedies: Vec<&Remedy> = Vec::new();
    for remedy in
        findings.iter().filter(|finding| finding.level > Level::Ok).filter_map(|f| f.remedy.as_ref())
    {
        if !remedies.contains(&remedy) {
            remedies.push(remedy);
        }
    }
    for remedy in &remedies {
        log::notice(&format!("fix: {remedy}"));
    }
    for remedy in &remedies {
        if let Err(error) = remedy.apply() {
            log::notice(&format!("this failed: {remedy}: {error:#}"));
        }
    }
    !remedies.is_empty()
}

fn show(findings: &[Finding], least: Level, json: bool) -> Result<()> {
    let colour =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let shown: Vec<&Finding> = findings.iter().filter(|finding| finding.level >= least).collect();
    match json {
        true => {
            let value = serde_json::to_value(shown).context("could not write the findings as JSON")?;
            print(&value, true, |_| String::new())
        }
        false => {
            let lines: String = shown.iter().map(|finding| line(finding, colour)).collect();
            say(lines + &summary(findings) + "\n")
        }
    }
}

/// What is wrong, in a line that is seen without looking for it in those above.
fn summary(findings: &[Finding]) -> String {
    let of = |level: Level| {
        let found = findings.iter().filter(|finding| finding.level == level);
        let mut names: Vec<&str> = found.clone().map(|finding| finding.name).collect();
        names.dedup();
        (found.count(), names.join(", "))
    };
    let plural =
        |count, word: &str| if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") };
    let named = |(count, names): (usize, String), word| match count {
        0 => plural(0, word),
        _ => format!("{} ({names})", plural(count, word)),
    };
    let (fine, _) = of(Level::Ok);
    format!("{}, {}, {fine} ok", named(of(Level::Error), "error"), named(of(Level::Warning), "warning"))
}

fn line(finding: &Finding, colour: bool) -> String {
    let level = format!("{:<8}", finding.level.name());
    let level = match (colour, finding.level) {
        (false, _) => level,
        (true, Level::Ok) => format!("\x1b[32m{level}\x1b[0m"),
        (true, Level::Warning) => format!("\x1b[33m{level}\x1b[0m"),
        (true, Level::Error) => format!("\x1b[31m{level}\x1b[0m"),
    };
    format!("{level} {}: {finding}\n", finding.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_level_name_message_and_fix() {
        let finding = Finding {
            name: "ip-forward",
            level: Level::Warning,
            message: "net.ipv4.ip_forward is 0".into(),
            fix: Some("sysctl -w net.ipv4.ip_forward=1".into()),
            remedy: None,
        };
        assert_eq!(
            line(&finding, false),
            "warning  ip-forward: net.ipv4.ip_forward is 0; fix: sysctl -w net.ipv4.ip_forward=1\n"
        );
        assert!(line(&finding, true).starts_with("\x1b[33mwarning \x1b[0m ip-forward"));
    }

    #[test]
    fn the_summary_names_what_is_wrong() {
        let finding = |level, name| Finding { name, level, message: String::new(), fix: None, remedy: None };
        let (ok, warning, error) = (Level::Ok, Level::Warning, Level::Error);
        assert_eq!(summary(&[finding(ok, "jit")]), "0 errors, 0 warnings, 1 ok");
        let all = [
            finding(error, "service"),
            finding(warning, "backend"),
            finding(warning, "backend"),
            finding(ok, "jit"),
            finding(warning, "mtu"),
        ];
        assert_eq!(summary(&all), "1 error (service), 3 warnings (backend, mtu), 1 ok");
    }
}
