use std::collections::BTreeMap;
use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use anyhow::{Context as _, Result, anyhow};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{ErrorKind, MapCore as _, MapFlags, MapHandle, MapType, PrintLevel};

use super::capacity::Capacity;
use super::skeleton::lb::{OpenXdpLbSkel, XdpLbSkelBuilder};
use super::tables::{Shape, Tables, from_bytes, reuse, shapes};
use super::types;

/// The balancer's name in the kernel.
pub const PROGRAM: &str = "xdp_lb";

/// What a copy of the program is specialised for; the verifier removes what it does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Attached in SKB mode: partial checksums stay partial.
    pub skb_mode: bool,
    /// Frames may arrive with the partial checksums of local senders.
    pub partial_possible: bool,
    /// Whatever is translated is left to the kernel to deliver.
    pub stack: bool,
    /// The table's clock is set by a test.
    pub test_clock: bool,
    /// Changes no table and counts nothing, but notes its steps.
    pub explain: bool,
    /// It cannot be watched: what that costs is measured against it.
    pub blind: bool,
}

impl Profile {
    /// A driver whose frames come from a wire.
    pub const NATIVE: Profile = Profile {
        skb_mode: false,
        partial_possible: false,
        stack: false,
        test_clock: false,
        explain: false,
        blind: false,
    };
    /// A virtual device in native mode, whose frames may come from a local sender.
    pub const NATIVE_VIRTUAL: Profile = Profile { partial_possible: true, ..Self::NATIVE };
    /// Any device in SKB mode, where only the kernel can deliver what is larger than the MTU or has an unfinished checksum.
    pub const SKB: Profile = Profile { skb_mode: true, stack: true, ..Self::NATIVE_VIRTUAL };
    /// The same, sending by XDP all the same.
    pub const SKB_DIRECT: Profile = Profile { stack: false, ..Self::SKB };

    /// Every profile that an interface can get.
    pub const ALL: [Profile; 4] = [Self::NATIVE, Self::NATIVE_VIRTUAL, Self::SKB, Self::SKB_DIRECT];

    /// The one whose programs are pinned under this name.
    pub(super) fn from_name(name: &str) -> Option<Profile> {
        Self::ALL.into_iter().find(|profile| profile.name() == name)
    }

    /// A name for people and for the pin.
    pub fn name(self) -> &'static str {
        match (self.skb_mode, self.partial_possible, self.stack) {
            (false, false, _) => "native",
            (false, true, _) => "native_virtual",
            (true, _, true) => "skb",
            (true, _, false) => "skb_direct",
        }
    }

    fn row(self) -> types::lb_profile {
        types::lb_profile {
            skb_mode: self.skb_mode.into(),
            partial_possible: self.partial_possible.into(),
            test_clock: self.test_clock.into(),
            stack: self.stack.into(),
            explain: self.explain.into(),
            blind: self.blind.into(),
            ..Default::default()
        }
    }
}

/// A loaded copy of the program.
pub struct Program {
    fd: OwnedFd,
    globals: MapHandle,
    /// What it is specialised for.
    pub profile: Profile,
}

impl Program {
    /// The program itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sets the connection table's clock of a program whose profile has a test clock.
    pub(super) fn set_test_clock(&self, now: u32) -> Result<()> {
        self.set_global(offset_of!(types::bss, lb_test_now), now)
    }

    /// Sets what such a program takes for a random number.
    pub(super) fn set_test_random(&self, number: u32) -> Result<()> {
        self.set_global(offset_of!(types::bss, lb_test_random), number)
    }

    /// Sets the time in microseconds by which such a program measures handshakes.
    pub(super) fn set_test_micros(&self, now: u32) -> Result<()> {
        self.set_global(offset_of!(types::bss, lb_test_micros), now)
    }

    fn read_globals(&self) -> Result<Vec<u8>> {
        self.globals
            .lookup(&0u32.to_ne_bytes(), MapFlags::ANY)
            .context("could not read the program's globals")?
            .context("the program has no globals")
    }

