//! One thing that can be set, with a value as text.

use std::fmt;
use std::fs;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::dataplane::{Channels, adaptive_rx, channels, set_adaptive_rx, set_channels};
use crate::net::{Irq, device_setting, read_sysctl, set_device_setting, sysctl_path, write_sysctl};

const INTERRUPTS: &str = "/proc/interrupts";

/// What can be set, of the interface that is tuned or of the whole host. Its JSON is in the records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Setting {
    /// A sysctl of this name.
    Sysctl(String),
    /// How many queues there are.
    Queues(Queues),
    /// Who serves the interrupt of this number and name: numbers are given anew when devices come and go.
    Irq { number: u32, name: String },
    /// Whether the device finds out itself when to interrupt.
    AdaptiveRx,
    /// A file of the interface in sysfs.
    Device(String),
}

/// What queues do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Queues {
    Rx,
    Tx,
    Combined,
}

impl Queues {
    /// How many there are, and how many there can be.
    pub(super) fn of(self, channels: &Channels) -> (u32, u32) {
        match self {
            Queues::Rx => (channels.rx, channels.max_rx),
            Queues::Tx => (channels.tx, channels.max_tx),
            Queues::Combined => (channels.combined, channels.max_combined),
        }
    }
}

impl Setting {
    /// What it is now; `None` where there is no such thing.
    pub(super) fn read(&self, interface: &str) -> Result<Option<String>> {
        let on = |on: bool| if on { "on" } else { "off" }.to_owned();
        match self {
            Setting::Sysctl(name) if !sysctl_path(name).exists() => Ok(None),
            Setting::Sysctl(name) => read_sysctl(name).map(Some),
            Setting::Queues(queues) => {
                Ok(channels(interface)?.map(|channels| queues.of(&channels).0.to_string()))
            }
            Setting::Irq { number, name } => {
                let text =
                    fs::read_to_string(INTERRUPTS).with_context(|| format!("could not read {INTERRUPTS}"))?;
                let is_it = name_of_interrupt(&text, *number) == Some(name);
                Ok(if is_it { Irq::affinity(*number).ok() } else { None })
            }
            Setting::AdaptiveRx => Ok(adaptive_rx(interface)?.map(on)),
            Setting::Device(name) => device_setting(interface, name),
        }
    }

    pub(super) fn write(&self, interface: &str, value: &str) -> Result<()> {
        match self {
            Setting::Sysctl(name) => write_sysctl(name, value),
            Setting::Queues(queues) => {
                let count = value.parse().with_context(|| format!("{value} is no number of queues"))?;
                let mut wanted = channels(interface)?
                    .with_context(|| format!("the driver of {interface} does not tell its queues"))?;
                match queues {
                    Queues::Rx => wanted.rx = count,
                    Queues::Tx => wanted.tx = count,
                    Queues::Combined => wanted.combined = count,
                }
                set_channels(interface, wanted)
            }
            Setting::Irq { number, .. } => Irq::set_affinity(*number, value),
            Setting::AdaptiveRx => set_adaptive_rx(interface, value == "on"),
            Setting::Device(name) => set_device_setting(interface, name, value),
        }
    }

    /// Whether it goes away with the interface.
    pub(super) fn is_of_interface(&self) -> bool {
        !matches!(self, Setting::Sysctl(_))
    }

    /// Whether a driver may refuse what it is to be.
    pub(super) fn is_of_driver(&self) -> bool {
        matches!(self, Setting::Queues(_) | Setting::AdaptiveRx | Setting::Irq { .. })
    }

    /// The group that it is in, for people and scripts.
    pub(super) fn group(&self) -> &'static str {
        match self {
            Setting::Sysctl(_) => "jit",
            Setting::Queues(_) => "queues",
            Setting::Irq { .. } => "irq",
            Setting::AdaptiveRx => "coalescing",
            Setting::Device(_) => "busy-polling",
        }
    }

    /// What it is called.
    pub(super) fn what(&self, interface: &str) -> String {
        match self {
            Setting::Queues(Queues::Rx) => format!("receive queues of {interface}"),
            Setting::Queues(Queues::Tx) => format!("transmit queues of {interface}"),
            Setting::Queues(Queues::Combined) => format!("queues of {interface}"),
            Setting::AdaptiveRx => format!("adaptive-rx of {interface}"),
            // There is no such interrupt: it stands for those that an interface does not have.
            Setting::Irq { number: 0, .. } => format!("interrupts of {interface}"),
            Setting::Device(name) => format!("{name} of {interface}"),
            other => other.to_string(),
        }
    }
}

/// The last word of its line, which is what [`Irq`] has as a name.
fn name_of_interrupt(text: &str, number: u32) -> Option<&str> {
    let of_line =
        |line: &'_ str| line.split_once(':').is_some_and(|(first, _)| first.trim().parse() == Ok(number));
    text.lines().find(|line| of_line(line))?.split_whitespace().last()
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Sysctl(name) | Setting::Device(name) => f.write_str(name),
            Setting::Queues(_) => f.write_str("queues"),
            Setting::Irq { number, name } => write!(f, "processors of interrupt {number} ({name})"),
            Setting::AdaptiveRx => f.write_str("adaptive-rx"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_known_by_number_and_name() {
        let text = "      CPU0\n  7:  1  IO-APIC 7-edge  old\n 71:  1  PCI-MSI 1-edge  eth0-rx-0\nNMI:  0  Non-maskable\n";
        assert_eq!(name_of_interrupt(text, 71), Some("eth0-rx-0"));
        assert_eq!(name_of_interrupt(text, 7), Some("old"));
        assert_eq!(name_of_interrupt(text, 1), None);
    }
}
