//! The real binary's command line: bad arguments are found before anything is touched, so this needs neither
//! root nor a network.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt as _;
use std::process::{Command, Output, Stdio};

fn xdp_lb<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xdp-lb"));
    command.args(args).stdin(Stdio::null()).output().expect("the binary starts")
}

/// Exit code 2, nothing on stdout, and the first line of stderr, which this gives.
fn refused<S: AsRef<OsStr>>(args: &[S]) -> String {
    let line: Vec<_> = args.iter().map(AsRef::as_ref).collect();
    let output = xdp_lb(args);
    let stderr = String::from_utf8(output.stderr).expect("stderr is text");
    assert_eq!(output.status.code(), Some(2), "{line:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{line:?} prints to stdout");
    assert!(stderr.ends_with('\n'), "{line:?}: {stderr:?}");
    let first = stderr.lines().next().unwrap_or_default();
    assert!(first.starts_with("xdp-lb: ") && first.contains("; write "), "{line:?}: {first}");
    first.to_owned()
}

/// Each line is refused with a first line that begins like this and holds the example.
fn table(cases: &[(&str, &str, &str)]) {
    for (line, start, right) in cases {
        let args: Vec<&str> = line.split_whitespace().collect();
        let first = refused(&args);
        let example = first.rsplit("; write ").next().unwrap_or_default();
        assert!(first.starts_with(&format!("xdp-lb: {start}")), "{line}: {first}, expected {start}");
        assert!(example.contains(right), "{line}: {first}, expected to write {right}");
    }
}

#[test]
fn bad_vips() {
    table(&[
        ("eth0 --backend 10.0.0.1:80", "--vip: it is missing", "--vip 192.168.1.100:80"),
        ("eth0 --vip", "--vip: its value is missing", "--vip 192.168.1.100:80"),
        ("eth0 --vip=", "--vip \"\": it is empty", "192.168.1.100:80"),
        ("eth0 --vip 10.1.1.1", "--vip \"10.1.1.1\": the port is missing", "10.1.1.1:80"),
        ("eth0 --vip :80", "--vip \":80\": the address is missing", "192.168.1.100:80"),
        ("eth0 --vip 10.1.1.1:0", "--vip \"10.1.1.1:0\": the port 0 is outside", "10.1.1.1:80"),
        ("eth0 --vip 10.1.1.1:65536", "--vip \"10.1.1.1:65536\": the port 65536", "10.1.1.1:80"),
        (
            "eth0 --vip 10.1.1.1:80/sctp",
            "--vip \"10.1.1.1:80/sctp\": the protocol \"sctp\"",
            "10.1.1.1:80/tcp",
        ),
        ("eth0 --vip [::1]:80", "--vip \"[::1]:80\": IPv6 is not supported yet", "192.168.1.100:80"),
        ("eth0 --vip ::1:80", "--vip \"::1:80\": IPv6 is not supported yet", "192.168.1.100:80"),
        ("eth0 --vip 2001:db8::1", "--vip \"2001:db8::1\": IPv6 is not supported yet", "192.168.1.100:80"),
        (
            "eth0 --vip example.com:80",
            "--vip \"example.com:80\": \"example.com\" is a host name",
            "192.168.1.100:80",
        ),
        ("eth0 --vip 0.0.0.0:80", "--vip \"0.0.0.0:80\": 0.0.0.0 cannot be a VIP", "192.168.1.100:80"),
        ("eth0 --vip 127.0.0.1:80", "--vip \"127.0.0.1:80\": 127.0.0.1 cannot be", "192.168.1.100:80"),
        ("eth0 --vip 224.0.0.1:80", "--vip \"224.0.0.1:80\": 224.0.0.1 cannot be", "192.168.1.100:80"),
        ("eth0 --vip 255.255.255.255:80", "--vip \"255.255.255.255:80\": 255", "192.168.1.100:80"),
        ("eth0 --vip 10.1.1.1:80 --vip 10.1.1.1:81", "--vip: it is given twice", "--vip 192.168.1.100:80"),
    ]);
}

