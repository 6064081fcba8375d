#![allow(unsafe_code)] // libbpf-rs cannot make a link with a chosen mode

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use libbpf_rs::Link;
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use nix::errno::Errno;

use super::load::Program;
use super::pin::LINK_PREFIX;
use super::skeleton::peer::XdpPeerSkelBuilder;

/// Where in the kernel a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel makes a socket buffer.
    Native,
    /// After it made one: any driver, slower.
    Skb,
}

impl Mode {
    fn flags(self) -> u32 {
        match self {
            Mode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
            Mode::Skb => libbpf_sys::XDP_FLAGS_SKB_MODE,
        }
    }
}

/// A program on an interface. Detached when the last of this and its pin goes.
pub struct Attachment {
    link: OwnedFd,
    ifindex: u32,
    /// How it runs.
    pub mode: Mode,
}

impl Attachment {
    /// Attaches a program to an interface by a link, which belongs to nobody else's program.
    ///
    /// `EOPNOTSUPP` and `EBUSY` stay recognisable as [`io::Error`].
    pub fn new(program: &Program, ifindex: u32, mode: Mode) -> Result<Attachment, io::Error> {
        let link = create_link(program.fd(), ifindex, mode)?;
        Ok(Attachment { link, ifindex, mode })
    }

    /// Removes the pin again; the program stays attached while this lives. A pin that is gone is as good.
    pub fn unpin(&self, pin_dir: &Path) {
        let _ = std::fs::remove_file(pin_dir.join(format!("{LINK_PREFIX}{}", self.ifindex)));
    }

    /// Keeps the program attached beyond this process' death.
    pub fn pin(&self, pin_dir: &Path) -> Result<()> {
        pin(self.link.as_fd(), &pin_dir.join(format!("{LINK_PREFIX}{}", self.ifindex)))
    }
}

/// Pins a descriptor of a program or a link.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let c_path = CString::new(path.as_os_str().as_bytes()).context("the path has a NUL byte")?;
    // SAFETY: a live descriptor and a C string that outlives the call.
    match unsafe { libbpf_sys::bpf_obj_pin(object.as_raw_fd(), c_path.as_ptr()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error))
            .with_context(|| format!("could not pin {}", path.display())),
    }
}

/// Detaches the link pinned at a path at once; the removal of the pin alone would leave that to a worker of the kernel.
pub(super) fn detach_pinned_link(path: &Path) -> Result<()> {
    let link =
        Link::open(path).with_context(|| format!("could not open the pinned link {}", path.display()))?;
    match link.detach() {
        Ok(()) => Ok(()),
        // Its interface is gone, and the link with it.
        Err(error) if io::Error::from(error_kind(&error)).kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            Err(anyhow!(error)).with_context(|| format!("could not detach the link {}", path.display()))
        }
    }
}

fn error_kind(error: &libbpf_rs::Error) -> io::ErrorKind {
    match error.kind() {
        libbpf_rs::ErrorKind::NotFound => io::ErrorKind::NotFound,
        _ => io::ErrorKind::Other,
    }
}

fn create_link(program: BorrowedFd<'_>, ifindex: u32, mode: Mode) -> Result<OwnedFd, io::Error> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        flags: mode.flags(),
        ..Default::default()
    };
    // SAFETY: a live descriptor, and options that outlive the call.
    let link = unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            ifindex as i32,
            libbpf_sys::BPF_XDP,
            &raw const options,
        )
    };
    if link < 0 {
        return Err(io::Error::from_raw_os_error(-link));
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// The id of the program that is on an interface, in any mode; `None` if there is none.
pub(super) fn program_on(ifindex: u32) -> Option<u32> {
    let mut id = 0;
    // SAFETY: `id` outlives the call.
    let result = unsafe { libbpf_sys::bpf_xdp_query_id(ifindex as i32, 0, &raw mut id) };
    (result == 0 && id != 0).then_some(id)
}

/// Attaches the program that passes everything to an interface, where it stays until [`detach_peer`] or the interface's
/// end. Native mode only: it is for the far ends of veths. Ok(false): it was there already.
pub fn attach_peer(ifindex: u32, interface: &str) -> Result<bool> {
    if let Some(id) = program_on(ifindex) {
        if program_name(id).as_deref() == Some("xdp_peer") {
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
    if program_name(id).as_deref() != Some("xdp_peer") {
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

/// The name of a loaded program, as the kernel has it.
pub fn program_name(id: u32) -> Option<String> {
    libbpf_rs::query::ProgInfoIter::default()
        .find(|program| program.id == id)
        .map(|program| program.name.to_string_lossy().into_owned())
}

/// Whether an attempt to attach failed because the driver does not do the mode: at all, or (a matter of taste among
/// drivers) with the interface's MTU, queues or offloads as they are.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    const REFUSALS: [Errno; 5] =
        [Errno::EOPNOTSUPP, Errno::ERANGE, Errno::EINVAL, Errno::E2BIG, Errno::ENOSPC];
    REFUSALS.iter().any(|refusal| error.raw_os_error() == Some(*refusal as i32))
}

/// Whether it failed because another program is there.
pub(super) fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(code) if code == Errno::EBUSY as i32 || code == Errno::EEXIST as i32)
}
