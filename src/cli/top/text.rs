//! Figures in a few characters.

use std::time::Duration;

use crate::dataplane::Histogram;

const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];

/// 5 characters at most: 0, 0.25, 12.5, 999, 1.20k.
pub(super) fn rate(value: f64) -> String {
    let mut value = value.max(0.0);
    if value == 0.0 {
        return "0".into();
    }
    let mut prefix = 0;
    while value >= 999.5 && prefix + 1 < PREFIXES.len() {
        value /= 1000.0;
        prefix += 1;
    }
    let digits = match value {
        value if value < 0.995 && prefix == 0 => 2,
        value if value < 9.995 && prefix > 0 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", PREFIXES[prefix])
}

/// Exact where it fits into so many characters.
pub(super) fn count(value: u64, width: usize) -> String {
    let exact = value.to_string();
    if exact.len() <= width { exact } else { rate(value as f64) }
}

/// Milliseconds, with what lies beyond the longest time that is told apart as such.
pub(super) fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    let longest = Histogram::bound(Histogram::BUCKETS - 2);
    match millis {
        _ if longest.is_some_and(|longest| time >= longest) => format!(">{millis:.0}"),
        millis if millis < 9.995 => format!("{millis:.2}"),
        millis if millis < 99.95 => format!("{millis:.1}"),
        _ => format!("{millis:.0}"),
    }
}

/// A time that is over, roughly: 12 s, 5 min, 3 h, 2 d.
pub(super) fn ago(seconds: f64) -> String {
    match seconds.max(0.0) {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.0} h", seconds / 3600.0),
        seconds => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// What comes from outside, as it may stand on a screen: nothing that moves the cursor.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Parts after one another, with a gap between them, on as many lines as that takes.
pub(super) fn flow(parts: &[String], gap: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if columns(line) + gap.len() + columns(part) <= width => {
                line.push_str(gap);
                line.push_str(part);
            }
            _ => lines.push(part.clone()),
        }
    }
    lines
}

/// A sentence on lines of this width.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    flow(&words, " ", width)
}

/// As wide as it is on a screen.
pub(super) fn columns(text: &str) -> usize {
    ratatui::text::Span::raw(text).width()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (-1.0, "0"),
            (0.02, "0.02"),
            (1.0, "1.0"),
            (99.94, "99.9"),
            (99.96, "100"),
            (999.6, "1.00k"),
            (12_345.0, "12.3k"),
            (1.2e9, "1.20G"),
            (999.4e3, "999k"),
        ] {
            assert_eq!(rate(value), text, "{value}");
        }
        let short = (0..18).flat_map(|n| [1.0, 1.2345, 9.996, 9.94999].map(|one| one * 10f64.powi(n)));
        assert!(short.into_iter().all(|value| rate(value).len() <= 5));
    }

    #[test]
    fn counts_are_exact_where_they_fit() {
        assert_eq!(count(99_999, 5), "99999");
        assert_eq!(count(100_000, 5), "100k");
        assert_eq!(count(123_456_789, 9), "123456789");
    }

    #[test]
    fn times_have_three_digits() {
        let micros = |micros| millis(Duration::from_micros(micros));
        assert_eq!([96, 9_996, 12_340, 123_456].map(micros), ["0.10", "10.0", "12.3", "123"]);
        assert_eq!(micros(1 << 20), ">1049");
        assert_eq!([5.0, 600.0, 36_000.0, 864_000.0].map(ago), ["5 s", "10 min", "10 h", "10 d"]);
        assert_eq!(plain("a\x1b[2Jb\n"), "a [2Jb ");
    }
}
