//! `xdp-lb trace` and `xdp-lb capture` tell what happened to real packets: no more, no less.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::balancer::{Balancer, Figures, PIN_DIR, XDP_LB, weighted};
use common::clients::{Answer, requests};
use common::eventually;
use common::live::{complaint, say, write};
use common::netns::{Lab, Process, in_lab};
use common::networks::{CLIENT, VIP, WEBS, two_arms};
use common::servers::{HTTP, nginx_everywhere};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use nix::sys::signal::Signal;
use serde_json::Value;

fn start(lab: &Lab) -> Result<Balancer<'_>> {
    Balancer::start(lab, &format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP)))
}

/// A verb that watches, once it does.
fn watch(lab: &Lab, words: &str) -> Result<Process> {
    let process = lab.start("lb", XDP_LB, &words.split_whitespace().collect::<Vec<_>>())?;
    eventually(words, || process.stderr().contains("; Ctrl-C ends it").then_some(()));
    Ok(process)
}

fn lines(process: &Process) -> Result<Vec<Value>> {
    let whole = process.stdout();
    let whole = whole.rfind('\n').map_or("", |end| &whole[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}

/// What was told of each client's port.
fn told(lines: &[Value]) -> BTreeMap<u64, Vec<String>> {
    let mut told: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for line in lines {
        let client = line["client"].as_str().unwrap_or_default();
        let port = client.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0);
        let events = line["events"].as_array().into_iter().flatten();
        told.entry(port)
            .or_default()
            .extend(events.map(|event| event.as_str().unwrap_or_default().to_owned()));
    }
    told
}

/// What packets look at while somebody watches.
fn wants() -> Result<u32> {
    let map = MapHandle::from_pinned_path(format!("{PIN_DIR}/data_watch"))?;
    let row = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?.context("no row")?;
    Ok(u32::from_ne_bytes(row[..4].try_into()?))
}

fn ports(answers: &[Answer]) -> BTreeSet<u64> {
    answers.iter().map(|answer| u64::from(answer.own.1)).collect()
}

fn end(mut process: Process) -> Result<Process> {
    process.signal(Signal::SIGINT)?;
    let status = process.wait()?;
    assert!(status.success(), "{status}: {}", process.stderr());
    Ok(process)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_trace_tells_each_connection() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let _lb = start(lab)?;
        requests(lab, &format!("http://{VIP}/?[1-3]"))?;
        let trace = watch(lab, "trace --json")?;
        let answers = requests(lab, &format!("http://{VIP}/?[1-20]"))?;
        let closed =
            |lines: &[Value]| told(lines).values().flatten().filter(|event| *event == "closed").count();
        eventually("all are told", || lines(&trace).ok().filter(|lines| closed(lines) >= 20));
        let trace = end(trace)?;
        let lines = lines(&trace)?;
        let told = told(&lines);
        assert_eq!(told.keys().copied().collect::<BTreeSet<_>>(), ports(&answers));
        assert!(told.values().all(|events| *events == ["opened", "confirmed", "closed"]), "{told:?}");
        for answer in &answers {
            let client = format!("{}:{}", answer.own.0, answer.own.1);
            let (_, address) = WEBS.iter().find(|(web, _)| *web == answer.server).context("no server")?;
            let of_it = lines.iter().filter(|line| line["client"] == client.as_str());
            let backends: BTreeSet<&str> = of_it.filter_map(|line| line["backend"].as_str()).collect();
            assert_eq!(backends, BTreeSet::from([format!("{address}:{HTTP}").as_str()]));
        }
        assert_eq!(lines.len(), 60);
        // Off again.
        assert_eq!(wants()?, 0);
        let text = watch(lab, "trace --limit 1")?;
        requests(lab, &format!("http://{VIP}/"))?;
        eventually("a line", || text.stdout().contains('\n').then_some(()));
        let line = text.stdout();
        assert!(line.contains(" eth0 opened tcp 192.168.1.2:"), "{line}");
        assert!(line.contains(" > 192.168.1.100:80 > 10.0.0.1"), "{line}");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_trace_shows_what_is_meant() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let args = format!("eth0 --vip {VIP}:80/any {} --assign-vip", weighted(HTTP));
        let _lb = Balancer::start(lab, &args)?;
        let first = format!("{}:{HTTP}", WEBS[0].1);

        let trace = watch(lab, &format!("trace --json --backend {first} --service {VIP}:80/tcp"))?;
        let busy = complaint(lab, "trace")?;
        assert!(
            busy.contains(&format!("the process {} watches this instance already", trace.id())),
            "{busy}"
        );
        let answers = requests(lab, &format!("http://{VIP}/?[1-20]"))?;
        let own: Vec<Answer> = answers.into_iter().filter(|answer| answer.server == WEBS[0].0).collect();
        assert_eq!(own.len(), 10);
        eventually("the backend's", || lines(&trace).ok().filter(|lines| lines.len() >= 30));
        let trace = end(trace)?;
        assert_eq!(told(&lines(&trace)?).keys().copied().collect::<BTreeSet<_>>(), ports(&own));

        // Dropped packets, with the reason, and none of those that are not meant.
        let trace = watch(lab, &format!("trace --json --client {CLIENT} --reason drop"))?;
        requests(lab, &format!("http://{VIP}/?[1-3]"))?;
        for (_, address) in WEBS {
            say(lab, &format!("backend disable {VIP}:80/udp {address}:{HTTP}"))?;
        }
        let sent = lab.within("client", || -> Result<u16> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(b"hello", (VIP, 80))?;
            Ok(socket.local_addr()?.port())
        })??;
        let seen = eventually("the drop", || lines(&trace).ok().filter(|lines| !lines.is_empty()));
        let line = &seen[0];
        assert_eq!((&line["class"], &line["reason"]), (&"drop".into(), &"no_backend".into()), "{line}");
        assert_eq!(line["client"], format!("{CLIENT}:{sent}"));
        assert_eq!((&line["vip"], &line["backend"]), (&format!("{VIP}:80").into(), &Value::Null));
        let trace = end(trace)?;
        assert_eq!(lines(&trace)?.len(), 1);

        let other = watch(lab, "trace --json --client 192.168.1.3/32")?;
        requests(lab, &format!("http://{VIP}/?[1-3]"))?;
        assert!(lines(&end(other)?)?.is_empty());
        Ok(())
    })
}

