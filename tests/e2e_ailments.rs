//! What `xdp-lb doctor` says of an instance whose backends, process, pins or clients ail, and how it says it.

mod common;
mod doctor;

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::balancer::{Balancer, XDP_LB, has_xdp, weighted};
use common::eventually;
use common::live::{say, start, state, three_backends, write};
use common::netns::{Lab, in_lab};
use common::networks::{VIP, two_arms};
use common::servers::{HTTP, nginx_everywhere};
use doctor::{Report, carry_out, healthy, run, settled};
use nix::sys::signal::Signal;

/// With checks that find out soon.
fn web() -> String {
    format!(
        "interface = \"eth0\"\nassign-vip = true\nstats-interval = 0\n[[service]]\nname = \"web\"\nvip = \"{VIP}:80\"\n\
         health = {{ type = \"tcp\", interval = \"1s\", timeout = \"1s\" }}\nbackend = [ {} ]\n",
        three_backends()
    )
}

fn forwarding(lab: &Lab) -> Result<()> {
    two_arms(lab)?;
    lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")
}

fn text(lab: &Lab, args: &str) -> Result<String> {
    Ok(String::from_utf8(run(lab, args)?.stdout)?)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_backends_that_are_down() -> Result<()> {
    in_lab(|lab| {
        forwarding(lab)?;
        let mut servers = nginx_everywhere(lab)?;
        write(lab, &web())?;
        let mut lb = start(lab)?;
        settled(lab, "")?;
        let fine = Report::of(lab, "")?;
        fine.fix("ok", "service", &["1 of 1 services have a backend"]);
        fine.fix("ok", "backend", &["3 of 3 backends take new connections"]);
        fine.fix("ok", "route", &["3 backends are reached by eth1"]);

        servers[1].signal(Signal::SIGKILL)?;
        servers[1].wait()?;
        let report = eventually("a backend that is down", || {
            let report = Report::of(lab, "").ok()?;
            report.bad().iter().any(|(_, _, message)| message.contains(" is down for ")).then_some(report)
        });
        let words = ["10.0.0.11:8080 of web (192.168.1.100:80/tcp) is down for ", "refused"];
        let fix = report.fix("warning", "backend", &words);
        assert!(fix.ends_with("nc -vzw2 10.0.0.11 8080"), "{fix}");
        report.fix("ok", "service", &[]);
        // Only what is wrong, and what is wrong last.
        let shown = text(lab, "--level warning")?;
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines.len() == 2 && lines[0].starts_with("warning  backend: 10.0.0.11:8080"), "{shown}");
        assert!(lines[1].starts_with("0 errors, 1 warning (backend), "), "{shown}");
        assert_eq!(Report::of(lab, "--level warning")?.findings.len(), 1);
        assert_eq!(run(lab, "--level error")?.status.code(), Some(1), "the exit code is that of all");

        // What the operator wants is no fault, even where checks would find it down.
        say(lab, "backend disable web 10.0.0.11:8080")?;
        let report = Report::of(lab, "")?;
        report.fix("ok", "backend", &["by an operator (disabled), of web", "10.0.0.11:8080"]);
        assert_eq!(report.code, Some(0), "{report:#?}");

        // Unless nothing is left.
        for server in [0, 2] {
            servers[server].signal(Signal::SIGKILL)?;
            servers[server].wait()?;
        }
        for address in ["10.0.0.10:8080", "10.0.0.12:8080"] {
            eventually("it is down", || (state(lab, address).ok()? == "down").then_some(()));
        }
        let report = Report::of(lab, "")?;
        let words =
            ["no backend of web", "(1 by an operator (disabled), 2 down): new connections are dropped"];
        let fix = report.fix("error", "service", &words);
        assert!(fix.ends_with("xdp-lb backend enable web 10.0.0.11:8080"), "{fix}");

        // Without its process the tables tell it.
        lb.stop(Signal::SIGKILL)?;
        let report = Report::of(lab, "")?;
        report.fix("error", "service", &["no backend of 192.168.1.100:80/tcp", "no process answers"]);
        Ok(())
    })
}

