//! What this instance changed on its host, so that it can be put back: by itself, by the instance that takes over after it
//! was killed, or by `xdp-lb detach`.

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::dataplane::Record;
use crate::net::{Link, read_sysctl, write_sysctl};

/// The beginning of the names of interfaces' sysctls.
const CONF: &str = "net.ipv4.conf.";

/// The changes, kept in a pinned map: each is written there **before** it is made, so that whatever a crash left changed
/// is known.
pub struct Ledger {
    record: Record,
    changes: Changes,
    was_elsewhere: bool,
    is_new: bool,
}

/// Its JSON is what a later version reads: fields are added, never renamed.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Changes {
    /// The network namespace (its inode) that the changes were made in.
    #[serde(default)]
    namespace: u64,
    #[serde(default)]
    sysctls: Vec<Sysctl>,
    #[serde(default)]
    vips: Vec<Vip>,
    /// Where a bpffs was mounted.
    #[serde(default)]
    mounted: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sysctl {
    name: String,
    before: String,
    value: String,
    /// The interface's index, for its name may change; 0: it is of none, or not known.
    #[serde(default)]
    ifindex: u32,
    /// What the switch of the whole host was, which sets those of all interfaces.
    #[serde(default)]
    of_all: Option<String>,
    /// How it came here; of no interest to others.
    #[serde(skip)]
    origin: Origin,
}

/// An address that was added to an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// The interface's name.
    pub interface: String,
    /// Its index, for the name may change; 0: not known.
    #[serde(default)]
    ifindex: u32,
    /// The address.
    pub address: Ipv4Addr,
    #[serde(skip)]
    origin: Origin,
}

/// Whose change it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Origin {
    /// An earlier instance's, and this one has not asked for it (yet).
    #[default]
    Inherited,
    /// An earlier instance's, that this one wants too.
    Kept,
    /// This instance's.
    Own,
}

