//! `xdp-lb verify`: does this kernel take the programs?

use std::io::Write as _;

use anyhow::Result;
use comfy_table::{Table, presets};

use crate::dataplane::verify_all;

/// Has the kernel verify every program in every profile and prints what it says of each.
pub fn verify() -> Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["PROGRAM", "INSTRUCTIONS", "STATES", "STACK"]);
    for verified in verify_all()? {
        table.add_row([
            verified.program,
            verified.instructions.to_string(),
            verified.states.to_string(),
            verified.stack,
        ]);
    }
    // A reader that has seen enough is no error.
    let _ = writeln!(std::io::stdout(), "{}", table.trim_fmt());
    Ok(())
}
