//! The configuration file, from outside: what is right in it, what is wrong with it, and what is told about that.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use xdp_lb::config::{self, Config, Deliver, FileError, LogFormat, XdpMode};
use xdp_lb::model::{
    AdminState, Backend, Health, HttpProbe, Initial, OnDown, OnEmpty, Probe, Protocol, Scheduler, Service,
    Timeouts, TlsProbe, Weight,
};

/// What the files of the corpus are called in what is told about them.
const NAME: &str = "FILE";

/// The files in a part of the corpus, with the text that is expected of each.
fn corpus(part: &str, expected: &str) -> Vec<(String, String, String)> {
    let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(part);
    let entries = fs::read_dir(&room).unwrap().map(|entry| entry.unwrap().path());
    let (files, others): (Vec<PathBuf>, Vec<PathBuf>) =
        entries.partition(|path| path.extension().is_some_and(|extension| extension == "toml"));
    let stems = |paths: &[PathBuf]| -> BTreeSet<PathBuf> {
        paths.iter().map(|path| path.with_extension("")).collect()
    };
    assert!(others.iter().all(|path| path.extension().is_some_and(|extension| extension == expected)));
    assert_eq!(stems(&files), stems(&others), "every file has its .{expected}");
    let mut corpus: Vec<_> = files
        .iter()
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let expected = fs::read_to_string(path.with_extension(expected)).unwrap();
            (name, fs::read_to_string(path).unwrap(), expected)
        })
        .collect();
    corpus.sort();
    corpus
}

fn parse(text: &str) -> Result<Config, FileError> {
    config::parse(text, Path::new(NAME))
}

#[test]
fn what_is_wrong_is_told() {
    let corpus = corpus("bad", "err");
    assert!(corpus.len() >= 70, "{} bad files", corpus.len());
    for (name, text, expected) in corpus {
        let error = parse(&text).expect_err(&name);
        assert_eq!(error.to_string(), expected.trim_end_matches('\n'), "{name}");
        assert!(error.message().contains("; write "), "{name}: {error}");
        has_a_place(&error, &text);
    }
}

#[test]
fn what_is_right_is_read() {
    for (name, text, expected) in corpus("good", "rendered") {
        let config = parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(config::render(&config), expected, "{name}");
        assert_eq!(parse(&expected).as_ref(), Ok(&config), "{name}");
    }
}

#[test]
fn every_key_means_what_it_says() {
    let (_, text, _) =
        corpus("good", "rendered").into_iter().find(|(name, _, _)| name == "every-key").unwrap();
    let secs = Duration::from_secs;
    let timeouts =
        Timeouts { established: secs(600), unconfirmed: secs(5), closing: secs(20), udp: secs(120) };
    let own = Timeouts { established: secs(3600), unconfirmed: secs(6), closing: secs(21), udp: secs(180) };
    let http = HttpProbe {
        method: "HEAD".into(),
        path: "/health?full=1".into(),
        host: Some("www.example.com".into()),
        status: vec![200..=299, 301..=301],
        body: Some("ok".into()),
    };
    let tls = TlsProbe { ca: Some("/etc/ssl/backends.pem".into()), skip_verify: false };
    let health = Health {
        probe: Probe::Https(http, tls),
        interval: secs(60),
        timeout: secs(10),
        rise: 1,
        fall: 5,
        port: Some(8443),
        initial: Initial::Down,
        passive: 0,
    };
    let disabled = Backend {
        state: AdminState::Disabled,
        ..Backend::new("10.0.0.10:8443".parse().unwrap(), Weight::MAX)
    };
    let usual = Backend::new("10.0.0.11:8443".parse().unwrap(), Weight::default());
    let service = Service {
        name: "web".into(),
        scheduler: Scheduler::LeastConn,
        sticky: Some(secs(600)),
        timeouts: own,
        on_empty: OnEmpty::Pass,
        on_down: OnDown::Reset,
        health,
        slow_start: secs(30),
        ..Service::new("192.168.1.100:443".parse().unwrap(), Protocol::Tcp, vec![disabled, usual])
    };
    let expected = Config {
        interfaces: vec!["eth0".into(), "eth1".into()],
        services: vec![service],
        xdp_mode: XdpMode::Native,
        deliver: Deliver::Stack,
        pin_dir: "/sys/fs/bpf/web".into(),
        socket: "/run/web.sock".into(),
        max_connections: 2_000_000,
        ring_memory: 1 << 30,
        timeouts,
        stats_interval: Some(Duration::from_millis(500)),
        assign_vip: true,
        persist: true,
        watch: true,
        metrics: Some("127.0.0.1:9105".parse().unwrap()),
        log_format: LogFormat::Json,
    };
    assert_eq!(parse(&text), Ok(expected));
}

