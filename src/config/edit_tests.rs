use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

const FILE: &str = r#"# the entrance
interface = "eth0"   # on the left

# what customers see
[[service]]
name = "web"
vip = "192.0.2.1:80"
backend = [
    "10.0.0.1:80:50",  # rack 1
    # the loud one
    { address = "10.0.0.2:80", weight = 5 },  # rack 2
    "10.0.0.3:80"      # rack 3
]

[[service]]
vip = "192.0.2.1:53/any"   # names
backend = ["10.0.0.1:53", "10.0.0.2:53"]

[[service]]
vip = "192.0.2.2:443"

# bought in May
[[service.backend]]
address = "10.0.0.1:443"
weight = 7   # of ten

[[service.backend]]
address = "10.0.0.2:443"
state = "drain"
"#;

fn ip(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn weight(number: u8) -> Weight {
    Weight::new(number).unwrap()
}

fn edit(text: &str, edits: &[Edit]) -> Result<String, EditError> {
    apply(text, Path::new("FILE"), edits)
}

/// The lines that are gone, and those that are new.
fn difference(old: &str, new: &str) -> (Vec<String>, Vec<String>) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (mut gone, mut added) = (lines(old), lines(new));
    for line in lines(old) {
        let at = added.iter().position(|other| *other == line);
        if let Some(at) = at {
            added.remove(at);
            let at = gone.iter().position(|other| *other == line).unwrap();
            gone.remove(at);
        }
    }
    gone.sort();
    added.sort();
    (gone, added)
}

#[track_caller]
fn changes(one: Edit, gone: &[&str], added: &[&str]) -> String {
    let new = edit(FILE, &[one]).unwrap();
    let (got_gone, got_added) = difference(FILE, &new);
    assert_eq!((got_gone, got_added), (sorted(gone), sorted(added)), "{new}");
    new
}

fn sorted(texts: &[&str]) -> Vec<String> {
    let mut texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    texts.sort();
    texts
}

fn state(service: &str, address: &str, state: AdminState) -> Edit {
    Edit::State { service: service.into(), address: ip(address), state }
}

fn share(service: &str, address: &str, number: u8) -> Edit {
    Edit::Weight { service: service.into(), address: ip(address), weight: weight(number) }
}

fn add(service: &str, address: &str, number: u8) -> Edit {
    Edit::AddBackend { service: service.into(), backend: Backend::new(ip(address), weight(number)) }
}

fn remove(service: &str, address: &str) -> Edit {
    Edit::RemoveBackend { service: service.into(), address: ip(address) }
}

#[test]
fn nothing_is_changed_by_nothing() {
    assert_eq!(edit(FILE, &[]).as_deref(), Ok(FILE));
}

