//! Warnings that are said once, when they begin to be true.

use std::collections::{BTreeMap, BTreeSet};

/// What is wrong now, by topic.
#[derive(Default)]
pub struct Warnings(BTreeMap<&'static str, BTreeSet<String>>);

impl Warnings {
    /// All that is wrong with a topic now. What was wrong before is not said again; what comes back later is.
    pub fn are(&mut self, topic: &'static str, now: impl IntoIterator<Item = String>) {
        for text in self.news(topic, now) {
            tracing::warn!("{text}");
        }
    }

    fn news(&mut self, topic: &'static str, now: impl IntoIterator<Item = String>) -> Vec<String> {
        let now: BTreeSet<String> = now.into_iter().collect();
        let known = self.0.entry(topic).or_default();
        let news = now.difference(known).cloned().collect();
        *known = now;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_said_once_until_it_comes_back() {
        let mut warnings = Warnings::default();
        let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(warnings.news("a", all(&["x", "y"])), ["x", "y"]);
        assert_eq!(warnings.news("a", all(&["x", "z"])), ["z"]);
        assert_eq!(warnings.news("b", all(&["x"])), ["x"]);
        assert!(warnings.news("a", all(&[])).is_empty());
        assert_eq!(warnings.news("a", all(&["x"])), ["x"]);
    }
}
