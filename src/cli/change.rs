//! The verbs that change something.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;

use super::Instance;
use super::show::print;
use super::source::process;
use super::wait::{Waited, wait};
use crate::control::{Ask, ClientError, Done};

/// Has an instance change something, and says what it did. False if it was not waited for until the end.
pub fn change(ask: &Ask, waits: bool, instance: &Instance) -> Result<bool> {
    let client = process(instance)?;
    let done = client.change(ask).map_err(unanswered)?;
    if waits && !instance.json {
        print(&Value::Null, false, |_| text(&done))?;
    }
    let waited = if waits { Some(wait(&client, ask, instance.json)?) } else { None };
    match &waited {
        Some(waited) if !instance.json => print(&Value::Null, false, |_| waited.to_string())?,
        _ => print(&answer(&done, waited.as_ref())?, instance.json, |_| text(&done))?,
    }
    Ok(waited.is_none_or(|waited| waited.is_over()))
}

/// What was asked for is with the process, which may carry it out when nobody waits any more.
fn unanswered(error: ClientError) -> anyhow::Error {
    match error {
        ClientError::Silent(..) => anyhow!(
            "{error}: it may still do what it was asked for once it goes on; look (xdp-lb status) before asking again"
        ),
        error => error.into(),
    }
}

fn answer(done: &Done, waited: Option<&Waited>) -> Result<Value> {
    let mut answer = serde_json::to_value(done).context("could not write the answer as JSON")?;
    if let Some(waited) = waited {
        answer["waited"] = waited.to_json();
    }
    Ok(answer)
}

/// What was done, a line for each step.
fn text(done: &Done) -> String {
    let mut text = done.steps.join("\n");
    let mut add = |line: String| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{}{line}", if text.is_empty() { "" } else { "\n" });
    };
    if done.steps.is_empty() && done.ended.is_none() {
        add("nothing had to be changed".into());
    } else if !done.applied && !done.steps.is_empty() {
        add("this was a dry run: nothing has been changed".into());
    }
    if done.kept > 0 {
        add(format!(
            "what runs differs from the file in {}, by changes that were made while it ran: they stay (xdp-lb config show)",
            if done.kept == 1 { "one thing".to_owned() } else { format!("{} things", done.kept) }
        ));
    }
    if let Some(ended) = done.ended {
        add(format!("{ended} {} ended", if ended == 1 { "connection was" } else { "connections were" }));
    }
    if let Some(file) = &done.persisted {
        add(format!("{} was changed too", file.display()));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_asked_of_a_silent_process_may_still_come() {
        let silent = ClientError::Silent("process 7".into(), Duration::from_secs(60));
        assert_eq!(
            unanswered(silent).to_string(),
            "process 7 has not answered for 1m: it may still do what it was asked for once it goes on; look (xdp-lb status) \
             before asking again"
        );
        let refused = ClientError::Refused(crate::control::Refusal::conflict("it is there"));
        assert_eq!(unanswered(refused).to_string(), "it is there");
    }

    #[test]
    fn what_was_done_for_people() {
        let steps = vec!["one".to_owned(), "two".to_owned()];
        let applied = Done { steps: steps.clone(), applied: true, ..Done::default() };
        assert_eq!(text(&applied), "one\ntwo");
        assert_eq!(
            text(&Done { applied: false, ..applied.clone() }),
            "one\ntwo\nthis was a dry run: nothing has been changed"
        );
        assert_eq!(text(&Done { applied: true, ..Done::default() }), "nothing had to be changed");
        assert_eq!(
            text(&Done { ended: Some(0), applied: true, ..Done::default() }),
            "0 connections were ended"
        );
        let all = Done { ended: Some(1), persisted: Some("/etc/xdp-lb.toml".into()), ..applied };
        assert_eq!(text(&all), "one\ntwo\n1 connection was ended\n/etc/xdp-lb.toml was changed too");
    }
}