impl Ledger {
    /// The ledger of a pin directory: of the instance that died there, or a new one. The directory's lock must be held.
    pub fn open(pin_dir: &Path) -> Result<Ledger> {
        let namespace = namespace()?;
        let Some(record) = Record::open(pin_dir)? else {
            return Ok(Ledger {
                record: Record::make(pin_dir)?,
                changes: Changes { namespace, ..Changes::default() },
                was_elsewhere: false,
                is_new: true,
            });
        };
        let bytes = record.read()?;
        let mut changes: Changes = match bytes.is_empty() {
            true => Changes { namespace, ..Changes::default() },
            false => serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "the record of what was changed on this host, in {}, cannot be read: put back by hand what it names, \
                     then remove it (xdp-lb detach IFACE --pin-dir {}, with an interface that it was on): {}",
                    pin_dir.display(),
                    pin_dir.display(),
                    String::from_utf8_lossy(&bytes)
                )
            })?,
        };
        let was_elsewhere = changes.namespace != namespace;
        if was_elsewhere {
            // That of an instance in a container that is gone, most likely: nothing of it is left to put back.
            changes.sysctls.clear();
            changes.vips.clear();
            changes.namespace = namespace;
        }
        Ok(Ledger { record, changes, was_elsewhere, is_new: false })
    }

    /// Whether nobody had left a record.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether the instance before was in another network namespace. What it changed there cannot be put back from here, and
    /// is forgotten with the next change.
    pub fn was_elsewhere(&self) -> bool {
        self.was_elsewhere
    }

    /// Gives a sysctl a value and says why. One that has the value already is left alone, and so will stay.
    ///
    /// Fails where there is no such sysctl, or it cannot be written: how bad that is, the caller knows.
    pub fn set_sysctl(&mut self, name: &str, value: &str, why: &str) -> Result<()> {
        let now = read_sysctl(name)?;
        let at = self.changes.sysctls.iter().position(|known| known.name == name);
        if now == value {
            if let Some(known) = at.map(|at| &mut self.changes.sysctls[at]) {
                known.origin = known.origin.kept();
            }
            return Ok(());
        }
        let entries = self.changes.sysctls.clone();
        match at.map(|at| &mut self.changes.sysctls[at]) {
            Some(known) => {
                // Not what was left there: somebody has changed it since.
                if known.value != now {
                    known.before = now.clone();
                    known.of_all = switch_of_all(name);
                }
                known.value = value.to_owned();
                known.origin = known.origin.kept();
            }
            None => self.changes.sysctls.push(Sysctl {
                name: name.to_owned(),
                before: now.clone(),
                value: value.to_owned(),
                ifindex: interface_of(name).map_or(0, |(interface, _)| index_of(&interface)),
                of_all: switch_of_all(name),
                origin: Origin::Own,
            }),
        }
        if let Err(error) = self.save().and_then(|()| write_sysctl(name, value)) {
            self.changes.sysctls = entries;
            self.save()?;
            return Err(error);
        }
        tracing::info!("set {name} = {value} (was {now}): {why}; it is put back at the end");
        Ok(())
    }

    /// Sets again what somebody changed meanwhile; theirs is then what is put back. Call it every second or so.
    pub fn keep(&mut self) {
        for at in 0..self.changes.sysctls.len() {
            let entry = &self.changes.sysctls[at];
            let (name, value) = (entry.name.clone(), entry.value.clone());
            // Gone with its interface, most likely.
            let Ok(now) = read_sysctl(&name) else { continue };
            if now == value {
                continue;
            }
            self.changes.sysctls[at].before.clone_from(&now);
            self.changes.sysctls[at].of_all = switch_of_all(&name);
            match self.save().and_then(|()| write_sysctl(&name, &value)) {
                Ok(()) => tracing::warn!("somebody set {name} = {now}: set to {value} again"),
                Err(error) => {
                    tracing::warn!("somebody set {name} = {now}, and it stays so: {error:#}");
                    self.changes.sysctls[at].value = now;
                }
            }
        }
    }

    /// Brings the names of interfaces in step with those they have now: what was changed is found under the new one.
    pub fn follow_names<'a>(&mut self, links: impl Iterator<Item = &'a Link> + Clone) -> Result<()> {
        // By index first; one that is new under an old name has another index.
        let now = |ifindex: u32, name: &str| {
            let by_index = links.clone().find(|link| link.index == ifindex);
            by_index.or_else(|| links.clone().find(|link| link.name == name))
        };
        let mut changed = false;
        for entry in &mut self.changes.sysctls {
            let Some((interface, key)) = interface_of(&entry.name) else { continue };
            if let Some(link) = now(entry.ifindex, &interface) {
                changed |= (link.index, &link.name) != (entry.ifindex, &interface);
                entry.name = format!("{CONF}{}.{key}", link.name.replace('.', "/"));
                entry.ifindex = link.index;
            }
        }
        for vip in &mut self.changes.vips {
            if let Some(link) = now(vip.ifindex, &vip.interface) {
                changed |= (link.index, &link.name) != (vip.ifindex, &vip.interface);
                (vip.ifindex, vip.interface) = (link.index, link.name.clone());
            }
        }
        if changed { self.save() } else { Ok(()) }
    }

    /// Notes that an address is about to be added to an interface. Ok(false): it was noted already, by this instance or by
    /// the one that this one took over from.
    pub fn add_vip(&mut self, interface: &str, address: Ipv4Addr) -> Result<bool> {
        if let Some(known) = self.vip(interface, address) {
            known.origin = known.origin.kept();
            return Ok(false);
        }
        self.changes.vips.push(Vip {
            interface: interface.to_owned(),
            ifindex: index_of(interface),
            address,
            origin: Origin::Own,
        });
        if let Err(error) = self.save() {
            self.changes.vips.pop();
            return Err(error);
        }
        Ok(true)
    }

    fn vip(&mut self, interface: &str, address: Ipv4Addr) -> Option<&mut Vip> {
        self.changes.vips.iter_mut().find(|vip| vip.interface == interface && vip.address == address)
    }

    /// Notes that an address is not there any more, or was not added after all.
    pub fn drop_vip(&mut self, interface: &str, address: Ipv4Addr) -> Result<()> {
        self.changes.vips.retain(|vip| vip.interface != interface || vip.address != address);
        self.save()
    }

    /// Every address that was added.
    pub fn vips(&self) -> Vec<Vip> {
        self.changes.vips.clone()
    }

    /// Those that an earlier instance added and this one did not ask for.
    pub fn inherited_vips(&self) -> Vec<Vip> {
        self.changes.vips.iter().filter(|vip| vip.origin == Origin::Inherited).cloned().collect()
    }

    /// Notes that a bpffs was mounted.
    pub fn add_mount(&mut self, at: &Path) -> Result<()> {
        self.changes.mounted = Some(at.to_owned());
        self.save()
    }

    /// Where a bpffs was mounted.
    pub fn mounted(&self) -> Option<&Path> {
        self.changes.mounted.as_deref()
    }

    /// Puts back what an earlier instance set and this one did not ask for. To be called when everything is set.
    pub fn restore_inherited(&mut self) {
        self.restore_where(|entry| entry.origin == Origin::Inherited);
    }

    /// Puts back a sysctl that is not needed any more.
    pub fn put_back(&mut self, name: &str) {
        self.restore_where(|entry| entry.name == name);
    }

    /// Puts back what this instance set, for a start that failed: an earlier one's may still be needed.
    pub fn restore_own(&mut self) {
        self.restore_where(|entry| entry.origin == Origin::Own);
    }

    /// Puts every sysctl back. What somebody else changed last stays as it is.
    pub fn restore(&mut self) {
        self.restore_where(|_| true);
    }

    fn restore_where(&mut self, is: impl Fn(&Sysctl) -> bool) {
        // The last one first: some set others.
        for mut entry in self.changes.sysctls.clone().into_iter().rev().filter(|entry| is(entry)) {
            let ours = read_sysctl(&entry.name).is_ok_and(|now| now == entry.value);
            // Somebody made this host a router, or stopped it from being one, since: that was meant for all interfaces.
            match (&entry.of_all, switch_of_all(&entry.name)) {
                (Some(then), Some(now)) if *then != now => entry.before = now,
                _ => {}
            }
            if let Err(error) = if ours { write_sysctl(&entry.name, &entry.before) } else { Ok(()) } {
                tracing::info!("could not put the sysctl {} back to {}: {error:#}", entry.name, entry.before);
            }
            self.changes.sysctls.retain(|other| other.name != entry.name);
        }
        if let Err(error) = self.save() {
            tracing::warn!("{error:#}");
        }
    }

    /// Pins the record once more, into a directory that lost its pins.
    pub fn pin(&mut self, pin_dir: &Path) -> Result<()> {
        self.record.pin(pin_dir)
    }

    fn save(&self) -> Result<()> {
        let bytes = serde_json::to_vec(&self.changes).context("could not write down what is changed")?;
        self.record.write(&bytes)
    }
}

