use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::ledger::Ledger;
use super::take_down;
use crate::dataplane::{Busy, PEER, PROGRAM, PinDir, detach_peer, pin_dir_of, program_name, program_on};
use crate::net::Netlink;

/// Removes everything of the dead instance that serves an interface: its program from all interfaces, its pins, the
/// addresses it assigned, and what else it changed on this host; and the program of `veth-peer` from this interface.
///
/// An interface that nothing of ours is on is what was asked for, and no error. One that does not exist may have been deleted
/// since; where nothing of the instance's was, it is a slip of the pen, and must not end what still works. `say` is told what
/// was removed.
pub fn detach(interface: &str, pin_dir: &Path, say: &dyn Fn(&str)) -> Result<()> {
    let ifindex = Netlink::open()?.link(interface)?.map(|link| link.index);
    let pins = match PinDir::open(pin_dir) {
        Ok(pins) => pins,
        Err(error) => match error.downcast::<Busy>() {
            Ok(_) if ifindex.is_some_and(|ifindex| !is_of(ifindex, pin_dir)) => None,
            Ok(busy) => bail!(
                "the instance with the pins in {} is still running{}: stop it (SIGTERM), it takes everything back itself",
                pin_dir.display(),
                busy.process.map_or(String::new(), |process| format!(" (process {process})"))
            ),
            Err(error) => return Err(error),
        },
    };
    let known = ifindex.is_some() || pins.is_some();
    let mut removed = false;
    if let Some(pins) = pins {
        let interfaces = pins.interfaces()?;
        if ifindex.is_none() && !interfaces.is_empty() && !pins.has_lost_interfaces()? {
            bail!(unknown(interface, &interfaces, pin_dir)?);
        }
        if interfaces.is_empty() || ifindex.is_none_or(|ifindex| interfaces.contains(&ifindex)) {
            clean_up(pins)?;
            say(&format!("removed what an instance had left in {}\n", pin_dir.display()));
            removed = true;
        }
    }
    ensure!(known, "there is no interface {interface}, and there are no pins in {}", pin_dir.display());
    if let Some(ifindex) = ifindex {
        removed |= clear(interface, ifindex, say)?;
    }
    if !removed {
        say(&format!("nothing of xdp-lb is on {interface}\n"));
    }
    Ok(())
}

/// What is wrong with the name of an interface that does not exist, and that the instance did not lose either.
fn unknown(interface: &str, live: &[u32], pin_dir: &Path) -> Result<String> {
    let links = Netlink::open()?.links()?;
    let names: Vec<&str> =
        links.iter().filter(|link| live.contains(&link.index)).map(|link| link.name.as_str()).collect();
    let dir = pin_dir.display();
    Ok(match names.is_empty() {
        false => format!(
            "there is no interface {interface}; the instance with the pins in {dir} is on {}: name one of these",
            names.join(", ")
        ),
        true => format!(
            "there is no interface {interface} here; the instance with the pins in {dir} is in another network namespace: \
             run this there (ip netns exec NAME, nsenter --net=PATH)"
        ),
    })
}

/// Whether the program on an interface may be that of the instance with these pins.
fn is_of(ifindex: u32, pin_dir: &Path) -> bool {
    let name = program_on(ifindex).and_then(program_name);
    name.as_deref() == Some(PROGRAM) && pin_dir_of(ifindex).is_none_or(|dir| dir == pin_dir)
}

fn clean_up(pins: PinDir) -> Result<()> {
    let mut ledger = match Ledger::open(pins.path()) {
        Ok(ledger) => ledger,
        Err(error) => {
            // The programs are to go all the same.
            pins.detach()?;
            pins.remove(None)?;
            return Err(error);
        }
    };
    if ledger.was_elsewhere() {
        tracing::warn!(
            "the instance ran in another network namespace: addresses and sysctls that it set there stay"
        );
    }
    take_down(None, pins, &mut ledger).context("could not remove everything")
}

/// Detaches the program of `veth-peer`. Other programs of ours belong to another instance.
fn clear(interface: &str, ifindex: u32, say: &dyn Fn(&str)) -> Result<bool> {
    let Some(id) = program_on(ifindex) else { return Ok(false) };
    match program_name(id).as_deref() {
        Some(PEER) => {
            detach_peer(ifindex, interface)?;
            say(&format!("detached {PEER} from {interface}\n"));
            Ok(true)
        }
        Some(PROGRAM) => match pin_dir_of(ifindex) {
            Some(dir) => {
                bail!("the program on {interface} is that of another instance: --pin-dir {}", dir.display())
            }
            None => bail!(
                "the program on {interface} (id {id}) is that of another instance, whose pins are not to be found here: \
                 stop its process"
            ),
        },
        name => {
            tracing::info!(
                "the XDP program on {interface} ({}, id {id}) is not ours, and stays",
                name.unwrap_or("no name")
            );
            Ok(false)
        }
    }
}
