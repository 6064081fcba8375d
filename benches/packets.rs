//! What each packet costs: the program as it is loaded, run by `BPF_PROG_TEST_RUN` on frames of each kind, and live between
//! two veths. `cargo bench --bench packets -- [--quick] [--rounds N] [PART OF A NAME...]`, as root.
//!
//! Figures are nanoseconds of the thread's CPU time for each packet, less those of a program that only parses the frame
//! and sends it back, run in the same rounds. After each run the program's counters must say that every packet took the
//! way that the case is about; else the benchmark fails. `cargo test` runs each case once, for the sake of that.

#[path = "packets/case.rs"]
mod case;
#[path = "packets/cases.rs"]
mod cases;
#[allow(dead_code)] // shared with the packet tests, which use all of it
#[path = "../tests/packets/frame.rs"]
mod frame;
#[allow(dead_code)] // as above
#[path = "../tests/packets/lab.rs"]
mod lab;
#[path = "packets/live.rs"]
mod live;
#[path = "packets/measure.rs"]
mod measure;
#[path = "packets/plot.rs"]
mod plot;
#[path = "packets/report.rs"]
mod report;
#[path = "packets/scene.rs"]
mod scene;
#[path = "packets/wrapper.rs"]
mod wrapper;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::{Pid, geteuid};

/// How thoroughly to measure.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Over which minimum and median are taken.
    pub rounds: usize,
    /// Packets of each case and round, but for those that would fill a table.
    pub repeats: u32,
    /// Connections of the largest table.
    pub most: u32,
}

const FULL: Effort = Effort { rounds: 12, repeats: 300_000, most: 1_000_000 };
const QUICK: Effort = Effort { rounds: 3, repeats: 100_000, most: 100_000 };
const ONCE: Effort = Effort { rounds: 1, repeats: 10_000, most: 10_000 };

const USAGE: &str = "packets [--quick] [--rounds N] [PART OF A CASE'S NAME...]";

struct Arguments {
    effort: Effort,
    filters: Vec<String>,
}

impl Arguments {
    fn parse() -> Result<Arguments> {
        let mut arguments = Arguments { effort: FULL, filters: Vec::new() };
        let mut given = env::args().skip(1);
        while let Some(argument) = given.next() {
            match argument.as_str() {
                "--quick" => arguments.effort = QUICK,
                "--rounds" => {
                    let rounds = given.next().and_then(|number| number.parse().ok());
                    let rounds = rounds.filter(|rounds| *rounds > 0);
                    arguments.effort.rounds = rounds.context("--rounds needs a number above 0")?;
                }
                "--bench" => {} // cargo's
                _ => {
                    ensure!(!argument.starts_with('-'), "unknown option {argument}: {USAGE}");
                    arguments.filters.push(argument);
                }
            }
        }
        Ok(arguments)
    }

    fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
    }
}

/// Under `cargo test`, whose arguments are for other tests.
fn once() -> Result<()> {
    if !geteuid().is_root() || env::args().skip(1).any(|word| !word.starts_with('-')) {
        println!("SKIPPED: the benchmark needs root, and no name of a test");
        return Ok(());
    }
    in_namespace(|| {
        let results = test_runs(&Arguments { effort: ONCE, filters: Vec::new() })?;
        println!("each of {} kinds of packets took its way", results.len());
        Ok(())
    })
}

fn main() -> Result<()> {
    if !env::args().any(|word| word == "--bench") {
        return once();
    }
    let arguments = Arguments::parse()?;
    ensure!(
        geteuid().is_root(),
        "the benchmark loads programs and makes a network namespace: run it as root"
    );
    in_namespace(move || run(&arguments))
}

/// In a namespace for one thread alone, which ends with it.
fn in_namespace(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let worker = std::thread::spawn(move || {
        pin_to_one_cpu()?;
        unshare(CloneFlags::CLONE_NEWNET).context("could not make a network namespace")?;
        lab::network();
        work()
    });
    worker.join().map_err(std::panic::resume_unwind)?
}

fn test_runs(arguments: &Arguments) -> Result<Vec<measure::Measured>> {
    with_wrapper(|object| measure::test_runs(arguments.effort, object, |name| arguments.wants(name)))
}

/// With the wrapper, compiled.
fn with_wrapper<T>(measure: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let directory = tempfile::tempdir().context("could not make a temporary directory")?;
    let object = directory.path().join("packets.o");
    wrapper::compile("benches/bpf/packets.bpf.c", &object)?;
    measure(&object)
}

fn run(arguments: &Arguments) -> Result<()> {
    let effort = arguments.effort;
    let out = output()?;
    let machine = report::Machine::look()?;
    println!("{machine}");
    println!("{} rounds of up to {} packets of each kind\n", effort.rounds, effort.repeats);
    let results = test_runs(arguments)?;
    if !results.is_empty() {
        println!("{}", report::table(&results));
    }
    let live =
        arguments.wants("live").then(|| with_wrapper(|object| live::measure(effort, object))).transpose()?;
    if let Some(live) = &live {
        println!("{}", report::live(live));
    }
    ensure!(!results.is_empty() || live.is_some(), "no case has a name like {:?}", arguments.filters);
    let json = out.join("packets.json");
    let report = report::Report { machine, results: &results, live: live.as_ref() };
    let text = serde_json::to_string_pretty(&report)?;
    fs::write(&json, text + "\n").with_context(|| format!("could not write {}", json.display()))?;
    println!("the same as JSON: {}", json.display());
    let svg = out.join("packets.svg");
    if plot::draw(&results, &svg)? {
        println!("plot: {}", svg.display());
    }
    Ok(())
}

/// `target/bench`.
fn output() -> Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("bench");
    fs::create_dir_all(&out).with_context(|| format!("could not make {}", out.display()))?;
    Ok(out)
}

/// The last of the allowed ones: interrupts prefer the first.
fn pin_to_one_cpu() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut only = CpuSet::new();
    only.set(last.context("no CPU is allowed")?)?;
    sched_setaffinity(this, &only).context("could not stay on one CPU")
}
