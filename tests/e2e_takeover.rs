//! Instances that are killed, and those that start over what they left.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::balancer::{
    Balancer, FOUND, Figures, PIN_DIR, XDP_LB, assert_nothing_left, has_address, has_xdp, pins, refused,
    restart, weighted,
};
use common::clients::{KeepAlive, assert_weighted, requests, spread};
use common::eventually;
use common::netns::{Lab, in_lab};
use common::networks::{CLIENT, VIP, WEBS, reachable, two_arms, veth_peer};
use common::servers::{HTTP, nginx, nginx_everywhere};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

fn args() -> String {
    format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP))
}

fn ifindex(lab: &Lab, interface: &str) -> Result<u32> {
    let text = lab.ip_show("lb", &format!("-o link show dev {interface}"))?;
    Ok(text.split(':').next().context("no index")?.trim().parse()?)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_connections_outlive_their_balancer() -> Result<()> {
    const IDLE: usize = 10_000;
    const FILE: usize = 20 << 20;
    in_lab(|lab| {
        let files = IDLE as u64 + 5000;
        setrlimit(Resource::RLIMIT_NOFILE, files, files.max(getrlimit(Resource::RLIMIT_NOFILE)?.1))?;
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        for (web, _) in WEBS {
            fs::write(lab.dir().join(web).join("file"), vec![b'x'; FILE])?;
        }
        let lb = Balancer::start(lab, &args())?;
        let mut kept = KeepAlive::open(lab, VIP, 80)?;
        let web = kept.ask()?;
        let mut idle = KeepAlive::open_many(lab, VIP, 80, IDLE)?;
        let url = format!("http://{VIP}/file");
        let curl =
            ["-sS", "--limit-rate", "1500k", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", &url];
        let mut download = lab.start("client", "curl", &curl)?;
        sleep(Duration::from_millis(500));

        // Twice: what was taken over can be taken over.
        let lb = restart(lab, lb, &args())?;
        assert_eq!(kept.ask()?, web);
        let mut lb = restart(lab, lb, &args())?;
        assert_eq!(kept.ask()?, web);
        assert!(download.ended()?.is_none(), "the download was over before: {}", download.stdout());
        for connection in &mut idle {
            connection.ask()?;
        }
        assert!(download.wait()?.success(), "{}", download.stderr());
        assert_eq!(download.stdout(), format!("200 {FILE}"));
        let connections: u64 = lb.figures()?.connections("tcp").values().sum();
        assert_eq!(connections, IDLE as u64 + 2, "no connection was placed anew");
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert_nothing_left(lab)
    })
}

/// Datagrams at a constant rate through the balancer, each answered by its backend.
struct Stream {
    stop: AtomicBool,
}

impl Stream {
    const FLOWS: usize = 16;
    const PERIOD: Duration = Duration::from_micros(500);

    /// Runs something while the stream flows; how many datagrams were sent, and which had no answer.
    fn during(lab: &Lab, port: u16, what: impl FnOnce() -> Result<()>) -> Result<(u32, Vec<u32>)> {
        let bind = || (0..Self::FLOWS).map(|_| UdpSocket::bind((CLIENT, 0))).collect::<Result<Vec<_>, _>>();
        let sockets = lab.within("client", bind)??;
        for socket in &sockets {
            socket.connect((VIP, port))?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        }
        let stream = Stream { stop: AtomicBool::new(false) };
        thread::scope(|scope| {
            let sender = scope.spawn(|| stream.send(&sockets));
            let receivers: Vec<_> =
                sockets.iter().map(|socket| scope.spawn(|| stream.receive(socket))).collect();
            let done = what();
            stream.stop.store(true, Ordering::Release);
            let sent = sender.join().expect("no panic")?;
            let mut answered = BTreeSet::new();
            for receiver in receivers {
                answered.extend(receiver.join().expect("no panic"));
            }
            done?;
            Ok((sent, (0..sent).filter(|number| !answered.contains(number)).collect()))
        })
    }

    fn send(&self, sockets: &[UdpSocket]) -> Result<u32> {
        let mut number = 0u32;
        let mut due = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            sockets[number as usize % sockets.len()].send(&number.to_be_bytes())?;
            number += 1;
            // Late is late: a burst would fill queues that have nothing to do with this.
            due = (due + Self::PERIOD).max(Instant::now() - Duration::from_millis(5));
            sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(number)
    }

    /// Until nothing comes any more after the end.
    fn receive(&self, socket: &UdpSocket) -> Vec<u32> {
        let mut numbers = Vec::new();
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            let mut number = [0; 4];
            match socket.recv(&mut number) {
                Ok(_) => numbers.push(u32::from_be_bytes(number)),
                Err(_) if stopping => return numbers,
                Err(_) => {}
            }
        }
    }
}

/// A server that sends every datagram back, in each of the backends' namespaces.
fn echo_everywhere(lab: &Lab, port: u16) -> Result<()> {
    for (web, address) in WEBS {
        let socket = lab.within(web, || UdpSocket::bind((address, port)))??;
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if socket.send_to(&buffer[..length], from).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_not_one_packet_is_lost() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        echo_everywhere(lab, HTTP)?;
        let args = |backends: &str| format!("eth0 --vip {VIP}:53/udp {backends} --assign-vip");
        let lb = Balancer::start(lab, &args(&weighted(HTTP)))?;
        let mut last = None;
        let (sent, lost) = Stream::during(lab, 53, || {
            sleep(Duration::from_millis(300));
            let lb = restart(lab, lb, &args(&weighted(HTTP)))?;
            // A backend that goes, another weight, another scheduler: flows stay where they are.
            let fewer =
                format!("--backend 10.0.0.11:{HTTP}:1 --backend 10.0.0.10:{HTTP}:7 --scheduler maglev");
            let lb = restart(lab, lb, &args(&fewer))?;
            assert!(lb.process.stderr().contains("remove backend 10.0.0.12:8080"), "{}", lb.process.stderr());
            // The kernel has forgotten the neighbours: the old MACs do until it knows them again.
            let mut lb = lb;
            assert_eq!(lb.stop(Signal::SIGKILL)?, None);
            lab.ip("lb", "neighbour flush dev eth0\nneighbour flush dev eth1")?;
            last = Some(Balancer::start(lab, &args(&weighted(HTTP)))?);
            Ok(())
        })?;
        assert!(sent > 1000, "only {sent} were sent");
        assert!(lost.is_empty(), "of {sent}: {lost:?}");
        let figures = last.context("no instance")?.figures()?;
        assert_eq!(figures.connections("udp").values().sum::<u64>(), Stream::FLOWS as u64);
        figures.assert_all_direct();
        Ok(())
    })
}

