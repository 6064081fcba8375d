//! Reads the tables for a scrape, as seldom as it can.

use std::sync::{Arc, Weak};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::board::Told;
use super::families::{About, expose};
use super::{Board, Snapshot};
use crate::dataplane::{Census, Clock, Tables};

/// A walk over the connections may take this part of the time at most.
const WALKING: u32 = 20;
/// And all there is to a scrape this one: whoever comes sooner gets what the one before got.
const READING: u32 = 4;
/// So many texts may be on their way to clients that are slow to take them, besides the last one. While there are as many, all get
/// the last one: until the server cuts the first of those clients off, half a minute after it came.
const MOST_TEXTS: usize = 4;
/// How long rows may be given back again and again while they are read.
const PATIENCE: Duration = Duration::from_secs(5);

/// A text that is shared by all who get it.
pub type Text = Arc<String>;

/// What it last read.
pub struct Collector {
    board: Arc<Board>,
    about: About,
    clock: Clock,
    walked: Option<Walked>,
    last: Option<Made<Text>>,
    given: Vec<Weak<String>>,
}

/// When something was made, and how long that took.
struct Made<T> {
    what: T,
    at: Instant,
    took: Duration,
}

impl<T> Made<T> {
    /// Whether it is too early for the next one, which is to take one part in `parts` of the time.
    fn is_fresh(&self, parts: u32) -> bool {
        self.at.elapsed() < self.took * (parts - 1)
    }
}

/// A walk over the connections of these tables.
struct Walked {
    tables: Arc<Tables>,
    census: Made<Census>,
}

impl Collector {
    /// Has read nothing yet.
    pub fn new(board: Arc<Board>, about: About) -> Result<Collector> {
        Ok(Collector { board, about, clock: Clock::load()?, walked: None, last: None, given: Vec::new() })
    }

    /// The metrics.
    pub fn text(&mut self) -> Result<Text> {
        if let Some(last) = self.last.as_ref().filter(|last| last.is_fresh(READING)) {
            return Ok(last.what.clone());
        }
        self.given.retain(|text| text.strong_count() > 0);
        // Clients that are slow, or mean to be, keep nobody from the figures: those of a moment ago cost no memory.
        if let Some(last) = self.last.as_ref().filter(|_| self.given.len() > MOST_TEXTS) {
            return Ok(last.what.clone());
        }
        let begun = Instant::now();
        let length = self.last.as_ref().map_or(0, |last| last.what.len());
        let told = self.board.told();
        let text = Text::new(expose(&self.snapshot(&told)?, &self.about, length + length / 16));
        self.given.push(Arc::downgrade(&text));
        self.last = Some(Made { what: text.clone(), at: Instant::now(), took: begun.elapsed() });
        Ok(text)
    }

    /// The figures, of a moment in which no row was given back: what it counted would be there twice.
    fn snapshot(&mut self, told: &Told) -> Result<Snapshot> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let before = told.tables.retirements();
            if before.is_some() {
                let census = self.census(&told.tables)?;
                let mut snapshot = Snapshot::take(&told.tables, census)?;
                if told.tables.retirements() == before {
                    snapshot.name_by(&told.names);
                    return Ok(snapshot);
                }
            }
            sleep(Duration::from_millis(1));
        }
        bail!("the configuration changes all the time: try again in a moment")
    }

    fn census(&mut self, tables: &Arc<Tables>) -> Result<&Census> {
        let walked = self.walked.take();
        let fresh = walked.filter(|last| Arc::ptr_eq(&last.tables, tables) && last.census.is_fresh(WALKING));
        let walked = match fresh {
            Some(walked) => walked,
            None => {
                let (settings, begun) = (tables.settings()?, Instant::now());
                let census = tables.sweeper(settings, self.clock.now(settings.clock_shift)?).count();
                let census = Made { what: census, at: Instant::now(), took: begun.elapsed() };
                Walked { tables: tables.clone(), census }
            }
        };
        Ok(&self.walked.insert(walked).census.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{Plane, Profile};
    use crate::model::Timeouts;

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn root_slow_clients_keep_nobody_from_the_last_text() {
        let plane = Plane::load(1000, &Timeouts::default(), &[], Profile::NATIVE).unwrap();
        let board = Arc::new(Board::new(plane.shared_tables(), Default::default()));
        let about =
            About { version: "1".into(), abi: 1, kernel: "6.1".into(), started: Duration::from_secs(1) };
        let mut collector = Collector::new(board, about).unwrap();
        let mut ask = || {
            while collector.last.as_ref().is_some_and(|last| last.is_fresh(READING)) {
                sleep(Duration::from_millis(1));
            }
            collector.text().unwrap()
        };
        let mut slow: Vec<Text> = (0..=MOST_TEXTS).map(|_| ask()).collect();
        for (at, text) in slow.iter().enumerate() {
            assert!(slow[..at].iter().all(|other| !Arc::ptr_eq(other, text)), "a text of its own for {at}");
        }
        for _ in 0..3 {
            assert!(Arc::ptr_eq(&ask(), &slow[MOST_TEXTS]), "no more memory, and no refusal");
        }
        slow.remove(0);
        assert!(!Arc::ptr_eq(&ask(), &slow[MOST_TEXTS - 1]), "a new one once a slow one has gone");
    }
}