#[test]
fn bad_backends() {
    table(&[
        ("eth0 --vip 10.1.1.1:80", "--backend: it is missing", "--backend 10.0.0.10:8080:50"),
        ("eth0 --backend", "--backend: its value is missing", "--backend 10.0.0.10:8080:50"),
        ("eth0 --backend 10.0.0.10", "--backend \"10.0.0.10\": the port is missing", "10.0.0.10:8080:50"),
        ("eth0 --backend 10.0.0.1:80:0", "--backend \"10.0.0.1:80:0\": the weight 0 is", "10.0.0.1:80:50"),
        ("eth0 --backend 10.0.0.1:80:101", "--backend \"10.0.0.1:80:101\": the weight", "10.0.0.1:80:50"),
        ("eth0 --backend 10.0.0.1:80:x", "--backend \"10.0.0.1:80:x\": the weight \"x\"", "10.0.0.1:80:50"),
        ("eth0 --backend 10.0.0.1:80:", "--backend \"10.0.0.1:80:\": the weight", "10.0.0.1:80:50"),
        ("eth0 --backend [::1]:80", "--backend \"[::1]:80\": IPv6 is not supported yet", "10.0.0.10:8080"),
        ("eth0 --backend web:80", "--backend \"web:80\": \"web\" is a host name", "10.0.0.10:8080"),
        ("eth0 --backend 127.0.0.1:80", "--backend \"127.0.0.1:80\": 127.0.0.1 cannot be", "10.0.0.10:8080"),
        (
            "eth0 --vip 10.1.1.1:80 --backend 10.1.1.1:8080",
            "--backend \"10.1.1.1:8080\": it is the VIP's address",
            "10.0.0.10:8080",
        ),
        (
            "eth0 --backend 10.0.0.1:80 --backend 10.0.0.1:80:7",
            "--backend \"10.0.0.1:80:7\": 10.0.0.1:80 is a backend already",
            "it once",
        ),
    ]);
}

#[test]
fn a_1025th_backend() {
    let mut args: Vec<String> = ["eth0", "--vip", "10.1.1.1:80"].map(String::from).to_vec();
    for i in 1..=1025 {
        args.extend(["--backend".to_owned(), format!("10.0.0.1:{i}")]);
    }
    let first = refused(&args);
    assert!(first.starts_with("xdp-lb: --backend \"10.0.0.1:1025\": it is backend number 1025"), "{first}");
}

#[test]
fn bad_interfaces_and_words() {
    let run = "xdp-lb eth0 --vip 192.168.1.100:80";
    table(&[
        ("", "IFACE: the interface is missing", run),
        ("--vip 10.1.1.1:80 --backend 10.0.0.1:80", "IFACE: the interface is missing", run),
        ("sixteen_bytes___", "IFACE \"sixteen_bytes___\": an interface's name has at most 15", "eth0"),
        ("a/b", "IFACE \"a/b\": an interface's name has no /", "eth0"),
        ("--interface=", "--interface \"\": the interface's name is empty", "eth0"),
        (
            "eth0 --interface eth0",
            "--interface \"eth0\": the interface is given already",
            "each interface once",
        ),
        ("eth0 --interface eth1", "--vip: it is missing", "--vip 192.168.1.100:80"),
        ("eth0 eth1", "\"eth1\": it is one too many", "--interface eth1"),
        ("eth0 status", "\"status\": a command is the first argument", "xdp-lb status"),
        ("eth0 --nonsense", "--nonsense: there is no such option", run),
        ("eth0 --backends 10.0.0.1:80", "--backends: there is no such option", "--backend 10.0.0.10:8080:50"),
        ("eth0 --json", "--json: it belongs to the command status", "xdp-lb status --json"),
        ("status --vip 10.1.1.1:80", "--vip: the command status does not take it", "xdp-lb status"),
        ("status --pin-dir here", "--pin-dir \"here\": it is a relative path", "/sys/fs/bpf/xdp_lb"),
        ("status extra", "\"extra\": it is one too many for status", "xdp-lb status"),
        ("verify extra", "\"extra\": it is one too many for verify", "xdp-lb verify"),
        ("veth-peer", "IFACE: the interface is missing", "xdp-lb veth-peer eth0"),
        ("detach", "IFACE: the interface is missing", "xdp-lb detach eth0"),
    ]);
    assert!(refused(&["a b"]).starts_with("xdp-lb: IFACE \"a b\": an interface's name has no spaces"));
    assert!(refused(&[""]).starts_with("xdp-lb: IFACE \"\": the interface's name is empty"));
}