/// The backends of the service as `status` shows them: address, state and weight.
fn shown(figures: &Figures) -> BTreeSet<(String, String, u64)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    figures
        .backends("tcp")
        .iter()
        .map(|backend| {
            (text(&backend["address"]), text(&backend["state"]), backend["weight"].as_u64().unwrap_or(0))
        })
        .collect()
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_start_with_other_arguments_is_a_reload() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args())?;
        // The sixth of each walk of the ring: one connection to each.
        let mut kept = KeepAlive::open_many(lab, VIP, 80, 10)?;
        let webs = kept.iter_mut().map(KeepAlive::ask).collect::<Result<Vec<_>>>()?;

        let two = "--backend 10.0.0.10:8080:30 --backend 10.0.0.11:8080:30 --scheduler rr";
        let quick = "--timeout-closing 1s --stats-interval 200ms";
        let lb = restart(lab, lb, &format!("eth0 --vip {VIP}:80 {two} {quick} --assign-vip"))?;
        let said = lb.process.stderr();
        for step in [
            "scheduler weighted-round-robin -> round-robin",
            "remove backend 10.0.0.12:8080",
            "backend 10.0.0.10:8080: weight 50 -> 30",
        ] {
            assert!(said.contains(&format!("service {VIP}:80/tcp: {step}")), "no {step:?} in {said}");
        }
        assert!(!said.contains("10.0.0.11"), "it did not change: {said}");
        // Live connections stay, those to the removed backend too; new ones go round the others.
        for (connection, web) in kept.iter_mut().zip(&webs) {
            assert_eq!(&connection.ask()?, web);
        }
        let answers = requests(lab, &format!("http://{VIP}/?[1-20]"))?;
        assert_eq!(spread(&answers), [("web1", 10), ("web2", 10)].into());
        let row = |address: &str, state: &str, weight| (format!("{address}:8080"), state.to_owned(), weight);
        let rest = BTreeSet::from([row("10.0.0.10", "up", 30), row("10.0.0.11", "up", 30)]);
        let mut with_removed = rest.clone();
        with_removed.insert(row("10.0.0.12", "removed", 20));
        assert_eq!(shown(&lb.figures()?), with_removed);
        // With its last connection it is gone.
        drop(kept);
        eventually("the removed backend is gone", || (shown(&lb.figures().ok()?) == rest).then_some(()));
        assert!(lb.process.stderr().contains("10.0.0.12:8080, which was removed, has no connections"));

        // It comes back, and the others keep their connections.
        let mut kept = KeepAlive::open_many(lab, VIP, 80, 4)?;
        let webs = kept.iter_mut().map(KeepAlive::ask).collect::<Result<Vec<_>>>()?;
        let mut lb = restart(lab, lb, &args())?;
        assert!(lb.process.stderr().contains("add backend 10.0.0.12:8080 weight 20"));
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        for (connection, web) in kept.iter_mut().zip(&webs) {
            assert_eq!(&connection.ask()?, web);
        }
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert_nothing_left(lab)
    })
}

