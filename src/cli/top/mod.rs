//! `xdp-lb top`: what an instance does now, on a screen.
//!
//! `feed` brings figures, keys and signals; `figures` makes rates of them, `diagnosis` says who is ill, `view` puts both into
//! order; `state` is what an operator sees of that and `input` what keys do to it; `draw` makes cells of it. Only `feed` and this
//! file do I/O.

mod canvas;
mod columns;
mod details;
mod diagnosis;
mod draw;
mod feed;
mod figures;
mod input;
mod state;
#[cfg(test)]
mod tests;
mod text;
mod view;

use std::io::IsTerminal as _;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::Event as Input;
use ratatui::crossterm::terminal;

use super::Instance;
use super::stdout::say;
use crate::control::Ask;
use canvas::Theme;
use feed::{Event, Figures};
use state::{Action, Top};

/// As wide as one screen is printed where nobody says otherwise.
const WIDTH: u16 = 120;
/// Less has no room for an address and its state.
const NARROWEST: u16 = 40;

/// How figures are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Show {
    /// How often they are read.
    pub interval: Duration,
    /// Print one screen and end.
    pub once: bool,
    /// No colours.
    pub no_color: bool,
}

/// Shows figures until the operator has seen enough.
pub fn top(show: &Show, instance: &Instance) -> Result<()> {
    if show.once {
        return once(show, instance);
    }
    if !std::io::stdout().is_terminal() {
        bail!("top draws on a terminal, which stdout is not: use xdp-lb stats, or xdp-lb top --once");
    }
    let mut figures = Figures::new(instance);
    // What is wrong from the beginning is said where it stays to be read.
    let first = figures.read()?;
    let mut top = Top::new(place(instance));
    top.take(first);
    let (sender, events) = channel();
    feed::signals(sender.clone())?;
    let asks = feed::figures(figures, show.interval, sender.clone())?;
    let mut screen = Screen::open()?;
    feed::input(sender)?;
    run(&mut top, &mut screen.0, &events, &asks, theme(show))
}

fn run(
    top: &mut Top,
    screen: &mut DefaultTerminal,
    events: &Receiver<Event>,
    asks: &Sender<Ask>,
    theme: Theme,
) -> Result<()> {
    loop {
        let draw = |frame: &mut ratatui::Frame| draw::screen(top, frame.area(), frame.buffer_mut(), theme);
        screen.draw(draw).context("could not draw on the terminal")?;
        top.drawn(Instant::now());
        let mut next = Some(events.recv().context("nothing happens any more")?);
        // What came meanwhile is drawn together.
        while let Some(event) = next {
            match follow(top, event)? {
                Action::Nothing => {}
                Action::Quit => return Ok(()),
                Action::Redraw => screen.clear().context("could not clear the terminal")?,
                Action::Change(ask) => asks.send(*ask).context("nobody carries out changes any more")?,
            }
            next = events.try_recv().ok();
        }
    }
}

fn follow(top: &mut Top, event: Event) -> Result<Action> {
    Ok(match event {
        Event::Figures(reading) => {
            match *reading {
                Ok(reading) => top.take(reading),
                Err(error) => top.lose(Instant::now(), format!("{error:#}")),
            }
            Action::Nothing
        }
        Event::Changed(done) => {
            top.changed(done.map_err(|error| format!("{error:#}")));
            Action::Nothing
        }
        Event::Input(input) => match input.context("could not read keys from the terminal")? {
            Input::Key(key) => input::key(top, key, Instant::now()),
            _ => Action::Nothing,
        },
        Event::Signal => Action::Quit,
        Event::Broken => bail!("the thread that reads figures or keys has ended"),
    })
}

/// The terminal while it is ours. However this ends, the operator gets it back; a panic restores it before it speaks.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Screen> {
        ratatui::try_init().map(Screen).or_else(|error| {
            // It may be half done.
            let _ = ratatui::try_restore();
            Err(error).context("could not prepare the terminal: use xdp-lb stats, or xdp-lb top --once")
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // One that is gone needs nothing.
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}

/// Prints one screen, as long as it has to be. Rates need a second look.
fn once(show: &Show, instance: &Instance) -> Result<()> {
    let mut figures = Figures::said(instance);
    let mut top = Top::new(place(instance));
    top.take(figures.read()?);
    std::thread::sleep(show.interval);
    top.take(figures.read()?);
    say(draw::plain(&mut top, width()))
}

fn width() -> u16 {
    let own = || terminal::size().ok().filter(|_| std::io::stdout().is_terminal()).map(|(width, _)| width);
    let said = || std::env::var("COLUMNS").ok().and_then(|width| width.parse().ok());
    own().or_else(said).unwrap_or(WIDTH).clamp(NARROWEST, 1000)
}

/// How an instance is called on the screen.
fn place(instance: &Instance) -> String {
    text::plain(&instance.socket.display().to_string())
}

fn theme(show: &Show) -> Theme {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| variable(name)).unwrap_or_default();
    let locale = locale.to_uppercase();
    Theme {
        colour: !show.no_color && variable("NO_COLOR").is_none(),
        unicode: locale.contains("UTF-8") || locale.contains("UTF8"),
    }
}
