//! What keys do.

use super::super::columns::Column;
use super::super::state::Prompt;
use super::*;
use crate::control::{Ask, BackendChange, Done};
use crate::model::AdminState;

/// Two services; of the second, 12 is down and 13 is drained.
fn two_services() -> Snapshot {
    let mut all: Vec<_> = (11..14).map(backend).collect();
    for (n, one) in all.iter_mut().enumerate() {
        (one.connections, one.active) = (100 - n as u64, 7);
    }
    down(&mut all[1]);
    all[2].state = "drain".into();
    if let Some(health) = &mut all[2].health {
        health.admin = "drain".into();
    }
    snapshot(vec![service("api", 1, (1..4).map(backend).collect()), service("web", 2, all)])
}

#[test]
fn ill_ones_come_first() {
    let mut top = top_of(&two_services());
    assert_eq!(order(&top), [12, 13, 11, 1, 2, 3]);
    press(&mut top, "r");
    assert_eq!(order(&top), [1, 2, 3, 11, 13, 12]);
    press(&mut top, "<");
    assert_eq!((top.sort, top.reverse), (Column::Name, false));
    assert_eq!(order(&top), [1, 2, 3, 11, 12, 13]);
    press(&mut top, "!");
    assert_eq!(order(&top)[0], 12);
}

#[test]
fn columns_are_sorted_by_one_after_the_other() {
    let mut top = top_of(&two_services());
    press(&mut top, "sss");
    assert_eq!(top.sort, Column::Total);
    assert_eq!(order(&top), [11, 12, 13, 1, 2, 3], "most first");
    let mut seen = vec![top.sort];
    while press(&mut top, ">") == Action::Nothing && top.sort != Column::Total {
        seen.push(top.sort);
    }
    assert_eq!(seen.len(), Column::ALL.len() - 1, "all but the trend");
    press(&mut top, "<");
    assert_eq!(top.sort, Column::Live);
}

#[test]
fn a_filter_wants_all_its_words() {
    let mut top = top_of(&two_services());
    for (filter, left) in [
        ("web", vec![12, 13, 11]),
        ("WEB up", vec![11]),
        ("ill", vec![12]),
        ("off", vec![13]),
        ("192.0.2.1:80", vec![1, 2, 3]),
        ("10.0.0.13", vec![13]),
        ("10.0.0.1", vec![12, 13, 11, 1]),
        ("nothing", vec![]),
    ] {
        press(&mut top, "/");
        press(&mut top, filter);
        press_code(&mut top, KeyCode::Enter);
        assert_eq!((order(&top), top.filter.as_str()), (left, filter));
        press_code(&mut top, KeyCode::Esc);
        assert_eq!(top.filter, "");
    }
    // q and d are letters there.
    press(&mut top, "/webqd");
    press_code(&mut top, KeyCode::Backspace);
    press_code(&mut top, KeyCode::Backspace);
    assert_eq!((top.filter.as_str(), order(&top).len()), ("web", 3));
    press_code(&mut top, KeyCode::Esc);
    assert_eq!((top.filter.as_str(), top.prompt.clone()), ("", None));
    assert_eq!(press(&mut top, "q"), Action::Quit);
}

fn change_of(n: u8, state: AdminState) -> Action {
    Action::Change(Box::new(Ask::ChangeBackend {
        service: "192.0.2.2:80/tcp".into(),
        address: std::net::SocketAddrV4::new([10, 0, 0, n].into(), 8080),
        change: BackendChange::State { state, now: false, deadline: None },
        persist: false,
    }))
}

