//! The connection table under pressure: how often a new connection finds no slot, by size, load and kind of clients, and what
//! that costs. The table is the code of `src/bpf/conn.h`, compiled for user space.
//!
//! `cargo bench --bench table -- [--quick] [SECTION...]`, with the sections of `SECTIONS`. Prints tables, and writes the same
//! as JSON to `target/bench/`. `--quick` is the check that the tests make too, at 1,000,000 connections.

#[path = "table/run.rs"]
mod run;
#[path = "table/sweep.rs"]
mod sweep;

use std::path::Path;
use std::process::Stdio;
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use run::{Case, Outcome, PATTERNS, SLOTS_PER_BUCKET, Simulator, check, default_buckets};
use serde_json::{Value, json};

const M: u64 = 1_000_000;
/// Connections to slots, in thousandths; 286 stands for the product's own size.
const LOADS: [u64; 9] = [250, DEFAULT, 333, 400, 500, 600, 750, 850, 950];
const DEFAULT: u64 = 286;

type Section = fn(&mut Bench) -> Result<()>;

const SECTIONS: [(&str, Section); 8] = [
    ("default", default_size),
    ("churn-1M", churn_1m),
    ("half-open", half_open),
    ("overflow", overflow),
    ("fill", fill),
    ("sweep", sweeps),
    ("churn-10M", churn_10m),
    ("churn-100M", churn_100m),
];

struct Bench {
    simulator: Simulator,
    results: Vec<Value>,
}

fn main() -> Result<()> {
    // cargo itself says --bench.
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    let simulator = Simulator::compile(None)?;
    if words.iter().any(|word| word == "--quick") {
        return check(&simulator, M, 6 * M);
    }
    for word in &words {
        ensure!(SECTIONS.iter().any(|(name, _)| name == word), "there is no section {word}");
    }
    let mut bench = Bench { simulator, results: Vec::new() };
    for (name, section) in SECTIONS {
        if words.is_empty() || words.iter().any(|word| word == name) {
            println!("\n== {name}\n");
            section(&mut bench)?;
            bench.write(&words)?;
        }
    }
    Ok(())
}

impl Bench {
    /// `None` if there is no memory for it, which is said.
    fn run(&mut self, case: &Case) -> Result<Option<Outcome>> {
        if !has_room(case)? {
            return Ok(None);
        }
        let outcome = self.simulator.run(case, Stdio::null())?;
        self.results.push(json!({ "case": case, "outcome": outcome }));
        Ok(Some(outcome))
    }

    /// Runs cases of churn and prints a line for each.
    fn churn(&mut self, cases: impl IntoIterator<Item = Case>) -> Result<()> {
        println!(
            "  live         slots        load  pattern     new          failed      share     at most   2nd     B/conn"
        );
        for case in cases {
            let Some(outcome) = self.run(&case)? else { continue };
            println!(
                "  {:<11}  {:<11}  {:>4.1}  {:<10}  {:<11}  {:<10}  {:<8.2e}  {:<8.1e}  {:>4.1} %  {:.1}",
                case.live,
                outcome.slots,
                percent(case.live, outcome.slots),
                case.pattern,
                outcome.inserts,
                outcome.failed,
                outcome.failing(),
                at_most(outcome.failed) / outcome.inserts as f64,
                percent(outcome.in_second, outcome.live),
                outcome.slots as f64 * 16.0 / case.live as f64,
            );
        }
        Ok(())
    }

    fn write(&self, words: &[String]) -> Result<()> {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
        fs::create_dir_all(&directory).context("could not make the directory of the results")?;
        let name: String = words.iter().map(|word| format!("-{word}")).collect();
        let file = directory.join(format!("table{name}.json"));
        fs::write(&file, serde_json::to_string_pretty(&self.results)?)
            .with_context(|| format!("could not write {}", file.display()))
    }
}

fn has_room(case: &Case) -> Result<bool> {
    const TABLE_ROW: u64 = 64;
    const SERIAL: u64 = 4;
    const LEFT_TO_OTHERS: u64 = 1 << 30;
    let text = fs::read_to_string("/proc/meminfo").context("could not read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let available = line.trim().trim_end_matches(" kB").parse::<u64>()? << 10;
    let needed = case.buckets * TABLE_ROW + case.live * SERIAL + LEFT_TO_OTHERS;
    if available < needed {
        println!("  SKIPPED: {} live connections need {} MB of memory", case.live, needed >> 20);
    }
    Ok(available >= needed)
}

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64 * 100.0
}

/// The 95 % upper bound of a rare event's expectation, of which so many were seen (Poisson, by Wilson and Hilferty; 3 for 0).
fn at_most(seen: u64) -> f64 {
    const NORMAL_95: f64 = 1.645;
    let k = seen as f64 + 1.0;
    k * (1.0 - 1.0 / (9.0 * k) + NORMAL_95 / (3.0 * k.sqrt())).powi(3)
}

fn buckets(live: u64, load: u64) -> Result<u64> {
    if load == DEFAULT { default_buckets(live) } else { Ok((live * 1000).div_ceil(load * SLOTS_PER_BUCKET)) }
}

