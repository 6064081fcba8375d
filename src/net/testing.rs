//! For tests against the real kernel, each in a network namespace of its own thread, gone with the thread.

use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, spawn};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use super::Netlink;

pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// A veth pair, `near` and `far`, with known addresses, up.
pub(super) const PAIR: &str = "link add name near address 02:00:00:00:00:01 mtu 1400 type veth \
                    peer name far address 02:00:00:00:00:02
                    link set near up
                    link set far up";

/// Runs `test` in a new network namespace that has only a loopback interface, up.
pub(super) fn in_namespace(test: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let thread = spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
        ip("link set lo up")?;
        test()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs lines of `ip` commands in this thread's namespace.
pub(super) fn ip(lines: &str) -> Result<()> {
    for line in lines.lines() {
        let output = Command::new("ip").args(line.split_whitespace()).output().context("running ip")?;
        ensure!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

type Work = Box<dyn FnOnce() -> Result<()> + Send>;

/// A second namespace with a thread in it that runs `ip` commands.
pub(super) struct Host {
    pub(super) thread_id: i32,
    commands: Sender<Work>,
    results: Receiver<Result<()>>,
    thread: JoinHandle<()>,
}

impl Host {
    pub(super) fn start() -> Result<Host> {
        let (commands, requests) = channel::<Work>();
        let (answers, results) = channel();
        let (id_sender, id) = channel();
        let thread = spawn(move || {
            let outcome = unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace");
            drop(id_sender.send(outcome.map(|()| gettid().as_raw())));
            for work in requests {
                drop(answers.send(work()));
            }
        });
        let thread_id = id.recv().context("the other namespace's thread")??;
        Ok(Host { thread_id, commands, results, thread })
    }

    pub(super) fn ip(&self, lines: &'static str) -> Result<()> {
        self.run(move || ip(lines))
    }

    /// Runs code in its thread.
    pub(super) fn run(&self, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        self.commands.send(Box::new(work)).ok().context("the other namespace's thread ended")?;
        self.results.recv().context("the other namespace's thread ended")?
    }

    /// Starts a process there that does nothing.
    pub(super) fn process(&self) -> Result<Child> {
        let (sender, child) = channel();
        self.run(move || Ok(sender.send(Command::new("sleep").arg("60").spawn()?)?))?;
        child.recv().context("the other namespace's thread ended")
    }

    pub(super) fn stop(self) {
        drop(self.commands);
        drop(self.thread.join());
    }
}

/// The index of an interface that exists.
pub(super) fn index(netlink: &mut Netlink, name: &str) -> Result<u32> {
    Ok(netlink.link(name)?.with_context(|| format!("no interface {name}"))?.index)
}

/// The kernel's error number inside an error.
pub(super) fn errno(error: &anyhow::Error) -> Option<i32> {
    error.downcast_ref::<std::io::Error>()?.raw_os_error()
}