/// Of one without a process only that is told which its tables tell: not how backends are checked.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_nothing_is_made_up_without_a_process() -> Result<()> {
    in_lab(|lab| {
        forwarding(lab)?;
        let http = "health = { type = \"http\", port = 8081, interval = \"1s\", timeout = \"1s\" }";
        let tcp = "health = { type = \"tcp\", interval = \"1s\", timeout = \"1s\" }";
        let text = web().replace(tcp, &format!("on-empty = \"pass\"\n{http}"));
        write(lab, &text)?;
        let lb = start(lab)?;
        let (passed, down) = ("are left to this host (on-empty = pass)", "10.0.0.10:8080 of ");
        let of_one_that_runs = eventually("backends that are down", || {
            let report = Report::of(lab, "").ok()?;
            report.bad().iter().any(|(_, _, said)| said.contains(passed)).then_some(report)
        });
        let fix = of_one_that_runs.fix("warning", "backend", &[down]);
        assert!(fix.ends_with("curl -v http://10.0.0.10:8081/"), "{fix}");

        for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
            lb.process.signal(signal)?;
            let report = eventually("no process answers", || {
                let report = Report::of(lab, "").ok()?;
                report.bad().iter().any(|(_, _, said)| said.contains("no process")).then_some(report)
            });
            report.fix("error", "service", &[passed]);
            let fix = report.fix("warning", "backend", &[down]);
            assert!(fix.contains("xdp-lb backend list") && !fix.contains("8080"), "{fix}");
        }
        Ok(())
    })
}

/// What is advised is for the instance that was looked at, wherever that listens.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_commands_to_paste_name_the_instance() -> Result<()> {
    in_lab(|lab| {
        forwarding(lab)?;
        for (named, more) in
            [("--pin-dir /sys/fs/bpf/b", ""), ("--socket /run/b.sock", "--pin-dir /sys/fs/bpf/b")]
        {
            let args = format!("eth0 --vip {VIP}:80 --backend 10.0.0.10:80 --assign-vip --health none");
            let mut lb = Balancer::start(lab, &format!("{args} {named} {more}"))?;
            settled(lab, named)?;
            say(lab, &format!("backend disable {VIP}:80 10.0.0.10:80 {named}"))?;
            let fix = Report::of(lab, named)?.fix("error", "service", &["by an operator (disabled)"]);
            assert!(fix.ends_with(named), "{fix}");
            carry_out(lab, &[("lb", &fix)])?;
            settled(lab, named)?;
            lb.stop(Signal::SIGTERM)?;
        }
        Ok(())
    })
}

