//! What TOML's own parser complains about, in the shape of all other complaints.

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use super::error::{cut, floor, line_of};
use super::tree::{Key, Span};
use super::{file, health, service};

/// How many characters of the text are cited.
const CITED: usize = 60;

/// How the parser's messages begin, what is wrong then, and what is right. The first that fits counts.
const HINTS: [(&str, &str, &str); 28] = [
    ("key with no value", "the = after the key is missing", "KEY = EXAMPLE"),
    ("missing value for key", "the value is missing", "KEY = EXAMPLE"),
    ("unquoted keys cannot be empty", "the key before the = is missing", "interface = \"eth0\""),
    ("invalid key-value pair", "a key and its value are needed", "interface = \"eth0\""),
    ("invalid unquoted key", "a key has only letters, digits, - and _", "# before a comment"),
    ("extra `=`", "there is one = too many", "KEY = EXAMPLE"),
    ("unclosed array table", "the ]] at the end of the header is missing", "[[service]]"),
    ("unclosed table", "the ] at the end of the header is missing", "[[service]]"),
    ("unclosed array", "the ] at the end of the array is missing", "]"),
    ("unclosed inline table", "the } at the end of the table is missing", "}"),
    ("invalid inline table element", "the } at the end of the table is missing", "}"),
    ("missing assignment between", "the = after the key is missing", "KEY = EXAMPLE"),
    ("missing key for inline table", "the key is missing", "{ address = \"10.0.0.10:8080\" }"),
    ("missing comma between array", "the comma before this is missing, or the ] of the array", "a , or a ]"),
    ("missing comma between", "the comma before this is missing, or the } of the table", "a , or a }"),
    ("extra comma", "there is a comma too many", "one comma between two values"),
    ("unexpected key or value", "the line should end before this", "it in a line of its own, or after a #"),
    ("missing escaped value", "no such character follows a \\ in a string", "\\\\ for a \\"),
    ("too few unicode value digits", "the digits after \\u are too few", "\\u and four digits, as \\u00e4"),
    ("invalid comment character", "a comment has a control character in it", "the comment without it"),
    ("carriage return must be", "a carriage return stands alone", "a line feed after it"),
    ("unexpected leading zero", "a number does not begin with 0", "it without the 0"),
    ("`_` may only go between", "a _ in a number is between two digits", "it as in 1_000_000"),
    ("cannot extend value", "the key before the point has a value already", "the key once"),
    ("keys cannot be multi-line", "a key is in one line", "interface = \"eth0\""),
    ("redundant numeric sign", "a number has one sign", "the number with one"),
    ("cannot recurse further", "the tables and arrays are nested too deep", "[[service]] for each service"),
    ("radix must be lowercase", "the letter after the 0 is a small one", "0x"),
];

/// The complaint that comes first in the text.
pub(super) fn first(text: &str, root: &DeTable<'_>, errors: &[Error]) -> Option<(Span, String)> {
    // The parser goes byte by byte: where it stops may be within a character.
    let span = |error: &Error| {
        let span = error.span().unwrap_or(0..0);
        let start = floor(text, span.start);
        start..floor(text, span.end).max(start)
    };
    let error = errors.iter().min_by_key(|error| span(error).start)?;
    let (span, message) = (span(error), error.message());
    if message.starts_with("duplicate key") {
        return Some((span.clone(), duplicate(text, root, &span)));
    }
    if let Some(complaint) = bare_word(text, &span, message).or_else(|| string(&span, message)) {
        return Some(complaint);
    }
    if text[..span.start].ends_with(|c: char| c.is_alphanumeric()) && text[span.start..].starts_with(':') {
        return Some((span.clone(), with_example("a key is followed by =", "KEY = EXAMPLE", text, &span)));
    }
    let hint = HINTS.iter().find(|(begin, _, _)| message.starts_with(begin));
    let message = match hint {
        Some((_, wrong, right)) => with_example(wrong, right, text, &span),
        None => format!("{message}; write what TOML allows there, see https://toml.io"),
    };
    Some((span, message))
}

