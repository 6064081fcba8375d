#![allow(unsafe_code)] // libbpf-rs takes the first batch that is not full for the last one, and knows none of a value for each CPU

//! Many rows of a map by one system call.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use libbpf_rs::{MapCore as _, MapHandle, num_possible_cpus};

/// The bytes of a row's value as the kernel copies it: those of a map with a value for each CPU follow each other.
pub(super) fn value_bytes(map: &MapHandle) -> io::Result<usize> {
    const ALIGNMENT: usize = 8;
    let size = map.value_size() as usize;
    match map.map_type().is_percpu() {
        true => {
            let cpus = num_possible_cpus().map_err(io::Error::other)?;
            Ok(size.next_multiple_of(ALIGNMENT) * cpus)
        }
        false => Ok(size),
    }
}

/// Reads as many rows as there is room for: their keys and values one after the other. Says how many were read, and where the
/// next batch begins; `None` at the end. A hash map complains with ENOSPC where there is no room for one of its buckets.
///
/// It is for maps whose positions are 4 bytes, as they are of arrays and hash maps.
pub(super) fn read(
    map: &MapHandle,
    mut from: Option<u32>,
    keys: &mut [u8],
    values: &mut [u8],
) -> io::Result<(usize, Option<u32>)> {
    let room = (keys.len() / map.key_size() as usize).min(values.len() / value_bytes(map)?);
    let (mut count, mut next) = (u32::try_from(room).unwrap_or(u32::MAX), 0u32);
    let options = libbpf_sys::bpf_map_batch_opts {
        sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as _,
        ..Default::default()
    };
    // SAFETY: both buffers have room for `count` keys and values as the kernel copies them, see above; the positions are 4 bytes,
    // and nothing is kept by the kernel.
    let result = unsafe {
        libbpf_sys::bpf_map_lookup_batch(
            map.as_fd().as_raw_fd(),
            from.as_mut().map_or(std::ptr::null_mut(), |from| (&raw mut *from).cast()),
            (&raw mut next).cast(),
            keys.as_mut_ptr().cast(),
            values.as_mut_ptr().cast(),
            &raw mut count,
            &raw const options,
        )
    };
    match -result {
        0 => Ok((count as usize, Some(next))),
        nix::libc::ENOENT => Ok((count as usize, None)),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