#[test]
fn bad_settings() {
    table(&[
        (
            "eth0 --scheduler fastest",
            "--scheduler \"fastest\": there is no such",
            "weighted-round-robin (wrr)",
        ),
        ("eth0 --sticky 3h", "--sticky \"3h\": it is outside 1s to 2h", "0 for not at all"),
        ("eth0 --stick 3m", "--stick: there is no such option", "--sticky 10m"),
        ("eth0 --xdp-mode fast", "--xdp-mode \"fast\": there is no such mode", "auto, native or skb"),
        ("eth0 --pin-dir pins", "--pin-dir \"pins\": it is a relative path", "/sys/fs/bpf/xdp_lb"),
        ("eth0 --stats-interval 99ms", "--stats-interval \"99ms\": it is outside 100ms", "0 for never"),
        ("eth0 --stats-interval often", "--stats-interval \"often\": it is not a duration", "5s"),
        ("eth0 --max-connections 0", "--max-connections \"0\": it is outside 1 to 500_000_000", "1_000_000"),
        ("eth0 --max-connections many", "--max-connections \"many\": it is not a number", "1_000_000"),
        ("eth0 --timeout-established 3h", "--timeout-established \"3h\": it is outside 1s to 2h", "5m"),
        ("eth0 --timeout-unconfirmed 0", "--timeout-unconfirmed \"0\": it is outside 1s to 2h", "10s"),
        ("eth0 --timeout-closing x", "--timeout-closing \"x\": it is not a duration", "30s"),
        ("eth0 --timeout-udp 2h1s", "--timeout-udp \"2h1s\": it is outside 1s to 2h", "1m"),
        ("eth0 --health ping", "--health \"ping\": ", "tcp"),
        ("eth0 --on-empty reject", "--on-empty \"reject\": ", "drop or pass"),
        ("eth0 --on-down drop", "--on-down \"drop\": ", "auto, keep or reset"),
        ("eth0 --slow-start 3h", "--slow-start \"3h\": it is outside", "0 for"),
        ("eth0 --socket lb.sock", "--socket \"lb.sock\": it is a relative path", "/run/xdp-lb/xdp_lb.sock"),
        ("eth0 --ring-memory much", "--ring-memory \"much\": ", "256MB"),
        ("eth0 --log-format xml", "--log-format \"xml\": there is no such format", "human or json"),
        ("eth0 --name a/b", "--name \"a/b\": ", "web"),
    ]);
}

#[test]
fn mistyped_commands() {
    table(&[
        ("statsu", "\"statsu\": there is no such command, did you mean status?", "xdp-lb status"),
        ("statsu --json", "\"statsu\": there is no such command, did you mean status?", "xdp-lb status"),
        (
            "bakcend list",
            "\"bakcend\": there is no such command, did you mean backend?",
            "xdp-lb backend list",
        ),
        ("relaod --dry-run", "\"relaod\": there is no such command, did you mean reload?", "xdp-lb reload"),
        (
            "backend drian web 10.0.0.1:80",
            "\"drian\": there is no such command, did you mean drain?",
            "backend drain web",
        ),
        ("service lsit", "\"lsit\": there is no such command, did you mean list?", "xdp-lb service list"),
        ("connections kil", "\"kil\": there is no such command, did you mean kill?", "connections kill"),
        ("help statsu", "\"statsu\": there is no such command, did you mean status?", "xdp-lb status"),
        (
            "service enlarge",
            "\"enlarge\": there is no such command of service: list, add or remove",
            "service list",
        ),
        // Near no command, or with what only running takes.
        ("eth7", "--vip: it is missing", "--vip 192.168.1.100:80"),
        ("stat --vip 10.1.1.1:80", "--backend: it is missing", "--backend"),
    ]);
}