#[test]
fn services_alone_have_the_timeouts_of_who_reads_them() {
    let defaults = Timeouts { udp: Duration::from_secs(7), ..Timeouts::default() };
    let text = "[[service]]\nvip = \"192.0.2.1:53/any\"\n";
    let services = config::services(text, &defaults).unwrap();
    assert_eq!(services.len(), 2);
    assert!(services.iter().all(|service| service.timeouts == defaults && service.name == "192.0.2.1:53"));
    assert_eq!(config::services("", &defaults), Ok(Vec::new()));
    let error = config::services("interface = \"eth0\"\n", &defaults).unwrap_err().to_string();
    assert!(
        error.starts_with("services:1:1: interface is not for a service; write only [[service]]"),
        "{error}"
    );
}

#[test]
fn a_file_that_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let told = |path: &Path| {
        let error = config::read(path).unwrap_err();
        (error.position(), error.to_string())
    };
    let (place, missing) = told(&directory.path().join("none.toml"));
    assert_eq!(place, None);
    assert!(missing.contains("none.toml: cannot read the configuration: No such file"), "{missing}");
    assert!(missing.ends_with("; write the path of a file that exists"), "{missing}");
    let (_, is_directory) = told(directory.path());
    assert!(is_directory.ends_with("; write the path of a file in it"), "{is_directory}");
    let latin = directory.path().join("latin.toml");
    fs::write(&latin, b"interface = \"eth0\"\n# gr\xfc\xdf\n").unwrap();
    let (place, not_utf8) = told(&latin);
    assert_eq!(place, Some((2, 5)));
    assert!(not_utf8.contains("a byte that is not UTF-8"), "{not_utf8}");
    let right = directory.path().join("right.toml");
    fs::write(&right, "interface = \"eth0\"\n").unwrap();
    assert_eq!(config::read(&right), Ok(Config::new(vec!["eth0".into()], Vec::new())));
}

#[test]
fn more_services_than_there_can_be() {
    let service =
        |number: usize| format!("[[service]]\nvip = \"10.{}.{}.1:80/any\"\n", number >> 8, number & 255);
    let text =
        |count: usize| "interface = \"eth0\"\n".to_owned() + &(0..count).map(service).collect::<String>();
    assert_eq!(parse(&text(config::MAX_SERVICES / 2)).unwrap().services.len(), config::MAX_SERVICES);
    let error = parse(&text(config::MAX_SERVICES / 2 + 1)).unwrap_err();
    assert_eq!(error.position(), Some((config::MAX_SERVICES + 3, 7)));
    assert!(error.message().contains("there can be 4096 services"), "{error}");
}

#[test]
fn more_backends_than_there_can_be_together() {
    let service = |number: usize| {
        let backend = |index: usize| format!("\"10.{number}.{}.{}:80\",\n", index >> 8, index & 255);
        let backends: String = (0..1024).map(backend).collect();
        format!("[[service]]\nvip = \"192.0.2.1:{}\"\nbackend = [\n{backends}]\n", number + 1)
    };
    let text =
        |count: usize| "interface = \"eth0\"\n".to_owned() + &(0..count).map(service).collect::<String>();
    assert!(parse(&text(63)).is_ok());
    let error = parse(&text(64)).unwrap_err();
    assert!(error.message().contains("all services can have 65535 backends together"), "{error}");
    assert!(error.message().starts_with("\"10.63.3.255:80\": "), "{error}");
}

/// There is a place, it is in the text, and the carets are below the line that is shown.
fn has_a_place(error: &FileError, text: &str) {
    let told = error.to_string();
    let (line, column) = error.position().expect("a place");
    assert!(line >= 1 && line <= text.split('\n').count(), "{told}");
    let source = text.split('\n').nth(line - 1).unwrap();
    let source = source.strip_suffix('\r').unwrap_or(source);
    assert!(column >= 1 && column <= source.chars().count() + 1, "{told}");
    let lines: Vec<&str> = told.split('\n').collect();
    assert_eq!(lines.len(), 3, "{told}");
    assert!(lines[0].starts_with(&format!("{NAME}:{line}:{column}: ")), "{told}");
    assert!(lines[0].chars().count() < 800 && lines[1].chars().count() < 130, "{told}");
    let (shown, carets) = (lines[1].chars().count(), lines[2].chars().count());
    // What is missing at the end of a line is one past it.
    assert!(lines[2].ends_with('^') && carets <= shown.max(lines[2].find('^').unwrap() + 1), "{told}");
    assert!(lines[2].find('^').unwrap() <= shown, "{told}");
    assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told:?}");
}

