//! Where the program is attached, and what is pinned of it.

use std::collections::BTreeSet;
use std::io;

use anyhow::{Context as _, Result, anyhow, bail};
use libbpf_rs::MapHandle;

use super::Plane;
use crate::dataplane::attach::{Attachment, Mode, is_taken, is_unsupported, pin, program_name, program_on};
use crate::dataplane::left::LeftLink;
use crate::dataplane::load::{PROGRAM, Profile, Program, load};
use crate::dataplane::pin::{LINK_PREFIX, PROGRAM_PREFIX, PinDir};

/// What became of [`Plane::commit`].
#[derive(Debug, Default)]
pub struct Committed {
    /// The interfaces that are not used any more, which are detached.
    pub unused: Vec<u32>,
    /// How many confirmed connections found no place in a smaller table.
    pub lost: u64,
    /// What could not be done although the configuration holds.
    pub troubles: Vec<String>,
}

impl Committed {
    /// The value, or the default one and a trouble more.
    fn note<T: Default>(&mut self, result: Result<T>) -> T {
        result.unwrap_or_else(|error| {
            self.troubles.push(format!("{error:#}"));
            T::default()
        })
    }
}

/// What became of an attempt to attach.
pub enum Attached {
    /// The program runs; on an interface that the instance before left it runs from [`Plane::commit`] on.
    Yes,
    /// The driver does not do this mode; the kernel's error.
    Unsupported(io::Error),
}

impl Plane {
    /// Attaches the program to an interface. One that the instance before left it on in the same mode gets the new program
    /// with [`Plane::commit`], without a packet in between that meets none; one in another mode is detached first.
    ///
    /// While running, call [`Plane::pin`] afterwards.
    pub fn attach(
        &mut self,
        ifindex: u32,
        interface: &str,
        mode: Mode,
        profile: Profile,
    ) -> Result<Attached> {
        self.program(profile)?;
        let Some(at) = self.left.iter().position(|link| link.attachment.ifindex == ifindex) else {
            return self.attach_new(ifindex, interface, mode, profile);
        };
        if self.left[at].attachment.mode == mode {
            self.left[at].wanted = Some(profile);
            return Ok(Attached::Yes);
        }
        let left = self.left.remove(at);
        left.attachment
            .detach()
            .with_context(|| format!("could not detach the program from {interface}, to change its mode"))?;
        let attached = self.attach_new(ifindex, interface, mode, profile);
        match attached {
            // It must not go if this start fails later on.
            Ok(Attached::Yes) => {
                let link = self.attachments.get(&ifindex).context("what was attached is gone")?;
                repin(link, &left)?;
            }
            Ok(Attached::Unsupported(_)) | Err(_) => {
                let back = put_back(&left).with_context(|| {
                    format!("could not attach the program to {interface} again as it was")
                })?;
                self.left.push(LeftLink { attachment: back, ..left });
            }
        }
        attached
    }

    fn attach_new(
        &mut self,
        ifindex: u32,
        interface: &str,
        mode: Mode,
        profile: Profile,
    ) -> Result<Attached> {
        match Attachment::new(self.program(profile)?.fd(), ifindex, mode) {
            Ok(attachment) => {
                self.attachments.insert(ifindex, attachment);
                Ok(Attached::Yes)
            }
            Err(error) if is_unsupported(&error) => Ok(Attached::Unsupported(error)),
            Err(error) if is_taken(&error) => match program_on(ifindex) {
                Some(id) => match program_name(id).as_deref() {
                    Some(PROGRAM) => bail!(
                        "{interface} already has another xdp-lb (program id {id}), with another --pin-dir: stop that one"
                    ),
                    name => bail!(
                        "{interface} already has another XDP program ({}, id {id}): stop what attached it (or, if it was \
                         attached without a link: ip link set dev {interface} xdp off)",
                        name.unwrap_or("no name")
                    ),
                },
                None => Err(anyhow!(error))
                    .with_context(|| format!("another program is being attached to {interface}")),
            },
            Err(error) => Err(anyhow!(error)).with_context(|| {
                let mode = if mode == Mode::Native { "native" } else { "SKB" };
                format!("could not attach the program to {interface} in {mode} mode")
            }),
        }
    }

    /// Takes the program off an interface, or what [`Plane::attach`] has planned for one that the instance before left it
    /// on. While running, call [`Plane::pin`] afterwards. `false`: it was not there.
    pub fn detach(&mut self, ifindex: u32) -> Result<bool> {
        if let Some(link) = self.left.iter_mut().find(|link| link.attachment.ifindex == ifindex) {
            return Ok(link.wanted.take().is_some());
        }
        let Some(attachment) = self.attachments.remove(&ifindex) else { return Ok(false) };
        attachment
            .detach()
            .with_context(|| format!("could not detach the program from interface {ifindex}"))?;
        Ok(true)
    }

    /// Takes the program off every interface, whether the pins are still there or not.
    pub fn detach_all(&mut self) -> Result<()> {
        let links = std::mem::take(&mut self.attachments).into_values();
        let left = std::mem::take(&mut self.left).into_iter().map(|link| link.attachment);
        let mut failed = None;
        for link in links.chain(left) {
            let detached = link.detach();
            failed = failed.or(detached.err().map(|error| {
                anyhow!(error)
                    .context(format!("could not detach the program from interface {}", link.ifindex))
            }));
        }
        failed.map_or(Ok(()), Err)
    }

