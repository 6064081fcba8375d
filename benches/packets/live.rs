//! Live frames: in by one veth, through the balancer, and out by another, against a program that only redirects them.
//!
//! Generator, balancer and sink share one CPU, so that the share of the redirecting program's rate says what the balancer
//! adds to a whole way through the kernel.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use serde::Serialize;

use crate::Effort;
use crate::case::{Kind, shot};
use crate::lab::LB_MAC;
use crate::measure::Figure;
use crate::scene::{Fill, Scene, Spec};
use crate::wrapper::{Draw, Shot, Wrapper};

const CLIENTS: u32 = 10_000;
const SMALL: usize = 64;

/// Of the rate of the program that only redirects.
const AIM: f64 = 0.8;

/// Of those sent, at least so many must arrive: a queue between the interfaces may run over on a busy machine, but a way
/// that is broken is no rate.
const LEAST_RECEIVED: f64 = 0.5;

/// Packets received a second, in millions.
#[derive(Debug, Serialize)]
pub struct Live {
    pub connections: u32,
    pub packets: u32,
    pub rounds: usize,
    pub redirect: Rate,
    pub balancer: Rate,
    /// Of the rates of each round, the median.
    pub share: f64,
    pub aim: f64,
    pub met: bool,
}

#[derive(Debug, Serialize)]
pub struct Rate {
    pub median: f64,
    pub best: f64,
    /// Frames that were sent and not received, of all rounds.
    pub lost: u64,
}

impl Rate {
    fn of(samples: &[(f64, u64)]) -> Rate {
        let rates: Vec<f64> = samples.iter().map(|sample| sample.0).collect();
        let best = rates.iter().copied().fold(0.0, f64::max);
        Rate { best, median: Figure::of(rates).median, lost: samples.iter().map(|sample| sample.1).sum() }
    }
}

pub fn measure(effort: Effort, object: &Path) -> Result<Live> {
    let mut scene = Scene::set(Spec::new(CLIENTS, Fill::Confirmed(CLIENTS)), object)?;
    let mut ends = Wrapper::load(object, None)?;
    let far = |name| if_nametoindex(name).with_context(|| format!("no interface {name}"));
    let _sink = ends.attach("bench_sink", far("back-far")?)?;
    let mut frames = shot(Kind::Data(SMALL, false), Draw::Random(CLIENTS), 1);
    frames.frame[..LB_MAC.len()].copy_from_slice(&LB_MAC);
    frames.ifindex = far("front-far")?;
    let packets = effort.repeats;
    let (mut redirect, mut balancer, mut share) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        let next = u64::from(packets) * round as u64;
        let link = ends.attach("bench_redirect", scene.front())?;
        let plain = rate(&mut ends, &frames, next, packets).context("redirect only")?;
        drop(link);
        scene.attach()?;
        let before = scene.counts()?;
        let ours = rate(&mut ends, &frames, next, packets).context("balancer");
        let counts = scene.counts()?.since(&before);
        scene.detach()?;
        let ours = ours?;
        ensure!(counts.reasons.len() == 1 && counts.connections == 0, "other ways were taken: {counts:?}");
        ensure!(counts.of("sent to_backend") <= packets.into(), "more than was sent: {counts:?}");
        redirect.push(plain);
        balancer.push(ours);
        share.push(ours.0 / plain.0);
    }
    let share = Figure::of(share).median;
    Ok(Live {
        connections: CLIENTS,
        packets,
        rounds: effort.rounds,
        redirect: Rate::of(&redirect),
        balancer: Rate::of(&balancer),
        share,
        aim: AIM,
        met: share >= AIM,
    })
}

/// Millions of packets that the sink receives a second, and how many it does not receive.
fn rate(ends: &mut Wrapper, frames: &Shot, next: u64, packets: u32) -> Result<(f64, u64)> {
    let before = ends.received()?;
    let start = Instant::now();
    ends.send_live(frames, next, packets)?;
    let took = start.elapsed();
    let received = ends.received()? - before;
    ensure!(
        received as f64 >= LEAST_RECEIVED * f64::from(packets),
        "only {received} of {packets} frames arrived"
    );
    let lost = u64::from(packets).checked_sub(received).context("more was received than was sent")?;
    Ok((received as f64 / took.as_secs_f64() / 1e6, lost))
}