#[test]
fn a_backend_changes_where_it_stands() {
    changes(
        share("web", "10.0.0.1:80", 9),
        &[r#"    "10.0.0.1:80:50",  # rack 1"#],
        &[r#"    "10.0.0.1:80:9",  # rack 1"#],
    );
    changes(
        share("web", "10.0.0.2:80", 9),
        &[r#"    { address = "10.0.0.2:80", weight = 5 },  # rack 2"#],
        &[r#"    { address = "10.0.0.2:80", weight = 9 },  # rack 2"#],
    );
    changes(
        share("192.0.2.2:443", "10.0.0.1:443", 9),
        &["weight = 7   # of ten"],
        &["weight = 9   # of ten"],
    );
    changes(share("192.0.2.2:443/tcp", "10.0.0.2:443", 9), &[], &["weight = 9"]);
    changes(
        state("web", "10.0.0.1:80", AdminState::Drain),
        &[r#"    "10.0.0.1:80:50",  # rack 1"#],
        &[r#"    { address = "10.0.0.1:80", weight = 50, state = "drain" },  # rack 1"#],
    );
    changes(
        state("web", "10.0.0.2:80", AdminState::Disabled),
        &[r#"    { address = "10.0.0.2:80", weight = 5 },  # rack 2"#],
        &[r#"    { address = "10.0.0.2:80", weight = 5, state = "disabled" },  # rack 2"#],
    );
    changes(state("web", "10.0.0.1:80", AdminState::Enabled), &[], &[]);
    changes(
        state("192.0.2.2:443", "10.0.0.2:443", AdminState::Enabled),
        &[r#"state = "drain""#],
        &[r#"state = "enabled""#],
    );
}

#[test]
fn a_backend_comes_and_goes() {
    let new = changes(
        add("web", "10.0.0.4:80", 4),
        &[r#"    "10.0.0.3:80"      # rack 3"#],
        &[r#"    "10.0.0.3:80",      # rack 3"#, r#"    "10.0.0.4:80:4""#],
    );
    assert!(new.contains("    \"10.0.0.4:80:4\"\n]"), "{new}");
    changes(
        add("192.0.2.1:53", "10.0.0.3:53", 1),
        &[r#"backend = ["10.0.0.1:53", "10.0.0.2:53"]"#],
        &[r#"backend = ["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53:1"]"#],
    );
    changes(
        add("192.0.2.2:443", "10.0.0.3:443", 3),
        &[],
        &["", "[[service.backend]]", r#"address = "10.0.0.3:443""#, "weight = 3"],
    );
    changes(remove("web", "10.0.0.1:80"), &[r#"    "10.0.0.1:80:50",  # rack 1"#], &[]);
    changes(
        remove("web", "10.0.0.2:80"),
        &["    # the loud one", r#"    { address = "10.0.0.2:80", weight = 5 },  # rack 2"#],
        &[],
    );
    let new = edit(FILE, &[remove("web", "10.0.0.3:80")]).unwrap();
    assert!(new.contains("weight = 5 }  # rack 2\n]") && !new.contains("rack 3"), "{new}");
    changes(
        remove("192.0.2.1:53", "10.0.0.1:53"),
        &[r#"backend = ["10.0.0.1:53", "10.0.0.2:53"]"#],
        &[r#"backend = ["10.0.0.2:53"]"#],
    );
    changes(
        remove("192.0.2.2:443", "10.0.0.1:443"),
        &[
            "# bought in May",
            "[[service.backend]]",
            r#"address = "10.0.0.1:443""#,
            "weight = 7   # of ten",
            "",
        ],
        &[],
    );
}

#[test]
fn the_first_backend_and_the_last() {
    let text = "interface = \"eth0\"\n\n[[service]]\nvip = \"192.0.2.1:80\" # here\n";
    let one = edit(text, &[add("192.0.2.1:80", "10.0.0.1:80", 2)]).unwrap();
    assert_eq!(one, format!("{text}backend = [{{ address = \"10.0.0.1:80\", weight = 2 }}]\n"));
    let none = edit(&one, &[remove("192.0.2.1:80", "10.0.0.1:80")]).unwrap();
    assert_eq!(none, format!("{text}backend = []\n"));
    let several = text.to_owned() + "backend = [\n    # none yet\n]\n";
    let one = edit(&several, &[add("192.0.2.1:80", "10.0.0.1:80", 2)]).unwrap();
    assert!(one.contains("# none yet"), "{one}");
    let comma = text.to_owned() + "backend = [\n  \"10.0.0.1:80\", # first\n]\n";
    let two = edit(&comma, &[add("192.0.2.1:80", "10.0.0.2:80", 2)]).unwrap();
    let backends = "backend = [\n  \"10.0.0.1:80\", # first\n  \"10.0.0.2:80:2\",\n]\n";
    assert_eq!(two, text.to_owned() + backends);
    assert_eq!(edit(&two, &[remove("192.0.2.1:80", "10.0.0.2:80")]).unwrap(), comma);
}

#[test]
fn services_come_and_go() {
    let service =
        Service::new(ip("192.0.2.3:25"), Protocol::Tcp, vec![Backend::new(ip("10.0.0.9:25"), weight(1))]);
    let new = edit(FILE, &[Edit::AddService(vec![service.clone()])]).unwrap();
    assert_eq!(new, format!("{FILE}\n{}", tables(&[service], &Default::default())));
    let web = changes(
        Edit::RemoveService("web".into()),
        &[
            "# what customers see",
            "[[service]]",
            "name = \"web\"",
            "vip = \"192.0.2.1:80\"",
            "backend = [",
            "    \"10.0.0.1:80:50\",  # rack 1",
            "    # the loud one",
            "    { address = \"10.0.0.2:80\", weight = 5 },  # rack 2",
            "    \"10.0.0.3:80\"      # rack 3",
            "]",
            "",
        ],
        &[],
    );
    let edits = ["192.0.2.1:53", "192.0.2.2:443/tcp"].map(|service| Edit::RemoveService(service.into()));
    assert_eq!(edit(&web, &edits).unwrap(), "# the entrance\ninterface = \"eth0\"   # on the left\n");
}

#[test]
fn one_protocol_of_two() {
    let new = changes(
        Edit::RemoveService("192.0.2.1:53/tcp".into()),
        &["vip = \"192.0.2.1:53/any\"   # names"],
        &["vip = \"192.0.2.1:53/udp\"   # names", "health = \"tcp\""],
    );
    let before = parse(FILE, Path::new("FILE")).unwrap();
    let after = parse(&new, Path::new("FILE")).unwrap();
    assert_eq!(after.services[1], before.services[2], "the check stays what it was");
    let new = edit(FILE, &[share("192.0.2.1:53/udp", "10.0.0.1:53", 9)]).unwrap();
    let mut expected = before;
    expected.services[2].backends[0].weight = weight(9);
    assert_eq!(parse(&new, Path::new("FILE")).unwrap(), expected, "{new}");
    // With backends in tables of their own.
    let tables = FILE.replace("192.0.2.2:443\"", "192.0.2.2:443/any\"");
    let mut expected = parse(&tables, Path::new("FILE")).unwrap();
    let new = edit(&tables, &[share("192.0.2.2:443/tcp", "10.0.0.1:443", 9)]).unwrap();
    expected.services[3].backends[0].weight = weight(9);
    assert_eq!(parse(&new, Path::new("FILE")).unwrap(), expected, "{new}");
}

#[test]
fn services_in_one_line() {
    let text = "interface = \"eth0\"\nservice = [{ vip = \"192.0.2.1:80\", backend = [\"10.0.0.1:80\"] }]\n";
    let other = Service::new(ip("192.0.2.2:80"), Protocol::Udp, Vec::new());
    let edits = [
        share("192.0.2.1:80", "10.0.0.1:80", 3),
        Edit::AddService(vec![other.clone()]),
        add("192.0.2.2:80", "10.0.0.2:80", 1),
    ];
    let config = parse(&edit(text, &edits).unwrap(), Path::new("FILE")).unwrap();
    assert_eq!(config.services[0].backends, [Backend::new(ip("10.0.0.1:80"), weight(3))]);
    assert_eq!(config.services[1].backends, [Backend::new(ip("10.0.0.2:80"), weight(1))]);
    let edits = [Edit::RemoveService("192.0.2.1:80".into())];
    let config = parse(&edit(text, &edits).unwrap(), Path::new("FILE")).unwrap();
    assert_eq!(config.services, []);
}

#[test]
fn what_cannot_be_done() {
    let error = |one: Edit| edit(FILE, &[one]).unwrap_err();
    for service in ["mail", "192.0.2.9:80", "192.0.2.1:80/udp", "", "192.0.2.1:80/sctp"] {
        let got = error(Edit::RemoveService(service.into()));
        assert!(matches!(&got, EditError::NotFound(text) if text.contains(&format!("{service:?}"))), "{got}");
    }
    let got = error(remove("web", "10.0.0.9:80"));
    assert!(matches!(&got, EditError::NotFound(text) if text.contains("no backend 10.0.0.9:80")), "{got}");
    let got = error(add("web", "10.0.0.1:80", 1));
    assert!(
        matches!(&got, EditError::Conflict(text) if text.contains("is a backend of this service")),
        "{got}"
    );
    let got = error(add("web", "192.0.2.1:80", 1));
    assert!(matches!(&got, EditError::Conflict(text) if text.contains("the address of a VIP")), "{got}");
    let twice = Service::new(ip("192.0.2.1:80"), Protocol::Tcp, Vec::new());
    let got = error(Edit::AddService(vec![twice]));
    assert!(
        matches!(&got, EditError::Conflict(text) if text.contains("tcp service at this VIP already")),
        "{got}"
    );
    let got = edit("interface = 1\n", &[remove("web", "10.0.0.9:80")]).unwrap_err();
    assert!(matches!(&got, EditError::File(error) if error.position() == Some((1, 13))), "{got}");
}

#[test]
fn ends_of_lines_and_the_mark_at_the_start_stay() {
    let text = format!("\u{feff}{FILE}").replace('\n', "\r\n");
    let new = edit(&text, &[share("web", "10.0.0.1:80", 9)]).unwrap();
    assert_eq!(new, text.replace("10.0.0.1:80:50", "10.0.0.1:80:9"));
}

#[test]
fn a_file_is_replaced_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let real = directory.path().join("real.toml");
    let link = directory.path().join("link.toml");
    fs::write(&real, "old").unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("real.toml", &link).unwrap();
    write(&link, "old", "new").unwrap();
    assert_eq!(fs::read_to_string(&real).unwrap(), "new");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o7777, 0o640);
    let got = write(&link, "old", "newer").unwrap_err();
    assert!(
        matches!(&got, EditError::Conflict(text) if text.contains("was changed after it was read")),
        "{got}"
    );
    assert_eq!(fs::read_to_string(&real).unwrap(), "new");
    let got = write(&directory.path().join("none.toml"), "", "new").unwrap_err();
    assert!(matches!(&got, EditError::Failed(text) if text.contains("cannot be written")), "{got}");
    let names: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing is left: {names:?}");
}

/// What a name or a VIP means among services.
fn is_meant(service: &Service, asked: &str) -> bool {
    let vip = service.vip.to_string();
    service.name == asked || vip == asked || format!("{vip}/{}", service.protocol) == asked
}

/// The same change of the services themselves; whether there was something to change.
fn change(services: &mut Vec<Service>, edit: &Edit) -> bool {
    let mut has_changed = false;
    let mut each = |asked: &str, change: &mut dyn FnMut(&mut Vec<Backend>) -> bool| {
        for service in services.iter_mut().filter(|service| is_meant(service, asked)) {
            has_changed |= change(&mut service.backends);
        }
    };
    let at = |backends: &[Backend], address| backends.iter().position(|backend| backend.address == address);
    match edit {
        Edit::AddService(_) => {}
        Edit::RemoveService(asked) => {
            let before = services.len();
            services.retain(|service| !is_meant(service, asked));
            return services.len() < before;
        }
        Edit::AddBackend { service, backend } => each(service, &mut |backends| {
            backends.push(*backend);
            true
        }),
        Edit::RemoveBackend { service, address } => each(service, &mut |backends| {
            at(backends, *address).map(|index| backends.remove(index)).is_some()
        }),
        Edit::State { service, address, state } => each(service, &mut |backends| {
            at(backends, *address).map(|index| backends[index].state = *state).is_some()
        }),
        Edit::Weight { service, address, weight } => each(service, &mut |backends| {
            at(backends, *address).map(|index| backends[index].weight = *weight).is_some()
        }),
    }
    has_changed
}

fn random_edit(random: &mut fastrand::Rng) -> Edit {
    let services =
        ["web", "192.0.2.1:80", "192.0.2.1:53", "192.0.2.1:53/tcp", "192.0.2.1:53/udp", "192.0.2.2:443"];
    let service = (*random.choice(&services).unwrap()).to_owned();
    let port = *random.choice(&[80, 53, 443]).unwrap();
    let address = ip(&format!("10.0.0.{}:{port}", random.u8(1..6)));
    let weight = weight(random.u8(1..=100));
    let state = *random.choice(&AdminState::ALL).unwrap();
    match random.u32(..12) {
        0 => Edit::RemoveService(service),
        1..=4 => Edit::AddBackend { service, backend: Backend { state, ..Backend::new(address, weight) } },
        5..=7 => Edit::RemoveBackend { service, address },
        8 | 9 => Edit::State { service, address, state },
        _ => Edit::Weight { service, address, weight },
    }
}

#[test]
fn the_text_means_what_was_changed() {
    let file = parse(FILE, Path::new("FILE")).unwrap();
    let rendered = super::super::render(&file);
    let inline = FILE.find("\n[[service]]\nvip = \"192.0.2.1:53").map(|at| &FILE[..at]).unwrap();
    let inline = inline
        .replace("\n[[service]]\n", "\nservice = [{ ")
        .replace("\nvip", ", vip")
        .replace("\nbackend", ", backend")
        + "}, { vip = \"192.0.2.1:53/any\", backend = [] }]\n";
    let anys = FILE
        .replace("192.0.2.2:443\"", "192.0.2.2:443/any\"")
        .replace("192.0.2.1:80\"", "192.0.2.1:80/any\"");
    let mut random = fastrand::Rng::with_seed(7);
    let mut done = 0;
    for start in [FILE, &rendered, &inline, &anys] {
        for _ in 0..60 {
            let mut text = start.to_owned();
            for _ in 0..12 {
                let one = random_edit(&mut random);
                let before = parse(&text, Path::new("FILE")).unwrap();
                let mut expected = before.services.clone();
                let has_changed = change(&mut expected, &one);
                match edit(&text, std::slice::from_ref(&one)) {
                    Ok(new) => {
                        let after = parse(&new, Path::new("FILE")).unwrap();
                        assert!(has_changed, "{one:?}\n{text}");
                        assert_eq!(after, Config { services: expected, ..before }, "{one:?}\n{text}\n{new}");
                        text = new;
                        done += 1;
                    }
                    Err(EditError::NotFound(_)) => assert!(!has_changed, "{one:?}\n{text}"),
                    Err(EditError::Conflict(_)) => assert!(check(&expected).is_err(), "{one:?}\n{text}"),
                    Err(error) => panic!("{one:?}: {error}\n{text}"),
                }
            }
            // What is above the services is nobody's to change.
            assert!(text.starts_with(start.lines().next().unwrap()), "{text}");
        }
    }
    assert!(done > 500, "{done}");
}
