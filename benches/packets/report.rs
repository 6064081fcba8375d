//! The figures as a table for people and as JSON.

use std::fmt;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::live::{Live, Rate};
use crate::measure::Measured;

/// Where it was measured.
#[derive(Serialize)]
pub struct Machine {
    cpu: String,
    cpus: usize,
    kernel: String,
    compiler: String,
    /// Runnable processes of the last minute, before it began: what else makes noise.
    load: String,
}

impl Machine {
    pub fn look() -> Result<Machine> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("could not read /proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let version = Command::new(env!("XDP_LB_CLANG")).arg("--version").output();
        let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Ok(Machine {
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            compiler: version.unwrap_or_default().lines().next().unwrap_or("unknown").to_owned(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cpus, kernel, compiler, load } = self;
        write!(f, "{cpus} CPUs ({cpu}), Linux {kernel}, {compiler}; load {load}")
    }
}

#[derive(Serialize)]
pub struct Report<'a> {
    pub machine: Machine,
    /// Nanoseconds for each packet.
    pub results: &'a [Measured],
    /// Packets a second.
    pub live: Option<&'a Live>,
}

pub fn live(live: &Live) -> String {
    let Live { connections, packets, rounds, redirect, balancer, share, aim, met } = live;
    let verdict = if *met { "met" } else { "MISSED" };
    let rate = |name: &str, Rate { median, best, lost }: &Rate| {
        format!("  {name:<13}  {median:.2} (best {best:.2}), {lost} frames lost\n")
    };
    format!(
        "live, {connections} connections, {rounds} rounds of {packets} frames, one CPU for all, million packets a second \
         received:\n{}{}  share {:.0} %, aim {:.0} %: {verdict}\n",
        rate("redirect only", redirect),
        rate("balancer", balancer),
        share * 100.0,
        aim * 100.0,
    )
}

pub fn table(results: &[Measured]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(["packet", "net min", "net median", "whole", "base", "ratio", "aim", ""]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for result in results {
        table.add_row([
            result.name.clone(),
            format!("{:.1}", result.net.minimum),
            format!("{:.1}", result.net.median),
            format!("{:.1}", result.whole.median),
            format!("{:.1}", result.base.median),
            format!("{:.1}", result.ratio),
            result.aim.map_or(String::new(), |aim| format!("{aim:.0}")),
            result.met.map_or("", |met| if met { "met" } else { "MISSED" }).to_owned(),
        ]);
    }
    format!("{table}\n")
}
