//! The tables of a TOML text, read key by key. serde would stop at the first thing that it cannot take, whatever stands
//! above that; here every value is looked at, and the problem that comes first in the text is the one that is told.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{cut, line_of};
use super::words::Fault;

/// How many characters of a value are cited.
const CITED: usize = 60;
/// How alike two keys are when one is taken for the other mistyped.
const ALIKE: f64 = 0.65;

/// A part of the text, in bytes.
pub(super) type Span = Range<usize>;

/// A key that a table may have.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) takes: Takes,
    /// A right value, as TOML.
    pub(super) example: &'static str,
}

/// What a key's value may be in TOML.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Text,
    Number,
    TextOrNumber,
    Flag,
    /// What its own reader knows, in words.
    Other(&'static str),
}

impl Takes {
    fn noun(self) -> &'static str {
        match self {
            Takes::Text => "a string",
            Takes::Number => "a whole number",
            Takes::TextOrNumber => "a string or a whole number",
            Takes::Flag => "true or false",
            Takes::Other(noun) => noun,
        }
    }
}

/// The text, and what of its problems comes first.
pub(super) struct Reader<'t> {
    text: &'t str,
    problem: Option<(Span, String)>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str) -> Reader<'t> {
        Reader { text, problem: None }
    }

    /// Notes a problem, if none is known that comes before it.
    pub(super) fn report(&mut self, span: &Span, message: impl FnOnce(&Self) -> String) {
        let is_first = self.problem.as_ref().is_none_or(|(known, _)| span.start < known.start);
        if is_first {
            self.problem = Some((span.clone(), message(self)));
        }
    }

    /// The same, of a value.
    pub(super) fn fault(&mut self, span: &Span, fault: &Fault) {
        self.report(span, |reader| format!("{}: {}; write {}", reader.cite(span), fault.wrong, fault.right));
    }

    /// What was found, in order or not.
    pub(super) fn problem(self) -> Option<(Span, String)> {
        self.problem
    }

    /// The number of the line that a part of the text begins in.
    pub(super) fn line(&self, span: &Span) -> usize {
        line_of(self.text, span.start)
    }

    /// A part of the text for a message.
    pub(super) fn cite(&self, span: &Span) -> String {
        let source = self.text.get(span.clone()).unwrap_or_default();
        match source.split_once('\n') {
            Some((line, _)) => format!("{}...", cut(line.trim_end_matches('\r'), CITED)),
            None => cut(source, CITED),
        }
    }

    /// The value of one word, which is a string's text or a number's digits.
    pub(super) fn parse<T>(
        &mut self,
        (word, span): &(Cow<'_, str>, Span),
        takes: Takes,
        parse: impl FnOnce(&OsStr) -> Result<T, Fault>,
    ) -> Option<T> {
        let fault = match parse(OsStr::new(word.as_ref())) {
            Ok(value) => return Some(value),
            Err(fault) => fault,
        };
        let right = match takes {
            Takes::Number | Takes::Flag => fault.right,
            Takes::Text | Takes::TextOrNumber | Takes::Other(_) => quote(&fault.right),
        };
        self.fault(span, &Fault { wrong: fault.wrong, right });
        None
    }

    /// A string or a number as a word.
    pub(super) fn word<'v>(
        &mut self,
        key: &Key,
        value: &'v Spanned<DeValue<'_>>,
    ) -> Option<(Cow<'v, str>, Span)> {
        let word = match (value.get_ref(), key.takes) {
            (DeValue::String(text), Takes::Text | Takes::TextOrNumber | Takes::Other(_)) => {
                Cow::Borrowed(text.as_ref())
            }
            (DeValue::Integer(number), Takes::Number | Takes::TextOrNumber | Takes::Other(_)) => {
                // What is too large for this is too large for everybody, and its digits are as good.
                let value = i128::from_str_radix(number.as_str(), number.radix());
                value.map_or_else(|_| Cow::Borrowed(number.as_str()), |value| Cow::Owned(value.to_string()))
            }
            _ => {
                self.wrong_type(key, value);
                return None;
            }
        };
        Some((word, value.span()))
    }

    /// Notes that a value is not of the type that its key takes.
    pub(super) fn wrong_type(&mut self, key: &Key, value: &Spanned<DeValue<'_>>) {
        let Key { name, takes, example } = key;
        let is = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a point",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        let span = value.span();
        self.report(&span, |reader| {
            let cited = reader.cite(&span);
            // An element of an array has no key, and is called by what it is.
            let right =
                if name.contains(' ') { (*example).to_owned() } else { format!("{name} = {example}") };
            format!("{cited}: {name} is {}, this is {is}; write {right}", takes.noun())
        });
    }
}

