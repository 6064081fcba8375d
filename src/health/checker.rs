//! The thread that checks, and how others speak to it.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::schedule::{Command, work};
use super::{Failure, Stats, Target};

/// No more checks run at once, whatever the limit of open files is: beyond this, ports and memory become scarce first.
const MOST_SOCKETS: u64 = 4096;

/// What a checker tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A target went up or down.
    Change {
        /// That of the target.
        id: u64,
        /// What it is now.
        up: bool,
        /// What the deciding check met, if it went down.
        why: Option<Failure>,
        /// So many checks in a row decided it: 0 where it is up because nobody checks it any more.
        run: u32,
        /// The checks of this target so far.
        checks: u64,
    },
}

/// A check that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// That of the target.
    pub id: u64,
    /// What came of it.
    pub result: Verdict,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The answer was good, and took so long.
    Passed(Duration),
    /// It failed after so long.
    Failed(Duration),
    /// This host could not ask.
    Unchecked,
}

/// Whoever is told of what.
pub(super) struct Listeners {
    pub changes: Box<dyn Fn(Event) + Send>,
    pub checks: Box<dyn Fn(Checked) + Send>,
}

/// Checks targets, on a thread of its own, until it is dropped.
pub struct Checker {
    commands: UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl Checker {
    /// Starts the thread. It calls `report` itself, right after the deciding check: while that runs nothing is checked.
    pub fn start(report: impl Fn(Event) + Send + 'static) -> Result<Checker> {
        Checker::start_counted(report, |_| {})
    }

    /// The same; `count` is told of each check in the same way, before `report` is told what follows from it.
    pub fn start_counted(
        report: impl Fn(Event) + Send + 'static,
        count: impl Fn(Checked) + Send + 'static,
    ) -> Result<Checker> {
        let listeners = Listeners { changes: Box::new(report), checks: Box::new(count) };
        let sockets = sockets();
        let runtime = Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = runtime.context("could not prepare the checks of backends")?;
        let (commands, inbox) = unbounded_channel();
        let check = move || {
            runtime.block_on(work(sockets, listeners, inbox));
            // A file that cannot be read must not hold up the end.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("health".into()).spawn(check);
        Ok(Checker { commands, thread: Some(thread.context("could not start a thread")?) })
    }

    /// These are all that is checked from now on. Known ones that did not change go on undisturbed; the state of changed ones
    /// stays what it was until checks decide otherwise, and they are checked at once, as new ones are. What a known target
    /// says about [`Target::up`] does not matter.
    pub fn set(&self, targets: Vec<Target>) {
        self.tell(Command::Set(targets));
    }

    /// There is reason to believe that a target is down: checks it at once, and keeps checking it fast until a check succeeds
    /// or so many have failed that it is down.
    ///
    /// While that lasts, a check waits no longer than four times what checks of this target take, or 200 ms: a host that is
    /// off says nothing, and three times the usual timeout would be long.
    pub fn check_now(&self, id: u64) {
        self.tell(Command::CheckNow(id));
    }

    /// What is known of all targets, by their ids. Not to be called by `report`: it waits for the thread.
    pub fn stats(&self) -> Vec<(u64, Stats)> {
        let (answer, answers) = mpsc::channel();
        self.tell(Command::Stats(answer));
        answers.recv().unwrap_or_default()
    }

    fn tell(&self, command: Command) {
        // The thread ends by the drop only.
        let _ = self.commands.send(command);
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.tell(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How many sockets checks may have open at once: the rest of the files is for others.
fn sockets() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 256 };
    let raised = soft >= hard || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let limit = if raised { hard } else { soft };
    usize::try_from((limit / 2).clamp(16, MOST_SOCKETS)).unwrap_or(256)
}