/// Something that is no value: a string without quotes, or nothing.
fn bare_word(text: &str, span: &Span, message: &str) -> Option<(Span, String)> {
    let is_boolean = message.starts_with("invalid boolean");
    let numbers = ["invalid float", "invalid integer", "invalid date", "invalid time", "invalid hex"];
    let is_number = numbers.iter().any(|begin| message.starts_with(begin));
    if !is_boolean && !is_number && !message.starts_with("string values must be quoted") {
        return None;
    }
    let in_word = |c: char| !c.is_whitespace() && !"=,[]{}#\"'".contains(c);
    let start = text[..span.start].trim_end_matches(in_word).len();
    let rest = &text[start..];
    let word = &rest[..rest.find(|c| !in_word(c)).unwrap_or(rest.len())];
    if word.is_empty() {
        return Some((span.clone(), with_example("the value is missing", "KEY = EXAMPLE", text, span)));
    }
    // The quotes of a text editor for letters are not those of TOML.
    let plain = cut(word.trim_matches(['“', '”', '„', '‘', '’']), CITED);
    let cited = cut(word, CITED);
    let message = match plain.to_lowercase().as_str() {
        "true" | "yes" | "on" => format!("{cited}: it is neither true nor false; write true"),
        "false" | "no" | "off" => format!("{cited}: it is neither true nor false; write false"),
        _ if is_boolean => format!("{cited}: it is neither true nor false; write true or false"),
        _ => format!("{cited}: a string is in quotes; write \"{plain}\""),
    };
    Some((start..start + word.len(), message))
}

/// A string that does not end, or has something in it that cannot be.
fn string(span: &Span, message: &str) -> Option<(Span, String)> {
    let is_string = message.starts_with("invalid ") && message.contains(" string");
    if !is_string {
        return None;
    }
    let message = if message.contains("visible characters") || message.contains("quote characters") {
        "a control character in a string; write \\u and its four digits, as \\u0007"
    } else if message.contains("`'`") {
        "the string does not end; write a ' after it"
    } else {
        "the string does not end; write a \" after it"
    };
    Some((span.clone(), message.into()))
}

/// Names the line of the key that is there already.
fn duplicate(text: &str, root: &DeTable<'_>, span: &Span) -> String {
    let name = text[span.clone()].trim_matches(['"', '\'']);
    let mut first = None;
    previous(root, name, span.start, &mut first);
    let start_of_line = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
    let line = first.map(|at| line_of(text, at)).or_else(|| header(&text[..start_of_line], name));
    let place = line.map_or_else(String::new, |line| format!(", in line {line}"));
    let right = match name {
        "service" => "[[service]] above each service",
        "backend" => "[[service.backend]] above each backend, or one array of them",
        _ => "it once",
    };
    format!("the key {:?} is there already{place}; write {right}", cut(name, CITED))
}

/// The line of the last header or key of that name: the parser forgets a header that comes twice.
fn header(before: &str, name: &str) -> Option<usize> {
    let is_it = |line: &str| line.trim_start_matches([' ', '\t', '[', '"', '\'']).starts_with(name);
    let found = before.lines().enumerate().filter(|(_, line)| is_it(line)).last();
    found.map(|(number, _)| number + 1)
}

/// The last key of that name before an offset. No table of a configuration has a key of a table around it.
fn previous(table: &DeTable<'_>, name: &str, before: usize, found: &mut Option<usize>) {
    for (key, value) in table {
        let at = key.span().start;
        if key.get_ref() == name && at < before && found.is_none_or(|known| at > known) {
            *found = Some(at);
        }
        previous_in(value, name, before, found);
    }
}

fn previous_in(value: &Spanned<DeValue<'_>>, name: &str, before: usize, found: &mut Option<usize>) {
    match value.get_ref() {
        DeValue::Table(table) => previous(table, name, before, found),
        DeValue::Array(array) => array.iter().for_each(|value| previous_in(value, name, before, found)),
        _ => {}
    }
}

/// The message, with the key of the line and a right value of it.
fn with_example(wrong: &str, right: &str, text: &str, span: &Span) -> String {
    let line = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
    let rest = text[line..].trim_start_matches([' ', '\t']);
    let name = &rest[..rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len())];
    let tables: [&[Key]; 4] = [&file::KEYS, &service::KEYS, &health::KEYS, &service::BACKEND_KEYS];
    let known = tables.into_iter().flatten().find(|key| key.name == name);
    let (name, example) = known.map_or(("interface", "\"eth0\""), |key| (key.name, key.example));
    format!("{wrong}; write {}", right.replace("KEY", name).replace("EXAMPLE", example))
}
