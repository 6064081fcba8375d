use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

use super::super::parse;
use super::*;
use crate::config::{Deliver, XdpMode};
use crate::model::Protocol;

fn words(line: &str) -> Vec<OsString> {
    ["xdp-lb"].into_iter().chain(line.split_whitespace()).map(OsString::from).collect()
}

fn config(line: &str) -> Config {
    match parse(words(line)) {
        Ok(Command::Run { config, file: None }) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

fn refusal(args: Vec<OsString>) -> String {
    let usage = parse(args.clone()).expect_err("refused");
    assert_eq!((usage.exit_code, usage.to_stdout), (2, false), "{args:?}");
    let first = usage.message.lines().next().unwrap_or_default().to_owned();
    assert!(first.starts_with("xdp-lb: ") && first.contains("; write "), "{args:?}: {first}");
    assert!(!first.contains('<') && !first.contains("error:"), "clap's own words, {args:?}: {first}");
    first
}

#[test]
fn the_shortest_run_has_the_defaults() {
    let config = config("eth0 --vip 192.168.1.100:80 --backend 10.0.0.10:8080");
    assert_eq!(config.main_interface(), "eth0");
    assert_eq!(config.services.len(), 1);
    let service = &config.services[0];
    assert_eq!((service.vip.to_string().as_str(), service.protocol), ("192.168.1.100:80", Protocol::Tcp));
    assert_eq!((service.scheduler, service.sticky), (Scheduler::WeightedRoundRobin, None));
    assert_eq!(service.backends.iter().map(Backend::to_string).collect::<Vec<_>>(), ["10.0.0.10:8080:1"]);
    assert_eq!((config.xdp_mode, config.deliver), (XdpMode::Auto, Deliver::Auto));
    assert_eq!(config.pin_dir, PathBuf::from("/sys/fs/bpf/xdp_lb"));
    assert_eq!(config.max_connections, 1_000_000);
    assert_eq!(config.timeouts, Timeouts::default());
    assert_eq!(config.stats_interval, Some(Duration::from_secs(5)));
    assert!(!config.assign_vip && !config.persist && config.metrics.is_none());
    assert_eq!(config.socket, PathBuf::from("/run/xdp-lb/xdp_lb.sock"));
    assert_eq!((config.log_format, config.ring_memory), (LogFormat::Human, 256 << 20));
    assert_eq!((service.name.as_str(), service.slow_start), ("192.168.1.100:80", Duration::ZERO));
    assert_eq!(service.health, Health::usual(&[Protocol::Tcp]));
    assert_eq!((service.on_empty, service.on_down), (OnEmpty::Drop, OnDown::Auto));
}

#[test]
fn checking_takes_what_running_takes() {
    let line = "eth0 --vip 192.168.1.100:80 --backend 10.0.0.10:8080";
    match parse(words(&format!("{line} --check-only"))) {
        Ok(Command::Check(checked)) => assert_eq!(*checked, config(line)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_option_reaches_the_model() {
    let config = config(
        "--interface status --interface eth1 --name dns --vip 10.1.1.1:53/any --backend 10.0.0.10:53:3 --backend 10.0.0.11:53 \
         --scheduler mh --sticky 90 --xdp-mode skb --deliver stack --pin-dir /sys/fs/bpf/other --stats-interval 0 \
         --assign-vip --max-connections 1_000 --health none --on-empty pass --on-down reset --slow-start 30s \
         --socket /run/other.sock --ring-memory 64MB --persist --log-format json --metrics [::1]:9105 \
         --timeout-established 1h --timeout-unconfirmed 2s --timeout-closing 3s --timeout-udp 4",
    );
    assert_eq!(config.interfaces, ["status", "eth1"]);
    assert_eq!((config.socket, config.ring_memory), (PathBuf::from("/run/other.sock"), 64 << 20));
    assert_eq!((config.persist, config.log_format), (true, LogFormat::Json));
    assert_eq!(config.metrics, Some("[::1]:9105".parse().unwrap()));
    let protocols: Vec<_> = config.services.iter().map(|service| service.protocol).collect();
    assert_eq!(protocols, [Protocol::Tcp, Protocol::Udp]);
    for service in &config.services {
        assert_eq!((service.scheduler, service.name.as_str()), (Scheduler::Maglev, "dns"));
        assert_eq!((service.on_empty, service.on_down), (OnEmpty::Pass, OnDown::Reset));
        assert_eq!((service.health.probe.name(), service.slow_start), ("none", Duration::from_secs(30)));
        assert_eq!(service.sticky, Some(Duration::from_secs(90)));
        assert_eq!(service.backends, config.services[0].backends);
        assert_eq!(service.backends.len(), 2);
    }
    assert_eq!((config.xdp_mode, config.deliver), (XdpMode::Skb, Deliver::Stack));
    assert_eq!(config.pin_dir, PathBuf::from("/sys/fs/bpf/other"));
    assert_eq!((config.max_connections, config.stats_interval, config.assign_vip), (1000, None, true));
    let seconds = [3600, 2, 3, 4].map(Duration::from_secs);
    let t = config.timeouts;
    assert_eq!([t.established, t.unconfirmed, t.closing, t.udp], seconds);
}

#[test]
fn the_other_verbs() {
    assert_eq!(parse(words("verify")), Ok(Command::Verify));
    for (line, remove) in [("veth-peer eth0", false), ("veth-peer eth0 --remove", true)] {
        assert_eq!(parse(words(line)), Ok(Command::VethPeer { interface: "eth0".to_owned(), remove }));
    }
    for (line, pin_dir) in
        [("detach eth0", DEFAULT_PIN_DIR), ("detach --pin-dir /sys/fs/bpf/x eth0", "/sys/fs/bpf/x")]
    {
        let expected = Command::Detach { interface: "eth0".to_owned(), pin_dir: pin_dir.into() };
        assert_eq!(parse(words(line)), Ok(expected));
    }
    let file = PathBuf::from("lb.toml");
    for (line, check_only) in [("run --config lb.toml", false), ("run --check-only --config=lb.toml", true)] {
        assert_eq!(parse(words(line)), Ok(Command::RunFile { file: file.clone(), check_only }));
    }
    assert_eq!(parse(words("check lb.toml")), Ok(Command::CheckFile(file)));
}

#[test]
fn help_and_version_are_no_errors() {
    for line in ["--help", "-h", "help", "status --help", "--vip nonsense --help"] {
        let usage = parse(words(line)).expect_err("help");
        assert_eq!((usage.exit_code, usage.to_stdout), (0, true), "{line}");
        assert!(usage.message.contains("Usage: xdp-lb"), "{line}: {}", usage.message);
    }
    for line in ["--version", "-V", "status --version"] {
        let usage = parse(words(line)).expect_err("version");
        assert_eq!((usage.exit_code, usage.to_stdout), (0, true), "{line}");
        assert_eq!(usage.message, format!("xdp-lb {}", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn the_help_names_the_defaults_of_the_model() {
    let help = parse(words("--help")).expect_err("help").message;
    let t = Timeouts::default();
    for (option, default) in [
        ("--timeout-established", t.established),
        ("--timeout-unconfirmed", t.unconfirmed),
        ("--timeout-closing", t.closing),
        ("--timeout-udp", t.udp),
        ("--stats-interval", Config::STATS_INTERVAL),
    ] {
        let text = help.split(option).nth(1).unwrap_or_default();
        let expected = format!("[default: {}]", humantime::format_duration(default));
        let got = text.split_inclusive(']').next().unwrap_or_default();
        assert!(got.ends_with(&expected), "{option}: {got}, not {expected}");
    }
    assert!(help.contains(&format!("[default: {}]", Config::MAX_CONNECTIONS)));
    assert!(help.contains(&format!("[default: {DEFAULT_PIN_DIR}]")));
    let scheduler = Scheduler::NAMES.iter().find(|(scheduler, _, _)| *scheduler == Scheduler::default());
    assert!(scheduler.is_some_and(|(_, _, short)| help.contains(&format!("[default: {short}]"))));
    assert!(help.contains("Exit codes:") && help.contains("Examples:"));
    assert!(help.lines().all(|line| line.len() <= 100), "{help}");
}

#[test]
fn arguments_that_do_not_fit_together() {
    let cases = [
        ("", "xdp-lb: IFACE: the interface is missing; write xdp-lb eth0 --vip"),
        (
            "--vip 10.1.1.1:80 --backend 10.0.0.1:80",
            "xdp-lb: IFACE: the interface is missing; write xdp-lb eth0",
        ),
        ("eth0", "xdp-lb: --vip: it is missing; write --vip 192.168.1.100:80"),
        ("eth0 --backend 10.0.0.1:80", "xdp-lb: --vip: it is missing; write --vip 192.168.1.100:80"),
        (
            "eth0 --vip 10.1.1.1:80",
            "xdp-lb: --backend: it is missing, at least one is needed; write --backend",
        ),
        ("eth0 --vip", "xdp-lb: --vip: its value is missing; write --vip 192.168.1.100:80"),
        ("eth0 --vip --backend 10.0.0.1:80", "xdp-lb: --vip: its value is missing"),
        (
            "eth0 --stats-interval",
            "xdp-lb: --stats-interval: its value is missing; write --stats-interval 5s",
        ),
        ("eth0 --vip= --backend 10.0.0.1:80", "xdp-lb: --vip \"\": it is empty"),
        (
            "eth0 --vip 10.1.1.1:80 --vip 10.1.1.2:80",
            "xdp-lb: --vip: it is given twice; write it once: --vip",
        ),
        ("eth0 --assign-vip --assign-vip", "xdp-lb: --assign-vip: it is given twice"),
        ("eth0 --interface eth1", "xdp-lb: --vip: it is missing; write --vip 192.168.1.100:80"),
        (
            "eth0 --interface eth0",
            "xdp-lb: --interface \"eth0\": the interface is given already; write each interface once",
        ),
        ("--interface eth1 --interface eth1", "xdp-lb: --interface \"eth1\": the interface is given already"),
        (
            "eth0 eth1",
            "xdp-lb: \"eth1\": it is one too many, further interfaces are options; write --interface eth1",
        ),
        (
            "eth0 10.1.1.1:80",
            "xdp-lb: \"10.1.1.1:80\": an address comes after the option that it is for; write --vip",
        ),
        ("eth0 status", "xdp-lb: \"status\": a command is the first argument"),
        ("--vip 10.1.1.1:80 status", "xdp-lb: \"status\": a command is the first argument"),
        ("eth0 --json", "xdp-lb: --json: it belongs to the command status; write xdp-lb status --json"),
        (
            "eth0 --remove",
            "xdp-lb: --remove: it belongs to the command veth-peer; write xdp-lb veth-peer eth0 --remove",
        ),
        (
            "status --vip 1.2.3.4:80",
            "xdp-lb: --vip: the command status does not take it, running does; write xdp-lb status",
        ),
        ("verify --pin-dir /x", "xdp-lb: --pin-dir: the command verify does not take it"),
        ("verify --json", "xdp-lb: --json: it belongs to the command status"),
        ("status eth0", "xdp-lb: \"eth0\": it is one too many for status; write xdp-lb status"),
        ("status --json=yes", "xdp-lb: --json \"yes\": it takes no value; write --json"),
        ("status --pin-dir x", "xdp-lb: --pin-dir \"x\": it is a relative path"),
        ("verify all", "xdp-lb: \"all\": it is one too many for verify"),
        ("veth-peer", "xdp-lb: IFACE: the interface is missing; write xdp-lb veth-peer eth0"),
        ("veth-peer a/b", "xdp-lb: IFACE \"a/b\": an interface's name has no / in it; write eth0"),
        ("veth-peer eth0 eth1", "xdp-lb: \"eth1\": it is one too many for veth-peer"),
        ("detach", "xdp-lb: IFACE: the interface is missing; write xdp-lb detach eth0"),
        ("detach eth0 eth1", "xdp-lb: \"eth1\": it is one too many for detach; write xdp-lb detach eth0"),
        ("detach eth0 --pin-dir x", "xdp-lb: --pin-dir \"x\": it is a relative path"),
        ("help me", "xdp-lb: \"me\": there is no such command"),
        (
            "eth0 --backends 10.0.0.1:80",
            "xdp-lb: --backends: there is no such option; write --backend 10.0.0.10:8080:50",
        ),
        ("eth0 --nonsense", "xdp-lb: --nonsense: there is no such option; write xdp-lb eth0 --vip"),
        ("eth0 --nonsense=1", "xdp-lb: --nonsense: there is no such option; write xdp-lb eth0 --vip"),
        ("eth0 -x", "xdp-lb: -x: there is no such option; write"),
        ("eth0 -vip 10.1.1.1:80", "xdp-lb: -vip: there is no such option; write --vip 192.168.1.100:80"),
        (
            "eth0 --stats-interval -5s",
            "xdp-lb: --stats-interval \"-5s\": it is negative; write --stats-interval 5s",
        ),
        ("eth0 --max-connections -1", "xdp-lb: --max-connections \"-1\": it is negative"),
        ("eth0 --stats-interval -5", "xdp-lb: --stats-interval \"-5\": it is negative"),
        ("eth0 --timeout-udp 3h", "xdp-lb: --timeout-udp \"3h\": it is outside 1s to 2h; write 1m"),
        (
            "eth0 --vip 10.1.1.1:80 --backend 10.1.1.1:81",
            "xdp-lb: --backend \"10.1.1.1:81\": it is the VIP's address",
        ),
        (
            "eth0 --backend 10.0.0.1:80:2 --backend 10.0.0.1:80:3",
            "xdp-lb: --backend \"10.0.0.1:80:3\": 10.0.0.1:80 is a backend already; write it once",
        ),
    ];
    for (line, expected) in cases {
        let got = refusal(words(line));
        assert!(got.starts_with(expected), "{line}:\n  got      {got}\n  expected {expected}");
    }
}

#[test]
fn a_word_that_may_be_meant_as_a_command_is_named() {
    let message = parse(words("eth7")).expect_err("refused").message;
    assert!(
        message.contains("\"eth7\" was taken as the interface; the commands are run, check, status"),
        "{message}"
    );
    let commands = message.lines().nth(1).unwrap_or_default();
    for verb in <Args as clap::CommandFactory>::command().get_subcommands() {
        assert!(commands.contains(verb.get_name()), "{commands}");
    }
}

#[test]
fn as_many_backends_as_may_be_and_not_one_more() {
    let line = |count: u32| {
        let backends = (1..=count).map(|i| format!(" --backend 10.0.0.1:{i}"));
        format!("eth0 --vip 10.1.1.1:80{}", backends.collect::<String>())
    };
    assert_eq!(config(&line(1024)).services[0].backends.len(), 1024);
    let got = refusal(words(&line(1025)));
    assert!(
        got.starts_with("xdp-lb: --backend \"10.0.0.1:1025\": it is backend number 1025, there can be 1024;"),
        "{got}"
    );
}

#[test]
fn the_same_address_with_another_port_is_another_backend() {
    let config = config("eth0 --vip 10.1.1.1:80 --backend 10.0.0.1:80 --backend 10.0.0.1:81");
    assert_eq!(config.services[0].backends.len(), 2);
}

#[test]
fn bytes_that_are_no_text_are_refused_everywhere() {
    let bytes = |text: &[u8]| OsString::from_vec(text.to_vec());
    for odd in [
        vec![bytes(b"\xff")],
        vec![bytes(b"eth0"), bytes(b"\xff")],
        vec![bytes(b"eth0"), bytes(b"--\xff")],
        vec![bytes(b"eth0"), bytes(b"-\xff")],
        vec![bytes(b"eth0"), bytes(b"--vip=\xff")],
        vec![bytes(b"eth0"), bytes(b"--scheduler"), bytes(b"\xff\nrr")],
        vec![bytes(b"--interface"), bytes(b"\xff")],
        vec![bytes(b"status"), bytes(b"\xff")],
        vec![bytes(b"status"), bytes(b"--json=\xff")],
        vec![bytes(b"help"), bytes(b"\xff")],
        vec![bytes(b"veth-peer"), bytes(b"\xff")],
    ] {
        let mut args = words("");
        args.extend(odd);
        refusal(args);
    }
}

#[test]
fn a_newline_in_a_word_does_not_end_the_first_line() {
    for word in ["--x\ny", "a\nb", "--vip=a\nb", "--backend=1.2.3.4\n:80"] {
        let args = vec!["xdp-lb".into(), "eth0".into(), OsString::from(word)];
        refusal(args);
    }
}

#[test]
fn no_arguments_at_all() {
    refusal(Vec::new());
}
