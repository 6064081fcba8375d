//! From what is to be seen to the cells of a screen.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::widgets::{Block, Clear, Widget as _};

use super::canvas::{Canvas, Theme};
use super::columns::{Column, Figures};
use super::details;
use super::diagnosis::Grade;
use super::figures::{Key, cells};
use super::input::KEYS;
use super::state::{Prompt, Top};
use super::text;
use super::view::{BackendRow, DropRow, Line, ServiceRow, View};

/// Two marks before an address.
const MARKS: u16 = 2;
/// What may stand of drops on a screen of this many lines.
const LINES_PER_DROP: u16 = 6;
const MOST_DROPS: usize = 10;

/// Where the parts are.
struct Parts {
    header: Vec<String>,
    titles: Rect,
    list: Rect,
    drops: Rect,
    footer: Rect,
}

impl Parts {
    fn of(top: &Top, area: Rect) -> Parts {
        let most = if area.height >= 16 { 3 } else { 2 };
        let mut header = header(top, area.width);
        header.truncate(if area.height < 6 { 1 } else { most });
        let mut left = area;
        // From the top if `height` is positive, else from the bottom; the list needs a line.
        let mut take = |height: u16, bottom: bool| {
            let height = height.min(left.height.saturating_sub(1));
            let taken = Rect { height, y: if bottom { left.bottom() - height } else { left.y }, ..left };
            left.height -= height;
            left.y += if bottom { 0 } else { height };
            taken
        };
        take(u16::try_from(header.len()).unwrap_or(0), false);
        let footer = take(1, true);
        let titles = take(1, false);
        let rows = top.view.as_ref().map_or(0, |view| view.drops.len()).min(MOST_DROPS);
        let room = area.height / LINES_PER_DROP;
        let drops = take(u16::try_from(rows + 1).unwrap_or(1).min(room), true);
        Parts { header, titles, list: left, drops, footer }
    }
}

/// Draws everything. The list scrolls as far as that takes.
pub(super) fn screen(top: &mut Top, area: Rect, buffer: &mut Buffer, theme: Theme) {
    let parts = Parts::of(top, area);
    top.fit(parts.list.height.into());
    let mut canvas = Canvas { buffer, area, theme };
    for (y, line) in (0..).zip(&parts.header) {
        let style = if y == 0 { theme.bar() } else { theme.strong() };
        canvas.line(y, line, style);
        if y == 0 {
            canvas.style_line(y, style);
        }
    }
    footer(top, &mut canvas.part(parts.footer));
    match &top.view {
        None => canvas.part(parts.list).line(0, "no figures yet", Style::new()),
        Some(view) => {
            let found = top.selected.as_ref().filter(|_| top.details).and_then(|key| view.find(key));
            match found {
                Some((service, backend)) => {
                    let height = parts.drops.bottom() - parts.titles.y;
                    let area = Rect { height, ..parts.titles };
                    details::draw(view, service, backend, &mut canvas.part(area));
                }
                None => {
                    let width = parts.list.width;
                    let columns = Column::fitting(width, name_width(view, width), top.sort);
                    titles(top, &columns, &mut canvas.part(parts.titles));
                    let mut canvas_of_list = canvas.part(parts.list);
                    if top.lines.is_empty() {
                        let none = if top.filter.is_empty() {
                            "there are no services"
                        } else {
                            "nothing has these words"
                        };
                        canvas_of_list.line(0, none, Style::new());
                    }
                    let lines = top.lines.get(top.scroll..).unwrap_or_default();
                    list(lines, top.selected.as_ref(), view, &columns, &mut canvas_of_list);
                    drops(&view.drops, &mut canvas.part(parts.drops));
                }
            }
        }
    }
    match &top.prompt {
        Some(Prompt::Confirm(proposal)) => {
            let text = [proposal.question(), String::new(), "y: yes   n: no".into()];
            popup(&mut canvas, "Confirm", &text);
        }
        Some(Prompt::Help) => {
            let text = help(popup_width(&canvas).into());
            popup(&mut canvas, "Help", &text);
        }
        _ => {}
    }
}

