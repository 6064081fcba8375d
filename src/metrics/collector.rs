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
/// So many texts may be on their way to clients that are slow to take them.
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
        let ours = usize::from(self.last.is_some());
        if self.given.len() >= MOST_TEXTS + ours {
            bail!("too many clients are slow to take their metrics: try again in a moment");
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
            if before % 2 == 0 {
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