#[test]
fn nothing_is_changed_without_a_yes() {
    let mut top = top_of(&two_services());
    press(&mut top, "d");
    let Some(Prompt::Confirm(proposal)) = &top.prompt else { panic!("{:?}", top.prompt) };
    let question = proposal.question();
    assert!(question.starts_with("Drain backend 10.0.0.12:8080 of web/tcp?"), "{question}");
    assert!(question.contains("its 7 live ones go on"), "{question}");
    for key in "dDejk/?ps<>!r \nY".chars() {
        assert_eq!(press_code(&mut top, KeyCode::Char(key)), Action::Nothing, "{key:?}");
        assert!(matches!(top.prompt, Some(Prompt::Confirm(_))), "{key:?}");
    }
    assert_eq!(press_code(&mut top, KeyCode::Enter), Action::Nothing);
    for no in [KeyCode::Char('n'), KeyCode::Esc, KeyCode::Char('q')] {
        press(&mut top, "d");
        assert_eq!(press_code(&mut top, no), Action::Nothing);
        assert_eq!(top.prompt, None);
    }
    // A y alone means nothing.
    assert_eq!(press(&mut top, "y"), Action::Nothing);
    assert_eq!(press(&mut top, "dy"), change_of(12, AdminState::Drain));
    assert_eq!(press(&mut top, "Dy"), change_of(12, AdminState::Disabled));
    assert_eq!(press(&mut top, "jey"), change_of(13, AdminState::Enabled));
}

#[test]
fn the_question_is_about_the_backend_that_was_selected() {
    let (mut top, mut clock) = (Top::new(String::new()), Clock::new());
    let mut now = two_services();
    top.take(clock.reading(&now));
    press(&mut top, "jd");
    // Another one goes down meanwhile, and the list is in another order.
    down(&mut now.services[1].backends[0]);
    top.take(clock.reading(&now));
    now.services[1].backends.remove(2);
    top.take(clock.reading(&now));
    assert_eq!(press(&mut top, "y"), Action::Nothing, "13 was drained already: nothing was asked");
    press(&mut top, "!");
    press(&mut top, "d");
    let mut other = now.clone();
    other.services[1].backends.remove(0);
    top.take(clock.reading(&other));
    assert_eq!(press(&mut top, "y"), change_of(11, AdminState::Drain));
}

#[test]
fn what_cannot_be_changed_is_not_asked() {
    let mut now = two_services();
    now.services[1].backends[1].state = "removed".into();
    let says = |top: &Top, text: &str| {
        let (message, is_bad) = top.message.clone().unwrap();
        assert!(is_bad && message.contains(text), "{message}");
        assert_eq!(top.prompt, None);
    };
    let mut top = top_of(&now);
    press(&mut top, "/removed");
    press_code(&mut top, KeyCode::Enter);
    press(&mut top, "e");
    says(&top, "10.0.0.12:8080 is removed already");
    let mut top = top_of(&two_services());
    press(&mut top, "e");
    says(&top, "set to enabled already");
    top.lose(Instant::now(), "gone".into());
    press(&mut top, "d");
    says(&top, "nobody answers");
    for (silent, why) in [(false, "no process runs"), (true, "the process does not answer")] {
        let pinned = Clock::new().reading(&two_services());
        let mut top = Top::new(String::new());
        top.take(Reading { running: false, silent, version: None, ..pinned });
        press(&mut top, "d");
        says(&top, why);
    }
    let mut none = top_of(&snapshot(Vec::new()));
    press(&mut none, "d");
    says(&none, "no backend is selected");
}

#[test]
fn what_a_change_did_is_said() {
    let mut top = top_of(&two_services());
    top.changed(Ok(Done { steps: vec!["one".into(), "two".into()], ..Done::default() }));
    assert_eq!(top.message, Some(("one; two".into(), false)));
    top.changed(Err("it is refused".into()));
    assert_eq!(top.message, Some(("it is refused".into(), true)));
    press(&mut top, "j");
    assert_eq!(top.message, None);
}