impl Origin {
    fn kept(self) -> Origin {
        match self {
            Origin::Own => Origin::Own,
            Origin::Inherited | Origin::Kept => Origin::Kept,
        }
    }
}

/// The interface (without slashes for dots) and the key of a sysctl of one.
fn interface_of(sysctl: &str) -> Option<(String, String)> {
    let (interface, key) = sysctl.strip_prefix(CONF)?.rsplit_once('.')?;
    let is_one = !["all", "default"].contains(&interface);
    is_one.then(|| (interface.replace('/', "."), key.to_owned()))
}

fn index_of(interface: &str) -> u32 {
    nix::net::if_::if_nametoindex(interface).unwrap_or(0)
}

/// The value of the switch that sets those of all interfaces, if this sysctl is one of them.
fn switch_of_all(sysctl: &str) -> Option<String> {
    sysctl.ends_with(".forwarding").then(|| read_sysctl("net.ipv4.conf.all.forwarding").ok()).flatten()
}

/// The network namespace of this thread.
fn namespace() -> Result<u64> {
    const PATH: &str = "/proc/thread-self/ns/net";
    let found = std::fs::metadata(PATH).with_context(|| format!("could not look at {PATH}"))?;
    ensure!(found.ino() != 0, "{PATH} names no network namespace");
    Ok(found.ino())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::testing::in_own_bpffs;

    const NAME: &str = "net.ipv4.conf.lo.rp_filter";

    /// With a network, and a pin directory, of its own.
    fn in_namespace(name: &'static str, test: impl FnOnce(PathBuf) + Send + 'static) {
        in_own_bpffs(move |bpffs| {
            let pins = bpffs.join(name);
            std::fs::create_dir(&pins).unwrap();
            test(pins);
        });
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_the_first_value_is_put_back_whoever_set_last() {
        in_namespace("first", |pins| {
            write_sysctl(NAME, "0").unwrap();
            let mut first = Ledger::open(&pins).unwrap();
            first.set_sysctl(NAME, "1", "a test").unwrap();
            drop(first);
            // Killed: nothing was put back, and the next one finds its own value there.
            let mut second = Ledger::open(&pins).unwrap();
            second.set_sysctl(NAME, "1", "a test").unwrap();
            second.restore_inherited();
            assert_eq!(read_sysctl(NAME).unwrap(), "1", "it is wanted");
            second.restore();
            assert_eq!(read_sysctl(NAME).unwrap(), "0");
            drop(second);
            // What is put back is forgotten.
            write_sysctl(NAME, "1").unwrap();
            Ledger::open(&pins).unwrap().restore();
            assert_eq!(read_sysctl(NAME).unwrap(), "1");
        });
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_what_somebody_else_sets_is_what_is_put_back() {
        in_namespace("theirs", |pins| {
            write_sysctl(NAME, "0").unwrap();
            let mut ledger = Ledger::open(&pins).unwrap();
            ledger.set_sysctl(NAME, "1", "a test").unwrap();
            ledger.keep();
            write_sysctl(NAME, "2").unwrap();
            ledger.keep();
            assert_eq!(read_sysctl(NAME).unwrap(), "1");
            ledger.restore();
            assert_eq!(read_sysctl(NAME).unwrap(), "2");
            // Without a look in between: theirs stays.
            ledger.set_sysctl(NAME, "1", "a test").unwrap();
            write_sysctl(NAME, "0").unwrap();
            ledger.restore();
            assert_eq!(read_sysctl(NAME).unwrap(), "0");
        });
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_a_value_that_is_there_is_nobodys_change() {
        in_namespace("there", |pins| {
            write_sysctl(NAME, "1").unwrap();
            let mut ledger = Ledger::open(&pins).unwrap();
            ledger.set_sysctl(NAME, "1", "a test").unwrap();
            assert!(ledger.changes.sysctls.is_empty());
            let missing = ledger.set_sysctl("net.ipv4.conf.no-such-if.forwarding", "1", "a test");
            assert!(missing.unwrap_err().to_string().contains("no-such-if"));
            assert!(ledger.set_sysctl(NAME, "nonsense", "a test").is_err());
            assert!(ledger.changes.sysctls.is_empty(), "what failed is not recorded");
        });
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_what_the_next_does_not_want_is_put_back_at_once() {
        in_namespace("unwanted", |pins| {
            write_sysctl(NAME, "0").unwrap();
            let other = "net.ipv4.conf.lo.accept_local";
            let mut first = Ledger::open(&pins).unwrap();
            first.set_sysctl(NAME, "1", "a test").unwrap();
            first.add_vip("lo", Ipv4Addr::new(10, 0, 0, 9)).unwrap();
            drop(first);
            let mut second = Ledger::open(&pins).unwrap();
            second.set_sysctl(other, "1", "a test").unwrap();
            assert_eq!(second.inherited_vips().len(), 1);
            second.restore_inherited();
            assert_eq!(read_sysctl(NAME).unwrap(), "0");
            assert_eq!(read_sysctl(other).unwrap(), "1");
        });
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_another_namespaces_changes_are_not_this_ones() {
        in_namespace("namespace", |pins| {
            write_sysctl(NAME, "0").unwrap();
            let mut first = Ledger::open(&pins).unwrap();
            first.set_sysctl(NAME, "1", "a test").unwrap();
            first.add_mount(Path::new("/somewhere")).unwrap();
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            write_sysctl(NAME, "1").unwrap();
            let mut second = Ledger::open(&pins).unwrap();
            second.restore();
            assert_eq!(read_sysctl(NAME).unwrap(), "1");
            assert_eq!(second.mounted(), Some(Path::new("/somewhere")));
        });
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_a_full_record_keeps_what_it_has() {
        in_namespace("full", |pins| {
            let mut ledger = Ledger::open(&pins).unwrap();
            let mut address = 0x0a00_0000;
            let error = loop {
                address += 1;
                if let Err(error) = ledger.add_vip("lo", Ipv4Addr::from(address)) {
                    break error;
                }
            };
            assert!(error.to_string().contains("is full"), "{error:#}");
            assert!(Ledger::open(&pins).unwrap().vips().len() > 100);
        });
    }
}
