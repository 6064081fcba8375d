//! Processors, and the interrupts of an interface's queues: which there are, and who serves them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const INTERRUPTS: &str = "/proc/interrupts";
const IRQS: &str = "/proc/irq";
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// A device's interrupts by its place on the bus; unlike /sys/class/net the same in all network namespaces.
const PCI: &str = "/sys/bus/pci/devices";
/// Names of interrupts that are for no queue: configuration, errors, events of the link.
const NO_QUEUE: [&str; 9] = ["config", "async", "ctrl", "control", "mgmnt", "misc", "event", "admin", "lsc"];

/// The interrupt of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Irq {
    /// The kernel's number of it.
    pub number: u32,
    /// What the driver calls it, such as `eth0-TxRx-3`.
    pub name: String,
    /// The queue's number, if the name has one.
    pub queue: Option<usize>,
}

impl Irq {
    /// The processors that may serve it, such as `0-1`.
    ///
    /// # Errors
    /// When it is gone, or /proc cannot be read.
    pub fn affinity(number: u32) -> Result<String> {
        read(number, "smp_affinity_list")
    }

    /// The processors that do.
    ///
    /// # Errors
    /// As [`Irq::affinity`].
    pub fn served_by(&self) -> Result<Vec<usize>> {
        let effective = read(self.number, "effective_affinity_list").ok().filter(|list| !list.is_empty());
        Ok(parse_list(&effective.map_or_else(|| Irq::affinity(self.number), Ok)?))
    }

    /// Lets these processors serve it.
    ///
    /// # Errors
    /// When the kernel refuses: some interrupts cannot be moved.
    pub fn set_affinity(number: u32, list: &str) -> Result<()> {
        let path = path(number, "smp_affinity_list");
        fs::write(&path, list).with_context(|| format!("could not write {list} to {}", path.display()))
    }
}

fn path(number: u32, file: &str) -> PathBuf {
    Path::new(IRQS).join(number.to_string()).join(file)
}

fn read(number: u32, file: &str) -> Result<String> {
    let path = path(number, file);
    let text = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// The interrupts of the queues of an interface, given what `ethtool -i` calls its place on the bus. None of an interface
/// without a device: /proc/interrupts is that of the whole host, where another namespace's may have the same name.
///
/// # Errors
/// When /proc/interrupts cannot be read.
pub fn irqs_of(interface: &str, bus: Option<&str>) -> Result<Vec<Irq>> {
    let Some(bus) = bus else { return Ok(Vec::new()) };
    let text = fs::read_to_string(INTERRUPTS).with_context(|| format!("could not read {INTERRUPTS}"))?;
    let own = fs::read_dir(Path::new(PCI).join(bus).join("msi_irqs")).into_iter().flatten().flatten();
    let own: Vec<u32> = own.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    Ok(parse_interrupts(&text, interface, bus, &own))
}

/// `own` are the numbers of the device's, where the bus knows them: what drivers call theirs is a guess. Lines as ` 38:   0   16113  PCI-MSIX-0000:00:03.0   1-edge   virtio2-input.0`.
fn parse_interrupts(text: &str, interface: &str, bus: &str, own: &[u32]) -> Vec<Irq> {
    let of_line = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let number = number.trim().parse().ok()?;
        let names: Vec<&str> =
            rest.split_whitespace().skip_while(|word| word.parse::<u64>().is_ok()).collect();
        let name = *names.last()?;
        let is_own = match own {
            [] => {
                name == interface
                    || name.strip_prefix(interface).is_some_and(|rest| rest.starts_with(['-', '.', ':', '@']))
                    || names.iter().any(|word| word.ends_with(bus))
            }
            own => own.contains(&number),
        };
        let no_queue = NO_QUEUE.iter().any(|word| name.to_ascii_lowercase().contains(word));
        (is_own && !no_queue).then(|| Irq { number, name: name.to_owned(), queue: queue_of(name) })
    };
    text.lines().filter_map(of_line).collect()
}

/// The number at the end of a name, before what says where the device is (`mlx5_comp3@pci:0000:00:04.0`).
fn queue_of(name: &str) -> Option<usize> {
    let name = name.split('@').next()?;
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    // The whole of `eth0` is no queue's name.
    let (start, number) = name.split_at(name.len() - digits);
    (start.ends_with(['-', '.', ':', 'p', 'q', 'x'])).then(|| number.parse().ok())?
}

/// The processors that are online.
///
/// # Errors
/// When /sys cannot be read.
pub fn online_cpus() -> Result<Vec<usize>> {
    let text = fs::read_to_string(ONLINE).with_context(|| format!("could not read {ONLINE}"))?;
    Ok(parse_list(text.trim()))
}

/// A list as the kernel writes it: `0-3,8`.
fn parse_list(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(|part| range(part.trim())).flatten().collect()
}

/// The process of irqbalance, which moves interrupts as it sees fit, if one runs.
pub fn irqbalance() -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|process: &u32| {
        fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim() == "irqbalance")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
           CPU0       CPU1
 26:          0        130  IO-APIC   4-edge      ttyS0
 33:          0          0 PCI-MSIX-0000:00:05.0   0-edge      virtio4-config
 34:        212          0 PCI-MSIX-0000:00:05.0   1-edge      virtio4-input
 37:          0          0 PCI-MSIX-0000:00:03.0   0-edge      virtio2-config
 38:          0      16113 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0
 39:      12089          0 PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0
 51:          1          2 PCI-MSI 524288-edge      eth0
 52:          1          2 PCI-MSI 524289-edge      eth0-TxRx-0
 53:          1          2 PCI-MSI 524290-edge      eth0-TxRx-1
 54:          1          2 PCI-MSI 524290-edge      eth01-TxRx-7
 60:          1          2 PCI-MSI 524290-edge      mlx5_async0@pci:0000:00:04.0
 61:          1          2 PCI-MSI 524290-edge      mlx5_comp3@pci:0000:00:04.0
NMI:          0          0   Non-maskable interrupts
ERR:          0
";

    fn found(interface: &str, bus: &str, own: &[u32]) -> Vec<(u32, Option<usize>)> {
        parse_interrupts(TEXT, interface, bus, own).into_iter().map(|irq| (irq.number, irq.queue)).collect()
    }

    #[test]
    fn interrupts_are_found_by_name_and_by_device() {
        assert_eq!(found("eth0", "bus", &[]), [(51, None), (52, Some(0)), (53, Some(1))]);
        assert_eq!(found("eth7", "0000:00:03.0", &[]), [(38, Some(0)), (39, Some(0))]);
        assert_eq!(found("eth7", "0000:00:04.0", &[]), [(61, Some(3))]);
        assert_eq!(found("eth0", "0000:00:03.0", &[37, 38, 39]), [(38, Some(0)), (39, Some(0))]);
        assert!(found("eth", "bus", &[]).is_empty());
        assert!(irqs_of("eth0", None).unwrap().is_empty());
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(parse_list("0-3,8"), [0, 1, 2, 3, 8]);
        assert_eq!(parse_list("5"), [5]);
        assert!(parse_list("").is_empty());
        assert!(!online_cpus().unwrap().is_empty());
    }
}
