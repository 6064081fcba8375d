use std::fs;

use super::Finding;
use crate::config::Config;
use crate::dataplane::PinDirState;

const NAME: &str = "memory";
/// 3.5 slots of 16 bytes for each connection.
const CONNECTION: u64 = 56;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let taken_over = PinDirState::of(&config.pin_dir) == PinDirState::Leftovers;
    available(&meminfo).map(|bytes| judge(config.max_connections, bytes, taken_over)).into_iter().collect()
}

/// The kernel would rather fail than kill somebody for the table, but would leave nothing to anybody else.
fn judge(connections: u32, available: u64, taken_over: bool) -> Finding {
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let needed = u64::from(connections) * CONNECTION;
    let message = format!(
        "a table of {connections} connections takes {:.1} GB of memory, of which {:.1} GB are available",
        gigabytes(needed),
        gigabytes(available)
    );
    if needed <= available {
        return Finding::ok(NAME, &message);
    }
    let fix = format!("--max-connections {}", available / 2 / CONNECTION);
    match taken_over {
        // A table of that size may be there already.
        true => Finding::warning(NAME, &message, &fix),
        false => Finding::error(NAME, &message, &fix),
    }
}

/// In bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Level;

    #[test]
    fn a_table_must_fit() {
        assert_eq!(judge(1_000_000, 1 << 30, false).level, Level::Ok);
        let error = judge(500_000_000, 20_000_000_000, false);
        assert_eq!(error.level, Level::Error);
        assert!(error.message.contains("28.0 GB") && error.message.contains("20.0 GB"), "{}", error.message);
        assert_eq!(error.fix.as_deref(), Some("--max-connections 178571428"));
        assert_eq!(judge(500_000_000, 20_000_000_000, true).level, Level::Warning);
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let text = "MemTotal:       24576000 kB\nMemFree:         1000 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(available(text), Some(20_480_000_000));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert!(available(&fs::read_to_string("/proc/meminfo").unwrap()).is_some());
    }
}