#[test]
fn commands_without_what_they_are_about() {
    table(&[
        ("run", "--config: it is missing", "xdp-lb run --config /etc/xdp-lb.toml"),
        ("run --config", "--config: its value is missing", "--config /etc/xdp-lb.toml"),
        ("run --config=", "--config \"\": it is empty", "--config /etc/xdp-lb.toml"),
        ("check", "FILE: the file is missing", "xdp-lb check /etc/xdp-lb.toml"),
        ("service", "service: what to do is missing: list, add or remove", "xdp-lb service list"),
        ("backend", "backend: what to do is missing: list, add,", "xdp-lb backend list"),
        ("config", "config: what to do is missing: show", "xdp-lb config show"),
        ("service add", "NAME: the service's name is missing", "xdp-lb service add web --vip"),
        ("service add web", "--vip: it is missing", "xdp-lb service add web --vip"),
        ("service remove", "SERVICE: the service is missing", "xdp-lb service remove web"),
        ("backend add", "SERVICE: the service is missing", "xdp-lb backend add web 10.0.0.10:8080:50"),
        (
            "backend add web",
            "ADDR:PORT[:WEIGHT]: the backend's address and port is missing",
            "backend add web",
        ),
        ("backend drain web", "ADDR:PORT: the backend's address and port is missing", "backend drain web 10"),
        (
            "backend weight web 10.0.0.1:80",
            "N: the weight is missing",
            "backend weight web 10.0.0.10:8080 50",
        ),
        ("completions", "SHELL: the shell is missing", "xdp-lb completions bash"),
        ("connections kill", "connections kill: --service, --backend, --client or --state", "--backend 10."),
        ("connections kill --limit 5", "connections kill: --service, --backend", "--backend 10."),
    ]);
}