/// All lines of the list as text, for who has no terminal.
pub(super) fn plain(top: &mut Top, width: u16) -> String {
    // A buffer has no more cells than fit into 16 bits.
    const CHUNK: usize = 60;
    let theme = Theme { colour: false, unicode: false };
    let page = |height: usize, draw: &dyn Fn(&mut Canvas<'_>)| {
        let area = Rect::new(0, 0, width, u16::try_from(height).unwrap_or(u16::MAX));
        let mut buffer = Buffer::empty(area);
        draw(&mut Canvas { buffer: &mut buffer, area, theme });
        text_of(&buffer)
    };
    let header = header(top, width);
    let mut text: String =
        header.iter().map(|line| page(1, &|canvas| canvas.line(0, line, Style::new()))).collect();
    let Some(view) = &top.view else { return text };
    let columns = Column::fitting(width, name_width(view, width), top.sort);
    text += &page(1, &|canvas| titles(top, &columns, canvas));
    for chunk in top.lines.chunks(CHUNK) {
        text += &page(chunk.len(), &|canvas| list(chunk, None, view, &columns, canvas));
    }
    text + &page(view.drops.len() + 1, &|canvas| drops(&view.drops, canvas))
}

/// What a buffer shows, without blanks at the ends of lines.
pub(super) fn text_of(buffer: &Buffer) -> String {
    let line = |cells: &[ratatui::buffer::Cell]| {
        let (mut line, mut next) = (String::new(), 0);
        for (x, cell) in cells.iter().enumerate() {
            // A wide character has two cells, of which the second is blank.
            if x >= next {
                line.push_str(cell.symbol());
                next = x + text::columns(cell.symbol()).max(1);
            }
        }
        line.trim_end().to_owned() + "\n"
    };
    buffer.content.chunks(usize::from(buffer.area.width).max(1)).map(line).collect()
}

fn header(top: &Top, width: u16) -> Vec<String> {
    let mut first = vec![format!("xdp-lb {}", top.place)];
    let mut second = Vec::new();
    if let Some((since, _)) = &top.lost {
        first.push(format!("NO ANSWER for {} s, trying again", since.elapsed().as_secs()));
    }
    if let Some(view) = &top.view {
        let overview = &view.overview;
        match &view.version {
            _ if top.lost.is_some() => first.push("these figures are old".into()),
            Some(version) => first.push(version.clone()),
            None if view.silent => first.push("PROCESS DOES NOT ANSWER, read from its pins".into()),
            None if !view.running => first.push("NO PROCESS, read from its pins".into()),
            None => {}
        }
        first.push(match (overview.ill, overview.suspect) {
            (0, 0) => format!("none of {} backends ill", overview.backends),
            (ill, 0) => format!("{ill} of {} backends ILL", overview.backends),
            (0, suspect) => format!("none of {} backends ill, {suspect} suspect", overview.backends),
            (ill, suspect) => format!("{ill} of {} backends ILL, {suspect} suspect", overview.backends),
        });
        if overview.dead > 0 {
            first.push(format!("{} of {} services DOWN", overview.dead, view.services.len()));
        }
        let rate = |rate: Option<f64>| rate.map_or("-".into(), text::rate);
        let fill = match overview.promised {
            0 => "-".to_owned(),
            promised => format!("{:.1}%", 100.0 * overview.live as f64 / promised as f64),
        };
        second.extend([
            format!("live {}", text::count(overview.live, 8)),
            format!("table {fill}"),
            format!("total {}", text::count(overview.total, 12)),
            format!("conn/s {}", rate(overview.connections)),
            format!("pkt/s {}", rate(overview.packets)),
            format!("bit/s {}", rate(overview.bits)),
            format!("drops/s {}", rate(overview.drops)),
        ]);
    }
    if top.paused {
        first.push("PAUSED".into());
    }
    if !top.filter.is_empty() {
        first.push(format!("filter: {}", top.filter));
    }
    let width = usize::from(width);
    let mut lines = vec![first.join("  ")];
    if text::flow(&first, "  ", width).len() > 1 {
        // What is wrong is worth more than where.
        lines = vec![first[1..].iter().chain(&first[..1]).cloned().collect::<Vec<_>>().join("  ")];
    }
    lines.extend(text::flow(&second, "  ", width));
    lines
}

fn footer(top: &Top, canvas: &mut Canvas<'_>) {
    let theme = canvas.theme;
    match (&top.prompt, &top.message) {
        (Some(Prompt::Filter { .. }), _) => {
            let text = format!("/{}_   Enter: keep it  Esc: as before", top.filter);
            canvas.line(0, &text, theme.strong());
        }
        (_, Some((message, is_bad))) => {
            let grade = if *is_bad { Grade::Ill } else { Grade::Suspect };
            canvas.line(0, &text::plain(message), theme.of_grade(grade));
        }
        _ => match &top.lost {
            Some((_, why)) => canvas.line(0, &text::plain(why), theme.of_grade(Grade::Ill)),
            None => {
                let keys = keys(top, canvas.area.width.into());
                canvas.line(0, &keys, theme.bar());
                canvas.style_line(0, theme.bar());
            }
        },
    }
}