    fn set_global(&self, at: usize, value: u32) -> Result<()> {
        let mut globals = self.read_globals()?;
        globals[at..at + size_of_val(&value)].copy_from_slice(&value.to_ne_bytes());
        self.globals
            .update(&0u32.to_ne_bytes(), &globals, MapFlags::ANY)
            .context("could not set a global of the program")
    }

    /// Makes a program that explains forget the last packet. With `like`, it takes the clock, chance and the senders of
    /// partial checksums from that program.
    pub(super) fn begin_anew(&self, like: Option<&Program>) -> Result<()> {
        let mut globals = like.unwrap_or(self).read_globals()?;
        let at = offset_of!(types::bss, lb_explained);
        globals[at..at + size_of::<types::lb_explained>()].fill(0);
        self.globals
            .update(&0u32.to_ne_bytes(), &globals, MapFlags::ANY)
            .context("could not set the globals of the program")
    }

    /// What a program that explains noted of the last packet.
    pub(super) fn explained(&self) -> Result<types::lb_explained> {
        let globals = self.read_globals()?;
        let at = offset_of!(types::bss, lb_explained);
        from_bytes(&globals[at..at + size_of::<types::lb_explained>()])
    }

    pub(super) fn clear_globals(&self) -> Result<()> {
        let zeros = vec![0; self.globals.value_size() as usize];
        self.globals
            .update(&0u32.to_ne_bytes(), &zeros, MapFlags::ANY)
            .context("could not clear the globals of the program")
    }

    /// Runs the program once on a frame (`BPF_PROG_TEST_RUN`), as if it had arrived on the interface with this index.
    /// Returns the XDP verdict and the frame afterwards.
    pub fn test_run(&self, frame: &[u8], ifindex: u32) -> Result<(u32, Vec<u8>)> {
        test_run(self.fd(), frame, ifindex)
    }
}

#[allow(unsafe_code)] // libbpf-rs runs only the programs of an object that it holds itself
pub(super) fn test_run(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32) -> Result<(u32, Vec<u8>)> {
    const HEADROOM: usize = 256;
    let length = u32::try_from(frame.len()).context("the frame is too long")?;
    let context = types::xdp_md { data_end: length, ingress_ifindex: ifindex, ..Default::default() };
    let mut out = vec![0; frame.len() + HEADROOM];
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: frame.as_ptr().cast(),
        data_size_in: length,
        data_out: out.as_mut_ptr().cast(),
        data_size_out: out.len() as u32,
        ctx_in: (&raw const context).cast(),
        ctx_size_in: size_of_val(&context) as u32,
        ..Default::default()
    };
    // SAFETY: the pointers and sizes above are of live buffers; the kernel writes to `out` only, within its size.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(-result)).context("could not run a program on a frame");
    }
    out.truncate(options.data_size_out as usize);
    Ok((options.retval, out))
}

/// Loads the program for one profile. It uses the tables that are `there` and makes those that are missing, of the given
/// capacity; all of them are returned.
pub(super) fn load(
    profile: Profile,
    settings: &types::lb_settings,
    capacity: &Capacity,
    there: &BTreeMap<&'static str, MapHandle>,
) -> Result<(Program, Tables)> {
    let mut object = MaybeUninit::uninit();
    let mut skeleton = open(&mut object, profile, settings)?;
    capacity.apply(&mut skeleton.maps)?;
    reuse(&mut skeleton.maps, there)?;
    // Kept until the program is loaded: libbpf only borrows it.
    let inner;
    if !there.contains_key("directory") {
        inner = directory_lines(capacity.directory_lines())?;
        skeleton
            .maps
            .directory
            .set_inner_map_fd(inner.as_fd())
            .context("could not give the table directory its lines")?;
    }
    let loaded = capture(|| skeleton.load()).map_err(|(error, log)| {
        let said = what_it_said(error.kind(), &log);
        anyhow!(error)
            .context(format!("could not load the program (profile {}) into the kernel{said}", profile.name()))
    })?;
    let fd =
        loaded.progs.xdp_lb.as_fd().try_clone_to_owned().context("could not take hold of the program")?;
    let tables = Tables::of_loaded(&loaded.maps)?;
    bind(fd.as_fd(), loaded.maps.settings.as_fd())?;
    if !there.contains_key("settings") {
        tables.write_settings(settings)?;
    }
    let globals =
        MapHandle::try_from(&loaded.maps.bss).context("could not take hold of the program's globals")?;
    Ok((Program { fd, globals, profile }, tables))
}