    /// Forgets the interfaces that are gone, and returns them.
    pub fn forget_gone(&mut self) -> Vec<u32> {
        let gone: Vec<u32> = self
            .attachments
            .iter()
            .filter(|(_, link)| !link.is_live())
            .map(|(ifindex, _)| *ifindex)
            .collect();
        self.attachments.retain(|ifindex, _| !gone.contains(ifindex));
        gone
    }

    /// The interfaces that have the program, and how.
    pub fn attached(&self) -> Vec<(u32, Mode)> {
        let left = self.left.iter().filter(|link| link.wanted.is_some()).map(|link| &link.attachment);
        self.attachments.values().chain(left).map(|link| (link.ifindex, link.mode)).collect()
    }

    /// The mode in which the instance before left the program on an interface.
    pub fn left_mode(&self, ifindex: u32) -> Option<Mode> {
        self.left
            .iter()
            .map(|link| &link.attachment)
            .find(|link| link.ifindex == ifindex)
            .map(|link| link.mode)
    }

    /// The copy of the program for a profile, loaded on first use.
    pub fn program(&mut self, profile: Profile) -> Result<&Program> {
        let at = match self.programs.iter().position(|program| program.profile == profile) {
            Some(at) => at,
            None => {
                let (program, _) = load(profile, &self.settings, &self.capacity, &self.tables.shared()?)?;
                self.programs.push(program);
                self.programs.len() - 1
            }
        };
        Ok(&self.programs[at])
    }

    /// Makes the staged configuration the one that holds, swaps the programs that the instance before left for this one's,
    /// and pins everything. An error: nothing has changed. What fails once the configuration holds keeps nothing else.
    pub fn commit(&mut self, pins: &PinDir) -> Result<Committed> {
        // First: it waits for packets, and what they change meanwhile would have to be caught up with after the swap.
        self.publish()?;
        self.carry();
        let mut done = Committed::default();
        self.swap_programs(&mut done);
        done.lost = done.note(self.catch_up());
        done.note(self.catch_up_with_counts());
        // Connections that name a next hop which nobody keeps up to date ask for their way once more.
        done.note(self.nexthops.retire_orphans(&self.tables));
        // The table is whole now; a process that was killed may have changed an entry and not the count.
        done.note(self.recount_loads());
        done.note(self.tables.write_settings(&self.settings));
        done.note(self.pin(pins));
        for link in std::mem::take(&mut self.left) {
            let ifindex = link.attachment.ifindex;
            let detached = link.attachment.detach();
            done.unused.push(ifindex);
            done.note(
                detached.with_context(|| format!("could not detach the program from interface {ifindex}")),
            );
        }
        if done.troubles.is_empty() {
            done.note(pins.clear(|name| !self.pinned.contains(name)));
        }
        Ok(done)
    }

    /// Puts this instance's programs in the place of those that the one before left and that are still wanted.
    fn swap_programs(&mut self, done: &mut Committed) {
        for link in std::mem::take(&mut self.left) {
            let Some(profile) = link.wanted else {
                self.left.push(link);
                continue;
            };
            let ifindex = link.attachment.ifindex;
            let swapped = self.program(profile).and_then(|program| {
                match link.attachment.replace(program.fd()) {
                    Ok(()) => Ok(true),
                    // Its interface was deleted meanwhile: no reason to stop between two swaps.
                    Err(error) if is_gone(&error) => Ok(false),
                    Err(error) => Err(error)
                        .with_context(|| format!("could not swap the program of interface {ifindex}")),
                }
            });
            if done.note(swapped) {
                self.attachments.insert(ifindex, link.attachment);
            }
        }
    }

    /// Brings the pins in step with what is loaded and attached. What is pinned already is left alone.
    pub fn pin(&mut self, pins: &PinDir) -> Result<()> {
        let mut wanted = BTreeSet::new();
        for (name, handle) in self.tables.handles() {
            wanted.insert(name.to_owned());
            if !self.pinned.contains(name) {
                pins.replace(name, |path| {
                    let mut map = MapHandle::try_from(handle)
                        .with_context(|| format!("could not take hold of the table {name}"))?;
                    map.pin(path).with_context(|| format!("could not pin the table at {}", path.display()))
                })?;
            }
        }
        for program in &self.programs {
            let name = format!("{PROGRAM_PREFIX}{}", program.profile.name());
            if !self.pinned.contains(&name) {
                pins.replace(&name, |path| pin(program.fd(), path))?;
            }
            wanted.insert(name);
        }
        for (ifindex, link) in &self.attachments {
            let name = format!("{LINK_PREFIX}{ifindex}");
            if !self.pinned.contains(&name) {
                pins.replace(&name, |path| link.pin(path))?;
            }
            wanted.insert(name);
        }
        for name in self.pinned.difference(&wanted) {
            pins.unpin(name)?;
        }
        self.pinned = wanted;
        Ok(())
    }

    /// The pins are gone, as when somebody unmounted the bpffs: [`Plane::pin`] makes them anew.
    pub fn forget_pins(&mut self) {
        self.pinned.clear();
    }
}

/// Whether a link's program could not be changed because its interface is gone.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENOLINK)
}

/// Attaches the program of the instance before once more, in its mode.
fn put_back(left: &LeftLink) -> Result<Attachment> {
    use std::os::fd::AsFd as _;
    let Attachment { ifindex, mode, .. } = left.attachment;
    let link = Attachment::new(left.program.as_fd(), ifindex, mode)?;
    repin(&link, left)?;
    Ok(link)
}

/// Pins a link in the place of one that is detached.
fn repin(link: &Attachment, left: &LeftLink) -> Result<()> {
    std::fs::remove_file(&left.pin)
        .with_context(|| format!("could not remove the pin {}", left.pin.display()))?;
    link.pin(&left.pin)
}
