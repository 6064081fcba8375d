//! Notes to the operator on stderr: a reader that is gone or a full disk must not stop the balancing, so unlike `eprintln!`
//! this never panics.

use std::fmt::Arguments;
use std::io::Write as _;

/// Writes a line to stderr if that can be done. For the macro `note!`.
pub fn line(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "xdp-lb: {text}");
}

/// A line on stderr, after `xdp-lb: `; takes what `format!` takes.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => { $crate::note::line(format_args!($($text)*)) };
}