#[test]
fn bad_words_of_commands() {
    let relative = "it is a relative path";
    table(&[
        ("status --socket x", &format!("--socket \"x\": {relative}"), "/run/xdp-lb/xdp_lb.sock"),
        ("backend --pin-dir x list", &format!("--pin-dir \"x\": {relative}"), "/sys/fs/bpf/xdp_lb"),
        ("--socket x status", &format!("--socket \"x\": {relative}"), "/run/xdp-lb/xdp_lb.sock"),
        ("stats --interval 0", "--interval \"0\": it is outside 100ms", "2s or 500ms"),
        ("stats --interval often", "--interval \"often\": it is not a duration", "2s or 500ms"),
        ("stats --count 0", "--count \"0\": it is not a number from 1 on", "10"),
        ("service add a/b --vip 10.1.1.1:80", "NAME \"a/b\": ", "web"),
        ("service add web --vip 10.1.1.1", "--vip \"10.1.1.1\": the port is missing", "10.1.1.1:80"),
        ("service add web --vip 10.1.1.1:80 --health x", "--health \"x\": ", "tcp"),
        (
            "backend add web 10.0.0.1:80:0",
            "ADDR:PORT[:WEIGHT] \"10.0.0.1:80:0\": the weight 0",
            "10.0.0.1:80:50",
        ),
        (
            "backend add web 10.0.0.1:80 --state up",
            "--state \"up\": there is no such state",
            "enabled, drain or",
        ),
        ("backend drain web 10.0.0.1", "ADDR:PORT \"10.0.0.1\": the port is missing", "10.0.0.1:8080"),
        ("backend drain web 10.0.0.1:80:5", "ADDR:PORT \"10.0.0.1:80:5\": it has a weight", "10.0.0.1:80"),
        ("backend drain web 10.0.0.1:80 --deadline 0", "--deadline \"0\": that is at once", "60s or 5m"),
        ("backend drain web 10.0.0.1:80 --deadline x", "--deadline \"x\": it is not a duration", "60s or 5m"),
        (
            "backend drain web 10.0.0.1:80 --now --deadline 5s",
            "--deadline: with --now",
            "--now or --deadline",
        ),
        ("backend weight web 10.0.0.1:80 0", "N \"0\": ", "50"),
        ("backend enable web 10.0.0.1:80 --now", "--now: it belongs to the command", "--now"),
        (
            "backend drain web 10.0.0.1:80 x",
            "\"x\": it is one too many for backend drain",
            "backend drain web",
        ),
        ("connections --client me", "--client \"me\": it is not an IPv4 address", "198.51.100.7"),
        ("connections --backend 10.0.0.1", "--backend \"10.0.0.1\": the port is missing", "10.0.0.1:8080"),
        (
            "connections --state open",
            "--state \"open\": there is no such state",
            "unconfirmed, established or",
        ),
        ("connections --limit many", "--limit \"many\": it is not a number", "100"),
        ("connections --service=", "--service \"\": the service is missing", "web or 192.168.1.100:80"),
        ("completions tcsh", "SHELL \"tcsh\": there is no such shell", "bash, elvish, fish"),
        ("man page", "\"page\": there is no such command", "status"),
        ("man backend page", "\"page\": there is no such command", "drain"),
        ("status --interval 2s", "--interval: it belongs to the command stats", "xdp-lb stats --interval 2s"),
        ("reload --dryrun", "--dryrun: there is no such option", "--dry-run"),
        ("stop now", "\"now\": it is one too many for stop", "xdp-lb stop"),
    ]);
}

#[test]
fn bad_words_of_capture() {
    table(&[
        ("capture -w x --snaplen 5", "--snaplen \"5\": it is less than 64", "128"),
        ("capture -w x --snaplen 100000", "--snaplen \"100000\": it is more than", "128"),
    ]);
    let first = refused(&["capture", "-w", ""]);
    assert!(first.starts_with("xdp-lb: --write \"\": it is empty; write --write packets.pcapng"), "{first}");
}

#[test]
fn where_no_instance_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("none.sock");
    let lines = [
        "status",
        "status --json",
        "stats --count 1",
        "service list",
        "backend list web",
        "connections",
        "config show",
        "reload",
        "stop",
        "backend drain web 10.0.0.1:80 --wait",
        "connections kill --service web",
        "service add web --vip 10.1.1.1:80 --backend 10.0.0.1:80",
    ];
    for line in lines {
        let mut args: Vec<&OsStr> = line.split(' ').map(OsStr::new).collect();
        args.extend([OsStr::new("--socket"), socket.as_os_str()]);
        args.extend(["--pin-dir", "/sys/fs/bpf/none_of_the_tests"].map(OsStr::new));
        let output = xdp_lb(&args);
        let stderr = String::from_utf8(output.stderr).expect("stderr is text");
        assert_eq!(output.status.code(), Some(1), "{line}: {stderr}");
        assert!(output.stdout.is_empty(), "{line}");
        assert!(
            stderr.starts_with(&format!("xdp-lb: no instance listens at {}", socket.display())),
            "{stderr}"
        );
        assert!(stderr.contains("--socket") && stderr.contains("--pin-dir"), "{line}: {stderr}");
    }
}

#[test]
fn files_that_are_not_there() {
    for line in
        ["check /none/lb.toml", "run --config /none/lb.toml", "run --config /none/lb.toml --check-only"]
    {
        let output = xdp_lb(line.split(' '));
        let stderr = String::from_utf8(output.stderr).expect("stderr is text");
        assert_eq!(output.status.code(), Some(1), "{line}: {stderr}");
        assert!(stderr.starts_with("xdp-lb: ") && stderr.contains("/none/lb.toml"), "{line}: {stderr}");
    }
}

