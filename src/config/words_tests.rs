use std::os::unix::ffi::OsStrExt as _;

use super::*;
use crate::model::{Health, HttpProbe, Probe, TlsProbe};

fn word(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn ip(text: &str) -> SocketAddrV4 {
    text.parse().expect("an address of the test")
}

/// The fault as the one line it becomes.
fn complaint<T: std::fmt::Debug>(result: Result<T, Fault>) -> String {
    let fault = result.expect_err("refused");
    format!("{}; write {}", fault.wrong, fault.right)
}

#[test]
fn vips() {
    use Protocol::{Tcp, Udp};
    let cases: [(&str, &str, &[Protocol]); 5] = [
        ("192.168.1.100:80", "192.168.1.100:80", &[Tcp]),
        ("192.168.1.100:80/tcp", "192.168.1.100:80", &[Tcp]),
        ("1.2.3.4:53/udp", "1.2.3.4:53", &[Udp]),
        ("1.2.3.4:65535/any", "1.2.3.4:65535", &[Tcp, Udp]),
        ("1.2.3.4:1", "1.2.3.4:1", &[Tcp]),
    ];
    for (text, address, protocols) in cases {
        assert_eq!(vip(word(text)), Ok(Vip { address: ip(address), protocols }), "{text}");
    }
}

#[test]
fn bad_vips() {
    let ipv6 = "IPv6 is not supported yet, an IPv4 address is needed; write 192.168.1.100:80";
    let cases = [
        ("", "it is empty, an address and a port are missing; write 192.168.1.100:80"),
        (":", "the address is missing; write"),
        (":80", "the address is missing; write 192.168.1.100:80"),
        ("80", "the address is missing; write 192.168.1.100:80"),
        ("10.1.2.3", "the port is missing; write 10.1.2.3:80"),
        ("10.1.2.3:", "the port is missing; write 10.1.2.3:80"),
        ("10.1.2.3/udp", "the port is missing"),
        ("10.1.2.3:0", "the port 0 is outside 1 to 65535; write 10.1.2.3:80"),
        ("10.1.2.3:65536", "the port 65536 is outside 1 to 65535"),
        ("10.1.2.3:99999999999999999999999", "is outside 1 to 65535"),
        ("10.1.2.3:+80", "the port \"+80\" is not a number"),
        ("10.1.2.3:http", "the port \"http\" is not a number"),
        ("10.1.2.3:80/", "the protocol after the / is missing; write 10.1.2.3:80/tcp"),
        ("10.1.2.3:80/sctp", "the protocol \"sctp\" is none of tcp, udp and any; write 10.1.2.3:80/tcp"),
        ("10.1.2.3:80:50", "a VIP has no weight"),
        ("10.1.2.300:80", "\"10.1.2.300\" is not an IPv4 address"),
        ("10.1.2:80", "\"10.1.2\" is not an IPv4 address"),
        (" 10.1.2.3:80", "\" 10.1.2.3\" is not an IPv4 address"),
        (
            "www.example.com:80",
            "\"www.example.com\" is a host name; names are not looked up, an address is needed",
        ),
        ("localhost", "\"localhost\" is a host name"),
        ("http://10.1.2.3:80", "it is a URL"),
        ("10.1.2.3:80,10.1.2.4:80", "it has a comma"),
        ("0.0.0.0:80", "0.0.0.0 cannot be a VIP: it is unspecified"),
        ("127.1.2.3:80", "127.1.2.3 cannot be a VIP: it is a loopback address"),
        ("224.0.0.1:80", "224.0.0.1 cannot be a VIP: it is a multicast address"),
        ("239.255.255.255:80", "it is a multicast address"),
        ("255.255.255.255:80", "it is the broadcast address"),
        ("[::1]:80", ipv6),
        ("[::1]", ipv6),
        ("[", ipv6),
        ("::1:80", ipv6),
        ("::", ipv6),
        ("2001:db8::1", ipv6),
        ("2001:db8::1/udp", ipv6),
        ("2001:db8:1:2:3:4:5:6:80", ipv6),
        ("fe80::1%eth0:80", ipv6),
        ("::ffff:10.1.2.3:80/tcp", ipv6),
    ];
    for (text, expected) in cases {
        let got = complaint(vip(word(text)));
        assert!(got.contains(expected), "{text}: {got}");
        assert!(got.contains("; write "), "{text}: {got}");
    }
}

#[test]
fn backends() {
    for (text, address, weight) in [
        ("10.0.0.10:8080", "10.0.0.10:8080", 1),
        ("10.0.0.10:8080:1", "10.0.0.10:8080", 1),
        ("10.0.0.10:1:100", "10.0.0.10:1", 100),
    ] {
        let weight = Weight::new(weight).expect("a weight of the test");
        assert_eq!(backend(word(text)), Ok(Backend::new(ip(address), weight)), "{text}");
    }
}

#[test]
fn bad_backends() {
    let ipv6 = "IPv6 is not supported yet";
    let cases = [
        ("", "it is empty"),
        ("10.0.0.10", "the port is missing; write 10.0.0.10:8080 or 10.0.0.10:8080:50"),
        ("10.0.0.10:", "the port is missing; write 10.0.0.10:8080 or"),
        ("10.0.0.10::50", "the port is missing"),
        (":8080:50", "the address is missing"),
        ("8080", "the address is missing; write 10.0.0.10:8080 or"),
        ("10.0.0.10:0", "the port 0 is outside 1 to 65535"),
        ("10.0.0.10:65536", "the port 65536 is outside"),
        ("10.0.0.10:80:", "the weight after the last colon is missing; write 10.0.0.10:80:50"),
        ("10.0.0.10:80:0", "the weight 0 is outside 1 to 100; write 10.0.0.10:80:50"),
        ("10.0.0.10:80:101", "the weight 101 is outside 1 to 100"),
        ("10.0.0.10:80:256", "the weight 256 is outside 1 to 100"),
        ("10.0.0.10:80:x", "the weight \"x\" is not a number"),
        ("10.0.0.10:80:-1", "the weight \"-1\" is not a number"),
        ("10.0.0.10:80:1:2", "there is a part too many"),
        ("10.0.0.10:80/tcp", "a backend has no protocol"),
        ("web1:80:50", "\"web1\" is a host name"),
        ("0.0.0.0:80", "0.0.0.0 cannot be a backend: it is unspecified"),
        ("127.0.0.1:80", "it is a loopback address"),
        ("224.0.0.1:80", "it is a multicast address"),
        ("255.255.255.255:80", "it is the broadcast address"),
        ("[2001:db8::1]:80:50", ipv6),
        ("2001:db8::1", ipv6),
        ("2001:db8:1:2:3:4:5:6:80:50", ipv6),
    ];
    for (text, expected) in cases {
        let got = complaint(backend(word(text)));
        assert!(got.contains(expected), "{text}: {got}");
    }
}

#[test]
fn interfaces() {
    for name in ["eth0", "a", "enp3s0f1.100", "fifteen_bytes__", "status", "br-ü"] {
        assert_eq!(interface(word(name)), Ok(name.to_owned()));
    }
    for name in ["", "sixteen_bytes___", "a/b", "a b", "a\tb", "a\n", ".", "..", "eth0:1", "üüüüüüüü"]
    {
        assert!(complaint(interface(word(name))).contains("; write eth0"), "{name:?}");
    }
}

#[test]
fn schedulers_by_both_names() {
    for (expected, full, short) in Scheduler::NAMES {
        assert_eq!(scheduler(word(full)), Ok(expected));
        assert_eq!(scheduler(word(short)), Ok(expected));
    }
    let got = complaint(scheduler(word("least")));
    assert!(
        got.contains("; write round-robin (rr), weighted-round-robin (wrr), ip-hash (sh), maglev (mh) or least-conn (lc)"),
        "{got}"
    );
}

#[test]
fn modes() {
    for (name, mode) in [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("skb", XdpMode::Skb)] {
        assert_eq!(xdp_mode(word(name)), Ok(mode));
    }
    assert!(complaint(xdp_mode(word("generic"))).contains("write auto, native or skb"));
    for (name, way) in [("auto", Deliver::Auto), ("direct", Deliver::Direct), ("stack", Deliver::Stack)] {
        assert_eq!(deliver(word(name)), Ok(way));
    }
    assert!(complaint(deliver(word("kernel"))).contains("write auto, direct or stack"));
}

#[test]
fn pin_dirs() {
    for (text, path) in [
        ("/sys/fs/bpf/xdp_lb", "/sys/fs/bpf/xdp_lb"),
        ("/sys/fs/bpf//b/./c/", "/sys/fs/bpf/b/c"),
        ("/tmp/.tmpX/bpf", "/tmp/.tmpX/bpf"),
    ] {
        let got = pin_dir(word(text)).map(|path| path.into_os_string());
        assert_eq!(got, Ok(path.into()), "{text}");
    }
    for (text, expected) in [
        ("", "the directory is missing"),
        ("xdp_lb", "it is a relative path"),
        ("./xdp_lb", "it is a relative path"),
        ("/", "it is not a directory of our own"),
        ("/sys/fs/bpf/", "it is not a directory of our own"),
        ("/sys/fs/bpf/../x", "it has .. in it"),
        ("/sys/fs/bpf/a.b", "a bpffs has no names with a dot"),
    ] {
        let got = complaint(pin_dir(word(text)));
        assert!(got.contains(expected) && got.contains("; write /sys/fs/bpf/xdp_lb"), "{text}: {got}");
    }
}

#[test]
fn stats_intervals() {
    for (text, millis) in
        [("5", 5000), ("5s", 5000), ("100ms", 100), ("1m 30s", 90_000), ("365days", 31_536_000_000)]
    {
        assert_eq!(stats_interval(word(text)), Ok(Some(Duration::from_millis(millis))), "{text}");
    }
    assert_eq!(stats_interval(word("0")), Ok(None));
    assert_eq!(stats_interval(word("0s")), Ok(None));
    for text in [
        "",
        "x",
        "-5",
        "99ms",
        "1ns",
        "5 bananas",
        "366days",
        "99999999999999999999",
        "9999999999999years",
        "+5",
    ] {
        let got = complaint(stats_interval(word(text)));
        assert!(got.contains("; write 5s, 500ms, or 0 for never"), "{text}: {got}");
    }
}

#[test]
fn timeouts_in_range() {
    let default = Duration::from_secs(300);
    for (text, secs) in [("1", 1), ("300s", 300), ("2h", 7200), ("7200", 7200), ("5m", 300)] {
        assert_eq!(timeout(word(text), default), Ok(Duration::from_secs(secs)), "{text}");
    }
    for text in ["0", "999ms", "7201", "2h 1ms", "1year"] {
        assert_eq!(complaint(timeout(word(text), default)), "it is outside 1s to 2h; write 5m", "{text}");
    }
    assert!(complaint(timeout(word("soon"), default)).starts_with("it is not a duration"));
}

#[test]
fn sticky_times() {
    for (text, secs) in [("1", Some(1)), ("10m", Some(600)), ("2h", Some(7200)), ("0", None), ("0s", None)] {
        assert_eq!(sticky(word(text)), Ok(secs.map(Duration::from_secs)), "{text}");
    }
    for text in ["999ms", "7201", "1day"] {
        let got = complaint(sticky(word(text)));
        assert_eq!(got, "it is outside 1s to 2h; write 10m, or 0 for not at all", "{text}");
    }
    assert!(complaint(sticky(word("yes"))).starts_with("it is not a duration"));
}

#[test]
fn numbers_of_connections() {
    for (text, number) in [("1", 1), ("1_000_000", 1_000_000), ("500000000", 500_000_000)] {
        assert_eq!(max_connections(word(text)), Ok(number), "{text}");
    }
    for text in ["", "0", "_", "-1", "+1", "1M", "1,000", "500000001", "99999999999999999999"] {
        assert!(complaint(max_connections(word(text))).contains("; write 1_000_000"), "{text}");
    }
}

#[test]
fn ways_and_states() {
    assert_eq!(log_format(word("json")), Ok(LogFormat::Json));
    assert_eq!(complaint(log_format(word("xml"))), "there is no such format; write human or json");
    assert_eq!(on_empty(word("pass")), Ok(OnEmpty::Pass));
    assert!(complaint(on_empty(word("Pass"))).ends_with("; write drop or pass"));
    assert_eq!(on_down(word("reset")), Ok(OnDown::Reset));
    assert!(complaint(on_down(word(""))).ends_with("; write auto, keep or reset"));
    assert_eq!(admin_state(word("drain")), Ok(AdminState::Drain));
    assert!(complaint(admin_state(word("off"))).ends_with("; write enabled, drain or disabled"));
}

#[test]
fn weights() {
    for number in [1, 50, 100] {
        assert_eq!(weight_number(word(&number.to_string())).map(Weight::get), Ok(number));
    }
    for text in ["", "0", "101", "256", "-1", "+1", "x", "1:2"] {
        assert!(complaint(weight_number(word(text))).ends_with("; write 50"), "{text}");
    }
}

#[test]
fn sockets() {
    let longest = format!("/{}", "s".repeat(106));
    for path in ["/run/a.sock", &longest] {
        assert_eq!(socket(word(path)), Ok(path.into()));
    }
    let too_long = format!("{longest}s");
    for (path, expected) in [
        ("", "the path is missing"),
        ("a.sock", "it is a relative path"),
        (&too_long, "at most 107 bytes"),
        ("/run/a\nb", "a control character"),
        ("/run/", "it is a directory"),
        ("/run/..", "it is a directory"),
    ] {
        let got = complaint(socket(word(path)));
        assert!(got.contains(expected) && got.ends_with("; write /run/xdp-lb/xdp_lb.sock"), "{path}: {got}");
    }
}

#[test]
fn service_names() {
    let longest = "ü".repeat(64);
    for name in ["web", "a", "192.0.2.1:80", "web-1.x_y", &longest] {
        assert_eq!(service_name(word(name)), Ok(name.to_owned()));
    }
    let too_long = format!("{longest}ü");
    for name in
        ["", " ", "a b", "a\u{a0}b", "a/b", "a\"", "'", "`", "a\\b", "a\u{7f}", "a\u{202e}b", &too_long]
    {
        assert!(complaint(service_name(word(name))).ends_with("; write web"), "{name:?}");
    }
}

#[test]
fn slow_starts() {
    for (text, secs) in [("0", 0), ("0s", 0), ("1s", 1), ("1h", 3600)] {
        assert_eq!(slow_start(word(text)), Ok(Duration::from_secs(secs)), "{text}");
    }
    for text in ["999ms", "3601", ""] {
        assert!(complaint(slow_start(word(text))).ends_with("; write 30s, or 0 for at once"), "{text}");
    }
}

#[test]
fn numbers_of_bytes() {
    for (text, number) in [
        ("1MB", 1 << 20),
        ("1048576", 1 << 20),
        ("1_048_576B", 1 << 20),
        ("1024KB", 1 << 20),
        ("64GB", 64 << 30),
        ("68719476736", 64 << 30),
    ] {
        assert_eq!(bytes(word(text)), Ok(number), "{text}");
    }
    for (text, expected) in [
        ("", "the number is missing"),
        ("MB", "it is not a number of bytes"),
        ("1048575", "it is outside 1MB to 64GB"),
        ("65GB", "it is outside 1MB to 64GB"),
        ("99999999999999999999GB", "it is outside"),
        ("18014398509481984KB", "it is outside"),
        ("-1", "it is not a number of bytes"),
        ("1.5GB", "it is not a number of bytes"),
        ("256 MB", "it is not a number of bytes"),
        ("256mb", "the unit is none of KB, MB and GB"),
        ("1TB", "the unit is none of KB, MB and GB"),
    ] {
        let got = complaint(bytes(word(text)));
        assert!(got.starts_with(expected) && got.ends_with("; write 256MB"), "{text}: {got}");
    }
}

#[test]
fn checks() {
    let got =
        health(word("http,path=/health?a=b,interval=1s,rise=1,status=200-299+301,host=a.example")).unwrap();
    let http = HttpProbe {
        path: "/health?a=b".into(),
        host: Some("a.example".into()),
        status: vec![200..=299, 301..=301],
        ..HttpProbe::default()
    };
    let second = Duration::from_secs(1);
    let usual = Health::of(Probe::Http(http));
    assert_eq!(got, Health { interval: second, timeout: second, rise: 1, ..usual });
    for kind in ["none", "tcp", "http", "https"] {
        assert_eq!(health(word(kind)).map(|health| health.probe.name()), Ok(kind));
    }
    for text in ["https,skip-verify", "https,skip-verify=true"] {
        let Ok(Health { probe: Probe::Https(_, tls), .. }) = health(word(text)) else { panic!("{text}") };
        assert_eq!(tls, TlsProbe { ca: None, skip_verify: true });
    }
}

#[test]
fn bad_checks() {
    for (text, expected) in [
        ("", "the type of the check is missing; write tcp, http, https or none"),
        ("icmp", "there is no such type of check; write tcp, http, https or none"),
        ("http,/health", "\"/health\" is not a key and a value; write http,path=/health,interval=5s"),
        ("http,", "\"\" is not a key and a value"),
        ("http,url=/", "there is no key \"url\"; write path, host,"),
        ("http,type=tcp", "there is no key \"type\""),
        ("http,path=/a,path=/b", "path is given twice; write path=/b once"),
        ("tcp,path=/", "path is not for a check of type tcp; write it with http or https"),
        ("none,rise=1", "rise is not for a check of type none; write it with tcp, http or https"),
        ("http,ca=/a", "ca is not for a check of type http; write it with https"),
        ("http,path=health", "path \"health\": a path begins with /; write /health"),
        ("http,path=", "path \"\": a path begins with /"),
        ("tcp,rise=0", "rise \"0\": it is outside 1 to 100; write 2"),
        ("tcp,rise=two", "rise \"two\": it is not a number; write 2"),
        ("tcp,port=0", "port \"0\": the port 0 is outside 1 to 65535; write 8081"),
        ("tcp,initial=on", "initial \"on\": a backend is not that before its first check; write up or down"),
        ("tcp,timeout=6s", "timeout: a check is over before the next one, after 5s; write timeout=5s"),
        ("http,status=200+", "status \"200+\": it is neither a status nor a range of them"),
        ("https,skip-verify=yes", "skip-verify \"yes\": it is neither true nor false; write true or false"),
    ] {
        let got = complaint(health(word(text)));
        assert!(got.starts_with(expected), "{text}: {got}");
    }
}

#[test]
fn words_that_are_not_utf8() {
    let bytes = OsStr::from_bytes(b"10.0.0.1:80\xff");
    let complaints = [
        complaint(vip(bytes)),
        complaint(backend(bytes)),
        complaint(interface(bytes)),
        complaint(pin_dir(bytes)),
        complaint(stats_interval(bytes)),
        complaint(timeout(bytes, Duration::from_secs(1))),
        complaint(max_connections(bytes)),
        complaint(socket(bytes)),
        complaint(service_name(bytes)),
        complaint(slow_start(bytes)),
        complaint(weight_number(bytes)),
        complaint(super::bytes(bytes)),
        complaint(health(bytes)),
    ];
    for got in complaints {
        assert!(got.starts_with("it is not valid UTF-8; write "), "{got}");
    }
    assert!(scheduler(bytes).is_err() && xdp_mode(bytes).is_err());
}

#[test]
fn metrics_addresses() {
    for text in ["127.0.0.1:9105", "0.0.0.0:1", "[::1]:65535", "[::]:9105"] {
        assert_eq!(metrics(word(text)), Ok(text.parse().unwrap()), "{text}");
    }
    for (text, wrong) in [
        ("", "address and port are missing"),
        ("127.0.0.1", "the port is missing"),
        ("::1", "the port is missing"),
        (":9105", "the address is missing"),
        ("9105", "the address is missing"),
        ("127.0.0.1:0", "the port is 0"),
        ("127.0.0.1:65536", "it is not ADDR:PORT"),
        ("localhost:9105", "it is not ADDR:PORT"),
        ("http://127.0.0.1:9105/metrics", "it is ADDR:PORT, not a URL"),
        ("224.0.0.1:9105", "nobody can listen at this address"),
        ("255.255.255.255:9105", "nobody can listen at this address"),
    ] {
        assert_eq!(metrics(word(text)), Err(Fault::new(wrong, "127.0.0.1:9105")), "{text}");
    }
}