/// The old service goes with its address and its connections; a start with the same arguments changes nothing.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_another_vip() -> Result<()> {
    const OTHER: &str = "192.168.1.101";
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args())?;
        let mut kept = KeepAlive::open(lab, VIP, 80)?;
        kept.ask()?;
        let other = format!("{} --stats-interval 200ms", args().replace(VIP, OTHER));
        let lb = restart(lab, lb, &other)?;
        assert!(has_address(lab, "lb", "eth0", OTHER)? && !has_address(lab, "lb", "eth0", VIP)?);
        let said = lb.process.stderr();
        assert!(said.contains(&format!("service {VIP}:80/tcp: remove")), "{said}");
        assert!(said.contains(&format!("service {OTHER}:80/tcp: add")), "{said}");
        assert_weighted(&requests(lab, &format!("http://{OTHER}/?[1-100]"))?, OTHER);
        let services = lb.figures()?.0["services"].as_array().map(Vec::len);
        assert_eq!(services, Some(1));
        // The sweep forgets the connections of the service that is gone: only those of the other are left.
        eventually("its connections are forgotten", || {
            let table = &lb.figures().ok()?.0["table"];
            let sum =
                ["confirmed", "unconfirmed", "replaceable"].map(|kind| table[kind].as_u64().unwrap_or(0));
            (sum.iter().sum::<u64>() == 100).then_some(())
        });
        let mut lb = restart(lab, lb, &other)?;
        let said = lb.process.stderr();
        assert!(!said.contains("service "), "nothing changed: {said}");
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert!(!has_address(lab, "lb", "eth0", OTHER)?);
        assert_nothing_left(lab)
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_table_of_another_size() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = Balancer::start(lab, &args())?;
        let mut kept = KeepAlive::open_many(lab, VIP, 80, 100)?;
        let webs = kept.iter_mut().map(KeepAlive::ask).collect::<Result<Vec<_>>>()?;
        for max in [5000, 200_000, 400] {
            lb = restart(lab, lb, &format!("{} --max-connections {max}", args()))?;
            let said = lb.process.stderr();
            assert!(said.contains("filled from the old ones: connections, settings"), "{said}");
            let slots = max * 7 / 8 * 4;
            assert_eq!(lb.figures()?.0["table"]["slots"].as_u64(), Some(slots));
            for (connection, web) in kept.iter_mut().zip(&webs) {
                assert_eq!(&connection.ask()?, web, "with {max}");
            }
            assert_eq!(lb.figures()?.connections("tcp").values().sum::<u64>(), 100, "none was placed anew");
        }
        // The rotation goes on as well.
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        // One that cannot hold them all says so.
        let lb = restart(lab, lb, &format!("{} --max-connections 16", args()))?;
        let said = lb.process.stderr();
        assert!(said.contains("confirmed connections found no place in the smaller table"), "{said}");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_interfaces_that_are_not_used_any_more() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.add(&["web4"])?;
        lab.ip("", "link add eth2 netns lb type veth peer name eth0 netns web4")?;
        lab.ip("lb", "address add 10.4.0.1/24 dev eth2\nlink set eth2 up")?;
        lab.ip(
            "web4",
            "address add 10.4.0.10/24 dev eth0
            link set eth0 up
            route add default via 10.4.0.1",
        )?;
        let _web4 = nginx(lab, "web4")?;
        lab.wait_for_port("web4", "tcp", HTTP)?;
        veth_peer(lab, "web4", "eth0")?;
        reachable(lab, "lb", "10.4.0.10")?;
        let lb = Balancer::start(lab, &format!("{} --backend 10.4.0.10:8080:1", args()))?;
        assert!(has_xdp(lab, "lb", "eth2")?);
        let eth2 = format!("link_{}", ifindex(lab, "eth2")?);
        assert!(pins()?.contains(&eth2));
        let mut kept = KeepAlive::open(lab, VIP, 80)?;
        let web = kept.ask()?;

        let lb = restart(lab, lb, &args())?;
        assert!(lb.process.stderr().contains("is not used any more"), "{}", lb.process.stderr());
        assert!(!has_xdp(lab, "lb", "eth2")? && !pins()?.contains(&eth2));
        assert_eq!(kept.ask()?, web);
        // While a connection to the backend that it faces lives, it is used.
        let lb = restart(lab, lb, &format!("eth0 --vip {VIP}:80 --backend 10.4.0.10:8080 --assign-vip"))?;
        let mut to_web4 = KeepAlive::open(lab, VIP, 80)?;
        assert_eq!(to_web4.ask()?, "web4");
        let lb = restart(lab, lb, &args())?;
        assert!(has_xdp(lab, "lb", "eth2")? && pins()?.contains(&eth2));
        assert_eq!(to_web4.ask()?, "web4");
        assert_eq!(kept.ask()?, web);
        drop(to_web4);
        // And one that is gone, pins and all, disturbs nobody.
        let mut lb = restart(lab, lb, &format!("{} --backend 10.4.0.10:8080:1", args()))?;
        assert!(has_xdp(lab, "lb", "eth2")?);
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        lab.ip("lb", "link delete eth2")?;
        let mut lb = Balancer::start(lab, &args())?;
        assert!(!pins()?.contains(&eth2));
        assert_eq!(kept.ask()?, web);
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert_nothing_left(lab)
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_another_mode() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args())?;
        let mut kept = KeepAlive::open(lab, VIP, 80)?;
        let web = kept.ask()?;
        let lb = restart(lab, lb, &format!("{} --xdp-mode skb", args()))?;
        assert!(lb.process.stderr().contains("eth0 changes its mode"), "{}", lb.process.stderr());
        assert_eq!(lb.process.stdout().matches("in SKB mode").count(), 2, "{}", lb.process.stdout());
        assert_eq!(kept.ask()?, web);
        // Without a wish it stays as it is.
        let lb = restart(lab, lb, &args())?;
        assert!(lb.process.stderr().contains("stays in SKB mode"), "{}", lb.process.stderr());
        assert_eq!(kept.ask()?, web);
        let lb = restart(lab, lb, &format!("{} --xdp-mode native", args()))?;
        assert_eq!(lb.process.stdout().matches("in native mode").count(), 2, "{}", lb.process.stdout());
        assert_eq!(kept.ask()?, web);
        Ok(())
    })
}