/// Packets of no service have addresses too, as far as they have any.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_trace_tells_whose_a_passed_packet_is() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let absent = complaint(lab, "trace")?;
        assert!(absent.contains("is one running?"), "{absent}");
        let _lb = start(lab)?;
        let trace = watch(lab, &format!("trace --json --client {CLIENT} --reason pass"))?;
        let sent = lab.within("client", || -> Result<u16> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(&[0; 500], (VIP, 81))?;
            drop(TcpStream::connect_timeout(&format!("{VIP}:82").parse()?, Duration::from_secs(1)));
            Ok(socket.local_addr()?.port())
        })??;
        let of = |lines: &[Value], destination: &str| {
            lines.iter().find(|line| line["destination"] == destination).cloned()
        };
        let seen = eventually("both", || {
            let lines = lines(&trace).ok()?;
            Some((of(&lines, &format!("{VIP}:81"))?, of(&lines, &format!("{VIP}:82"))?))
        });
        let (udp, tcp) = seen;
        let expected = [("reason", "no_service"), ("protocol", "udp"), ("tcp_flags", "")];
        expected.iter().for_each(|(key, value)| assert_eq!(udp[key], *value, "{udp}"));
        assert_eq!((&udp["source"], &udp["length"]), (&format!("{CLIENT}:{sent}").into(), &542.into()));
        assert_eq!((&udp["client"], &udp["direction"]), (&Value::Null, &Value::Null), "it is nobody's");
        assert_eq!((&tcp["protocol"], &tcp["tcp_flags"]), (&"tcp".into(), &"S".into()), "{tcp}");
        end(trace)?;
        // Of another client there is nothing, and the service's port counts.
        let send =
            |port: u16| lab.within("client", || UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", (VIP, port)));
        for words in ["--client 192.168.1.3", &format!("--service {VIP}:80")] {
            let trace = watch(lab, &format!("trace --json --reason pass {words}"))?;
            (81..86).try_for_each(|port| send(port)?.map(drop).map_err(anyhow::Error::from))?;
            std::thread::sleep(Duration::from_millis(500));
            assert!(lines(&end(trace)?)?.is_empty(), "{words}");
        }
        // What is not IP is called by its name.
        let trace = watch(lab, "trace --reason not_ipv4")?;
        eventually("ARP", || {
            lab.ip("client", "neigh flush dev eth0").ok()?;
            send(81).ok()?.ok()?;
            trace.stdout().contains(" pass not_ipv4 ARP (0x0806), ").then_some(())
        });
        end(trace)?;

        let unknown = complaint(lab, "trace --backend 10.0.0.19:8080")?;
        assert!(
            unknown.contains("there is no backend 10.0.0.19:8080 (is it 10.0.0.10:8080 or "),
            "{unknown}"
        );
        let unknown = complaint(lab, &format!("capture -w /dev/null --service {VIP}:81"))?;
        assert!(
            unknown.contains("there is no service") && unknown.contains("is it 192.168.1.100:80?"),
            "{unknown}"
        );
        Ok(())
    })
}