#[test]
fn completions_and_manual_pages() {
    for (line, expected) in [
        ("completions bash", "-o default xdp-lb"),
        ("completions zsh", "#compdef xdp-lb"),
        ("completions fish", "complete -c xdp-lb"),
        ("man", ".TH xdp-lb 1"),
        ("man backend drain", ".TH xdp-lb-backend-drain 1"),
    ] {
        let output = xdp_lb(line.split(' '));
        assert_eq!(output.status.code(), Some(0), "{line}");
        let stdout = String::from_utf8(output.stdout).expect("stdout is text");
        assert!(stdout.contains(expected), "{line}: {stdout}");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let pages = dir.path().join("man1");
    let output = xdp_lb([OsStr::new("man"), OsStr::new("--dir"), pages.as_os_str()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for page in ["xdp-lb.1", "xdp-lb-status.1", "xdp-lb-backend-drain.1", "xdp-lb-connections-kill.1"] {
        assert!(pages.join(page).exists(), "{page}");
    }
}

#[test]
fn bash_completes_what_comes_after_a_command() {
    let script = String::from_utf8(xdp_lb(["completions", "bash"]).stdout).expect("stdout is text");
    let complete = |words: &[&str]| {
        let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
        let all: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let at = words.len() - 1;
        let ask = format!(
            "COMP_WORDS=({}); COMP_CWORD={at}; _xdp__lb xdp-lb '{last}' '{before}'; echo \"${{COMPREPLY[*]}}\"",
            all.join(" ")
        );
        let mut bash = Command::new("bash");
        let output = bash.args(["--norc", "-c", &format!("{script}\n{ask}")]).output().expect("bash starts");
        String::from_utf8(output.stdout).expect("stdout is text").trim().to_owned()
    };
    for (words, expected) in [
        (&["xdp-lb", "bac"][..], "backend"),
        (&["xdp-lb", "backend", "dr"], "drain"),
        (&["xdp-lb", "backend", "drain", "--dea"], "--deadline"),
        (&["xdp-lb", "connections", "ki"], "kill"),
        (&["xdp-lb", "help", "backend", "dr"], "drain"),
    ] {
        assert_eq!(complete(words), expected, "{words:?}");
    }
}

#[test]
fn arguments_that_are_not_utf8() {
    let odd = || OsString::from_vec(b"\xff\xfe".to_vec());
    for option in ["--interface", "--vip", "--backend", "--scheduler", "--pin-dir", "--max-connections"] {
        let first = refused(&[OsString::from(option), odd()]);
        assert!(first.starts_with(&format!("xdp-lb: {option} \"\\xFF\\xFE\": ")), "{first}");
    }
    refused(&[odd()]);
    refused(&["status".into(), odd()]);
}

#[test]
fn help_and_version_go_to_stdout() {
    for (args, expected) in [
        (vec!["--help"], "Exit codes:"),
        (vec!["-h"], "Examples:"),
        (vec!["status", "--help"], "--json"),
        (vec!["detach", "--help"], "Usage: xdp-lb detach [OPTIONS] <IFACE>\n"),
        (vec!["veth-peer", "--help"], "Usage: xdp-lb veth-peer [OPTIONS] <IFACE>\n"),
        (vec!["--help"], "SIGHUP"),
        (vec!["--version"], concat!("xdp-lb ", env!("CARGO_PKG_VERSION"))),
    ] {
        let output = xdp_lb(&args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(output.stderr.is_empty(), "{args:?} prints to stderr");
        let stdout = String::from_utf8(output.stdout).expect("stdout is text");
        assert!(stdout.contains(expected) && stdout.ends_with('\n'), "{args:?}: {stdout}");
    }
}
