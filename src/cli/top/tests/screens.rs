//! What is drawn, on terminals of several sizes.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};

use super::super::canvas::Theme;
use super::super::columns::Column;
use super::super::draw::{plain, screen, text_of};
use super::*;

const COLOUR: Theme = Theme { colour: true, unicode: true };
const PLAIN: Theme = Theme { colour: false, unicode: false };

fn drawn(top: &mut Top, width: u16, height: u16, theme: Theme) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen(top, frame.area(), frame.buffer_mut(), theme)).unwrap();
    terminal.backend().buffer().clone()
}

fn text(top: &mut Top, width: u16, height: u16) -> String {
    text_of(&drawn(top, width, height, PLAIN))
}

fn line<'a>(text: &'a str, with: &str) -> &'a str {
    text.lines().find(|line| line.contains(with)).unwrap_or_else(|| panic!("no {with:?} in\n{text}"))
}

/// Three backends under load, one of them down; packets are dropped.
fn busy() -> Top {
    let mut before = snapshot(vec![service("web", 1, (1..4).map(backend).collect())]);
    for (n, one) in before.services[0].backends.iter_mut().enumerate() {
        (one.weight, one.active) = (10 * (n as u8 + 1), 5);
        one.events.handshakes = handshakes(7, Duration::from_secs(1));
    }
    down(&mut before.services[0].backends[2]);
    (before.table.confirmed, before.gone.connections) = (500, 23);
    count(&mut before, Class::Drop, "no_backend", 10);
    let mut now = before.clone();
    for one in &mut now.services[0].backends[..2] {
        one.connections = 1250;
        one.to_backend = Counter { packets: 20_000, bytes: 2_000_000 };
        one.to_client = Counter { packets: 10_000, bytes: 100_000_000 };
        one.events.handshakes.buckets[1] += 1000;
        one.events.syn_retransmits = 3;
    }
    count(&mut now, Class::Drop, "no_backend", 14);
    count(&mut now, Class::Drop, "malformed", 1);
    count(&mut now, Class::Sent, "to_backend", 40_000);
    let (mut top, mut clock) = (Top::new("/run/x.sock".into()), Clock::new());
    top.take(clock.reading(&before));
    top.take(clock.reading(&now));
    top
}

/// What to do about the one is of no use with the other.
#[test]
fn a_process_that_is_silent_is_not_said_to_be_gone() {
    let first = |silent: bool| {
        let mut top = Top::new("/run/x.sock".into());
        let reading = Clock::new().reading(&snapshot(vec![service("web", 1, vec![backend(1)])]));
        top.take(Reading { running: false, silent, version: None, ..reading });
        text(&mut top, 120, 24).lines().next().unwrap().to_owned()
    };
    assert!(first(false).contains("  NO PROCESS, read from its pins  "), "{}", first(false));
    assert!(first(true).contains("  PROCESS DOES NOT ANSWER, read from its pins  "), "{}", first(true));
}

#[test]
fn what_matters_fits_into_80_columns() {
    let text = text(&mut busy(), 80, 24);
    assert!(text.starts_with("xdp-lb /run/x.sock  1.2.3  1 of 3 backends ILL\n"), "{text}");
    let header = line(&text, "live ");
    assert!(header.starts_with("live 500  table 50.0%  total 2523  conn/s 2.50k  pkt/s 40.0k"), "{header}");
    assert!(text.contains("drops/s 5.0"), "{text}");
    let titles: Vec<&str> = line(&text, "BACKEND").split_whitespace().collect();
    assert_eq!(
        titles,
        ["BACKEND", "STATE", "WGT", "LIVE", "TOTAL", "CONN/S", "P50ms", "P99ms", "RETR/S", "RST/S"]
    );
    let words: Vec<&str> = line(&text, " 10.0.0.1:8080").split_whitespace().collect();
    assert_eq!(words, ["10.0.0.1:8080", "up", "10", "5", "1250", "1.25k", "0.10", "0.13", "3.0", "0"]);
    let service = line(&text, "web 192.0.2.1:80/tcp");
    assert!(service.starts_with("  web 192.0.2.1:80/tcp 2/3 up ") && service.contains(" 2500 "), "{service}");
    // The ill one first, with its reason below.
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| line.starts_with(">!10.0.0.3:8080  down")).unwrap();
    assert!(lines[at - 1].contains("web 192.0.2.1:80/tcp"), "{text}");
    assert_eq!(lines[at + 1], "    down for 12 s: connection refused (3 s ago)");
    let drops: Vec<&str> = text.lines().skip_while(|line| !line.contains("DROPS BY REASON")).collect();
    assert!(drops[1].contains("no_backend") && drops[1].contains("4.0"), "most frequent first\n{text}");
    assert!(drops[2].contains("malformed") && drops[2].contains("1.0"), "{text}");
    assert!(lines[23].starts_with("q quit ? help"), "{text}");
    assert_eq!(lines.len(), 24);
}

