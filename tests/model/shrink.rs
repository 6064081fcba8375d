//! The shortest sequence that still fails.

use super::packets::frame::Checksum;
use super::sequence::{Op, Sent};

/// Leaves out and simplifies what is not needed for `fails` to stay true. Deterministic, and it ends: each step that is
/// kept makes the sequence smaller.
pub fn shrink(mut ops: Vec<Op>, mut fails: impl FnMut(&[Op]) -> bool) -> Vec<Op> {
    loop {
        let before = weight(&ops);
        leave_out(&mut ops, &mut fails);
        simplify(&mut ops, &mut fails);
        if weight(&ops) == before {
            return ops;
        }
    }
}

/// Smaller and smaller chunks (delta debugging, Zeller and Hildebrandt 2002).
fn leave_out(ops: &mut Vec<Op>, fails: &mut impl FnMut(&[Op]) -> bool) {
    let mut chunk = ops.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < ops.len() {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + chunk).min(ops.len()));
            if fails(&fewer) {
                *ops = fewer;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
}

/// Each frame without what it may not need.
fn simplify(ops: &mut Vec<Op>, fails: &mut impl FnMut(&[Op]) -> bool) {
    const CHANGES: [fn(&mut Sent); 9] = [
        |sent| _ = sent.edits.pop(),
        |sent| drop(sent.edits.drain(..sent.edits.len().min(1))),
        |sent| sent.frame.payload.clear(),
        |sent| sent.frame.payload.truncate(sent.frame.payload.len() / 2),
        |sent| sent.frame.tags.clear(),
        |sent| sent.frame.ip_options.clear(),
        |sent| sent.frame.tcp_options.clear(),
        |sent| sent.frame.padding = 0,
        |sent| sent.frame.checksum = Checksum::Whole,
    ];
    for at in 0..ops.len() {
        for change in CHANGES {
            let Op::Frame(sent) = &ops[at] else { break };
            let mut simpler = sent.clone();
            change(&mut simpler);
            if size(&simpler) >= size(sent) {
                continue;
            }
            let mut candidate = ops.clone();
            candidate[at] = Op::Frame(simpler);
            if fails(&candidate) {
                *ops = candidate;
            }
        }
    }
}

fn weight(ops: &[Op]) -> usize {
    ops.iter().map(|op| if let Op::Frame(sent) = op { 1 + size(sent) } else { 1 }).sum()
}

fn size(sent: &Sent) -> usize {
    let frame = &sent.frame;
    frame.payload.len()
        + frame.tags.len()
        + frame.ip_options.len()
        + frame.tcp_options.len()
        + frame.padding
        + sent.edits.len()
        + usize::from(frame.checksum != Checksum::Whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_needed_goes() {
        let ops = (0..40).map(Op::Clock).collect();
        let is_there = |ops: &[Op], by: i32| ops.iter().any(|op| matches!(op, Op::Clock(b) if *b == by));
        let left = shrink(ops, |ops| is_there(ops, 7) && is_there(ops, 31));
        assert!(matches!(left[..], [Op::Clock(7), Op::Clock(31)]));
    }
}