#[test]
fn a_paused_screen_stands_still_and_rates_go_on() {
    let (mut top, mut clock) = (Top::new(String::new()), Clock::new());
    let mut now = two_services();
    let mut next = |top: &mut Top| {
        now.services[0].backends[0].connections += 10;
        top.take(clock.reading(&now));
    };
    let total = |top: &Top| top.view.as_ref().unwrap().services[0].sum.total;
    next(&mut top);
    press(&mut top, "p");
    next(&mut top);
    next(&mut top);
    assert_eq!(total(&top), 10);
    press(&mut top, "p");
    assert_eq!(total(&top), 30);
    let rates = top.view.as_ref().unwrap().services[0].sum.rates.unwrap();
    assert_eq!(rates.connections, 10.0, "those of a second, not of the pause");
}

#[test]
fn the_selection_follows_its_backend_and_can_be_seen() {
    let mut top = top_of(&snapshot(vec![service("web", 1, (0..300).map(backend).collect())]));
    top.fit(10);
    for _ in 0..3 {
        press_code(&mut top, KeyCode::PageDown);
        top.fit(10);
    }
    let at = top.selected_line().unwrap();
    assert_eq!(at, 31);
    assert!((top.scroll..top.scroll + 10).contains(&at), "{}", top.scroll);
    let mut now = snapshot(vec![service("web", 1, (0..300).map(backend).collect())]);
    down(&mut now.services[0].backends[200]);
    top.take(Clock(Instant::now() + Duration::from_secs(9)).reading(&now));
    assert_eq!(top.selected_line(), Some(33), "its place moved, it did not");
    press(&mut top, "G");
    top.fit(10);
    assert_eq!((top.selected_line(), top.scroll), (Some(301), 292));
    press(&mut top, "g");
    top.fit(10);
    assert_eq!((top.selected_line(), top.scroll), (Some(1), 0), "its service is seen above it");
    // One that nobody chose gives way to an ill one.
    let mut top = top_of(&snapshot(vec![service("web", 1, (0..300).map(backend).collect())]));
    top.take(Clock(Instant::now() + Duration::from_secs(9)).reading(&now));
    assert_eq!((order(&top)[0], top.selected_line()), (200, Some(1)));
}

#[test]
fn what_is_typed_ahead_is_no_answer() {
    let mut top = top_of(&two_services());
    type_ahead(&mut top, KeyCode::Char('d'));
    assert_eq!(type_ahead(&mut top, KeyCode::Char('y')), Action::Nothing, "the question was not drawn yet");
    assert!(matches!(top.prompt, Some(Prompt::Confirm(_))));
    let drawn = Instant::now();
    top.drawn(drawn);
    assert_eq!(type_at(&mut top, KeyCode::Char('y'), drawn + READING / 2), Action::Nothing, "nor read");
    let read = drawn + READING;
    assert_eq!(type_at(&mut top, KeyCode::Char('y'), read), change_of(12, AdminState::Drain));
    // The next question has to be read again.
    type_at(&mut top, KeyCode::Char('D'), read);
    assert_eq!(type_at(&mut top, KeyCode::Char('y'), read), Action::Nothing);
}

#[test]
fn the_selection_stays_when_the_choice_ends() {
    let mut top = top_of(&two_services());
    let selected = |top: &Top| top.selected.as_ref().unwrap().address.ip().octets()[3];
    press(&mut top, "jjj");
    assert_eq!(selected(&top), 1);
    press(&mut top, "/web");
    assert_eq!(selected(&top), 12);
    press_code(&mut top, KeyCode::Esc);
    assert_eq!((selected(&top), order(&top).len()), (1, 6));
    press(&mut top, "/web");
    press_code(&mut top, KeyCode::Enter);
    press(&mut top, "j");
    assert_eq!(selected(&top), 13);
    press_code(&mut top, KeyCode::Esc);
    assert_eq!((selected(&top), top.filter.as_str()), (13, ""));
    press(&mut top, "!");
    assert_eq!(selected(&top), 13);
    // Who has chosen nothing is shown the worst.
    let mut top = top_of(&two_services());
    press(&mut top, "/api");
    press_code(&mut top, KeyCode::Esc);
    assert_eq!(selected(&top), 12);
}