/// The keys that fit.
fn keys(top: &Top, width: usize) -> String {
    let sort = format!("s sort:{}", top.sort.title());
    let rest = "Enter details,d drain,D disable,e enable,p pause,r reverse,! ill first";
    let keys = ["q quit", "? help", "/ filter", &sort].into_iter().chain(rest.split(','));
    let keys: Vec<String> = keys.map(str::to_owned).collect();
    text::flow(&keys, " ", width).into_iter().next().unwrap_or_default()
}

/// As wide as the longest address, so that more columns fit where they are short; where there is room, services get some too.
fn name_width(view: &View, width: u16) -> u16 {
    const ROOMY: u16 = 100;
    const MOST: usize = 40;
    // A service's title goes on over state and weight, and is followed by how many are up.
    const BESIDE: usize = 5;
    // A service without a name is its address.
    const LEAST: usize = 14;
    let backends = view.services.iter().flat_map(|service| &service.backends);
    let longest = backends.map(|backend| backend.key.address.to_string().len()).max().unwrap_or(0);
    let titles = view.services.iter().map(|service| text::columns(&service.title()));
    let title = titles.max().filter(|_| width >= ROOMY).unwrap_or(0).saturating_sub(BESIDE).min(MOST);
    MARKS + u16::try_from(longest.max(title).max(LEAST)).unwrap_or(u16::MAX)
}

fn list(
    lines: &[Line],
    selected: Option<&Key>,
    view: &View,
    columns: &[(Column, u16)],
    canvas: &mut Canvas<'_>,
) {
    for (y, line) in (0..canvas.area.height).zip(lines) {
        match *line {
            Line::Service(at) => {
                if let Some(service) = view.services.get(at) {
                    service_line(service, columns, y, canvas);
                }
            }
            Line::Backend(at, n) | Line::Why(at, n) => {
                let backend = view.services.get(at).and_then(|service| service.backends.get(n));
                let Some(backend) = backend else { continue };
                if matches!(line, Line::Why(..)) {
                    let style = canvas.theme.of_grade(backend.diagnosis.grade);
                    let style = if canvas.theme.colour { style } else { Style::new() };
                    canvas.put(MARKS + 2, y, u16::MAX, &backend.diagnosis.why, style);
                } else {
                    let selected = selected == Some(&backend.key);
                    backend_line(view, backend, selected, columns, y, canvas);
                }
            }
        }
    }
}

fn titles(top: &Top, columns: &[(Column, u16)], canvas: &mut Canvas<'_>) {
    let mut x = 0;
    let bold = canvas.theme.strong();
    for (column, width) in columns {
        let style = if *column == top.sort { canvas.theme.bar() } else { bold };
        match column {
            Column::Name => canvas.put(MARKS, 0, width - MARKS, column.title(), style),
            Column::State | Column::Trend => canvas.put(x + 1, 0, width - 1, column.title(), style),
            _ => canvas.put_right(x + 1, 0, width - 1, column.title(), style),
        }
        x += width;
    }
}

fn figures_of(figures: &Figures, columns: &[(Column, u16)], y: u16, style: Style, canvas: &mut Canvas<'_>) {
    let mut x = 0;
    for (column, width) in columns {
        if !matches!(column, Column::Name | Column::State | Column::Trend) {
            canvas.put_right(x + 1, y, width - 1, &column.text(figures), style);
        }
        x += width;
    }
}

fn service_line(service: &ServiceRow, columns: &[(Column, u16)], y: u16, canvas: &mut Canvas<'_>) {
    let style = canvas.theme.service();
    figures_of(&service.sum, columns, y, style, canvas);
    // Over name, state and weight: a sum of weights says nothing.
    let wide = columns.iter().take_while(|(column, _)| *column as u8 <= Column::Weight as u8);
    let width: u16 = wide.map(|(_, width)| width).sum();
    canvas.put(0, y, width, &" ".repeat(width.into()), Style::new());
    let up = format!("{}/{} up", service.up, service.backends.len());
    let room = usize::from(width.saturating_sub(MARKS)).saturating_sub(up.len() + 1);
    let title = service.title();
    let title = if text::columns(&title) <= room { title } else { service.short() };
    let room = u16::try_from(room).unwrap_or(0);
    let length = u16::try_from(text::columns(&title)).unwrap_or(u16::MAX).min(room);
    canvas.put(MARKS, y, room, &title, style);
    let alarm = canvas.theme.of_grade(service.grade);
    let (mark, style) = if service.up == 0 { (service.grade.mark(), alarm) } else { (" ", Style::new()) };
    canvas.put(1, y, 1, mark, alarm);
    canvas.put(MARKS + length + 1, y, width.saturating_sub(MARKS + length + 1), &up, style);
}

