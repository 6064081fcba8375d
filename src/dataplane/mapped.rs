#![allow(unsafe_code)] // mmap, and views of the mapped bytes

use std::ffi::c_void;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::{MapCore as _, MapHandle};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use plain::Plain;

/// An array map of rows of type `T`, mapped into this process while packets read and write it.
///
/// A whole row is copied without any protection against a packet that reads it meanwhile: write one only while nothing
/// refers to it. Fields that change live are changed through the atomic views.
pub struct Rows<T> {
    map: MapHandle,
    base: NonNull<c_void>,
    bytes: NonZeroUsize,
    rows: usize,
    row: PhantomData<T>,
}

// SAFETY: the mapping belongs to no thread, and every access to it is volatile or atomic.
unsafe impl<T: Send> Send for Rows<T> {}
// SAFETY: as above; whole rows may tear, which `Rows` leaves to its callers and which no safe code can turn into
// an invalid value: `T` is `Plain`.
unsafe impl<T: Sync> Sync for Rows<T> {}

impl<T: Plain + Copy> Rows<T> {
    /// Maps an array map created with `BPF_F_MMAPABLE` whose values are `T`s.
    pub fn map(map: MapHandle) -> Result<Rows<T>> {
        let rows = map.max_entries() as usize;
        let name = map.name().to_string_lossy().into_owned();
        ensure!(
            map.value_size() as usize == size_of::<T>() && size_of::<T>() % align_of::<u64>() == 0,
            "map {name} has values of {} bytes, not {}: it belongs to another version",
            map.value_size(),
            size_of::<T>()
        );
        let bytes = NonZeroUsize::new(rows * size_of::<T>()).context("an array map has no rows")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address the kernel chooses, of a map that outlives it (`map` is kept).
        let base = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, &map, 0) }
            .with_context(|| format!("could not map the table {name} ({bytes} bytes)"))?;
        Ok(Rows { map, base, bytes, rows, row: PhantomData })
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no rows; never so for a BPF array.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The map itself.
    pub fn handle(&self) -> &MapHandle {
        &self.map
    }

    /// A copy of row `index`; `None` beyond the end.
    pub fn get(&self, index: usize) -> Option<T> {
        // SAFETY: the field lies in the mapping and is aligned; any bytes are a `T` (`Plain`).
        (index < self.rows).then(|| unsafe { self.row_ptr(index).read_volatile() })
    }

    /// Writes row `index`. Errors beyond the end.
    pub fn set(&self, index: usize, row: T) -> Result<()> {
        ensure!(index < self.rows, "table {} has no row {index}", self.map.name().to_string_lossy());
        // SAFETY: the row lies in the mapping and is aligned.
        unsafe { self.row_ptr(index).write_volatile(row) };
        Ok(())
    }

    /// The 8 bytes at `offset` of row `index`, to be changed while packets pass.
    pub fn word(&self, index: usize, offset: usize) -> Option<&AtomicU64> {
        // SAFETY: `field` checks bounds and alignment; packets access the field with single loads and stores too.
        self.field(index, offset, size_of::<u64>()).map(|field| unsafe { AtomicU64::from_ptr(field.cast()) })
    }

    /// The 4 bytes at `offset` of row `index`, to be changed while packets pass.
    pub fn quad(&self, index: usize, offset: usize) -> Option<&AtomicU32> {
        // SAFETY: as in `word`.
        self.field(index, offset, size_of::<u32>()).map(|field| unsafe { AtomicU32::from_ptr(field.cast()) })
    }

    /// The 2 bytes at `offset` of row `index`, to be changed while packets pass.
    pub fn half(&self, index: usize, offset: usize) -> Option<&AtomicU16> {
        // SAFETY: as in `word`.
        self.field(index, offset, size_of::<u16>()).map(|field| unsafe { AtomicU16::from_ptr(field.cast()) })
    }

    /// The byte at `offset` of row `index`, to be changed while packets pass.
    pub fn byte(&self, index: usize, offset: usize) -> Option<&AtomicU8> {
        // SAFETY: as in `word`.
        self.field(index, offset, size_of::<u8>()).map(|field| unsafe { AtomicU8::from_ptr(field) })
    }

    fn field(&self, index: usize, offset: usize, size: usize) -> Option<*mut u8> {
        let inside = index < self.rows && offset % size == 0 && offset <= size_of::<T>().saturating_sub(size);
        // SAFETY: the offset lies inside the row, the row inside the mapping.
        inside.then(|| unsafe { self.row_ptr(index).cast::<u8>().add(offset) })
    }

    /// # Safety
    /// `index` is below the number of rows.
    unsafe fn row_ptr(&self, index: usize) -> *mut T {
        // SAFETY: the caller's promise; rows follow each other without gaps, since their size is a multiple of 8.
        unsafe { self.base.as_ptr().cast::<T>().add(index) }
    }
}

impl<T> Drop for Rows<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which nothing is borrowed any more.
        if let Err(error) = unsafe { munmap(self.base, self.bytes.get()) } {
            tracing::info!("could not unmap the table {}: {error}", self.map.name().to_string_lossy());
        }
    }
}