fn cases(live: u64, loads: &[u64], patterns: &[&'static str]) -> Result<Vec<Case>> {
    let pairs = patterns.iter().flat_map(|pattern| loads.iter().map(move |load| (*pattern, *load)));
    pairs.map(|(pattern, load)| Ok(Case::churn(pattern, live, buckets(live, load)?))).collect()
}

/// Enough connections to tell 10^-6 from less.
fn default_size(bench: &mut Bench) -> Result<()> {
    let of = |(pattern, inserts)| -> Result<Case> {
        Ok(Case { inserts, ..Case::churn(pattern, M, default_buckets(M)?) })
    };
    let cases: Result<Vec<Case>> =
        [(PATTERNS[0], 200 * M), (PATTERNS[1], 50 * M), (PATTERNS[2], 50 * M)].into_iter().map(of).collect();
    bench.churn(cases?)
}

fn churn_1m(bench: &mut Bench) -> Result<()> {
    bench.churn(cases(M, &LOADS, &PATTERNS)?)
}

fn churn_10m(bench: &mut Bench) -> Result<()> {
    bench.churn(cases(10 * M, &[DEFAULT], &PATTERNS[1..])?)?;
    bench.churn(cases(10 * M, &LOADS, &PATTERNS[..1])?)
}

/// One turnover is counted, so that it takes minutes and not an hour.
fn churn_100m(bench: &mut Bench) -> Result<()> {
    const SECONDS: u64 = 600;
    let of = |case: Case| Case { inserts: case.warm, seconds: SECONDS, ..case };
    bench.churn(cases(100 * M, &[DEFAULT, 500], &PATTERNS[..1])?.into_iter().map(of))
}

/// SYNs that nobody follows up hold 10 % of the slots at any time, beside as many confirmed connections as are promised, or so
/// many that both together are; handshakes take 100 ms.
fn half_open(bench: &mut Bench) -> Result<()> {
    const HANDSHAKE: u64 = 100;
    const INSERTS: u64 = 20 * M;
    println!(
        "  confirmed   slots      half-open  new         failed  share     half-open: new, failed    handshakes lost   2nd"
    );
    for (live, buckets, half_open) in [
        (M, default_buckets(M)?, 0),
        (M, default_buckets(M)?, 20_000),
        (M, default_buckets(M)?, 100_000),
        (650_000, default_buckets(M)?, 100_000),
        (M, M * 9 / 8, 100_000 * 7 / 9),
        (M, M * 5 / 4, 100_000 * 7 / 10),
    ] {
        let case = Case {
            half_open,
            handshake: HANDSHAKE,
            inserts: INSERTS,
            ..Case::churn(PATTERNS[0], live, buckets)
        };
        let Some(outcome) = bench.run(&case)? else { continue };
        println!(
            "  {:<10}  {:<9}  {:<9}  {:<10}  {:<6}  {:<8.2e}  {:<9}  {:<12}  {:<16}  {:>4.1} %",
            case.live,
            outcome.slots,
            outcome.unconfirmed,
            outcome.inserts,
            outcome.failed,
            outcome.failing(),
            outcome.half_opens,
            outcome.half_open_failed,
            outcome.handshakes_lost,
            percent(outcome.in_second, case.live)
        );
    }
    Ok(())
}

/// Connections that find no slot are held elsewhere until they end.
fn overflow(bench: &mut Bench) -> Result<()> {
    println!("  live         load  elsewhere (mean)  peak      share     2nd");
    for case in cases(M, &[400, 500, 600, 750, 850], &PATTERNS[..1])? {
        let case = Case { overflow: 1, inserts: 10 * M, ..case };
        let Some(outcome) = bench.run(&case)? else { continue };
        println!(
            "  {:<11}  {:>4.1}  {:<16.1}  {:<8}  {:<8.2e}  {:>4.1} %",
            case.live,
            percent(case.live, outcome.slots),
            outcome.overflow_mean,
            outcome.overflow_peak,
            outcome.overflow_mean / case.live as f64,
            percent(outcome.in_second, case.live)
        );
    }
    Ok(())
}

/// New connections only, into an empty table.
fn fill(bench: &mut Bench) -> Result<()> {
    for (connections, pattern) in
        [(M, PATTERNS[0]), (M, PATTERNS[1]), (M, PATTERNS[2]), (10 * M, PATTERNS[0]), (100 * M, PATTERNS[0])]
    {
        let case = Case { pattern, buckets: default_buckets(connections)?, fill: 1, ..Case::default() };
        let Some(outcome) = bench.run(&case)? else { continue };
        let first = percent(outcome.first_failure, outcome.slots);
        print!("  {:<9} slots, {pattern}: first failure at {first:.1} %; failed until", outcome.slots);
        for step in &outcome.fill {
            print!("  {} %: {:.1e}", step.load, step.failed as f64 / step.tried as f64);
        }
        println!();
    }
    Ok(())
}

/// What a full table of the default size costs to use and to walk over. In a real BPF array, so it takes root.
fn sweeps(bench: &mut Bench) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("  SKIPPED: needs root");
        return Ok(());
    }
    println!("  live         slots        hit ns   insert ns  count ms   sweep ms");
    for live in [M, 10 * M, 100 * M] {
        let case = Case { timed: M, ..Case::churn(PATTERNS[0], live, default_buckets(live)?) };
        // How the entries lie does not depend on how often the table was turned over.
        let case = Case { warm: live, inserts: live, seconds: 600, ..case };
        if !has_room(&case)? {
            continue;
        }
        let swept = sweep::run(&bench.simulator, &case)?;
        let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        println!(
            "  {live:<11}  {:<11}  {:<7.0}  {:<9.0}  {:<9.1}  {:.1}",
            swept.outcome.slots,
            swept.outcome.hit_ns,
            swept.outcome.insert_ns,
            milliseconds(swept.count),
            milliseconds(swept.sweep)
        );
        bench.results.push(json!({ "case": case, "swept": swept }));
    }
    Ok(())
}
