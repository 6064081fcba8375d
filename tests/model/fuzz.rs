//! Random sequences, in every set-up.
//!
//! `XDP_LB_FUZZ_SEED` is the seed, `XDP_LB_FUZZ_PACKETS` about how many packets (`make fuzz SEED=7 N=1000000`).

use std::collections::BTreeMap;
use std::env;
use std::sync::{Arc, Mutex};

use xdp_lb::dataplane::Reason;

use super::differential::{Disagreement, START, Twin};
use super::generate::Generator;
use super::packets::lab::lab;
use super::scenario::{Scenario, all};
use super::sequence::Op;
use super::shrink::shrink;

const SEED: u64 = 1;
const PACKETS: u64 = 200_000;
/// Long enough that tables fill and time passes, short enough to be shrunk.
const STEPS: usize = 120;

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// How many packets met each reason, by the model.
type Met = BTreeMap<&'static str, u64>;

/// What no packet can do to a table that is as it should be.
const ERRORS: [&str; 2] = ["error tables", "error checksum"];

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_program_agrees_with_the_model() {
    let (seed, packets) = (number("XDP_LB_FUZZ_SEED", SEED), number("XDP_LB_FUZZ_PACKETS", PACKETS));
    let scenarios = all();
    let share = packets.div_ceil(scenarios.len() as u64);
    let queue = Mutex::new(scenarios.into_iter().enumerate());
    let work = || {
        let mut met = Met::new();
        loop {
            let next = queue.lock().expect("nobody panics with it").next();
            let Some((at, scenario)) = next else { return met };
            add(
                &mut met,
                in_scenario(scenario, seed.wrapping_mul(1000).wrapping_add(at as u64) << 32, share),
            );
        }
    };
    let met = std::thread::scope(|scope| {
        let workers = [(); 2].map(|()| scope.spawn(work));
        let mut met = Met::new();
        for worker in workers {
            match worker.join() {
                Ok(share) => add(&mut met, share),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        met
    });
    let total: u64 = met.values().sum();
    eprintln!("seed {seed}: the program and the model agreed on {total} packets: {met:?}");
    assert!(total >= packets);
    // Fewer are not enough to meet all.
    if packets >= PACKETS {
        let names = Reason::ALL.iter().map(|reason| format!("{} {}", reason.class.name(), reason.name));
        let never: Vec<String> = names
            .filter(|name| !met.contains_key(name.as_str()) && !ERRORS.contains(&name.as_str()))
            .collect();
        assert!(never.is_empty(), "no packet met {never:?}");
    }
}

fn add(to: &mut Met, more: Met) {
    for (reason, packets) in more {
        *to.entry(reason).or_default() += packets;
    }
}

fn in_scenario(scenario: Scenario, seed: u64, packets: u64) -> Met {
    let met = Arc::new(Mutex::new(Met::new()));
    let result = met.clone();
    lab(scenario.setup(), move |lab| {
        let mut twin = Twin::new(lab, &scenario);
        let mut met = Met::new();
        let mut n = seed;
        while met.values().sum::<u64>() < packets {
            n += 1;
            let (ops, result) = random_sequence(&mut twin, n);
            if let Err(first) = result {
                panic!("{}", report(&mut twin, &scenario, n, ops, &first));
            }
            add(&mut met, twin.met());
        }
        *result.lock().expect("nobody else has it") = met;
    });
    Arc::into_inner(met).expect("the lab has ended").into_inner().expect("nobody panicked with it")
}

/// Also returns what happened, up to the disagreement.
fn random_sequence(twin: &mut Twin<'_>, seed: u64) -> (Vec<Op>, Result<(), Disagreement>) {
    let mut generator = Generator::new(seed);
    let mut ops = Vec::new();
    twin.reset();
    for _ in 0..STEPS {
        let op = generator.next(&twin.machine);
        ops.push(op);
        if let Err(disagreement) = twin.step(&ops[ops.len() - 1]) {
            return (ops, Err(disagreement));
        }
    }
    let result = twin.finish();
    (ops, result)
}

fn run(twin: &mut Twin<'_>, ops: &[Op], mut each: impl FnMut(String)) -> Result<(), Disagreement> {
    twin.reset();
    for op in ops {
        each(twin.step(op)?);
    }
    twin.finish()
}

/// The shortest sequence as rows of the packet table.
fn report(twin: &mut Twin<'_>, scenario: &Scenario, seed: u64, ops: Vec<Op>, first: &Disagreement) -> String {
    let ops = shrink(ops, |ops| run(twin, ops, |_| ()).is_err());
    let mut rows = Vec::new();
    let result = run(twin, &ops, |row| rows.push(row));
    let (what, row) = match result {
        Err(last) => (last.what, last.row),
        Ok(()) => (first.what.clone(), "// it does not happen again: the first time it was this".to_owned()),
    };
    rows.push(row);
    let neighbours = if scenario.neighbours {
        "lab.neighbour(CLIENT_MAC);\n        lab.neighbour(GATEWAY_MAC);\n        "
    } else {
        ""
    };
    format!(
        "the program and the model do not agree, profile {}, {}, sequence {seed:#x}: {what}\n\n\
         #[test]\n#[cfg_attr(not(root), ignore = \"needs root\")]\nfn root_found_by_chance() {{\n{scenario}\n    \
         lab(setup, |lab| {{\n        lab.long_clock({START});\n        {neighbours}{}\n    }});\n}}\n",
        scenario.profile.name(),
        scenario.name,
        rows.join("\n        ")
    )
}