/// A reply that nobody but the kernel may know a way for is told without being asked for.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_trace_tells_replies_without_a_route() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let _lb = start(lab)?;
        // The balancer has no route to it.
        lab.ip("client", "address add 203.0.113.9/32 dev lo")?;
        let trace = watch(lab, "trace")?;
        lab.within("client", || -> Result<()> {
            let from = std::net::SocketAddrV4::new([203, 0, 113, 9].into(), 20_001);
            let vip = format!("{VIP}:80").parse()?;
            drop(common::echo::connect_from_port(from, vip, Duration::from_secs(1)));
            Ok(())
        })??;
        let line = eventually("the reply", || {
            let all = trace.stdout();
            all.lines().find(|line| line.contains("stack route_by_kernel")).map(str::to_owned)
        });
        assert!(line.contains("tcp 203.0.113.9:20001 < 192.168.1.100:80 < 10.0.0.1"), "{line}");
        assert!(line.contains("[S.]: left to the kernel: only it can tell or take the route"), "{line}");
        end(trace)?;
        let top = say(lab, "top --once --interval 100ms")?;
        assert!(top.contains("stack: route_by_kernel"), "{top}");
        let told = say(lab, "explain 10.0.0.10:8080 203.0.113.9:20001")?;
        assert!(told.contains("warning     this host has no route to 203.0.113.9: "), "{told}");
        Ok(())
    })
}

/// A tracer that was killed neither keeps others out nor goes on costing.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_killed_tracer_is_forgotten() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = start(lab)?;
        let mut trace = watch(lab, "capture --write /dev/null")?;
        trace.signal(Signal::SIGKILL)?;
        trace.wait()?;
        // A packet after its time costs what it cost before, and so do all that follow.
        assert_ne!(wants()?, 0);
        eventually("it is switched off", || {
            requests(lab, &format!("http://{VIP}/?[1-2]")).ok()?;
            (wants().ok()? == 0).then_some(())
        });
        let mut trace = watch(lab, "trace --json")?;
        trace.signal(Signal::SIGKILL)?;
        trace.wait()?;
        requests(lab, &format!("http://{VIP}/?[1-5]"))?;
        // It waits for the end of the other one's time.
        let trace = watch(lab, "trace --json")?;
        let answers = requests(lab, &format!("http://{VIP}/?[1-5]"))?;
        // Nothing of what came for the other one.
        eventually("all are told", || lines(&trace).ok().filter(|lines| lines.len() >= 15));
        assert_eq!(told(&lines(&trace)?).keys().copied().collect::<BTreeSet<_>>(), ports(&answers));

        // A new process over the same tables goes on telling it.
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        let lb = start(lab)?;
        requests(lab, &format!("http://{VIP}/?[1-5]"))?;
        eventually("all are told", || lines(&trace).ok().filter(|lines| lines.len() >= 30));

        // And when it ends, so does the trace.
        let (mut lb, mut trace) = (lb, trace);
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert_eq!(trace.wait()?.code(), Some(1));
        assert!(trace.stderr().contains("the instance has ended"), "{}", trace.stderr());
        Ok(())
    })
}