fn backend_line(
    view: &View,
    backend: &BackendRow,
    selected: bool,
    columns: &[(Column, u16)],
    y: u16,
    canvas: &mut Canvas<'_>,
) {
    let grade = backend.diagnosis.grade;
    let style = canvas.theme.of_grade(grade);
    let mut x = 0;
    for (column, width) in columns {
        match column {
            Column::Name => {
                canvas.put(0, y, 1, if selected { ">" } else { " " }, Style::new());
                canvas.put(1, y, 1, grade.mark(), style);
                canvas.put(MARKS, y, width - MARKS, &backend.key.address.to_string(), style);
            }
            Column::State => canvas.put(x + 1, y, width - 1, &backend.counted.state, style),
            Column::Trend => {
                let cells = cells(&backend.trend, view.at, usize::from(*width - 1));
                canvas.trend(x + 1, y, &cells);
            }
            _ => {}
        }
        x += width;
    }
    figures_of(&backend.figures, columns, y, Style::new(), canvas);
    if selected {
        canvas.style_line(y, canvas.theme.bar());
    }
}

fn drops(rows: &[DropRow], canvas: &mut Canvas<'_>) {
    let rate = |row: &DropRow| row.rate.map_or("-".into(), text::rate);
    let height = usize::from(canvas.area.height);
    if height == 0 {
        return;
    }
    if rows.is_empty() {
        canvas.line(0, "  DROPS: none", canvas.theme.strong());
        return;
    }
    if height == 1 {
        let all: Vec<String> = rows.iter().map(|row| format!("{} {}/s", row.name, rate(row))).collect();
        canvas.line(0, &format!("  DROPS: {}", all.join(", ")), canvas.theme.strong());
        return;
    }
    let title = format!("  {:<22} {:>6} {:>11}", "DROPS BY REASON", "PKT/S", "PACKETS");
    canvas.line(0, &title, canvas.theme.strong());
    for (y, row) in (1..).zip(rows) {
        let class = if row.class == "drop" { String::new() } else { format!("{}: ", row.class) };
        let name = format!("{class}{}", row.name);
        let text = format!("  {name:<22} {:>6} {:>11}  {}", rate(row), row.packets, row.help);
        let now = row.rate.is_some_and(|rate| rate > 0.0);
        let style = if now { canvas.theme.strong() } else { Style::new() };
        canvas.line(y, &text, style);
    }
    if rows.len() >= height {
        let left = rows.len() + 2 - height;
        let y = canvas.area.height - 1;
        canvas.style_line(y, Style::reset());
        canvas.line(y, &" ".repeat(canvas.area.width.into()), Style::new());
        canvas.line(y, &format!("  and {left} more"), Style::new());
    }
}

fn help(width: usize) -> Vec<String> {
    let keys: Vec<String> = KEYS.iter().map(|(keys, what)| format!("{keys}: {what}.")).collect();
    let marks =
        "Marks: ! ill (does not serve), ? suspect (something is odd), - off (an operator wants it so).";
    let times =
        "Rates are those since the last look; P50, P99, RETR/S and RST/S those of the last 5 to 10 s.";
    let explained = Column::ALL.iter().filter_map(|column| Some((column.title(), column.help()?)));
    let columns: Vec<String> = explained.map(|(title, help)| format!("{title}: {help}.")).collect();
    let mut lines = text::flow(&keys, "  ", width);
    lines.extend([String::new(), marks.into(), times.into(), String::new()]);
    lines.extend(text::wrap(&columns.join(" "), width));
    lines
}

/// As wide as the text in a box may be.
fn popup_width(canvas: &Canvas<'_>) -> u16 {
    canvas.area.width.saturating_sub(4).clamp(1, 76)
}

/// Text in a box in the middle, as large as it has to be.
fn popup(canvas: &mut Canvas<'_>, title: &str, text: &[String]) {
    let area = canvas.area;
    let inner = popup_width(canvas);
    let wrapped = |text: &String| match text::wrap(text, inner.into()) {
        lines if lines.is_empty() => vec![String::new()],
        lines => lines,
    };
    let lines: Vec<String> = text.iter().flat_map(wrapped).collect();
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let width = (inner + 4).min(area.width);
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    Clear.render(place, canvas.buffer);
    let block = Block::bordered().border_set(canvas.theme.border()).title(format!(" {title} "));
    let inside = block.inner(place);
    block.render(place, canvas.buffer);
    let mut inside = canvas.part(inside);
    for (y, line) in (0..).zip(&lines) {
        inside.put(1, y, u16::MAX, line, Style::new());
    }
}
