use std::os::unix::ffi::OsStrExt as _;

use super::*;

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
    ];
    for got in complaints {
        assert!(got.starts_with("it is not valid UTF-8; write "), "{got}");
    }
    assert!(scheduler(bytes).is_err() && xdp_mode(bytes).is_err());
}
