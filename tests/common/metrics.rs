//! What an instance tells Prometheus, read as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::netns::Lab;

/// Where the tests have it served.
pub const METRICS: &str = "127.0.0.1:9105";

/// A series: its name, labels and value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// One answer of `/metrics`.
#[derive(Debug)]
pub struct Scrape {
    pub text: String,
    pub samples: Vec<Sample>,
}

impl Scrape {
    /// Of the instance in `lb`, of now: one that comes within three times what the one before took is answered with that one's text.
    pub fn take(lab: &Lab) -> Result<Scrape> {
        sleep(Duration::from_millis(if cfg!(debug_assertions) { 300 } else { 30 }));
        Scrape::of(get(lab, METRICS, "/metrics")?)
    }

    /// What a text tells; every series once.
    pub fn of(text: String) -> Result<Scrape> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples: Result<Vec<Sample>> =
            lines.map(|line| sample(line).with_context(|| line.to_owned())).collect();
        let samples = samples?;
        let mut seen = BTreeSet::new();
        for sample in &samples {
            ensure!(seen.insert((&sample.name, &sample.labels)), "{sample:?} is there twice");
        }
        Ok(Scrape { text, samples })
    }

    /// The sum over the series of a name that have these labels: `to_backend`, or `direction=to_backend service=web`.
    pub fn sum(&self, name: &str, labels: &str) -> f64 {
        self.of_name(name, labels).map(|sample| sample.value).sum()
    }

    /// The same of a series that must be there, alone.
    pub fn one(&self, name: &str, labels: &str) -> f64 {
        let all: Vec<&Sample> = self.of_name(name, labels).collect();
        let [one] = all[..] else { panic!("{name} {labels}: {all:?}\n{}", self.text) };
        one.value
    }

    fn of_name(&self, name: &str, labels: &str) -> impl Iterator<Item = &Sample> {
        let wanted: Vec<(&str, &str)> =
            labels.split_whitespace().filter_map(|pair| pair.split_once('=')).collect();
        let has = move |sample: &&Sample| {
            let is = |(name, value): &(&str, &str)| sample.labels.get(*name).is_some_and(|has| has == value);
            wanted.iter().all(is)
        };
        self.samples.iter().filter(move |sample| sample.name == name).filter(has)
    }

    /// Every family with what it is and the labels of its series, without those that a histogram adds.
    pub fn families(&self) -> BTreeMap<String, (String, BTreeSet<String>)> {
        let types = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let labels = |name: &str, kind: &str| {
            let name = if kind == "histogram" { format!("{name}_sum") } else { name.to_owned() };
            let of = self.samples.iter().find(|sample| sample.name == name);
            of.map(|sample| sample.labels.keys().cloned().collect()).unwrap_or_default()
        };
        types.map(|(name, kind)| (name.to_owned(), (kind.to_owned(), labels(name, kind)))).collect()
    }
}

/// `name{label="value",...} value`; the values of the tests have nothing that must be escaped.
fn sample(line: &str) -> Result<Sample> {
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}').context("no }")?),
    };
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((name.to_owned(), value.strip_prefix('"')?.strip_suffix('"')?.to_owned()))
    };
    let labels = labels.split(',').filter(|pair| !pair.is_empty());
    let labels = labels.map(|text| pair(text).with_context(|| text.to_owned())).collect::<Result<_>>()?;
    Ok(Sample { name: name.to_owned(), labels, value: value.parse()? })
}

/// The body of what is at a path, which must be there.
pub fn get(lab: &Lab, address: &str, path: &str) -> Result<String> {
    let args = ["-sS", "--fail-with-body", "--max-time", "30", &format!("http://{address}{path}")];
    lab.run("lb", "curl", &args)
}

/// The status of a path, and the body.
pub fn status(lab: &Lab, path: &str) -> Result<(u16, String)> {
    let url = format!("http://{METRICS}{path}");
    let args = ["-sS", "--max-time", "30", "-w", " %{http_code}", &url];
    let said = lab.run("lb", "curl", &args)?;
    let (body, code) = said.rsplit_once(' ').context("no status")?;
    Ok((code.parse()?, body.to_owned()))
}

/// What promtool says of a text; nothing, where all is well.
pub fn promtool(lab: &Lab, text: &str) -> Result<String> {
    let mut command = lab.command("lb", "promtool")?;
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool: {}: {said}", output.status);
    Ok(said.into_owned())
}

/// The kernel's counters of a namespace, by name, as nstat tells them.
pub fn nstat(lab: &Lab, namespace: &str) -> Result<BTreeMap<String, u64>> {
    let text = lab.run(namespace, "nstat", &["-asz"])?;
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    Ok(text.lines().filter_map(line).collect())
}