/// One table of the text.
pub(super) struct Table<'v, 't> {
    /// Its header, or all of it where it is written in one line.
    pub(super) span: Span,
    entries: &'v DeTable<'t>,
    keys: &'static [Key],
    /// There is a key in it that there is not: what seems to be missing may be that.
    has_unknown: bool,
}

impl<'v, 't> Table<'v, 't> {
    /// Notes keys that there are not: `elsewhere` says where one belongs, if anywhere.
    pub(super) fn new(
        reader: &mut Reader<'_>,
        span: Span,
        entries: &'v DeTable<'t>,
        keys: &'static [Key],
        elsewhere: impl Fn(&str) -> Option<String>,
    ) -> Table<'v, 't> {
        let mut has_unknown = false;
        for (entry, _) in entries {
            let name = entry.get_ref().as_ref();
            if !keys.iter().any(|key| key.name == name) {
                has_unknown = true;
                reader.report(&entry.span(), |_| elsewhere(name).unwrap_or_else(|| unknown(name, keys)));
            }
        }
        Table { span, entries, keys, has_unknown }
    }

    /// The key's value, if it is there.
    pub(super) fn get(&self, name: &str) -> Option<(&'static Key, &'v Spanned<DeValue<'t>>)> {
        let key = self.keys.iter().find(|key| key.name == name)?;
        self.entries.get(name).map(|value| (key, value))
    }

    /// Every key with its value, in the order of the text.
    pub(super) fn entries(&self) -> Vec<(&'static Key, &'v Spanned<DeValue<'t>>)> {
        let mut entries: Vec<_> = self.keys.iter().filter_map(|key| self.get(key.name)).collect();
        entries.sort_by_key(|(_, value)| value.span().start);
        entries
    }

    /// Where the key's value is, else the table.
    pub(super) fn span_of(&self, name: &str) -> Span {
        self.get(name).map_or_else(|| self.span.clone(), |(_, value)| value.span())
    }

    /// The meaning of a key that may be absent.
    pub(super) fn value<T>(
        &self,
        reader: &mut Reader<'_>,
        name: &str,
        parse: impl FnOnce(&OsStr) -> Result<T, Fault>,
    ) -> Option<T> {
        let (key, value) = self.get(name)?;
        let word = reader.word(key, value)?;
        reader.parse(&word, key.takes, parse)
    }

    /// `true` or `false`, if it is there.
    pub(super) fn flag(&self, reader: &mut Reader<'_>, name: &str) -> Option<bool> {
        let (key, value) = self.get(name)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            _ => {
                reader.wrong_type(key, value);
                None
            }
        }
    }

    /// Notes that a key which must be there is not.
    pub(super) fn missing(&self, reader: &mut Reader<'_>, name: &str) {
        if self.has_unknown {
            return;
        }
        let example = self.keys.iter().find(|key| key.name == name).map_or("", |key| key.example);
        let span = &self.span;
        reader.report(span, |reader| match reader.cite(span) {
            cited if cited.is_empty() => format!("{name} is missing; write {name} = {example}"),
            cited => format!("{cited}: {name} is missing; write {name} = {example}"),
        });
    }
}

/// That there is no such key, with the one that was meant, or all that there are.
fn unknown(name: &str, keys: &[Key]) -> String {
    let likeness = |key: &Key| strsim::normalized_damerau_levenshtein(name, key.name);
    let best = keys.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let cited = cut(name, CITED);
    match best.filter(|key| likeness(key) >= ALIKE) {
        Some(key) => format!("there is no key {cited:?}; write {}", key.name),
        None => {
            let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
            format!("there is no key {cited:?}; write one of {}", names.join(", "))
        }
    }
}

/// The right words of a [`Fault`], as TOML strings: what follows the first word of an alternative explains it.
pub(super) fn quote(right: &str) -> String {
    let mut quoted = String::new();
    let mut starts = true;
    for word in right.split(' ') {
        if !quoted.is_empty() {
            quoted.push(' ');
        }
        match word.strip_suffix(',') {
            _ if word == "or" => {
                quoted.push_str(word);
                starts = true;
                continue;
            }
            Some(value) if starts => quoted.push_str(&format!("\"{value}\",")),
            None if starts => quoted.push_str(&format!("\"{word}\"")),
            _ => quoted.push_str(word),
        }
        starts = word.ends_with(',');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_words_become_strings() {
        for (right, quoted) in [
            ("eth0", r#""eth0""#),
            ("auto, native or skb", r#""auto", "native" or "skb""#),
            ("5s, 500ms, or 0 for never", r#""5s", "500ms", or "0" for never"#),
            ("round-robin (rr) or maglev (mh)", r#""round-robin" (rr) or "maglev" (mh)"#),
        ] {
            assert_eq!(quote(right), quoted);
        }
    }
}
