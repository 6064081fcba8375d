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
        ("eth0 --interface eth1", "--interface \"eth1\": the interface is given already", "--interface eth1"),
        ("eth0 eth1", "\"eth1\": it is one too many", run),
        ("eth0 status", "\"status\": a command is the first argument", "xdp-lb status"),
        ("eth0 --nonsense", "--nonsense: there is no such option", run),
        ("eth0 --backends 10.0.0.1:80", "--backends: there is no such option", "--backend 10.0.0.10:8080:50"),
        ("eth0 --json", "--json: it belongs to the command status", "xdp-lb status --json"),
        ("status --vip 10.1.1.1:80", "--vip: the command status does not take it", "xdp-lb status"),
        ("status --pin-dir here", "--pin-dir \"here\": it is a relative path", "/sys/fs/bpf/xdp_lb"),
        ("status extra", "\"extra\": it is one too many for status", "xdp-lb status"),
        ("verify extra", "\"extra\": it is one too many for verify", "xdp-lb verify"),
        ("veth-peer", "IFACE: the interface is missing", "xdp-lb veth-peer eth0"),
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
    ]);
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
