//! Other network namespaces: where a name for one is, and running code inside it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::libc::RTM_NEWNSID;
use nix::sched::{CloneFlags, setns};

use super::Netlink;
use super::attributes::{attributes_after, i32_value};

/// Where `ip netns` and Docker keep names of namespaces; the others are found by their processes.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// Attribute type of linux/net_namespace.h.
const NETNSA_NSID: u16 = 1;
/// `struct rtgenmsg`, padded.
const HEADER_LEN: usize = 4;

/// A network namespace that can be named and, with CAP_SYS_ADMIN, be entered.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: File,
}

impl Namespace {
    /// What `nsenter --net=` takes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs code in a thread of its own inside the namespace. `None` where it may not be entered.
    pub fn run<T: Send>(&self, code: impl FnOnce() -> T + Send) -> Option<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| setns(&self.file, CloneFlags::CLONE_NEWNET).is_ok().then(code));
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Netlink {
    /// A name for the namespace that this one calls `id`: a named one if there is, else that of a process in it. `None` if
    /// none is to be found, as without the right to look at other users' processes.
    ///
    /// # Errors
    /// When the kernel does not answer, or its answer cannot be read.
    pub fn namespace(&mut self, id: i32) -> Result<Option<Namespace>> {
        let mut seen = HashSet::new();
        for path in candidates() {
            // Processes end, and names are left behind whose namespaces never were mounted.
            let Ok(file) = File::open(&path) else { continue };
            let Ok(found) = file.metadata() else { continue };
            if seen.insert((found.dev(), found.ino())) && self.id_of(&file)? == Some(id) {
                return Ok(Some(Namespace { path, file }));
            }
        }
        Ok(None)
    }

    /// What this namespace calls another one. `None` if it has no name for it, or the file is not of a namespace.
    fn id_of(&mut self, namespace: &File) -> Result<Option<i32>> {
        let mut message = NsidMessage::default();
        let descriptor = u32::try_from(namespace.as_raw_fd()).context("a file's descriptor")?;
        message.attributes.push(NsidAttribute::Fd(descriptor));
        let answer = self
            .get(RouteNetlinkMessage::GetNsId(message), RTM_NEWNSID, parse)
            .context("looking up the id of a network namespace")?;
        // -1: none.
        Ok(answer.ok().filter(|id| *id >= 0))
    }
}

/// The id in the payload of an `RTM_NEWNSID`.
fn parse(payload: &[u8]) -> Result<Option<i32>> {
    for attribute in attributes_after(HEADER_LEN, payload) {
        if let (NETNSA_NSID, value) = attribute? {
            return Ok(Some(i32_value(value).context("the id of a network namespace")?));
        }
    }
    Ok(None)
}

/// Files that may be of namespaces, those with the best names first.
/// Those with a name first; processes are listed only if it comes to that.
fn candidates() -> impl Iterator<Item = PathBuf> {
    fn entries(dir: &str) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        paths.sort();
        paths
    }
    fn is_process(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    }
    let processes = std::iter::once_with(|| entries("/proc")).flatten().filter(|path| is_process(path));
    NAMED.into_iter().flat_map(entries).chain(processes.map(|path| path.join("ns/net")))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Host, PAIR, in_namespace, index, ip};
    use super::*;

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_namespaces_are_found_and_entered() -> Result<()> {
        in_namespace(|| {
            let mut netlink = Netlink::open()?;
            ip(PAIR)?;
            let far = index(&mut netlink, "far")?;
            let host = Host::start()?;
            ip(&format!("link set far netns {}", host.thread_id))?;
            let peer = netlink.link("near")?.and_then(|near| near.peer).context("no peer")?;
            let netns = peer.netns.context("the peer is elsewhere")?;
            // A thread's namespace is not in /proc/PID/ns: only a process' own is.
            let mut process = host.process()?;
            let namespace = netlink.namespace(netns)?.context("a process is in it")?;
            assert_eq!(namespace.path(), Path::new(&format!("/proc/{}/ns/net", process.id())));
            let inside = namespace.run(|| Netlink::open()?.link("far")).context("root may enter")??;
            assert_eq!(inside.map(|link| link.index), Some(far));
            assert!(netlink.link("far")?.is_none(), "this thread stayed where it was");
            process.kill()?;
            process.wait()?;
            host.stop();
            assert!(netlink.namespace(4711)?.is_none());
            Ok(())
        })
    }
}