/// One that was stopped goes on afterwards, and says that it missed something.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_stopped_tracer_goes_on() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let _lb = start(lab)?;
        let trace = watch(lab, "trace --json")?;
        trace.signal(Signal::SIGSTOP)?;
        eventually("it is switched off", || {
            requests(lab, &format!("http://{VIP}/?[1-2]")).ok()?;
            (wants().ok()? == 0).then_some(())
        });
        trace.signal(Signal::SIGCONT)?;
        eventually("it is switched on", || (wants().ok()? != 0).then_some(()));
        let answers = requests(lab, &format!("http://{VIP}/?[1-3]"))?;
        let has_all = |lines: &[Value]| ports(&answers).iter().all(|port| told(lines).contains_key(port));
        eventually("what comes now is told", || lines(&trace).ok().filter(|lines| has_all(lines)));
        let said = end(trace)?.stderr();
        assert!(
            said.contains("nothing was recorded for a time, 1 times: this process was stopped"),
            "{said}"
        );
        Ok(())
    })
}

/// A reload that makes the tables anew, and changes what is in which row, is followed.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_new_tables_are_followed() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let service = |name: &str, vip: &str, backend: &str| {
            format!(
                "[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nhealth = \"none\"\nbackend = [\"{backend}\"]\n"
            )
        };
        let web = |n: usize| format!("{}:{HTTP}", WEBS[n].1);
        let head = "interface = \"eth0\"\nassign-vip = true\n";
        write(lab, &format!("{head}{}", service("first", &format!("{VIP}:81"), &web(0))))?;
        let _lb = common::live::start(lab)?;
        let trace = watch(lab, "trace --json --reason opened")?;
        requests(lab, &format!("http://{VIP}:81/"))?;
        // So many that the tables must be larger.
        let other = |n: usize| {
            service(&format!("s{n}"), &format!("{VIP}:{}", 1000 + n), &format!("{}:{}", WEBS[1].1, 1000 + n))
        };
        let many: String = (0..300).map(other).collect();
        write(lab, &format!("{head}{many}{}", service("web", &format!("{VIP}:80"), &web(2))))?;
        say(lab, "reload")?;
        std::thread::sleep(std::time::Duration::from_millis(1100));
        requests(lab, &format!("http://{VIP}:80/"))?;
        let lines = eventually("both", || lines(&trace).ok().filter(|lines| lines.len() >= 2));
        let of = |line: &Value| (line["service"].clone(), line["vip"].clone(), line["backend"].clone());
        let expected = |name: &str, port: u16, web: &str| {
            (name.into(), format!("{VIP}:{port}").into(), format!("{web}:{HTTP}").into())
        };
        assert_eq!(of(&lines[0]), expected("first", 81, WEBS[0].1));
        assert_eq!(of(&lines[1]), expected("web", 80, WEBS[2].1));
        Ok(())
    })
}