/// The pins are to be seen from other network namespaces too, where nothing is to be judged, or removed.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_leftovers_of_another_namespace() -> Result<()> {
    in_lab(|lab| {
        forwarding(lab)?;
        for dir in ["/sys/fs/bpf/xdp_lb", "/sys/fs/bpf/own"] {
            let args = format!("eth0 --vip {VIP}:80 {} --assign-vip --health none", weighted(HTTP));
            let mut lb = Balancer::start(lab, &format!("{args} --pin-dir {dir}"))?;
            lb.stop(Signal::SIGKILL)?;
            let named = format!("--pin-dir {dir}");
            for args in ["", &named] {
                let report = Report::seen_from(lab, "client", args)?;
                let said =
                    format!("no process runs for what is pinned in {dir}, in another network namespace");
                let fix = report.fix("warning", "instance", &[&said]);
                let of_others = ["vip", "program", "backend", "service", "route"];
                assert!(report.bad().iter().all(|(_, name, _)| !of_others.contains(name)), "{report:#?}");
                assert!(!format!("{report:?}").contains(" detach "), "{report:#?}");
                // There it is one to be looked at.
                let (_, command) = fix.split_once(": ").context("no command")?;
                let command = command.replace("NAME", "lb").replacen("xdp-lb", XDP_LB, 1);
                let looked = lab.command("client", "sh")?.args(["-c", &command]).output()?;
                let text = String::from_utf8(looked.stdout)?;
                assert!(text.contains("xdp-lb detach eth0"), "{command}: {text}");
            }
            let output = lab.command("lb", XDP_LB)?.args(["detach", "eth0", "--pin-dir", dir]).output()?;
            assert!(output.status.success(), "{output:?}");
        }
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_process_that_was_stopped() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let lb = healthy(lab)?;
        let timed = || -> Result<_> {
            let began = Instant::now();
            Ok((Report::of(lab, "")?, began.elapsed()))
        };
        let (_, usual) = timed()?;
        lb.process.signal(Signal::SIGSTOP)?;
        let (report, took) = timed()?;
        // On a machine that has other things to do the rest takes its time.
        assert!(took < usual * 2 + Duration::from_secs(3), "{took:?} after {usual:?}");
        let fix = report.fix("error", "instance", &["was stopped by a signal, and answers nobody"]);
        assert!(fix.starts_with("kill -CONT "), "{fix}");
        report.fix("ok", "table", &["0 of the "]);
        report.fix("ok", "route", &["3 backends are reached by eth1"]);
        report.fix("ok", "neighbour", &["the MACs of 3 next hops"]);
        report.fix("ok", "backend", &["6 of 6 backends take new connections"]);
        report.fix("ok", "program", &["eth0 has the program of the instance with these pins"]);
        carry_out(lab, &[("lb", &fix)])?;
        settled(lab, "")?;

        // By its interface too.
        lb.process.signal(Signal::SIGSTOP)?;
        assert_eq!(Report::of(lab, "eth0")?.code, Some(2));
        lb.process.signal(Signal::SIGCONT)?;
        settled(lab, "eth0")
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_leftovers_with_pins_of_their_own() -> Result<()> {
    in_lab(|lab| {
        forwarding(lab)?;
        fs::create_dir("/sys/fs/bpf/group")?;
        let args = format!("eth0 --vip {VIP}:80 {} --assign-vip --health none", weighted(HTTP));
        let dir = "/sys/fs/bpf/group/own";
        let mut lb = Balancer::start(lab, &format!("{args} --pin-dir {dir}"))?;
        settled(lab, "")?;
        lb.stop(Signal::SIGKILL)?;

        let report = Report::of(lab, "")?;
        let fix =
            report.fix("warning", "instance", &[&format!("no process runs for what is pinned in {dir}")]);
        report.fix("ok", "route", &["3 backends are reached by eth1"]);
        // Other verbs find it too.
        let status = say(lab, "status --json")?;
        assert!(status.contains("\"running\": false"), "{status}");

        // Beside one that runs.
        lab.add(&["other"])?;
        lab.ip(
            "lb",
            "link add eth9 type veth peer name eth9 netns other
            address add 10.9.0.1/24 dev eth9
            link set eth9 up",
        )?;
        lab.ip("other", "address add 10.9.0.2/24 dev eth9\nlink set eth9 up")?;
        let args = "eth9 --vip 192.0.2.1:80 --backend 10.9.0.2:8081 --health none";
        let mut second = Balancer::start(lab, args)?;
        let beside = Report::of(lab, "")?;
        let said = format!("no process runs for what is pinned in {dir}, on eth0, eth1");
        assert_eq!(beside.fix("warning", "instance", &[&said]), fix);
        beside.fix("ok", "instance", &["it runs with the pins in /sys/fs/bpf/xdp_lb"]);
        second.stop(Signal::SIGTERM)?;

        // The fix is one to paste.
        let (_, command) = fix.rsplit_once("; or remove it: ").context("no command")?;
        assert_eq!(command, format!("xdp-lb detach eth0 --pin-dir {dir}"));
        lab.run("lb", "sh", &["-c", &command.replacen("xdp-lb", XDP_LB, 1)])?;
        assert!(!fs::exists(dir)? && !has_xdp(lab, "lb", "eth0")? && !has_xdp(lab, "lb", "eth1")?);
        Report::of(lab, "")?.fix("ok", "instance", &["no instance runs"]);
        Ok(())
    })
}

/// Whose interfaces are gone: any name will do.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_leftovers_without_an_interface() -> Result<()> {
    in_lab(|lab| {
        forwarding(lab)?;
        let args = format!("eth0 --vip {VIP}:80 {} --health none", weighted(HTTP));
        let mut lb = Balancer::start(lab, &format!("{args} --pin-dir /sys/fs/bpf/own"))?;
        lb.stop(Signal::SIGKILL)?;
        lab.ip("lb", "link del eth0\nlink del eth1")?;
        let words = ["no process runs for what is pinned in /sys/fs/bpf/own, on no interface any more"];
        let fix = eventually("the links are gone", || {
            let report = Report::of(lab, "").ok()?;
            report.bad().iter().any(|(_, _, said)| said.contains(words[0])).then_some(report)
        })
        .fix("warning", "instance", &words);
        let (_, command) = fix.rsplit_once("; or remove it: ").context("no command")?;
        lab.run("lb", "sh", &["-c", &command.replacen("xdp-lb", XDP_LB, 1)])?;
        assert!(!fs::exists("/sys/fs/bpf/own")?, "{command}");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_pin_dirs_that_cannot_be() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
        let dir = lab.dir().display().to_string();
        let elsewhere = "choose a --pin-dir in a bpffs, such as /sys/fs/bpf/pins";
        for (at, words) in
            [("/pins", "there is no bpffs at /"), ("/nowhere/pins", "there is no directory /nowhere")]
        {
            assert_eq!(
                Report::of(lab, &format!("--pin-dir {at}"))?.fix("error", "bpffs", &[words]),
                elsewhere
            );
        }
        let report = Report::of(lab, &format!("--pin-dir {dir}/pins --fix"))?;
        report.fix("error", "bpffs", &[&format!("there is no bpffs at {dir}")]);
        report.fix("error", "pins", &["is not in a bpffs"]);
        let said = format!("{report:?}");
        assert!(!said.contains("mount -t bpf") && !said.contains("sudo xdp-lb doctor"), "{said}");
        let report = Report::of(lab, "--pin-dir /sys/fs/bpf/a/pins")?;
        let fix = report.fix("error", "pins", &["there is no directory /sys/fs/bpf/a"]);
        assert_eq!(fix, "mkdir -p /sys/fs/bpf/a");
        carry_out(lab, &[("lb", &fix)])?;
        settled(lab, "--pin-dir /sys/fs/bpf/a/pins")
    })
}

/// Of an interface that somebody asks about, and not of others.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_only_one_interface() -> Result<()> {
    const CHECKS: [&str; 9] =
        ["interface", "driver", "mtu", "gro", "veth", "program", "route", "neighbour", "delivery"];
    in_lab(|lab| {
        two_arms(lab)?;
        lab.add(&["other"])?;
        lab.ip("lb", "link add eth9 type veth peer name eth9 netns other\nlink set eth9 up")?;
        lab.ip("other", "link set eth9 up")?;
        lab.run("other", XDP_LB, &["veth-peer", "eth9"])?;
        lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
        let args =
            format!("eth0 --interface eth9 --vip {VIP}:80 {} --assign-vip --health none", weighted(HTTP));
        let _lb = Balancer::start(lab, &args)?;
        settled(lab, "")?;
        let named = |args: &str| -> Result<Vec<&'static str>> {
            let report = Report::of(lab, args)?;
            let found =
                report.findings.iter().filter(|finding| CHECKS.iter().any(|name| finding["name"] == *name));
            let said: Vec<String> = found.map(|finding| finding["message"].to_string()).collect();
            let names = ["eth0", "eth1", "eth9"].into_iter();
            Ok(names.filter(|name| said.iter().any(|message| message.contains(name))).collect())
        };
        assert_eq!(named("")?, ["eth0", "eth1", "eth9"]);
        assert_eq!(named("eth0")?, ["eth0", "eth1"], "clients come by it: with those of the backends");
        assert_eq!(named("eth1")?, ["eth1"]);

        lab.ip("lb", "link set eth9 down")?;
        Report::of(lab, "")?.fix("error", "interface", &["eth9 is down"]);
        settled(lab, "eth0")
    })
}

