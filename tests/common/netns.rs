//! Network namespaces of one test, invisible outside of it and gone with it, whatever becomes of the test.

use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, chdir, chroot};

use super::{PATIENCE, eventually};

const NO_TYPE: Option<&str> = None;
/// A user's PATH lacks the sbin directories, where half of the tools are.
const SBIN: &str = "/usr/local/sbin:/usr/sbin:/sbin";
/// In the /run of the test.
const DIR: &str = "/run/lab";
/// How much of a log is shown when a test fails.
const LOG_TAIL: usize = 6000;

/// The namespaces of one test.
pub struct Lab {
    dir: PathBuf,
}

/// Runs a test in a thread that has mounts and a network of its own: named namespaces, pins and files in /run are seen
/// by nobody else, and the kernel takes them away when the thread and its children are gone.
pub fn in_lab(test: impl FnOnce(&Lab) -> Result<()> + Send + 'static) -> Result<()> {
    let name = thread::current().name().unwrap_or("test").to_owned();
    let thread = thread::Builder::new().name(name).spawn(move || {
        let lab = Lab::new()?;
        // An error and a panic alike: what the processes said is what one wants to read.
        let outcome = catch_unwind(AssertUnwindSafe(|| test(&lab)));
        if !matches!(outcome, Ok(Ok(()))) {
            lab.show_logs();
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    })?;
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Whatever is mounted from here on is seen by this thread and its children only.
fn own_mounts() -> Result<()> {
    let private = |at| mount(NO_TYPE, at, NO_TYPE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NO_TYPE);
    match private("/") {
        // In a plain chroot / is no mount point, which ip(8) cannot do without either: a bind mount of it is one.
        Err(Errno::EINVAL) => {
            let here = env::current_dir()?;
            mount(Some("/"), "/mnt", NO_TYPE, MsFlags::MS_REC | MsFlags::MS_BIND, NO_TYPE)?;
            private("/mnt")?;
            chroot("/mnt")?;
            Ok(chdir(&here)?)
        }
        done => Ok(done?),
    }
}

impl Lab {
    fn new() -> Result<Lab> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
            .context("making namespaces (in a container? it must be privileged)")?;
        own_mounts().context("taking the mounts out of everybody else's sight")?;
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), NO_TYPE)
            .context("mounting a bpffs at /sys/fs/bpf")?;
        fs::create_dir("/run/netns")?;
        fs::create_dir(DIR)?;
        Ok(Lab { dir: DIR.into() })
    }

    /// A directory of the test's own.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes namespaces with their loopback interface up.
    pub fn add(&self, names: &[&str]) -> Result<()> {
        let lines: Vec<String> = names.iter().map(|name| format!("netns add {name}")).collect();
        self.ip("", &lines.join("\n"))?;
        names.iter().try_for_each(|name| self.ip(name, "link set lo up"))
    }

    /// Runs lines of `ip` commands in a namespace; "" is the test's own.
    pub fn ip(&self, namespace: &str, lines: &str) -> Result<()> {
        let mut command = command("ip")?;
        if !namespace.is_empty() {
            command.args(["-n", namespace]);
        }
        let mut child = command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let text: String = lines.lines().map(|line| format!("{}\n", line.trim())).collect();
        child.stdin.take().context("ip has no stdin")?.write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "ip, in namespace {namespace:?}:\n{lines}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// What `ip` shows in a namespace.
    pub fn ip_show(&self, namespace: &str, words: &str) -> Result<String> {
        let output = command("ip")?.args(["-n", namespace]).args(words.split_whitespace()).output()?;
        text_of(output, words)
    }

    /// A command in a namespace, killed when this thread is gone. Not by `ip netns exec`, which hides /sys/fs/bpf.
    pub fn command(&self, namespace: &str, program: &str) -> Result<Command> {
        let program = find(program)?;
        let mut command = command("setpriv")?;
        command.args(["--pdeathsig", "KILL", "--"]).arg(find("nsenter")?);
        command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command to its end, which must be a good one; what it printed.
    pub fn run(&self, namespace: &str, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(namespace, program)?.args(args).output()?;
        text_of(output, &format!("{program} {}", args.join(" ")))
    }

    /// Starts a command in the background, its output in files that are shown if the test fails.
    pub fn start(&self, namespace: &str, program: &str, args: &[&str]) -> Result<Process> {
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        let (stdout, stderr) = (1..)
            .map(|n| self.dir.join(format!("{namespace}-{name}-{n}")))
            .map(|path| (path.with_extension("out"), path.with_extension("err")))
            .find(|(stdout, _)| !stdout.exists())
            .context("no name for a log")?;
        let child = self
            .command(namespace, program)?
            .args(args)
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        Ok(Process { child, stdout, stderr })
    }

    /// Runs code in a namespace: a socket made there belongs to it for good.
    pub fn within<T: Send>(&self, namespace: &str, code: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = File::open(format!("/run/netns/{namespace}"))
            .with_context(|| format!("opening namespace {namespace}"))?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || -> Result<T> {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(code())
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// A sysctl of a namespace, with / between its parts.
    pub fn sysctl(&self, namespace: &str, name: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(name);
        let text = self.within(namespace, || fs::read_to_string(&path))?;
        Ok(text.with_context(|| path.display().to_string())?.trim().to_owned())
    }

    /// Sets it.
    pub fn set_sysctl(&self, namespace: &str, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name);
        self.within(namespace, || fs::write(&path, value))?.with_context(|| path.display().to_string())
    }

    /// Waits until something is bound to a port (for TCP: listens), without being noticed by it.
    pub fn wait_for_port(&self, namespace: &str, protocol: &str, port: u16) -> Result<()> {
        let state = if protocol == "tcp" { "0A" } else { "07" };
        let bound = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            // Number, local address, remote address, state.
            matches!(words[..], [_, local, _, now, ..] if now == state && local.ends_with(&format!(":{port:04X}")))
        };
        eventually(&format!("port {port}/{protocol} in {namespace}"), || {
            let tables = self.within(namespace, || {
                let read = |version| fs::read_to_string(format!("/proc/thread-self/net/{protocol}{version}"));
                // A kernel without IPv6 has no second table.
                read("").unwrap_or_default() + &read("6").unwrap_or_default()
            });
            tables.is_ok_and(|tables| tables.lines().any(bound)).then_some(())
        });
        Ok(())
    }

    fn show_logs(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if !path.extension().is_some_and(|kind| kind == "out" || kind == "err" || kind == "log") {
                continue;
            }
            let text = read(&path);
            let tail = text.char_indices().rev().nth(LOG_TAIL).map_or(0, |(at, _)| at);
            if !text.is_empty() {
                println!("--- {}\n{}", path.display(), &text[tail..]);
            }
        }
    }
}

