//! A part of the screen that can be written to anywhere: what lies outside of it is lost.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::{bar, border};
use ratatui::text::Span;

use super::diagnosis::Grade;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Theme {
    pub colour: bool,
    /// Characters beyond ASCII.
    pub unicode: bool,
}

impl Theme {
    fn coloured(self, style: Style, colour: Color) -> Style {
        if self.colour { style.fg(colour) } else { style }
    }

    /// The ill stand out without colours too.
    pub fn of_grade(self, grade: Grade) -> Style {
        let plain = Style::new();
        match grade {
            Grade::Ill if self.colour => plain.fg(Color::Red).add_modifier(Modifier::BOLD),
            Grade::Ill => plain.add_modifier(Modifier::BOLD | Modifier::REVERSED),
            Grade::Suspect => self.coloured(plain.add_modifier(Modifier::BOLD), Color::Yellow),
            Grade::Off => plain.add_modifier(Modifier::DIM),
            Grade::Well => plain,
        }
    }

    pub fn bar(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub fn service(self) -> Style {
        self.coloured(self.strong(), Color::Cyan)
    }

    pub fn trend(self) -> Style {
        self.coloured(Style::new(), Color::Green)
    }

    pub fn bars(self) -> bar::Set {
        const ASCII: bar::Set = bar::Set {
            full: "#",
            seven_eighths: "#",
            three_quarters: "+",
            five_eighths: "+",
            half: "=",
            three_eighths: "-",
            one_quarter: "-",
            one_eighth: ".",
            empty: " ",
        };
        if self.unicode { bar::NINE_LEVELS } else { ASCII }
    }

    pub fn border(self) -> border::Set {
        const ASCII: border::Set = border::Set {
            top_left: "+",
            top_right: "+",
            bottom_left: "+",
            bottom_right: "+",
            vertical_left: "|",
            vertical_right: "|",
            horizontal_top: "-",
            horizontal_bottom: "-",
        };
        if self.unicode { border::PLAIN } else { ASCII }
    }

    fn ellipsis(self) -> &'static str {
        if self.unicode { "…" } else { "~" }
    }
}

/// Where it is drawn, and how.
pub(super) struct Canvas<'a> {
    pub buffer: &'a mut Buffer,
    pub area: Rect,
    pub theme: Theme,
}

impl Canvas<'_> {
    /// A part of it.
    pub fn part(&mut self, area: Rect) -> Canvas<'_> {
        Canvas { area: self.area.intersection(area), buffer: self.buffer, theme: self.theme }
    }

    /// Writes text from a column on, within so many columns, shortened visibly.
    pub fn put(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) {
        let width = width.min(self.area.width.saturating_sub(x));
        if width == 0 || y >= self.area.height {
            return;
        }
        let (left, top) = (self.area.x + x, self.area.y + y);
        if Span::raw(text).width() > usize::from(width) {
            self.buffer.set_stringn(left, top, text, usize::from(width) - 1, style);
            self.buffer.set_stringn(left + width - 1, top, self.theme.ellipsis(), 1, style);
        } else {
            self.buffer.set_stringn(left, top, text, width.into(), style);
        }
    }

    /// The same, at the right end of these columns.
    pub fn put_right(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) {
        let used = u16::try_from(Span::raw(text).width()).unwrap_or(u16::MAX).min(width);
        self.put(x + width - used, y, used, text, style);
    }

    /// A whole line.
    pub fn line(&mut self, y: u16, text: &str, style: Style) {
        self.put(0, y, self.area.width, text, style);
    }

    /// Lays a style over a whole line.
    pub fn style_line(&mut self, y: u16, style: Style) {
        if y < self.area.height {
            let line = Rect { y: self.area.y + y, height: 1, ..self.area };
            self.buffer.set_style(line, style);
        }
    }

    /// A trend in cells, as high as its highest.
    pub fn trend(&mut self, x: u16, y: u16, cells: &[f64]) {
        let set = self.theme.bars();
        let steps = [
            set.empty,
            set.one_eighth,
            set.one_quarter,
            set.three_eighths,
            set.half,
            set.five_eighths,
            set.three_quarters,
            set.seven_eighths,
            set.full,
        ];
        let most = cells.iter().copied().fold(0.0, f64::max);
        let step = |value: f64| match value {
            value if value <= 0.0 || most <= 0.0 => 0,
            value => ((value / most * 8.0).ceil() as usize).clamp(1, 8),
        };
        let text: String = cells.iter().map(|value| steps[step(*value)]).collect();
        self.put(x, y, u16::try_from(cells.len()).unwrap_or(u16::MAX), &text, self.theme.trend());
    }
}