/// Nobody but the kernel could say that by an interface that is down nothing is reached.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_interface_of_backends_is_down() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _lb = healthy(lab)?;
        lab.ip("lb", "link set eth1 down")?;
        for args in ["", "eth0"] {
            let report = Report::of(lab, args)?;
            let fix =
                report.fix("error", "route", &["no route to backend 10.0.0.10:8080: eth1, in whose subnet"]);
            assert_eq!(fix, "ip link set eth1 up");
        }
        // Another route makes it no better: the backends are not there.
        lab.ip("lb", "route add default via 192.168.1.2")?;
        let words = ["eth1 is down, in whose subnet the backend 10.0.0.10 and 2 more is", "is sent by eth0"];
        assert_eq!(Report::of(lab, "")?.fix("error", "route", &words), "ip link set eth1 up");
        Ok(())
    })
}

/// Frames that do not fit are dropped, whatever the protocol.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_mtus_that_differ() -> Result<()> {
    in_lab(|lab| {
        forwarding(lab)?;
        let args = format!("eth0 --vip {VIP}:80/tcp {} --assign-vip --health none", weighted(HTTP));
        let _lb = Balancer::start(lab, &args)?;
        settled(lab, "")?;
        lab.ip("lb", "link set eth1 mtu 1400")?;
        let words = ["1500 bytes that arrive by eth0 (1500) are too big for eth1 (1400), and dropped"];
        let fix = Report::of(lab, "")?.fix("warning", "mtu", &words);
        let (_, commands) = fix.split_once(": ").context("no command")?;
        let (first, _) = commands.split_once(", or ").context("no second command")?;
        carry_out(lab, &[("lb", first)])?;
        settled(lab, "")
    })
}

