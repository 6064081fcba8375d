#![allow(unsafe_code)] // libbpf-rs cannot make a link with a chosen mode

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use libbpf_rs::query::{LinkInfo, LinkTypeInfo};
use nix::errno::Errno;

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
pub(super) struct Attachment {
    link: OwnedFd,
    /// The interface.
    pub ifindex: u32,
    /// How it runs.
    pub mode: Mode,
}

impl Attachment {
    /// Attaches a program to an interface by a link, which belongs to nobody else's program.
    ///
    /// `EOPNOTSUPP` and `EBUSY` stay recognisable as [`io::Error`].
    pub fn new(program: BorrowedFd<'_>, ifindex: u32, mode: Mode) -> Result<Attachment, io::Error> {
        let link = create_link(program, ifindex, mode)?;
        Ok(Attachment { link, ifindex, mode })
    }

    /// Takes hold of a pinned link, and tells the id of its program. `None` if its interface is gone, and the link with it.
    pub fn open(path: &Path) -> Result<Option<(Attachment, u32)>> {
        let opening = || format!("could not open the pinned link {}", path.display());
        let link = open_pin(path).with_context(opening)?;
        let info = LinkInfo::from_fd(link.as_fd()).with_context(opening)?;
        let LinkTypeInfo::Xdp(xdp) = &info.info else {
            bail!("{} is not a link of an XDP program", path.display());
        };
        if xdp.ifindex == 0 {
            return Ok(None);
        }
        let skb = programs_on(xdp.ifindex).is_some_and(|on| on.skb_prog_id == info.prog_id);
        let mode = if skb { Mode::Skb } else { Mode::Native };
        Ok(Some((Attachment { link, ifindex: xdp.ifindex, mode }, info.prog_id)))
    }

    /// Whether its interface is still there.
    pub fn is_live(&self) -> bool {
        let info = LinkInfo::from_fd(self.link.as_fd());
        matches!(info, Ok(LinkInfo { info: LinkTypeInfo::Xdp(xdp), .. }) if xdp.ifindex != 0)
    }

    /// Puts another program in the place of the one that runs, between two packets.
    pub fn replace(&self, program: BorrowedFd<'_>) -> Result<(), io::Error> {
        // SAFETY: two live descriptors, and no options.
        let result = unsafe {
            libbpf_sys::bpf_link_update(self.link.as_raw_fd(), program.as_raw_fd(), std::ptr::null())
        };
        checked(result)
    }

    /// Detaches it at once, whoever else holds it or has it pinned.
    pub fn detach(&self) -> Result<(), io::Error> {
        // SAFETY: a live descriptor.
        checked(unsafe { libbpf_sys::bpf_link_detach(self.link.as_raw_fd()) })
    }

    /// Keeps the program attached beyond this process' death.
    pub fn pin(&self, path: &Path) -> Result<()> {
        pin(self.link.as_fd(), path)
    }
}

fn checked(result: i32) -> Result<(), io::Error> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-result)) }
}

/// A descriptor of what is pinned at a path.
pub(super) fn open_pin(path: &Path) -> Result<OwnedFd, io::Error> {
    let c_path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a C string that outlives the call.
    let fd = unsafe { libbpf_sys::bpf_obj_get(c_path.as_ptr()) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
pub fn program_on(ifindex: u32) -> Option<u32> {
    let on = programs_on(ifindex)?;
    [on.drv_prog_id, on.skb_prog_id, on.hw_prog_id, on.prog_id].into_iter().find(|id| *id != 0)
}

/// The ids of the programs that are on an interface, by mode.
#[allow(clippy::needless_update)] // the binding's padding fields differ between versions
fn programs_on(ifindex: u32) -> Option<libbpf_sys::bpf_xdp_query_opts> {
    let mut on = libbpf_sys::bpf_xdp_query_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as _,
        ..Default::default()
    };
    // SAFETY: `on` outlives the call.
    let result = unsafe { libbpf_sys::bpf_xdp_query(ifindex as i32, 0, &raw mut on) };
    (result == 0).then_some(on)
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
