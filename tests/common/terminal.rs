//! A terminal in the namespace `lb`: a tmux server of the test's own.

use std::fs;

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

use super::eventually;
use super::netns::{Lab, Process};

/// A terminal with a shell in it.
pub struct Terminal<'a> {
    lab: &'a Lab,
    socket: String,
    _server: Process,
}

impl<'a> Terminal<'a> {
    /// Opens one of this size. It ends with the test, whatever becomes of it.
    pub fn open(lab: &'a Lab, columns: u16, rows: u16) -> Result<Terminal<'a>> {
        let path = lab.dir().join("tmux");
        let socket = path.display().to_string();
        // In the foreground: it dies with the test's thread.
        let server = lab.start("lb", "tmux", &["-D", "-S", &socket, "-f", "/dev/null"])?;
        eventually("a tmux server", || path.exists().then_some(()));
        let terminal = Terminal { lab, socket, _server: server };
        terminal.tmux(&["set-option", "-g", "status", "off"])?;
        let [columns, rows] = [columns, rows].map(|number| number.to_string());
        terminal.tmux(&["new-session", "-d", "-x", &columns, "-y", &rows, "sh"])?;
        Ok(terminal)
    }

    fn tmux(&self, args: &[&str]) -> Result<String> {
        self.lab.run("lb", "tmux", &[&["-S", &self.socket, "-f", "/dev/null"], args].concat())
    }

    /// Types text.
    pub fn type_text(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", text]).map(drop)
    }

    /// Presses a key, by tmux's name for it.
    pub fn press(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", key]).map(drop)
    }

    /// Has the shell run a command.
    pub fn run(&self, command: &str) -> Result<()> {
        self.type_text(command)?;
        self.press("Enter")
    }

    /// What is on the screen.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with the sequences that make colours and the like.
    pub fn screen_with_styles(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// Looks until the screen shows what is waited for; what was found in it.
    pub fn until<T>(&self, what: &str, look: impl Fn(&str) -> Option<T>) -> T {
        let mut last = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(what, || {
                last = self.screen().ok()?;
                look(&last)
            })
        }));
        found.unwrap_or_else(|panic| {
            println!("--- the screen\n{last}");
            std::panic::resume_unwind(panic)
        })
    }

    /// Waits until the screen has a text.
    pub fn shows(&self, text: &str) {
        self.until(&format!("{text:?} on the screen"), |screen| screen.contains(text).then_some(()));
    }

    /// Another size.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let [columns, rows] = [columns, rows].map(|number| number.to_string());
        self.tmux(&["resize-window", "-x", &columns, "-y", &rows]).map(drop)
    }

    /// Whether the program in it has the screen that is gone when it ends.
    pub fn is_alternate(&self) -> Result<bool> {
        Ok(self.tmux(&["display-message", "-p", "#{alternate_on}"])?.trim() == "1")
    }

    /// The process that the shell runs now.
    pub fn foreground(&self) -> Result<Pid> {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"])?;
        let shell = shell.trim();
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))?;
        let child = children.split_whitespace().next().context("the shell runs nothing")?;
        Ok(Pid::from_raw(child.parse()?))
    }
}
