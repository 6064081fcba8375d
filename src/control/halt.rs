//! Why a process does nothing, as far as the kernel tells.

use std::fmt;
use std::fs;

/// What keeps a process from going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// A signal, as SIGSTOP, stopped this process; another one has it go on.
    Stopped(u32),
    /// Somebody traces it, whom no signal makes let go; who that is, if he is to be seen from here.
    Traced(Option<u32>),
}

impl Halt {
    /// Looks at a process. `None`: it goes on, or is gone.
    pub fn of(process: u32) -> Option<Halt> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        match state_in(&stat)? {
            'T' => Some(Halt::Stopped(process)),
            't' => {
                let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
                Some(Halt::Traced(tracer_in(&status)))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Halt::Stopped(process) => write!(f, "stopped: kill -CONT {process} has it go on"),
            Halt::Traced(Some(tracer)) => write!(f, "traced by process {tracer}, as a debugger does"),
            Halt::Traced(None) => write!(f, "traced, as by a debugger"),
        }
    }
}

/// After the name, which is in brackets and may have any signs in it (proc_pid_stat(5)).
fn state_in(stat: &str) -> Option<char> {
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}

/// 0 is nobody, or somebody outside of this PID namespace.
fn tracer_in(status: &str) -> Option<u32> {
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    tracer.trim().parse().ok().filter(|tracer| *tracer != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_stands_after_the_name() {
        assert_eq!(state_in("7 (xdp-lb) T 1 7 7 0 -1"), Some('T'));
        assert_eq!(state_in("7 (a) T (b) t 1 7 7 0 -1"), Some('t'));
        assert_eq!(state_in(""), None);
        assert_eq!(Halt::of(std::process::id()), None);
    }

    #[test]
    fn a_tracer_is_named_where_it_is_to_be_seen() {
        assert_eq!(tracer_in("Name:\tx\nPPid:\t1\nTracerPid:\t42\nUid:\t0\n"), Some(42));
        assert_eq!(tracer_in("Name:\tx\nTracerPid:\t0\n"), None);
        assert_eq!(tracer_in(""), None);
    }
}
