//! Rounds of all cases in turn, each beside the base program on the same frames.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::Effort;
use crate::case::{Aim, Case, shot};
use crate::cases;
use crate::scene::{Counts, Scene, Spec};
use crate::wrapper::Wrapper;

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figure {
    pub minimum: f64,
    pub median: f64,
}

impl Figure {
    pub fn of(mut samples: Vec<f64>) -> Figure {
        samples.sort_by(f64::total_cmp);
        let middle = samples.len() / 2;
        let median = match samples.len() % 2 {
            0 => (samples[middle - 1] + samples[middle]) / 2.0,
            _ => samples[middle],
        };
        Figure { minimum: samples[0], median }
    }
}

/// Nanoseconds for each packet.
#[derive(Debug, Serialize)]
pub struct Measured {
    pub name: String,
    pub packets: u32,
    pub rounds: usize,
    /// Wrapper and base program.
    pub base: Figure,
    /// Wrapper and balancer.
    pub whole: Figure,
    /// The balancer above the base program: of the least of both, and of each round.
    pub net: Figure,
    /// `whole` of `base`, the medians.
    pub ratio: f64,
    /// Of the median of `net`.
    pub aim: Option<f64>,
    pub met: Option<bool>,
    pub plot: Option<(&'static str, u32)>,
}

struct Samples {
    base: Vec<f64>,
    whole: Vec<f64>,
}

pub fn test_runs(effort: Effort, object: &Path, wants: impl Fn(&str) -> bool) -> Result<Vec<Measured>> {
    let cases: Vec<Case> = cases::all(effort).into_iter().filter(|case| wants(&case.name)).collect();
    let mut base = Wrapper::load(object, None)?;
    let mut scenes: Vec<(Spec, Scene)> = Vec::new();
    for case in &cases {
        if !scenes.iter().any(|(spec, _)| *spec == case.spec) {
            scenes.push((case.spec, Scene::set(case.spec, object)?));
        }
        scene_of(&mut scenes, case)?.prepare(case.profile, object)?;
    }
    let mut samples: Vec<Samples> =
        cases.iter().map(|_| Samples { base: Vec::new(), whole: Vec::new() }).collect();
    for round in 0..effort.rounds {
        for turn in 0..cases.len() {
            // There and back: what drifts hits all alike.
            let at = if round % 2 == 0 { turn } else { cases.len() - 1 - turn };
            let (case, scene) = (&cases[at], scene_of(&mut scenes, &cases[at])?);
            let (whole, below) = measure(case, scene, &mut base)
                .with_context(|| format!("{}, round {}", case.name, round + 1))?;
            samples[at].whole.push(nanoseconds(whole, case.packets));
            samples[at].base.push(nanoseconds(below, case.packets));
        }
    }
    let mut results: Vec<Measured> =
        cases.iter().zip(samples).map(|(case, samples)| evaluate(case, samples)).collect();
    judge(&cases, &mut results);
    Ok(results)
}

fn scene_of<'a>(scenes: &'a mut [(Spec, Scene)], case: &Case) -> Result<&'a mut Scene> {
    let found = scenes.iter_mut().find(|(spec, _)| *spec == case.spec);
    found.map(|(_, scene)| scene).context("a case without its scene")
}

/// One round of a case: what the balancer takes, and what the base program does.
fn measure(case: &Case, scene: &mut Scene, base: &mut Wrapper) -> Result<(Duration, Duration)> {
    let of_kind = |kind| shot(kind, case.draw, u32::from(case.spec.backends));
    if case.fresh {
        scene.clear()?;
    }
    for kind in &case.before {
        scene.counted(case.profile, &of_kind(*kind), case.packets)?;
        scene.rewind(case.packets);
    }
    let shot = of_kind(case.kind);
    let below = base.run(&shot, scene.next(), case.packets)?;
    let (whole, counts) = scene.counted(case.profile, &shot, case.packets)?;
    let packets = u64::from(case.packets);
    let expected = Counts {
        reasons: BTreeMap::from([(case.reason.to_owned(), packets)]),
        connections: if case.opens { packets } else { 0 },
    };
    ensure!(counts == expected, "the packets took another way: {counts:?}, not {expected:?}");
    Ok((whole, below))
}

fn nanoseconds(took: Duration, packets: u32) -> f64 {
    took.as_nanos() as f64 / f64::from(packets)
}

fn evaluate(case: &Case, samples: Samples) -> Measured {
    let net: Vec<f64> = samples.whole.iter().zip(&samples.base).map(|(whole, base)| whole - base).collect();
    let rounds = samples.whole.len();
    let (base, whole) = (Figure::of(samples.base), Figure::of(samples.whole));
    Measured {
        name: case.name.clone(),
        packets: case.packets,
        rounds,
        base,
        whole,
        net: Figure { minimum: whole.minimum - base.minimum, median: Figure::of(net).median },
        ratio: whole.median / base.median,
        aim: None,
        met: None,
        plot: case.plot,
    }
}

fn judge(cases: &[Case], results: &mut [Measured]) {
    let medians: BTreeMap<String, f64> =
        results.iter().map(|result| (result.name.clone(), result.net.median)).collect();
    for (case, result) in cases.iter().zip(results) {
        result.aim = match &case.aim {
            Some(Aim::Net(aim)) => Some(*aim),
            // Without the other case there is nothing to compare with.
            Some(Aim::Times(factor, other)) => medians.get(other).map(|median| factor * median),
            None => None,
        };
        result.met = result.aim.map(|aim| result.net.median <= aim);
    }
}