/// Makes a map one of the program's, though no instruction uses it: whoever finds the program finds the map.
#[allow(unsafe_code)] // libbpf-rs has no call for it
fn bind(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: two live descriptors, and no options.
    let result =
        unsafe { libbpf_sys::bpf_prog_bind_map(program.as_raw_fd(), map.as_raw_fd(), std::ptr::null()) };
    match result {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)).context("could not give the program its settings"),
    }
}

/// What each table must be like to serve a program of this version.
pub(super) fn table_shapes(capacity: &Capacity) -> Result<BTreeMap<&'static str, Shape>> {
    let mut object = MaybeUninit::uninit();
    let mut skeleton = open(&mut object, Profile::NATIVE, &types::lb_settings::default())?;
    capacity.apply(&mut skeleton.maps)?;
    Ok(shapes(&skeleton.maps))
}

pub(super) fn open<'object>(
    object: &'object mut MaybeUninit<libbpf_rs::OpenObject>,
    profile: Profile,
    settings: &types::lb_settings,
) -> Result<OpenXdpLbSkel<'object>> {
    let mut skeleton = XdpLbSkelBuilder::default()
        .open(object)
        .context("could not read the program that is built into this binary")?;
    let rodata = skeleton.maps.rodata_data.as_mut().context("the program has no .rodata")?;
    rodata.lb_profile = profile.row();
    rodata.lb_settings = *settings;
    Ok(skeleton)
}

/// An empty directory: what the program's tables are made from, and what a new one is written into.
#[allow(clippy::needless_update)] // the binding's padding fields differ between versions
pub(super) fn directory_lines(lines: u32) -> Result<MapHandle> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        map_flags: libbpf_sys::BPF_F_MMAPABLE,
        ..Default::default()
    };
    let row = size_of::<types::lb_service_bucket>() as u32;
    MapHandle::create(MapType::Array, Some("lb_directory"), size_of::<u32>() as u32, row, lines, &options)
        .with_context(|| format!("could not make a directory of {lines} lines"))
}

/// What libbpf said since the last look; it has no other way to hand out the verifier's log.
static LOG: Mutex<String> = Mutex::new(String::new());

/// Runs something that calls libbpf and returns what libbpf said if it failed.
pub(super) fn capture<T, E>(run: impl FnOnce() -> Result<T, E>) -> Result<T, (E, String)> {
    let log = || LOG.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let previous = libbpf_rs::set_print(Some((PrintLevel::Warn, |_, text| {
        LOG.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push_str(&text);
    })));
    log().clear();
    let result = run();
    libbpf_rs::set_print(previous);
    result.map_err(|error| (error, std::mem::take(&mut *log())))
}

/// What libbpf's words add to an error: nothing where there was no memory, since it then only tells what it tried next.
fn what_it_said(kind: ErrorKind, log: &str) -> String {
    if kind == ErrorKind::OutOfMemory { String::new() } else { last_lines(log) }
}

/// The end of a log, where the verifier says what it refused.
pub(super) fn last_lines(log: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.len().saturating_sub(LINES) {
        _ if lines.is_empty() => String::new(),
        0 => format!("; the kernel says:\n{}", lines.join("\n")),
        cut => format!("; the kernel's last lines ({cut} before them):\n{}", lines[cut..].join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_log_is_shown() {
        assert_eq!(last_lines(""), "");
        assert_eq!(last_lines("a\n\nb\n"), "; the kernel says:\na\nb");
        let log: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let end = last_lines(&log);
        assert!(end.starts_with("; the kernel's last lines (80 before them):\nline 80\n"), "{end}");
        assert!(end.ends_with("line 99"), "{end}");
    }

    #[test]
    fn where_memory_ran_out_the_log_tells_nothing() {
        assert_eq!(what_it_said(ErrorKind::OutOfMemory, "libbpf: map 'connections': failed to create\n"), "");
        assert_eq!(what_it_said(ErrorKind::InvalidInput, "a\n"), "; the kernel says:\na");
    }
}