/// More live connections than were promised.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_table_with_more_than_it_promised() -> Result<()> {
    in_lab(|lab| {
        forwarding(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let args =
            format!("eth0 --vip {VIP}:80 {} --assign-vip --health none --max-connections 20", weighted(HTTP));
        let _lb = Balancer::start(lab, &args)?;
        let held = lab.within("client", || {
            (0..45).map(|_| TcpStream::connect((VIP, 80))).collect::<Result<Vec<_>, _>>()
        })??;
        let fix = Report::of(lab, "")?.fix("error", "table", &["45 of the 20 connections"]);
        assert!(fix.starts_with("--max-connections 90 ") && fix.contains("twice what is live now"), "{fix}");
        drop(held);
        Ok(())
    })
}

/// Replies that find no way back.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_clients_without_a_route() -> Result<()> {
    in_lab(|lab| {
        forwarding(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let args = format!("eth0 --vip {VIP}:80 {} --assign-vip --health none", weighted(HTTP));
        let _lb = Balancer::start(lab, &args)?;
        settled(lab, "")?;
        lab.ip("client", "address add 198.51.100.7/32 dev lo")?;
        let connect = |patience| {
            lab.within("client", || -> Result<()> {
                let socket = socket2_from("198.51.100.7".parse()?)?;
                let vip: SocketAddr = format!("{VIP}:80").parse()?;
                socket.connect_timeout(&vip.into(), patience)?;
                Ok(())
            })
        };
        assert!(connect(Duration::from_millis(1500))?.is_err(), "there is a way back");
        let report = Report::of(lab, "")?;
        let words = ["no route to clients with live connections (198.51.100.7)"];
        assert_eq!(report.fix("warning", "client-route", &words), "ip route add 198.51.100.0/24 via GATEWAY");
        // As long as more of them come.
        let is_over = AtomicBool::new(false);
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let _ = connect(Duration::from_millis(100));
                }
            });
            let report = Report::of(lab, "");
            is_over.store(true, Ordering::Relaxed);
            report
        })?;
        let fix = report.fix("warning", "client-route", &["in a moment", "(route_by_kernel)"]);
        assert!(fix.contains("xdp-lb trace --reason route_by_kernel"), "{fix}");

        // Once it is mended it is only told.
        lab.ip("lb", "route add 198.51.100.0/24 via 192.168.1.2")?;
        assert!(connect(Duration::from_millis(1500))?.is_ok());
        settled(lab, "")?;
        Report::of(lab, "")?.fix("ok", "client-route", &["packets so far", "none of them just now"]);
        Ok(())
    })
}

