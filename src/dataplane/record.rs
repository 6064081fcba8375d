use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapType};

/// What it is called, and pinned under.
pub(super) const RECORD: &str = "record";
const BYTES: usize = 16 << 10;
const ROW: [u8; 4] = [0; 4];

/// Bytes that live and die with the pins: what must be known to whoever takes over, or cleans up after, an instance that
/// was killed.
///
/// A map of one row, because a bpffs holds no plain files. The kernel copies the row in one go, so that a writer that is
/// killed has written all of it or nothing.
pub struct Record(MapHandle);

impl Record {
    /// The record in a pin directory; `None` where there is none.
    pub fn open(pin_dir: &Path) -> Result<Option<Record>> {
        let path = pin_dir.join(RECORD);
        if !path.exists() {
            return Ok(None);
        }
        let map = MapHandle::from_pinned_path(&path)
            .with_context(|| format!("could not open the pinned record {}", path.display()))?;
        ensure!(
            map.map_type() == MapType::Array && map.value_size() as usize == BYTES,
            "{} is not a record of this version",
            path.display()
        );
        Ok(Some(Record(map)))
    }

    /// A new, empty one, pinned into the directory.
    #[allow(clippy::needless_update)] // the binding's padding fields differ between versions
    pub fn make(pin_dir: &Path) -> Result<Record> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let map =
            MapHandle::create(MapType::Array, Some(RECORD), ROW.len() as u32, BYTES as u32, 1, &options)
                .context("could not make the map that records what is changed on this host")?;
        let mut record = Record(map);
        record.pin(pin_dir)?;
        Ok(record)
    }

    /// Pins it into a directory.
    pub fn pin(&mut self, pin_dir: &Path) -> Result<()> {
        let path = pin_dir.join(RECORD);
        self.0.pin(&path).with_context(|| format!("could not pin the record at {}", path.display()))
    }

    /// What was written last; empty at first.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = self
            .0
            .lookup(&ROW, MapFlags::ANY)
            .context("could not read the record of what was changed on this host")?
            .unwrap_or_default();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(used);
        Ok(bytes)
    }

    /// Replaces what is in it. The last byte must not be 0.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        ensure!(
            bytes.len() <= BYTES,
            "the record of what is changed on this host is full ({BYTES} bytes): nothing more is changed"
        );
        let mut row = bytes.to_vec();
        row.resize(BYTES, 0);
        self.0
            .update(&ROW, &row, MapFlags::ANY)
            .context("could not write the record of what is changed on this host")
    }
}
