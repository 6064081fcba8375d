//! `xdp-lb tune`: makes this host faster, and as it was before.

use anyhow::{Context as _, Result, ensure};

use super::show::print;
use crate::log;
use crate::tune::{self, Outcome, Step};

/// Carries out, tells or takes back, and prints each step. False if one failed.
///
/// # Errors
/// Who asks is not root, or something cannot be read or written.
pub fn tune(interface: &str, dry_run: bool, undo: bool, json: bool) -> Result<bool> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "only root may look at and change the settings of {interface}: sudo xdp-lb tune {interface}"
    );
    let steps = match undo {
        true => tune::undo(interface, dry_run, &log::notice)?,
        false => tune::tune(interface, dry_run, &log::notice)?,
    };
    let value = serde_json::to_value(&steps).context("could not write the steps as JSON")?;
    print(&value, json, |_| text(&steps, interface, dry_run))?;
    Ok(steps.iter().all(|step| step.outcome != Outcome::Failed))
}

fn text(steps: &[Step], interface: &str, dry_run: bool) -> String {
    let mut lines: Vec<String> = steps.iter().map(line).collect();
    if steps.is_empty() {
        lines.push(format!("nothing was changed for {interface}: there is nothing to put back"));
    } else if dry_run {
        lines.push("this was a dry run: nothing has been changed".to_owned());
    }
    lines.join("\n")
}

fn line(step: &Step) -> String {
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "?".to_owned());
    let change = match step.outcome {
        Outcome::Changed | Outcome::Planned => format!("{} -> {}", value(&step.before), value(&step.after)),
        Outcome::Restored => format!("{} -> {}, as it was", value(&step.before), value(&step.after)),
        Outcome::Kept => format!("{}, as it should be", value(&step.before)),
        Outcome::Skipped => "left alone".to_owned(),
        Outcome::Failed => "failed".to_owned(),
    };
    let note = step.note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
    format!("{:<12} {}: {change}{note}", step.name, step.what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_before_and_after() {
        let step = Step {
            name: "queues",
            what: "receive queues of eth0".into(),
            before: Some("1".into()),
            after: Some("2".into()),
            outcome: Outcome::Changed,
            note: None,
        };
        assert_eq!(line(&step), "queues       receive queues of eth0: 1 -> 2");
        let skipped = Step { outcome: Outcome::Skipped, note: Some("none".into()), ..step.clone() };
        assert_eq!(line(&skipped), "queues       receive queues of eth0: left alone (none)");
        assert_eq!(text(&[], "eth0", false), "nothing was changed for eth0: there is nothing to put back");
        assert!(text(&[step], "eth0", true).ends_with("nothing has been changed"));
    }
}