fn socket2_from(address: IpAddr) -> Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    Ok(socket)
}

/// Checks come from this host, and are content.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_backends_that_serve_no_client() -> Result<()> {
    in_lab(|lab| {
        forwarding(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web())?;
        let _lb = start(lab)?;
        settled(lab, "")?;
        for (web, what) in [("web1", "drop"), ("web2", "reject with tcp reset")] {
            let rule = format!(
                "table ip t {{ chain c {{ type filter hook input priority 0; ip saddr 192.168.1.2 tcp dport {HTTP} {what}; }}; }}"
            );
            lab.run(web, "nft", &[&rule])?;
        }
        let target = format!("{VIP}:80").parse()?;
        lab.within("client", || {
            for _ in 0..12 {
                let _ = TcpStream::connect_timeout(&target, Duration::from_millis(300));
            }
        })?;
        let report = Report::of(lab, "")?;
        let silent = ["10.0.0.10:8080 of web", "is up, but leaves clients unanswered: "];
        assert!(report.fix("warning", "backend", &silent).contains("xdp-lb trace --backend 10.0.0.10:8080"));
        report.fix("warning", "backend", &["10.0.0.11:8080 of web", "is up, but refuses clients: "]);
        assert!(!report.bad().iter().any(|(_, _, said)| said.contains("10.0.0.12")), "{report:#?}");

        // Nor is an interface up that leads nowhere.
        lab.ip("client", "link set eth0 down")?;
        lab.ip("switch", "link set lb down")?;
        for interface in ["eth0", "eth1"] {
            let says = format!("{interface} is up, but has no carrier");
            // The kernel takes up to a second to notice.
            eventually("no carrier", || {
                let report = Report::of(lab, "").ok()?;
                report.bad().iter().any(|(_, _, said)| said.contains(&says)).then_some(())
            });
        }
        Ok(())
    })
}

/// Its pins tell its process, and that where it listens.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_an_instance_is_found_wherever_it_listens() -> Result<()> {
    in_lab(|lab| {
        forwarding(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let dir = "/sys/fs/bpf/own";
        write(lab, &format!("pin-dir = \"{dir}\"\nsocket = \"/run/elsewhere.sock\"\n{}", web()))?;
        let _lb = start(lab)?;
        for words in ["", "eth0", "--pin-dir /sys/fs/bpf/own", "--socket /run/elsewhere.sock"] {
            settled(lab, words)?;
            let report = Report::of(lab, words)?;
            report.fix("ok", "instance", &["it runs with the pins in /sys/fs/bpf/own"]);
            assert_eq!(report.code, Some(0), "{words}: {report:#?}");
        }
        for words in
            ["status", "status --pin-dir /sys/fs/bpf/own", "top --once", "backend disable web 10.0.0.10:8080"]
        {
            let output = lab.command("lb", XDP_LB)?.args(words.split_whitespace()).output()?;
            let (said, complaints) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{words}: {complaints}");
            assert!(
                !complaints.contains("no process") && !said.contains("NO PROCESS"),
                "{words}: {said}{complaints}"
            );
        }
        let report = Report::of(lab, "--socket /run/nobody.sock")?;
        report.fix("error", "instance", &["no instance listens at /run/nobody.sock"]);
        Ok(())
    })
}
