//! The text that Prometheus reads, version 0.0.4: each family once, with what it means, then all of its series.

use crate::dataplane::Histogram;

/// What such a text is called in a response's head.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Of the bounds that a histogram has in the tables every second one is told: a factor of four.
const EVERY: usize = 2;

/// What a family's figures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Never goes back.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by bounds.
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Labels of a series as they are written, made once for all families that have them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(String);

impl Labels {
    /// Of these names and values, which may hold anything.
    pub fn new(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().fold(Labels::default(), |labels, (name, value)| labels.with(name, value))
    }

    /// With one more.
    pub fn with(&self, name: &str, value: &str) -> Labels {
        let mut text = String::with_capacity(self.0.len() + name.len() + value.len() + 4);
        text.push_str(&self.0);
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        escape(&mut text, value, true);
        text.push('"');
        Labels(text)
    }
}

/// What is written so far.
#[derive(Debug)]
pub struct Exposition {
    text: String,
    bounds: Vec<(usize, String)>,
}

impl Exposition {
    /// Nothing yet; it is expected to become about so long.
    pub fn new(length: usize) -> Exposition {
        let bound = |at| Some((at, format!("{}", Histogram::bound(at)?.as_secs_f64())));
        let bounds = (0..Histogram::BUCKETS).step_by(EVERY).filter_map(bound).collect();
        Exposition { text: String::with_capacity(length), bounds }
    }

    /// Begins a family. Its series follow at once, since all of a family stand together.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        self.text.push_str("# HELP ");
        self.text.push_str(name);
        self.text.push(' ');
        escape(&mut self.text, help, false);
        self.text.push_str("\n# TYPE ");
        self.text.push_str(name);
        self.text.push(' ');
        self.text.push_str(kind.name());
        self.text.push('\n');
        Family { out: self, name }
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// A family whose series are being written.
pub struct Family<'a> {
    out: &'a mut Exposition,
    name: &'static str,
}

impl Family<'_> {
    /// A series.
    pub fn sample(&mut self, labels: &Labels, value: u64) {
        self.number("", labels, None, value);
    }

    /// A series with one label more.
    pub fn sample_with(&mut self, labels: &Labels, more: (&str, &str), value: u64) {
        self.number("", labels, Some(more), value);
    }

    /// The series of a histogram.
    pub fn histogram(&mut self, labels: &Labels, histogram: &Histogram) {
        let (mut below, mut next) = (0, 0);
        let bounds = std::mem::take(&mut self.out.bounds);
        for (at, bound) in &bounds {
            below += histogram.buckets[next..=*at].iter().sum::<u64>();
            next = at + 1;
            self.number("_bucket", labels, Some(("le", bound)), below);
        }
        self.out.bounds = bounds;
        let count = histogram.count();
        self.number("_bucket", labels, Some(("le", "+Inf")), count);
        self.line("_sum", labels, None, &seconds(histogram.microseconds));
        self.number("_count", labels, None, count);
    }

    /// A series whose value is a time in microseconds, told in seconds.
    pub fn time(&mut self, labels: &Labels, microseconds: u64) {
        self.line("", labels, None, &seconds(microseconds));
    }

    fn number(&mut self, suffix: &str, labels: &Labels, more: Option<(&str, &str)>, value: u64) {
        self.line(suffix, labels, more, itoa::Buffer::new().format(value));
    }

    fn line(&mut self, suffix: &str, labels: &Labels, more: Option<(&str, &str)>, value: &str) {
        let text = &mut self.out.text;
        text.push_str(self.name);
        text.push_str(suffix);
        if !labels.0.is_empty() || more.is_some() {
            text.push('{');
            text.push_str(&labels.0);
            if let Some((name, value)) = more {
                if !labels.0.is_empty() {
                    text.push(',');
                }
                text.push_str(name);
                text.push_str("=\"");
                escape(text, value, true);
                text.push('"');
            }
            text.push('}');
        }
        text.push(' ');
        text.push_str(value);
        text.push('\n');
    }
}

/// Whole microseconds: no digits that a binary fraction makes up.
fn seconds(microseconds: u64) -> String {
    format!("{}.{:06}", microseconds / 1_000_000, microseconds % 1_000_000)
}

/// Appends a value with what would end it or its line escaped; in help quotes stay.
fn escape(text: &mut String, value: &str, quotes: bool) {
    if !value.contains(['\\', '\n', '"']) {
        return text.push_str(value);
    }
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if quotes => text.push_str("\\\""),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_told_once_and_values_are_escaped() {
        let mut out = Exposition::new(0);
        let odd = Labels::new(&[("service", "a\"b\\c\nd"), ("protocol", "tcp")]);
        let mut family = out.family("x_total", Kind::Counter, "What\nis \"so\" \\.");
        family.sample(&odd, 1);
        family.sample_with(&odd, ("way", "\""), u64::MAX);
        family.sample(&Labels::default(), 0);
        family.sample_with(&Labels::default(), ("way", "b"), 2);
        out.family("y", Kind::Gauge, "Y.").sample(&Labels::new(&[("a", "")]), 7);
        let expected = r#"# HELP x_total What\nis "so" \\.
# TYPE x_total counter
x_total{service="a\"b\\c\nd",protocol="tcp"} 1
x_total{service="a\"b\\c\nd",protocol="tcp",way="\""} 18446744073709551615
x_total 0
x_total{way="b"} 2
# HELP y Y.
# TYPE y gauge
y{a=""} 7
"#;
        assert_eq!(out.finish(), expected);
    }

    #[test]
    fn buckets_of_a_histogram_add_up() {
        let mut histogram = Histogram { microseconds: 12_000_045, ..Histogram::default() };
        histogram.buckets = std::array::from_fn(|at| 1 << at);
        let mut out = Exposition::new(0);
        out.family("h_seconds", Kind::Histogram, "H.").histogram(&Labels::new(&[("a", "b")]), &histogram);
        let text = out.finish();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        let bounds =
            ["0.000064", "0.000256", "0.001024", "0.004096", "0.016384", "0.065536", "0.262144", "1.048576"];
        let expected = bounds.iter().enumerate().map(|(n, bound)| {
            format!("h_seconds_bucket{{a=\"b\",le=\"{bound}\"}} {}", (1u64 << (2 * n + 1)) - 1)
        });
        let all = (1u64 << 16) - 1;
        let expected: Vec<String> = expected
            .chain([
                format!("h_seconds_bucket{{a=\"b\",le=\"+Inf\"}} {all}"),
                "h_seconds_sum{a=\"b\"} 12.000045".into(),
                format!("h_seconds_count{{a=\"b\"}} {all}"),
            ])
            .collect();
        assert_eq!(lines, expected);
    }
}
