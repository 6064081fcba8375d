//! `xdp-lb verify`: does this kernel take the programs?

use anyhow::Result;
use comfy_table::{Table, presets};

use super::stdout::say;
use crate::dataplane::{Budget, Verified, kernel_release, verify_all};

/// Has the kernel verify every program in every profile and prints what it says of each. Fails, too, if one has grown beyond
/// what is committed for this compiler and kernel.
pub fn verify() -> Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["PROGRAM", "INSTRUCTIONS", "BUDGET", "STATES", "STACK"]);
    let budget = Budget::for_kernel(kernel_release()?)?;
    let all = verify_all()?;
    for verified in &all {
        table.add_row([
            verified.program.clone(),
            verified.instructions.to_string(),
            against(&budget, verified),
            verified.states.to_string(),
            verified.stack.clone(),
        ]);
    }
    say(table.trim_fmt() + "\n")?;
    if !budget.is_known() {
        tracing::info!("there are no figures to compare with for {}", budget.pair);
    }
    budget.check(&all)
}

/// The difference to the committed figure, in percent.
fn against(budget: &Budget, verified: &Verified) -> String {
    budget.of(&verified.program).map_or("-".to_owned(), |figure| {
        let percent = 100.0 * (verified.instructions as f64 / figure as f64 - 1.0);
        format!("{percent:+.1} %")
    })
}
