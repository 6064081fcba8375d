//! Which backend is ill, and why.

use std::time::Duration;

use super::figures::Recent;
use super::text;
use crate::metrics::BackendFigures;

/// With fewer, times and shares are chance.
const ENOUGH: u64 = 5;
/// A backend whose usual handshake takes so many times that of the others is slow; a histogram's buckets double.
const SLOW: u32 = 4;
/// A shorter time is not slow, whatever others do.
const NOT_SLOW: Duration = Duration::from_millis(5);

/// How a backend is, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Grade {
    /// It does not serve: down, silent or refusing.
    Ill,
    /// It serves, and something is odd.
    Suspect,
    /// An operator wants it to take no connections.
    Off,
    /// It does what it should.
    Well,
}

impl Grade {
    /// What shows it without colours.
    pub fn mark(self) -> &'static str {
        match self {
            Grade::Ill => "!",
            Grade::Suspect => "?",
            Grade::Off => "-",
            Grade::Well => " ",
        }
    }

    /// The word that a filter finds it by.
    pub fn word(self) -> &'static str {
        match self {
            Grade::Ill => "ill",
            Grade::Suspect => "suspect",
            Grade::Off => "off",
            Grade::Well => "well",
        }
    }
}

/// How a backend is, and why it is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Diagnosis {
    pub grade: Grade,
    pub why: String,
}

impl Diagnosis {
    fn new(grade: Grade, why: impl Into<String>) -> Diagnosis {
        Diagnosis { grade, why: why.into() }
    }
}

/// `usual` is the usual handshake of the service's backends, `wall` the time in seconds since 1970.
pub(super) fn diagnose(
    backend: &BackendFigures,
    recent: Option<&Recent>,
    usual: Option<Duration>,
    wall: f64,
) -> Diagnosis {
    let error = last_error(backend, wall);
    match backend.state.as_str() {
        "up" => {}
        "down" => {
            let since = since(backend, wall);
            let why = error.unwrap_or_else(|| "no check has said why".into());
            return Diagnosis::new(Grade::Ill, format!("down {since}: {why}"));
        }
        state => return Diagnosis::new(Grade::Off, off(backend, state, error)),
    }
    let none = Recent::default();
    let recent = recent.unwrap_or(&none);
    if let Some(diagnosis) = does_not_answer(recent) {
        return diagnosis;
    }
    if recent.checks_failed > 0 {
        let why = error.unwrap_or_default();
        return Diagnosis::new(Grade::Suspect, format!("checks fail: {why}"));
    }
    odd(recent, usual).unwrap_or_else(|| Diagnosis::new(Grade::Well, ""))
}

/// How long it is up or down. A process knows no more than it saw itself.
pub(super) fn since(backend: &BackendFigures, wall: f64) -> String {
    match backend.health.as_ref().map(|health| health.last_change) {
        Some(Some(at)) => format!("for {}", text::ago(wall - at)),
        Some(None) => "since this process began, or longer".to_owned(),
        None => "since nobody knows when".to_owned(),
    }
}

/// What is to be known of one that an operator takes connections from.
fn off(backend: &BackendFigures, state: &str, error: Option<String>) -> String {
    let health = backend.health.as_ref();
    if let Some(seconds) = health.and_then(|health| health.reset_in_seconds) {
        return format!("its connections are reset in {seconds:.0} s");
    }
    match (state, error) {
        ("removed", _) => "it is gone when its connections have ended".into(),
        (_, Some(error)) if health.is_some_and(|health| health.up == Some(false)) => {
            format!("checks find it down too: {error}")
        }
        _ => String::new(),
    }
}

/// Nobody gets through to it, whatever its checks say.
fn does_not_answer(recent: &Recent) -> Option<Diagnosis> {
    if recent.handshakes.count() > 0 {
        return None;
    }
    let seconds = recent.seconds;
    if recent.rsts >= 2 && recent.rsts >= recent.syn_retransmits {
        let why = format!("refuses: {} RSTs and no SYN-ACK in {seconds:.0} s", recent.rsts);
        return Some(Diagnosis::new(Grade::Ill, why));
    }
    if recent.syn_retransmits >= 2 {
        let why =
            format!("silent: {} SYNs repeated and no SYN-ACK in {seconds:.0} s", recent.syn_retransmits);
        return Some(Diagnosis::new(Grade::Ill, why));
    }
    // However long ago that was: a second, as one screen takes, has too few SYNs.
    if recent.refused >= 2 {
        let why = format!("refuses: {} connections since its last SYN-ACK", recent.refused);
        return Some(Diagnosis::new(Grade::Ill, why));
    }
    (recent.unanswered >= 2).then(|| {
        let why = format!("silent: {} SYNs since its last SYN-ACK", recent.unanswered);
        Diagnosis::new(Grade::Ill, why)
    })
}

/// It answers, though not as it should.
fn odd(recent: &Recent, usual: Option<Duration>) -> Option<Diagnosis> {
    let handshakes = recent.handshakes.count();
    let share = |count: u64| count as f64 / recent.connections.max(handshakes).max(1) as f64;
    if recent.syn_retransmits >= ENOUGH && share(recent.syn_retransmits) >= 0.05 {
        let why = format!("{} SYNs repeated for {} connections", recent.syn_retransmits, recent.connections);
        return Some(Diagnosis::new(Grade::Suspect, why));
    }
    if recent.rsts >= ENOUGH && share(recent.rsts) >= 0.25 {
        let why = format!("{} RSTs for {} connections", recent.rsts, recent.connections);
        return Some(Diagnosis::new(Grade::Suspect, why));
    }
    let (own, usual) = (usual_handshake(recent)?, usual?);
    (own >= NOT_SLOW && own >= usual * SLOW).then(|| {
        let (own, usual) = (text::millis(own), text::millis(usual));
        Diagnosis::new(Grade::Suspect, format!("slow: handshakes take {own} ms, the others' {usual} ms"))
    })
}

/// The median of its handshakes, where there are enough.
pub(super) fn usual_handshake(recent: &Recent) -> Option<Duration> {
    recent.handshakes.quantile(0.5).filter(|_| recent.handshakes.count() >= ENOUGH)
}

/// Why a check last failed, and when.
pub(super) fn last_error(backend: &BackendFigures, wall: f64) -> Option<String> {
    let health = backend.health.as_ref()?;
    let error = text::plain(health.last_error.as_ref()?);
    Some(match health.last_error_at {
        Some(at) => format!("{error} ({} ago)", text::ago(wall - at)),
        None => error,
    })
}
