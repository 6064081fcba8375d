//! What is wrong with a configuration file, and where: the line, and a caret under the part that is meant.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How many characters of a source line are shown.
const WIDTH: usize = 100;
/// How many characters of it are shown before the part that is meant, at most.
const BEFORE: usize = 40;
/// How long a message may get by what it cites.
const LONGEST: usize = 600;

/// Why a configuration file is refused. Its text is for people:
///
/// ```text
/// /etc/xdp-lb.toml:12:7: "10.0.0.10": the port is missing; write "10.0.0.10:80"
///   12 | vip = "10.0.0.10"
///      |       ^^^^^^^^^^^
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    file: PathBuf,
    place: Option<Place>,
    message: String,
}

/// Where in a text something is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
    /// The line, as much of it as is shown.
    source: String,
    /// How many characters precede the carets, and how many carets there are.
    carets: (usize, usize),
}

impl FileError {
    /// Something is wrong with this part of the text.
    pub(super) fn at(file: &Path, text: &str, span: &Range<usize>, message: &str) -> FileError {
        FileError { file: file.into(), place: Some(Place::of(text, span)), message: cut(message, LONGEST) }
    }

    /// Something is wrong with the file as a whole.
    pub(super) fn whole(file: &Path, message: &str) -> FileError {
        FileError { file: file.into(), place: None, message: cut(message, LONGEST) }
    }

    /// Line and column, both from 1 on, the column in characters; `None` where the file could not be read.
    pub fn position(&self) -> Option<(usize, usize)> {
        self.place.as_ref().map(|place| (place.line, place.column))
    }

    /// What is wrong and what to write, without the place.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file: String = self.file.to_string_lossy().chars().map(plain).collect();
        let Some(Place { line, column, source, carets: (before, carets) }) = &self.place else {
            return write!(f, "{file}: {}", self.message);
        };
        let margin = line.to_string().len();
        writeln!(f, "{file}:{line}:{column}: {}", self.message)?;
        writeln!(f, "  {line} | {source}")?;
        write!(f, "  {:margin$} | {:before$}{}", "", "", "^".repeat(*carets))
    }
}

impl std::error::Error for FileError {}

impl Place {
    fn of(text: &str, span: &Range<usize>) -> Place {
        let start = start_of(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let rest = &text[line_start..];
        let line = rest.find('\n').map_or(rest, |end| &rest[..end]);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let line_end = line_start + line.len();
        let start = start.min(line_end);
        let end = floor(text, span.end).clamp(start, line_end);
        let column = text[line_start..start].chars().count();
        let length = text[start..end].chars().count().max(1);
        let (source, carets) = excerpt(line, column, length);
        Place { line: line_of(text, line_start), column: column + 1, source, carets }
    }
}

/// The number of the line that this offset is in, from 1 on.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Where something begins: what is missing at the end of a file belongs to its last line that says something.
fn start_of(text: &str, offset: usize) -> usize {
    let start = floor(text, offset);
    match text[start..].trim().is_empty() && text[..start].ends_with('\n') {
        true => text[..start].trim_end().len(),
        false => start,
    }
}

/// The character boundary at or before an offset.
pub(super) fn floor(text: &str, offset: usize) -> usize {
    let offset = offset.min(text.len());
    (0..=offset).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// As much of a line as fits, with the place of the carets in it.
fn excerpt(line: &str, column: usize, length: usize) -> (String, (usize, usize)) {
    let count = line.chars().count();
    if count <= WIDTH {
        return (line.chars().map(plain).collect(), (column, length));
    }
    let from = column.saturating_sub(BEFORE).min(count - WIDTH);
    let shown: String = line.chars().skip(from).take(WIDTH).map(plain).collect();
    let carets = length.min((WIDTH - (column - from)).max(1));
    let dots = ["...", ""];
    let (head, tail) = (dots[usize::from(from == 0)], dots[usize::from(from + WIDTH >= count)]);
    let before = head.len() + column - from;
    (format!("{head}{shown}{tail}"), (before, carets))
}

/// The character, or one that does nothing to a terminal and takes one column too.
pub(super) fn plain(c: char) -> char {
    match c {
        '\t' => ' ',
        c if does_something(c) => '\u{fffd}',
        c => c,
    }
}

/// Whether a character changes how others are shown, or is not seen.
pub(super) fn does_something(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text, or its beginning, without characters that do something.
pub(super) fn cut(text: &str, longest: usize) -> String {
    let mut cut: String = text.chars().take(longest).map(plain).collect();
    if text.chars().nth(longest).is_some() {
        cut.push_str("...");
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, span: Range<usize>) -> String {
        FileError::at(Path::new("FILE"), text, &span, "bad").to_string()
    }

    #[test]
    fn a_caret_is_under_what_is_meant() {
        assert_eq!(shown("a\nbb = 1\n", 7..8), "FILE:2:6: bad\n  2 | bb = 1\n    |      ^");
        assert_eq!(shown("\tb = 12\r\n", 5..7), "FILE:1:6: bad\n  1 |  b = 12\n    |      ^^");
        assert_eq!(shown("ü = 12", 5..7), "FILE:1:5: bad\n  1 | ü = 12\n    |     ^^");
        assert_eq!(shown("a = '''\nb'''", 4..12), "FILE:1:5: bad\n  1 | a = '''\n    |     ^^^");
    }

    #[test]
    fn what_is_missing_at_the_end_is_on_the_last_line() {
        assert_eq!(shown("a = [\n\n", 7..7), "FILE:1:6: bad\n  1 | a = [\n    |      ^");
        assert_eq!(shown("", 0..0), "FILE:1:1: bad\n  1 | \n    | ^");
        assert_eq!(shown("\n\n", 2..2), "FILE:1:1: bad\n  1 | \n    | ^");
        assert_eq!(shown("a", 90..99), "FILE:1:2: bad\n  1 | a\n    |  ^");
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret() {
        let text = format!("a = \"{}\" b", "x".repeat(10_000));
        for span in [0..1, 4..10_006, 10_007..10_008] {
            let got = shown(&text, span);
            let lines: Vec<&str> = got.lines().collect();
            assert!(lines.iter().all(|line| line.len() < 120), "{got}");
            assert!(lines[2].len() <= lines[1].len(), "{got}");
        }
        assert!(shown(&text, 10_007..10_008).contains("x\" b\n"));
    }

    #[test]
    fn nothing_reaches_the_terminal_raw() {
        let got = shown("a = \"\u{1b}[31m\u{202e}\"", 4..5);
        assert!(!got.contains('\u{1b}') && !got.contains('\u{202e}'), "{got}");
        let file = FileError::whole(Path::new("a\u{1b}b"), "x\u{7}y");
        assert_eq!(file.to_string(), "a\u{fffd}b: x\u{fffd}y");
    }
}
