//! How many instructions the verifier may walk: the figures that are committed with the program, in `src/bpf/budget.json`.
//!
//! They differ among compilers and kernels, so each pair of both has its own; where a pair has none, only the kernel's limit
//! holds.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

use super::verify::Verified;

const COMMITTED: &str = include_str!("../bpf/budget.json");
/// The version of the compiler that made the programs.
const CLANG: &str = env!("XDP_LB_CLANG_VERSION");
/// A program may grow by a tenth before somebody has to look at it, and write the new figure down.
const PERCENT: u64 = 10;

/// The committed figures for this compiler and this kernel.
#[derive(Debug)]
pub struct Budget {
    /// For whom they are: `clang 14, kernel 6.18`.
    pub pair: String,
    figures: Option<BTreeMap<String, u64>>,
}

impl Budget {
    /// For a kernel of this version.
    pub fn for_kernel(version: (u32, u32)) -> Result<Budget> {
        Self::read(COMMITTED, CLANG, version)
    }

    fn read(text: &str, clang: &str, (major, minor): (u32, u32)) -> Result<Budget> {
        let mut all: BTreeMap<String, BTreeMap<String, u64>> =
            serde_json::from_str(text).context("src/bpf/budget.json is not what it should be")?;
        let pair = format!("clang {clang}, kernel {major}.{minor}");
        Ok(Budget { figures: all.remove(&pair), pair })
    }

    /// Whether there are figures to compare with.
    pub fn is_known(&self) -> bool {
        self.figures.is_some()
    }

    /// The committed figure for a program.
    pub fn of(&self, program: &str) -> Option<u64> {
        self.figures.as_ref()?.get(program).copied()
    }

    /// Fails if a program has grown by more than a tenth, or has no figure where others have. The message has the figures that
    /// are to be committed if that is as it should be.
    pub fn check(&self, all: &[Verified]) -> Result<()> {
        if !self.is_known() {
            return Ok(());
        }
        let mut grown = Vec::new();
        for verified in all {
            match self.of(&verified.program) {
                None => grown.push(format!("{} has no figure", verified.program)),
                Some(figure) if verified.instructions * 100 > figure * (100 + PERCENT) => {
                    grown.push(format!(
                        "{} has grown from {figure} to {} verified instructions",
                        verified.program, verified.instructions
                    ))
                }
                Some(_) => {}
            }
        }
        if grown.is_empty() {
            return Ok(());
        }
        let figures: BTreeMap<&str, u64> =
            all.iter().map(|verified| (verified.program.as_str(), verified.instructions)).collect();
        let figures = serde_json::to_string_pretty(&figures).context("could not write figures")?;
        bail!(
            "{}: more than {PERCENT} % over the budget of {}. Find out why; if it is worth it, put this into \
             src/bpf/budget.json:\n\"{}\": {figures}",
            grown.join("; "),
            self.pair,
            self.pair
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{ "clang 14, kernel 6.18": { "one": 1000, "two": 50 } }"#;

    fn verified(program: &str, instructions: u64) -> Verified {
        Verified { program: program.into(), instructions, states: 1, stack: "0".into() }
    }

    #[test]
    fn a_program_may_grow_by_a_tenth() {
        let budget = Budget::read(TEXT, "14", (6, 18)).unwrap();
        assert_eq!(budget.of("one"), Some(1000));
        budget.check(&[verified("one", 1100), verified("two", 5)]).unwrap();
        let error = budget.check(&[verified("one", 1101), verified("two", 50)]).unwrap_err().to_string();
        assert!(error.contains("one has grown from 1000 to 1101 verified instructions"), "{error}");
        assert!(error.contains("\"one\": 1101") && error.contains("\"two\": 50"), "{error}");
        let error = budget.check(&[verified("three", 1)]).unwrap_err().to_string();
        assert!(error.starts_with("three has no figure"), "{error}");
    }

    #[test]
    fn another_compiler_or_kernel_has_no_budget() {
        for (clang, kernel) in [("15", (6, 18)), ("14", (6, 1))] {
            let budget = Budget::read(TEXT, clang, kernel).unwrap();
            assert!(!budget.is_known());
            budget.check(&[verified("one", 999_999)]).unwrap();
        }
    }

    #[test]
    fn the_committed_figures_can_be_read() {
        Budget::for_kernel((6, 18)).unwrap();
    }
}
