//! The sweep of the control plane over a table that the simulation has filled: a real BPF array, mapped by both.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::{MapHandle, MapType};
use nix::time::{ClockId, clock_gettime};
use plain::Plain;
use serde::Serialize;
use xdp_lb::dataplane::types::{
    lb_backend, lb_backend_events, lb_backend_load, lb_bucket, lb_nexthop, lb_nexthop_flags, lb_settings,
};
use xdp_lb::dataplane::{Events, Loads, Rows, Sweeper, Walked};

use super::run::{Case, Outcome, Simulator};

/// As often as a walk is repeated.
const WALKS: u32 = 3;

/// The shortest times of walks over a table, in CPU time: others may be busy.
#[derive(Serialize)]
pub struct Swept {
    pub outcome: Outcome,
    pub count: Duration,
    pub sweep: Duration,
}

/// A few lines of each other table; the simulation's entries name backend 1 and next hop 0.
const OTHERS: u32 = 2;

pub fn run(simulator: &Simulator, case: &Case) -> Result<Swept> {
    let buckets = u32::try_from(case.buckets)?;
    let map = create::<lb_bucket>(buckets)?;
    let stdin = Stdio::from(std::os::fd::AsFd::as_fd(&map).try_clone_to_owned()?);
    let outcome = simulator.run(&Case { stdin_map: 1, ..case.clone() }, stdin)?;

    let connections = Rows::<lb_bucket>::map(map)?;
    let (backends, loads) = (
        Rows::<lb_backend>::map(create::<lb_backend>(OTHERS)?)?,
        Rows::map(create::<lb_backend_load>(OTHERS)?)?,
    );
    let nexthops = Rows::map(create::<lb_nexthop>(OTHERS)?)?;
    nexthops
        .set(0, lb_nexthop { flags: lb_nexthop_flags::LB_NEXTHOP_VALID.0 as u8, ..Default::default() })?;
    let settings = lb_settings {
        buckets,
        key: [outcome.key[0], outcome.key[1], 0, 0],
        timeout: outcome.timeout,
        ..Default::default()
    };
    let events = Rows::map(create::<lb_backend_events>(OTHERS)?)?;
    let walked = Walked {
        connections: &connections,
        backends: &backends,
        loads: Loads(&loads),
        events: Events(&events),
        nexthops: &nexthops,
    };
    let sweeper = Sweeper::new(walked, settings, outcome.now);
    let confirmed = |census: xdp_lb::dataplane::Census| -> Result<()> {
        let (found, there) = (census.confirmed, outcome.in_table);
        ensure!(found == there, "a walk found {found} of {there} live connections");
        Ok(())
    };
    let count = shortest(|| confirmed(sweeper.count()))?;
    let sweep = shortest(|| confirmed(sweeper.sweep(|_| {})))?;
    Ok(Swept { outcome, count, sweep })
}

fn shortest(mut walk: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..WALKS {
        let started = cpu_time()?;
        walk()?;
        times.push(cpu_time()? - started);
    }
    times.into_iter().min().context("no walk")
}

fn cpu_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

/// As the program's tables are made (`BPF_F_MMAPABLE`).
fn create<T: Plain>(rows: u32) -> Result<MapHandle> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        map_flags: libbpf_sys::BPF_F_MMAPABLE,
        ..Default::default()
    };
    let (key, value) = (size_of::<u32>() as u32, size_of::<T>() as u32);
    MapHandle::create(MapType::Array, Some("connections"), key, value, rows, &options)
        .with_context(|| format!("could not make a table of {rows} rows"))
}