/// Where nothing says which instance is meant, it is the only one.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_only_instance_is_found() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let other = "--pin-dir /sys/fs/bpf/other";
        let args = format!("eth0 --vip {VIP}:80 {} --assign-vip {other}", weighted(HTTP));
        let _lb = Balancer::start(lab, &args)?;
        for named in ["", other, "--socket /run/xdp-lb/other.sock"] {
            assert_eq!(Figures::read(lab)?.backends("tcp").len(), 3);
            let told = say(lab, &format!("explain {CLIENT}:9 {VIP}:80 --syn --json {named}"))?;
            assert!(told.contains("to_backend"), "{named}: {told}");
            let trace = watch(lab, &format!("trace --json {named}"))?;
            requests(lab, &format!("http://{VIP}/"))?;
            eventually("it is told", || lines(&trace).ok().filter(|lines| lines.len() >= 3));
            end(trace)?;
        }
        // Of two, neither the usual one, none is meant.
        let third = "eth0 --vip 192.168.9.100:80 --backend 192.168.9.2:8080 --pin-dir /sys/fs/bpf/third";
        lab.ip("", "link add eth9 netns web1 type veth peer name far netns web2")?;
        lab.ip("web1", "address add 192.168.9.1/24 dev eth9\nlink set eth9 up")?;
        lab.ip("web2", "link set far up")?;
        let args: Vec<String> = third.replace("eth0", "eth9").split_whitespace().map(str::to_owned).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let third = lab.start("web1", XDP_LB, &args)?;
        eventually("another one", || third.stdout().contains("pinned in").then_some(()));
        let complaint = complaint(lab, "status")?;
        assert!(
            complaint
                .contains("choose one by --socket /run/xdp-lb/other.sock or --socket /run/xdp-lb/third.sock"),
            "{complaint}"
        );
        Ok(())
    })
}

/// What is more than the rate is left out, and that is said.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_rate_holds() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let _lb = start(lab)?;
        let trace = watch(lab, "trace --json --reason sent --rate 5")?;
        let before = std::time::Instant::now();
        requests(lab, &format!("http://{VIP}/?[1-50]"))?;
        let seconds = before.elapsed().as_secs() as usize + 2;
        let trace = end(trace)?;
        let count = lines(&trace)?.len();
        assert!((5..=5 * seconds + 2).contains(&count), "{count} lines in {seconds} s");
        let said = trace.stderr();
        assert!(
            said.contains("more were left out by the rate of 5 a second (--rate), 0 were lost"),
            "{said}"
        );

        // One connection in three, each of them whole.
        let trace = watch(lab, "trace --json --sample 3")?;
        requests(lab, &format!("http://{VIP}/?[1-60]"))?;
        std::thread::sleep(std::time::Duration::from_millis(500));
        let told = told(&lines(&end(trace)?)?);
        assert!((5..=40).contains(&told.len()), "{} of 60 connections", told.len());
        assert!(told.values().all(|events| *events == ["opened", "confirmed", "closed"]), "{told:?}");
        Ok(())
    })
}

