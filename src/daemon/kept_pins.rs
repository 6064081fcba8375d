use std::path::Path;

use anyhow::Result;

use super::ledger::Ledger;
use crate::dataplane::{PinDir, Plane};

/// The pin directory of a running instance, which somebody may take away: by unmounting the bpffs, or with `rm -r`. Nothing
/// stops then, since all is held open; but it would not outlive the process.
pub struct KeptPins {
    pins: PinDir,
    warned: bool,
}

impl KeptPins {
    pub fn new(pins: PinDir) -> KeptPins {
        KeptPins { pins, warned: false }
    }

    pub fn path(&self) -> &Path {
        self.pins.path()
    }

    /// The directory itself.
    pub fn dir(&self) -> &PinDir {
        &self.pins
    }

    pub fn into_inner(self) -> PinDir {
        self.pins
    }

    /// Pins what is not pinned yet; all, if the pins are gone. Cheap if there is nothing to do: call it every second, and
    /// after attaching to an interface or detaching from one.
    pub fn check(&mut self, plane: &mut Plane, ledger: &mut Ledger) {
        let gone = !self.pins.is_intact();
        let at = self.pins.path().display().to_string();
        match if gone { self.pin_again(plane, ledger) } else { plane.pin(&self.pins) } {
            Ok(()) => {
                if gone {
                    tracing::warn!("the pins in {at} were gone: made again");
                }
                self.warned = false;
            }
            Err(error) => {
                if !self.warned {
                    tracing::warn!(
                        "could not make the pins in {at}: {error:#}. Balancing goes on, but would not outlive \
                         this process"
                    );
                }
                self.warned = true;
            }
        }
    }

    fn pin_again(&mut self, plane: &mut Plane, ledger: &mut Ledger) -> Result<()> {
        let pins = PinDir::acquire(self.pins.path())?;
        pins.detach()?;
        ledger.pin(pins.path())?;
        if let Some(mounted) = pins.mounted() {
            ledger.add_mount(mounted)?;
        }
        plane.forget_pins();
        plane.pin(&pins)?;
        self.pins = pins;
        Ok(())
    }
}
