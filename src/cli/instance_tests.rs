use std::path::PathBuf;

use super::super::parse;
use super::*;
use crate::model::{Backend, Health, Protocol, Scheduler, Weight};

fn words(line: &str) -> Vec<OsString> {
    ["xdp-lb"].into_iter().chain(line.split_whitespace()).map(OsString::from).collect()
}

fn usual() -> Instance {
    Instance {
        pin_dir: PathBuf::from("/sys/fs/bpf/xdp_lb"),
        socket: PathBuf::from("/run/xdp-lb/xdp_lb.sock"),
        json: false,
        named: Named::No,
    }
}

fn asked(line: &str) -> Ask {
    match parse(words(line)) {
        Ok(Command::Change { ask, wait: false, instance }) if instance == usual() => ask,
        other => panic!("{line}: {other:?}"),
    }
}

fn shown(line: &str) -> Show {
    match parse(words(line)) {
        Ok(Command::Show(show, instance)) if instance == usual() => show,
        other => panic!("{line}: {other:?}"),
    }
}

fn address() -> SocketAddrV4 {
    "10.0.0.10:8080".parse().unwrap()
}

#[test]
fn top_has_no_json() {
    let usual_show = ShowTop { interval: Duration::from_secs(1), once: false, no_color: false };
    let other = ShowTop { interval: Duration::from_millis(500), once: true, no_color: true };
    for (line, show) in [("top", usual_show), ("top --interval 500ms --once --no-color", other)] {
        assert_eq!(parse(words(line)).unwrap(), Command::Top(show, usual()), "{line}");
    }
    let Command::Top(_, instance) = parse(words("top --pin-dir /sys/fs/bpf/b")).unwrap() else { panic!() };
    assert_eq!(instance.socket, PathBuf::from("/run/xdp-lb/b.sock"));
    assert!(parse(words("top --json")).is_err());
    assert!(parse(words("top --interval 0")).is_err());
}

#[test]
fn what_is_shown() {
    let filter = Filter { limit: Some(1000), ..Filter::default() };
    for (line, show) in [
        ("status", Show::Status),
        ("stats", Show::Stats { interval: Duration::from_secs(2), count: None }),
        (
            "stats --interval 500ms --count 3",
            Show::Stats { interval: Duration::from_millis(500), count: Some(3) },
        ),
        ("service list", Show::Services),
        ("backend list", Show::Backends(None)),
        ("backend list 10.1.1.1:80/udp", Show::Backends(Some("10.1.1.1:80/udp".into()))),
        ("connections", Show::Connections(filter.clone())),
        ("connections --limit 7", Show::Connections(Filter { limit: Some(7), ..filter })),
        ("config show", Show::Config),
    ] {
        assert_eq!(shown(line), show, "{line}");
    }
    let filter = Filter {
        service: Some("web".into()),
        backend: Some(address()),
        client: Some("198.51.100.7".parse().unwrap()),
        state: Some("closing".into()),
        limit: Some(1000),
    };
    let line = "connections --service web --backend 10.0.0.10:8080 --client 198.51.100.7 --state closing";
    assert_eq!(shown(line), Show::Connections(filter));
}

#[test]
fn what_is_asked() {
    let drain = |now, deadline| BackendChange::State { state: AdminState::Drain, now, deadline };
    let plain = |state| BackendChange::State { state, now: false, deadline: None };
    for (line, change) in [
        ("add web 10.0.0.10:8080", BackendChange::Add(Weight::MIN, AdminState::Enabled)),
        ("add web 10.0.0.10:8080:100 --state drain", BackendChange::Add(Weight::MAX, AdminState::Drain)),
        ("remove web 10.0.0.10:8080", BackendChange::Remove { now: false }),
        ("remove web 10.0.0.10:8080 --now", BackendChange::Remove { now: true }),
        ("drain web 10.0.0.10:8080", drain(false, None)),
        ("drain --now web 10.0.0.10:8080", drain(true, None)),
        ("drain web 10.0.0.10:8080 --deadline 60s", drain(false, Some(Duration::from_secs(60)))),
        ("enable web 10.0.0.10:8080", plain(AdminState::Enabled)),
        ("disable web 10.0.0.10:8080", plain(AdminState::Disabled)),
        ("weight web 10.0.0.10:8080 100", BackendChange::Weight(Weight::MAX)),
    ] {
        let of = |persist| Ask::ChangeBackend { service: "web".into(), address: address(), change, persist };
        assert_eq!(asked(&format!("backend {line}")), of(false), "{line}");
        assert_eq!(asked(&format!("backend {line} --persist")), of(true), "{line}");
    }
    assert_eq!(asked("reload"), Ask::Reload(Reload::default()));
    assert_eq!(asked("reload --dry-run --now"), Ask::Reload(Reload { dry_run: true, now: true }));
    assert_eq!(asked("stop"), Ask::Stop);
    let remove = |persist| Ask::RemoveService { service: "web".into(), persist };
    assert_eq!(asked("service remove web"), remove(false));
    assert_eq!(asked("service remove --persist web"), remove(true));
    for line in ["connections kill --backend 10.0.0.10:8080", "connections --backend 10.0.0.10:8080 kill"] {
        assert_eq!(
            asked(line),
            Ask::Kill(Filter { backend: Some(address()), ..Filter::default() }),
            "{line}"
        );
    }
}

