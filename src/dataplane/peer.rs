#![allow(unsafe_code)] // libbpf-rs attaches by links only, which end with their process

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result, bail};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};

use super::attach::{program_name, program_on};
use super::skeleton::peer::XdpPeerSkelBuilder;

/// The name of the program that passes everything.
pub const PEER: &str = "xdp_peer";

/// Attaches the program that passes everything to an interface, where it stays until [`detach_peer`] or the interface's
/// end. Native mode only: it is for the far ends of veths. Ok(false): it was there already.
pub fn attach_peer(ifindex: u32, interface: &str) -> Result<bool> {
    if let Some(id) = program_on(ifindex) {
        if program_name(id).as_deref() == Some(PEER) {
            return Ok(false);
        }
        bail!("{interface} already has another XDP program (id {id}): any program there lets frames arrive");
    }
    let mut object = MaybeUninit::uninit();
    let mut skeleton =
        XdpPeerSkelBuilder::default().open(&mut object).context("could not read the program")?;
    skeleton.progs.lb_clock.set_autoload(false);
    let loaded = skeleton.load().context("could not load the program xdp_peer into the kernel")?;
    let flags = libbpf_sys::XDP_FLAGS_DRV_MODE | libbpf_sys::XDP_FLAGS_UPDATE_IF_NOEXIST;
    xdp_attach(ifindex, loaded.progs.xdp_peer.as_fd().as_raw_fd(), flags)
        .with_context(|| format!("could not attach xdp_peer to {interface} in native mode"))?;
    Ok(true)
}

/// Detaches the program that [`attach_peer`] attached. Ok(false): there is none.
pub fn detach_peer(ifindex: u32, interface: &str) -> Result<bool> {
    let Some(id) = program_on(ifindex) else { return Ok(false) };
    if program_name(id).as_deref() != Some(PEER) {
        bail!("the XDP program on {interface} (id {id}) is not xdp_peer: it is left alone");
    }
    xdp_attach(ifindex, -1, libbpf_sys::XDP_FLAGS_DRV_MODE)
        .with_context(|| format!("could not detach xdp_peer from {interface}"))?;
    Ok(true)
}

fn xdp_attach(ifindex: u32, program: i32, flags: u32) -> Result<(), io::Error> {
    // SAFETY: no options are passed; the descriptor is live, or -1 to detach.
    match unsafe { libbpf_sys::bpf_xdp_attach(ifindex as i32, program, flags, std::ptr::null()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