#[test]
fn more_columns_where_there_is_room() {
    let wide = text(&mut busy(), 120, 40);
    assert!(line(&wide, "web 192.0.2.1:80/tcp").contains("2/3 up"), "{wide}");
    let words: Vec<&str> = line(&wide, " 10.0.0.1:8080").split_whitespace().collect();
    assert_eq!(words[10..13], ["30.0k", "16.0M", "800M"], "{wide}");
    assert!(line(&wide, "BACKEND").ends_with("CONN/S, 1 min"), "{wide}");
    assert!(words.last().unwrap().ends_with('#'), "a trend: {wide}");
    let wider = text(&mut busy(), 200, 50);
    assert!(line(&wider, "BACKEND").contains("RESET/S") && wider.contains("CHECKms"), "{wider}");
    // What is sorted by is always there.
    let mut top = busy();
    top.sort_by(Column::Back);
    assert!(line(&text(&mut top, 80, 24), "BACKEND").contains("BACK b/s"));
}

#[test]
fn long_addresses_leave_room_for_totals() {
    let mut one = backend(1);
    one.address = "255.255.255.255:65535".parse().unwrap();
    let mut top = top_of(&snapshot(vec![service("web", 1, vec![one])]));
    let text = text(&mut top, 80, 24);
    for title in ["STATE", "LIVE", "TOTAL", "CONN/S", "P50ms", "P99ms", "RETR/S", "RST/S"] {
        assert!(line(&text, "BACKEND").contains(title), "{title}\n{text}");
    }
    assert!(text.contains("255.255.255.255:65535 up "), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn a_small_terminal_shows_what_fits() {
    let text = text(&mut busy(), 40, 10);
    assert!(text.lines().next().unwrap().contains("1 of 3 backends ILL"), "{text}");
    assert!(text.contains(">!10.0.0.3:8080  down"), "{text}");
    assert_eq!(text.lines().count(), 10);
    assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
}

#[test]
fn no_size_and_no_state_is_too_much() {
    let keys = ["", "\n", "?", "/nothing", "d", "p", "ssssssssss", "G"];
    for keys in keys {
        let mut top = busy();
        for c in keys.chars() {
            press_code(&mut top, if c == '\n' { KeyCode::Enter } else { KeyCode::Char(c) });
        }
        for (width, height) in (0..30).flat_map(|width| (0..14).map(move |height| (width * 3, height))) {
            drawn(&mut top, width, height, PLAIN);
            drawn(&mut top, width, height, COLOUR);
        }
    }
    for mut top in [Top::new(String::new()), top_of(&snapshot(Vec::new()))] {
        drawn(&mut top, 80, 24, COLOUR);
    }
    let empty = text(&mut top_of(&snapshot(Vec::new())), 80, 24);
    assert!(empty.contains("there are no services"), "{empty}");
}

/// The first cell of a text, and its style.
fn style_at(buffer: &Buffer, with: &str) -> (Color, Modifier) {
    let width = usize::from(buffer.area.width);
    let text: Vec<String> =
        buffer.content.chunks(width).map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect();
    let y = text.iter().position(|line| line.contains(with)).unwrap_or_else(|| panic!("no {with}"));
    let x = text[y].split(with).next().unwrap().chars().count();
    let cell = &buffer.content[y * width + x];
    (cell.fg, cell.modifier)
}

#[test]
fn the_ill_stand_out_with_and_without_colours() {
    let mut top = busy();
    press(&mut top, "j");
    let buffer = drawn(&mut top, 80, 24, COLOUR);
    assert_eq!(style_at(&buffer, "!10.0.0.3").0, Color::Red);
    assert_eq!(style_at(&buffer, "10.0.0.2:8080").0, Color::Reset);
    let buffer = drawn(&mut top, 80, 24, PLAIN);
    assert!(buffer.content.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
    assert!(buffer.content.iter().all(|cell| cell.symbol().is_ascii()));
    let (_, modifier) = style_at(&buffer, "!10.0.0.3");
    assert!(modifier.contains(Modifier::BOLD | Modifier::REVERSED), "{modifier:?}");
    assert_eq!(style_at(&buffer, " 10.0.0.2:8080").1, Modifier::empty());
}

#[test]
fn details_have_it_all() {
    let mut top = busy();
    press_code(&mut top, KeyCode::Enter);
    let ill = text(&mut top, 80, 24);
    for fact in
        ["10.0.0.3:8080", "down for 12 s: connection refused", "set to enabled", "finds it down", "maglev"]
    {
        assert!(ill.contains(fact), "{fact}\n{ill}");
    }
    press(&mut top, "j");
    let well = text(&mut top, 80, 24);
    for fact in ["1250 in all", "1007 (p50", "1000 (p50 0.10 ms", "3 SYNs repeated", "at most 1.25k"] {
        assert!(well.contains(fact), "{fact}\n{well}");
    }
    assert!(well.contains('#'), "{well}");
}

#[test]
fn questions_and_help_are_in_a_box() {
    let mut top = busy();
    press(&mut top, "d");
    for (width, height) in [(80, 24), (40, 10)] {
        let text = text(&mut top, width, height);
        assert!(text.contains("Drain backend 10.0.0.3:8080") && text.contains("y: yes n: no"), "{text}");
    }
    press(&mut top, "n?");
    let help = text(&mut top, 80, 24);
    for word in ["drain", "disable", "quit", "Marks", "RETR/S", "CHECKms: how long its last good check took."]
    {
        assert!(help.contains(word), "{word}\n{help}");
    }
}

#[test]
fn who_does_not_answer_is_said() {
    let mut top = busy();
    top.lose(Instant::now(), "no instance listens at /run/x.sock".into());
    let text = text(&mut top, 80, 24);
    assert!(text.contains("NO ANSWER for 0 s, trying again") && text.contains("these figures are old"));
    assert!(text.lines().last().unwrap().contains("no instance listens at /run/x.sock"), "{text}");
    assert!(text.contains("1250"), "the last figures stay");
}

#[test]
fn control_characters_stay_off_the_screen() {
    let mut now = snapshot(vec![service("we\x1b[2Jb", 1, vec![backend(1)])]);
    down(&mut now.services[0].backends[0]);
    if let Some(health) = &mut now.services[0].backends[0].health {
        health.last_error = Some("HTTP \x1b]0;title\x07 status".into());
    }
    let mut top = top_of(&now);
    assert!(!text(&mut top, 80, 24).contains('\x1b'));
    assert!(!plain(&mut top, 80).contains(['\x1b', '\x07']));
}

#[test]
fn everything_is_printed_for_scripts() {
    let mut top = busy();
    let text = plain(&mut top, 120);
    assert!(text.contains("DROPS BY REASON") && !text.contains("q quit"), "{text}");
    let many = snapshot(vec![service("web", 1, (0..900).map(backend).collect())]);
    let text = plain(&mut top_of(&many), 80);
    assert_eq!(text.lines().filter(|line| line.contains(":8080 ")).count(), 900);
}

/// Two cells a character: columns are where they are for others.
#[test]
fn wide_characters_take_two_columns() {
    let mut both = vec![
        service("web", 1, vec![backend(1)]),
        service("\u{7db2}\u{7ad9}\u{670d}\u{52a1}", 2, vec![backend(2)]),
    ];
    both.iter_mut().for_each(|one| one.backends[0].connections = 77_777);
    let text = plain(&mut top_of(&snapshot(both)), 120);
    let ends: Vec<usize> = text
        .lines()
        .filter(|line| line.contains("up ") && line.contains("77777"))
        .map(|line| super::super::text::columns(&line[..line.find("77777").unwrap()]))
        .collect();
    assert_eq!(ends.len(), 4, "{text}");
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}\n{text}");
}

/// One that serves several services is one backend.
#[test]
fn backends_are_counted_once() {
    let mut ill = backend(1);
    down(&mut ill);
    let both = vec![service("a", 1, vec![backend(1), backend(2)]), service("b", 2, vec![ill, backend(2)])];
    let text = text(&mut top_of(&snapshot(both)), 80, 24);
    assert!(text.contains("1 of 2 backends ILL"), "{text}");
}

#[test]
fn replies_without_a_known_way_are_shown() {
    let mut before = snapshot(vec![service("web", 1, vec![backend(1)])]);
    count(&mut before, Class::Stack, "route_by_kernel", 10);
    count(&mut before, Class::Stack, "to_client", 10);
    let text = text(&mut top_of(&before), 120, 24);
    assert!(text.contains("stack: route_by_kernel ") && !text.contains("to_client"), "{text}");
}