#[test]
fn services_are_added_as_running_makes_them() {
    let line = "service add dns --vip 10.1.1.1:53/any --backend 10.0.0.10:8080:3 --scheduler mh --sticky 10m --persist";
    let Ask::AddServices { services, persist: true } = asked(line) else { panic!("{line}") };
    assert_eq!(services.iter().map(|s| s.protocol).collect::<Vec<_>>(), [Protocol::Tcp, Protocol::Udp]);
    for service in services {
        assert_eq!((service.name.as_str(), service.scheduler), ("dns", Scheduler::Maglev));
        assert_eq!(service.backends, [Backend::new(address(), Weight::new(3).unwrap())]);
        assert_eq!(service.health, Health::usual(&[Protocol::Tcp, Protocol::Udp]));
        assert_eq!(service.sticky, Some(Duration::from_secs(600)));
    }
    let Ask::AddServices { services, persist: false } = asked("service add web --vip 10.1.1.1:80") else {
        panic!("without backends")
    };
    assert!(services[0].backends.is_empty());
}

#[test]
fn what_is_waited_for() {
    for line in ["drain web 10.0.0.10:8080", "remove web 10.0.0.10:8080 --now"] {
        let command = parse(words(&format!("backend {line} --wait")));
        assert!(matches!(command, Ok(Command::Change { wait: true, .. })), "{line}: {command:?}");
    }
}

#[test]
fn which_instance_is_said_before_or_after_the_verb() {
    let of = |socket: &str, pin_dir: &str, json| Instance {
        pin_dir: PathBuf::from(pin_dir),
        socket: PathBuf::from(socket),
        json,
        named: if pin_dir == "/sys/fs/bpf/xdp_lb" { Named::No } else { Named::Pins },
    };
    let (usual, other) = ("/sys/fs/bpf/xdp_lb", "/sys/fs/bpf/other");
    for (line, instance) in [
        ("service list --json", of("/run/xdp-lb/xdp_lb.sock", usual, true)),
        ("service --json list", of("/run/xdp-lb/xdp_lb.sock", usual, true)),
        ("service list --pin-dir /sys/fs/bpf/other", of("/run/xdp-lb/other.sock", other, false)),
        ("service --pin-dir /sys/fs/bpf/other list", of("/run/xdp-lb/other.sock", other, false)),
        ("--pin-dir /sys/fs/bpf/other service list", of("/run/xdp-lb/other.sock", other, false)),
        ("--pin-dir=/sys/fs/bpf/other --socket /x service list", of("/x", other, false)),
        ("service --socket /x list --pin-dir=/sys/fs/bpf/other", of("/x", other, false)),
    ] {
        assert_eq!(parse(words(line)), Ok(Command::Show(Show::Services, instance)), "{line}");
    }
    // These are running's own.
    let run = parse(words("--pin-dir /sys/fs/bpf/other eth0 --vip 10.1.1.1:80 --backend 10.0.0.1:80"));
    assert!(matches!(run, Ok(Command::Run { .. })), "{run:?}");
}

#[test]
fn pages_shells_and_files() {
    assert_eq!(parse(words("completions zsh")), Ok(Command::Completions(Shell::Zsh)));
    let page =
        |verb: &[&str]| Command::Manual { verb: verb.iter().map(|w| (*w).to_owned()).collect(), dir: None };
    assert_eq!(parse(words("man")), Ok(page(&[])));
    assert_eq!(parse(words("man backend drain")), Ok(page(&["backend", "drain"])));
    let all = Command::Manual { verb: Vec::new(), dir: Some("man1".into()) };
    assert_eq!(parse(words("man --dir man1")), Ok(all));
}