/// A command in the background.
pub struct Process {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// The same of its stderr.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), signal).with_context(|| format!("sending {signal}"))
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        Ok(super::within(PATIENCE, "the end of a process", || child.try_wait().transpose())?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a tool is. A test that cannot run is a test that fails.
pub fn find(tool: &str) -> Result<PathBuf> {
    if tool.contains('/') {
        return Ok(tool.into());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let found =
        path.split(':').chain(SBIN.split(':')).map(|dir| Path::new(dir).join(tool)).find(|at| at.is_file());
    let package = match tool {
        "dig" => "bind9-dnsutils",
        "dnsmasq" => "dnsmasq-base",
        "ip" | "ss" => "iproute2",
        "nft" => "nftables",
        "nsenter" | "setpriv" | "unshare" => "util-linux",
        "nstat" => "iproute2",
        "promtool" => "prometheus",
        other => other,
    };
    found.with_context(|| format!("{tool} is missing: install the package {package} (make deps)"))
}

fn command(tool: &str) -> Result<Command> {
    let mut command = Command::new(find(tool)?);
    command.env("PATH", format!("{}:{SBIN}", std::env::var("PATH").unwrap_or_default()));
    command.env("LC_ALL", "C");
    Ok(command)
}

/// The stdout of a command that must have ended well.
fn text_of(output: Output, what: &str) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{what}: {}\n{stdout}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(stdout)
}

fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    // A log that is not there has nothing to say.
    let _ = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}