/// Makes the pinned tables those of another version.
fn set_abi(abi: u32) -> Result<()> {
    let settings = MapHandle::from_pinned_path(format!("{PIN_DIR}/settings"))?;
    let key = 0u32.to_ne_bytes();
    let mut value = settings.lookup(&key, MapFlags::ANY)?.context("no settings")?;
    value[..4].copy_from_slice(&abi.to_ne_bytes());
    Ok(settings.update(&key, &value, MapFlags::ANY)?)
}

/// The directory that packets of the program which uses this table find.
fn directory_in(table: &MapHandle) -> Result<Vec<u8>> {
    table.lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?.context("no directory")
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_tables_of_other_versions() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = Balancer::start(lab, &args())?;
        let mut kept = KeepAlive::open_many(lab, VIP, 80, 10)?;
        let webs = kept.iter_mut().map(KeepAlive::ask).collect::<Result<Vec<_>>>()?;
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);

        // One that is known is converted. Its program runs until it is swapped, and must find its own directory until then:
        // another version's may be laid out in another way.
        set_abi(1)?;
        let old = MapHandle::from_pinned_path(format!("{PIN_DIR}/directory"))?;
        let before = directory_in(&old)?;
        let mut lb = Balancer::start(lab, &args())?;
        assert_eq!(directory_in(&old)?, before, "the old program's directory was changed under it");
        let said = lb.process.stderr();
        assert!(said.contains("filled from the old ones: ") && said.contains("directory"), "{said}");
        for (connection, web) in kept.iter_mut().zip(&webs) {
            assert_eq!(&connection.ask()?, web);
        }
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);

        // One that is not: what is lost is said, and a start that fails loses nothing.
        set_abi(4711)?;
        let lost = "version 4711, which this program does not know: 10 confirmed connections are lost";
        let (code, said) = refused(lab, &format!("{} --backend 10.77.0.1:80", args()))?;
        assert!(code == Some(1) && said.contains("10.77.0.1"), "{said}");
        assert_eq!(kept[0].ask()?, webs[0]);
        let mut lb = Balancer::start(lab, &args())?;
        assert!(lb.process.stderr().contains(lost), "{}", lb.process.stderr());
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert_nothing_left(lab)
    })
}

/// The kernel tells the name of a program, and maps by their ids, to CAP_SYS_ADMIN alone: pins must do.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_with_few_capabilities() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let few = "--bounding-set=-all,+bpf,+net_admin,+perfmon,+net_raw,+dac_override,+ipc_lock";
        let args = args();
        let words: Vec<&str> = [few, "--", XDP_LB].into_iter().chain(args.split_whitespace()).collect();
        let mut kept = None;
        for turn in 0..3 {
            let mut process = lab.start("lb", "setpriv", &words)?;
            eventually("it runs", || {
                let ended = process.ended().ok().flatten();
                assert!(ended.is_none(), "it ended: {}", process.stderr());
                process.stdout().contains("pinned in ").then_some(())
            });
            assert_eq!(process.stderr().contains(FOUND), turn > 0, "{}", process.stderr());
            let (held, web) = match &mut kept {
                Some(kept) => kept,
                none => {
                    let mut held = KeepAlive::open(lab, VIP, 80)?;
                    let web = held.ask()?;
                    none.insert((held, web))
                }
            };
            assert_eq!(held.ask()?, *web);
            process.signal(Signal::SIGKILL)?;
            process.wait()?;
        }
        Ok(())
    })
}