#[test]
fn packets_that_are_asked_about() {
    let packet = |line: &str| match parse(words(&format!("explain {line}"))) {
        Ok(Command::Explain { packet, interface, .. }) => Ok((packet, interface)),
        Ok(other) => panic!("{line}: {other:?}"),
        Err(usage) => Err(usage.to_string()),
    };
    let of = |protocol, syn| Packet {
        protocol,
        client: "198.51.100.7:40000".parse().expect("an address"),
        vip: "192.168.1.100:80".parse().expect("an address"),
        syn,
    };
    let (client, vip) = ("198.51.100.7:40000", "192.168.1.100:80");
    assert_eq!(packet(&format!("{client} {vip}")), Ok((of(Protocol::Tcp, false), None)));
    assert_eq!(packet(&format!("{client} {vip}/tcp --syn")), Ok((of(Protocol::Tcp, true), None)));
    let on = Some("eth1".to_owned());
    assert_eq!(packet(&format!("{client} {vip}/udp --interface eth1")), Ok((of(Protocol::Udp, false), on)));
    for (line, complaint) in [
        (format!("{client} {vip}/udp --syn"), "a datagram of UDP opens nothing"),
        (format!("{client} {vip}/any"), "one packet is of TCP or of UDP"),
        (format!("198.51.100.7 {vip}"), "it is not an IPv4 address and a port"),
        (client.to_owned(), "the VIP and its port"),
    ] {
        let said = packet(&line).expect_err("a complaint");
        assert!(said.contains(complaint), "{line}: {said}");
    }
}

#[test]
fn what_is_watched() {
    use crate::dataplane::Happening;
    let watched = |line: &str| match parse(words(line)) {
        Ok(Command::Trace(watching, _) | Command::Capture { watching, .. }) => Ok(watching),
        Ok(other) => panic!("{line}: {other:?}"),
        Err(usage) => Err(usage.to_string()),
    };
    let plain = watched("trace").expect("nothing is required");
    assert_eq!((plain.rate, plain.limit, plain.reasons.len()), (1000, None, 0));
    let trace = watched(
        "trace --client 10.1.0.0/16 --service web --backend 10.0.0.10 --reason table_full --reason opened --limit 3 \
         --duration 10s --sample 100 --rate 50",
    );
    let trace = trace.expect("all of it is right");
    assert_eq!(
        (trace.client, trace.service),
        (Some(("10.1.0.0".parse().expect("one"), 16)), Some("web".into()))
    );
    assert_eq!((trace.backend, trace.limit), (Some(("10.0.0.10".parse().expect("one"), None)), Some(3)));
    assert_eq!((trace.sample, trace.rate, trace.events), (Some(100), 50, vec![Happening::Opened]));
    assert_eq!(
        (trace.reasons[0].name, trace.duration),
        ("table_full", Some(std::time::Duration::from_secs(10)))
    );
    let capture = parse(words("capture -w x.pcapng --snaplen 128"));
    assert!(matches!(capture, Ok(Command::Capture { length: 128, .. })), "{capture:?}");
    for (line, complaint) in [
        ("capture", "the file"),
        ("capture -w x --snaplen 4000", "it is more than 2048"),
        ("trace --reason tabel_full", "no packet ends like that"),
        ("trace --client 10.1.0.0/40", "is not a number from 0 to 32"),
        ("trace --rate 0", "it is not a number from 1 on"),
    ] {
        let said = watched(line).expect_err("a complaint");
        assert!(said.contains(complaint), "{line}: {said}");
    }
}

#[test]
fn whom_a_doctor_looks_at() {
    for (line, interface, named, fix) in [
        ("doctor", None, Named::No, false),
        ("doctor eth0 --fix", Some("eth0"), Named::No, true),
        ("doctor --socket /run/xdp-lb/xdp_lb.sock", None, Named::Socket, false),
        ("--pin-dir /sys/fs/bpf/other doctor eth1", Some("eth1"), Named::Pins, false),
    ] {
        let command = parse(words(line));
        let Ok(Command::Doctor { interface: at, instance, fix: mends, level: Level::Ok }) = &command else {
            panic!("{line}: {command:?}")
        };
        assert_eq!((at.as_deref(), instance.named, *mends), (interface, named, fix), "{line}");
    }
    assert!(parse(words("doctor eth0 eth1")).is_err());
    let level = parse(words("doctor --level error"));
    assert!(matches!(level, Ok(Command::Doctor { level: Level::Error, .. })), "{level:?}");
    let wrong = parse(words("doctor --level bad")).expect_err("a complaint").message;
    assert!(wrong.contains("there is no such level") && wrong.contains("warning"), "{wrong}");
    let help = parse(words("doctor --help")).expect_err("help").message;
    assert!(help.contains("1  there are warnings") && help.contains("2  there are errors"), "{help}");
}

#[test]
fn what_is_tuned() {
    let tune = |dry_run, undo, json| Command::Tune { interface: "eth0".into(), dry_run, undo, json };
    assert_eq!(parse(words("tune eth0")), Ok(tune(false, false, false)));
    assert_eq!(parse(words("tune eth0 --dry-run --undo --json")), Ok(tune(true, true, true)));
    let missing = parse(words("tune")).expect_err("no interface").message;
    assert!(missing.contains("xdp-lb tune eth0"), "{missing}");
}