/// The text with one thing done to it that a hand, or an editor that crashed, does.
fn mutated(text: &str, random: &mut fastrand::Rng) -> String {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    let line = random.usize(..lines.len());
    let mut bytes = text.as_bytes().to_vec();
    let at = random.usize(..bytes.len());
    match random.u32(..9) {
        0 => {
            lines.remove(line);
            return lines.concat();
        }
        1 => {
            lines.insert(line, lines[line]);
            return lines.concat();
        }
        2 => {
            let other = random.usize(..lines.len());
            lines.swap(line, other);
            return lines.concat();
        }
        3 => {
            let kept = random.usize(..=lines[line].len());
            let kept = (0..=kept).rev().find(|at| lines[line].is_char_boundary(*at)).unwrap_or(0);
            lines[line] = &lines[line][..kept];
            return lines.concat();
        }
        4 => bytes.truncate(at),
        5 => drop(bytes.remove(at)),
        6 => bytes.insert(at, bytes[at]),
        7 => bytes[at] = *random.choice(b"\"'[]{}=,.#\\\n\r\t\0 0a-_\x1b\xff").unwrap(),
        _ => {
            let end = (at + random.usize(1..20)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            let to = random.usize(..bytes.len());
            bytes.splice(to..to, piece);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn a_broken_file_is_refused_at_a_place() {
    let mut random = fastrand::Rng::with_seed(0x5eed);
    let mut refused = 0;
    for (_, text, _) in corpus("good", "rendered") {
        for _ in 0..400 {
            let mut broken = mutated(&text, &mut random);
            while random.u32(..3) == 0 && !broken.is_empty() {
                broken = mutated(&broken, &mut random);
            }
            match parse(&broken) {
                Ok(config) => assert_eq!(parse(&config::render(&config)), Ok(config), "{broken}"),
                Err(error) => {
                    has_a_place(&error, &broken);
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

fn millis(range: std::ops::RangeInclusive<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    let timeout = |usual: Duration| prop_oneof![Just(usual), millis(1000..=7_200_000)];
    let usual = Timeouts::default();
    (timeout(usual.established), timeout(usual.unconfirmed), timeout(usual.closing), timeout(usual.udp))
        .prop_map(|(established, unconfirmed, closing, udp)| Timeouts {
            established,
            unconfirmed,
            closing,
            udp,
        })
}

fn http() -> impl Strategy<Value = HttpProbe> {
    let statuses = prop_oneof![
        Just(vec![200..=399]),
        prop::collection::vec((100u16..=599, 100u16..=599).prop_map(|(a, b)| a.min(b)..=a.max(b)), 1..4),
    ];
    let parts = (
        "[A-Z]{1,8}",
        "/[a-z0-9/?=&%.~-]{0,20}",
        prop::option::of("[a-z0-9.:-]{1,20}"),
        statuses,
        prop::option::of(any::<String>().prop_filter("not empty", |body| !body.is_empty())),
    );
    parts.prop_map(|(method, path, host, status, body)| HttpProbe { method, path, host, status, body })
}

fn probe() -> impl Strategy<Value = Probe> {
    let tls = (prop::option::of("/[a-zA-Z0-9 .\"\\\\/ü]{1,30}"), any::<bool>())
        .prop_map(|(ca, skip_verify)| TlsProbe { ca: ca.map(PathBuf::from), skip_verify });
    prop_oneof![
        Just(Probe::None),
        Just(Probe::Tcp),
        http().prop_map(Probe::Http),
        (http(), tls).prop_map(|(http, tls)| Probe::Https(http, tls)),
    ]
}

fn health() -> impl Strategy<Value = Health> {
    let times = prop_oneof![
        Just((Health::INTERVAL, Health::TIMEOUT)),
        (millis(100..=3_600_000), 10u64..=60_000)
            .prop_map(|(interval, timeout)| { (interval, Duration::from_millis(timeout).min(interval)) }),
    ];
    let rest = (1u32..=100, 1u32..=100, prop::option::of(1u16..), any::<bool>(), 0u32..=100);
    (probe(), times, rest).prop_map(|(probe, (interval, timeout), (rise, fall, port, is_down, passive))| {
        if probe == Probe::None {
            return Health::of(probe);
        }
        let initial = if is_down { Initial::Down } else { Initial::Up };
        Health { probe, interval, timeout, rise, fall, port, initial, passive }
    })
}

/// Backends whose addresses no VIP has, at most four services of a protocol for each.
fn backends(number: u8) -> impl Strategy<Value = Vec<Backend>> {
    let backend = (0u8..4, 1u16..4, 1u8..=100, 0usize..3).prop_map(move |(host, port, weight, state)| {
        let address = SocketAddrV4::new(Ipv4Addr::new(10, 0, number / 4, host), port);
        Backend { state: AdminState::ALL[state], ..Backend::new(address, Weight::new(weight).unwrap()) }
    });
    prop::collection::vec(backend, 0..5).prop_map(|mut backends| {
        let mut seen = BTreeSet::new();
        backends.retain(|backend| seen.insert(backend.address));
        backends
    })
}

/// The services of one VIP: of TCP, of UDP, of both alike, or of both and different.
fn services_of(number: u8) -> impl Strategy<Value = Vec<Service>> {
    let vip = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, number), 80);
    let one = move |protocol| {
        let times = (
            prop::option::of(millis(1000..=7_200_000)),
            prop_oneof![Just(Duration::ZERO), millis(1000..=3_600_000)],
            timeouts(),
        );
        let ways = (0usize..5, 0usize..2, 0usize..3);
        (ways, times, health(), backends(number)).prop_map(
            move |((scheduler, on_empty, on_down), (sticky, slow_start, timeouts), health, backends)| {
                Service {
                    scheduler: Scheduler::NAMES[scheduler].0,
                    sticky,
                    timeouts,
                    on_empty: OnEmpty::NAMES[on_empty].0,
                    on_down: OnDown::NAMES[on_down].0,
                    health,
                    slow_start,
                    ..Service::new(vip, protocol, backends)
                }
            },
        )
    };
    let name = prop_oneof![Just(vip.to_string()), Just(format!("wëb-{number}.$=:"))];
    (name, one(Protocol::Tcp), one(Protocol::Udp), 0u8..5).prop_map(|(name, tcp, udp, which)| {
        let twin = Service { protocol: Protocol::Udp, ..tcp.clone() };
        let mut services = match which {
            0 => vec![tcp],
            1 => vec![udp],
            2 => vec![tcp, twin],
            3 => vec![twin, tcp],
            _ => vec![tcp, udp],
        };
        services.iter_mut().for_each(|service| service.name.clone_from(&name));
        services
    })
}

fn services() -> impl Strategy<Value = Vec<Service>> {
    (0u8..4)
        .prop_flat_map(|count| (1..=count).map(services_of).collect::<Vec<_>>())
        .prop_map(|lists| lists.concat())
}

fn configs() -> impl Strategy<Value = Config> {
    let places = (
        prop::collection::btree_set("[a-z][a-z0-9.-]{0,14}", 1..4),
        prop_oneof![Just("/sys/fs/bpf/xdp_lb".to_owned()), "/sys/fs/bpf/[a-z]{1,9}"],
        prop::option::of("/[a-zA-Z0-9 .\"\\\\ü]{1,40}x"),
    );
    let numbers = (
        prop_oneof![Just(Config::MAX_CONNECTIONS), 1u32..=500_000_000],
        prop_oneof![
            Just(Config::RING_MEMORY),
            (1u64 << 20)..=(64u64 << 30),
            (1u64..=64).prop_map(|gb| gb << 30)
        ],
        prop_oneof![
            Just(None),
            Just(Some(Config::STATS_INTERVAL)),
            millis(100..=31_536_000_000).prop_map(Some)
        ],
    );
    let metrics = prop::option::of((any::<std::net::Ipv6Addr>(), 1u16..));
    let ways = (0usize..3, 0usize..3, 0usize..2, any::<[bool; 3]>(), metrics);
    (places, numbers, ways, timeouts(), services()).prop_map(
        |(
            (interfaces, pin_dir, socket),
            (max_connections, ring_memory, stats_interval),
            ways,
            timeouts,
            services,
        )| {
            let (xdp_mode, deliver, log_format, [assign_vip, persist, watch], metrics) = ways;
            let pin_dir = PathBuf::from(pin_dir);
            Config {
                interfaces: interfaces.into_iter().collect(),
                services,
                xdp_mode: XdpMode::NAMES[xdp_mode].0,
                deliver: Deliver::NAMES[deliver].0,
                socket: socket.map_or_else(|| config::default_socket(&pin_dir), PathBuf::from),
                pin_dir,
                max_connections,
                ring_memory,
                timeouts,
                stats_interval,
                assign_vip,
                persist,
                watch,
                metrics: metrics.filter(|(ip, _)| !ip.is_multicast()).map(Into::into),
                log_format: LogFormat::NAMES[log_format].0,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_rendered_is_read_back(config in configs()) {
        let text = config::render(&config);
        prop_assert_eq!(parse(&text).map_err(|error| error.to_string()), Ok(config), "{}", text);
    }

    #[test]
    fn services_that_are_rendered_are_read_back(services in services()) {
        let text = config::render_services(&services);
        let read = config::services(&text, &Timeouts::default());
        prop_assert_eq!(read.map_err(|error| error.to_string()), Ok(services), "{}", text);
    }

    #[test]
    fn no_text_makes_it_panic(text in "(interface|service|vip|health|backend|type|=|\\[|\\]|\\{|\\}|\"|,|\n|é|10\\.0\\.0\\.1:80| ){0,40}") {
        if let Err(error) = parse(&text) {
            has_a_place(&error, &text);
        }
    }
}