/// The fields of each frame of a capture, as tshark reads them.
fn tshark(lab: &Lab, file: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut args =
        vec!["-n", "-o", "tcp.check_checksum:TRUE", "-r", file, "-T", "fields", "-E", "separator=|"];
    fields.iter().for_each(|field| args.extend(["-e", *field]));
    let text = lab.run("lb", "tshark", &args)?;
    Ok(text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect())
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_capture_has_every_frame_twice() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = start(lab)?;
        let before = lb.figures()?;
        let file = lab.dir().join("frames.pcapng").display().to_string();
        let capture = watch(lab, &format!("capture -w {file} --rate 100000"))?;
        let answers = requests(lab, &format!("http://{VIP}/?[1-20]"))?;
        let count = |figures: &Figures, name: &str| figures.reasons("sent").get(name).copied().unwrap_or(0);
        let since = |name: &str| Ok::<_, anyhow::Error>(count(&lb.figures()?, name) - count(&before, name));
        std::thread::sleep(std::time::Duration::from_millis(500));
        // Another one is refused, and leaves the file alone.
        complaint(lab, &format!("capture -w {file}"))?;
        let capture = end(capture)?;
        let (out, back) = (since("to_backend")?, since("to_client")?);
        assert!(
            capture.stderr().contains(&format!("{} packets were captured", out + back)),
            "{}",
            capture.stderr()
        );

        let fields = [
            "ip.src",
            "tcp.srcport",
            "ip.dst",
            "tcp.dstport",
            "ip.ttl",
            "frame.comment",
            "frame.interface_name",
            "frame.packet_flags_direction",
            "tcp.checksum.status",
        ];
        let frames = tshark(lab, &file, &fields)?;
        assert_eq!(frames.len() as u64, 2 * (out + back));
        let clients: BTreeSet<u64> = frames
            .iter()
            .filter(|frame| frame[0] == CLIENT)
            .map(|frame| frame[1].parse().unwrap_or(0))
            .collect();
        assert_eq!(clients, ports(&answers));
        // As they came and as they left, one after the other.
        for pair in frames.chunks(2) {
            let [came, left] = pair else { panic!("a frame without its other: {pair:?}") };
            let (vip, what) = if came[0] == CLIENT { (2, "to_backend") } else { (0, "to_client") };
            let (own, rewritten) = if vip == 2 { (&came[2], &left[2]) } else { (&left[0], &came[0]) };
            assert_eq!(own, VIP, "{pair:?}");
            assert!(WEBS.iter().any(|(_, address)| address == rewritten), "{pair:?}");
            assert_eq!(came[4].parse::<u8>()?, left[4].parse::<u8>()? + 1, "{pair:?}");
            let help = if what == "to_backend" { "sent to a backend" } else { "reply sent to its client" };
            assert!(came[5].contains(help) && left[5].contains(help), "{pair:?}");
            assert!(came[5].contains(&format!("{VIP}:80")), "{pair:?}");
            let ways = if what == "to_backend" { ["eth0", "eth1"] } else { ["eth1", "eth0"] };
            assert_eq!([came[6].as_str(), left[6].as_str()], ways, "{pair:?}");
            // Versions of tshark write the direction in their own ways.
            assert!(came[7].ends_with('1') && left[7].ends_with('2'), "{pair:?}");
            // As it came a local sender may have left it to the device to finish.
            assert_eq!(left[8], "1", "the TCP checksum: {pair:?}");
        }
        let bad = lab.run(
            "lb",
            "tshark",
            &["-n", "-r", &file, "-o", "ip.check_checksum:TRUE", "-Y", "ip.checksum.status==0"],
        )?;
        assert_eq!(bad, "", "IP checksums are wrong");
        Ok(())
    })
}

/// What is dropped is captured with its reason; a limit and a length hold.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_capture_tells_why_a_packet_was_dropped() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let args = format!("eth0 --vip {VIP}:53/udp {} --assign-vip", weighted(53));
        let _lb = Balancer::start(lab, &args)?;
        for (_, address) in WEBS {
            say(lab, &format!("backend disable {VIP}:53/udp {address}:53"))?;
        }
        let file = lab.dir().join("drops.pcapng").display().to_string();
        let mut capture =
            watch(lab, &format!("capture --write {file} --reason drop --limit 2 --snaplen 64"))?;
        lab.within("client", || -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            (0..3).try_for_each(|_| socket.send_to(&[0; 300], (VIP, 53)).map(drop))?;
            Ok(())
        })??;
        assert!(capture.wait()?.success());
        let frames = tshark(lab, &file, &["frame.len", "frame.cap_len", "ip.dst", "frame.comment"])?;
        assert_eq!(frames.len(), 2);
        for frame in &frames {
            assert_eq!(frame[..3], ["342".to_owned(), "64".to_owned(), VIP.to_owned()]);
            assert!(
                frame[3].contains("drop no_backend") && frame[3].contains("no backend takes new connections"),
                "{frame:?}"
            );
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file)?.permissions());
        assert_eq!(mode & 0o777, 0o600);
        Ok(())
    })
}
