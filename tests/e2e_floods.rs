//! Floods of packets, each of ten times as many as the connection table has slots, while thousands of real connections talk
//! and new ones are opened.
//!
//! `XDP_LB_FLOOD_CONNECTIONS` sets how many connections talk (10,000; the table is made for a quarter more),
//! `XDP_LB_FLOOD_FACTOR` how many times the table's slots a flood has (10), and `XDP_LB_FLOOD_RATE` its packets a second
//! (400,000). At a much higher rate than the CPUs can take the veth loses most packets, those of the clients too, before
//! they come to the load balancer.

mod common;

use std::collections::BTreeMap;
use std::env;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use common::balancer::{Balancer, Figures};
use common::echo::{Conversations, allow_files};
use common::far_end::{Action, FarEnd, Passed, Rule};
use common::generator::{ACK, Generator, Kind, Order, Plan, RST, SYN};
use common::netns::{Lab, Process, in_lab};
use common::networks::{CLIENT, VIP, WEBS, two_arms_bare};
use common::newcomers::Newcomers;
use common::pinned::Pinned;
use common::servers::{HTTP, nginx_everywhere};
use common::{PATIENCE, within};
use nix::net::if_::if_nametoindex;

const VIP_PORT: u16 = 80;
/// Those who talk, and those who are new.
const TALKERS: [Ipv4Addr; 4] = [client(3), client(4), client(5), client(6)];
const NEWCOMERS: [Ipv4Addr; 4] = [client(11), client(12), client(13), client(14)];
/// The flood's own network (RFC 2544).
const FLOOD: (Ipv4Addr, u32) = (Ipv4Addr::new(198, 18, 0, 0), 15);
const FLOOD_CLIENTS: u64 = (1 << 17) * 65_535;
/// By which the flood's frames are told from others behind the load balancer.
const TOS: u8 = 0x04;
const TCP_FRAME: usize = 54;
/// Requests a second.
const RATE: u64 = 10_000;
/// Each flood goes on until so much time has passed, too: else there are few new connections meanwhile.
const LEAST: Duration = Duration::from_millis(1500);
const BETWEEN_NEWCOMERS: Duration = Duration::from_millis(5);
/// Of new connections.
const FEW: usize = 100;
/// New connections after a flood.
const LATER: u32 = 100;
/// Confirmed connections of clients that gave up, which nobody ends.
const STRAYS: u64 = 20;
/// Packets of one system call, which takes 30 ms to get ready.
const CHUNK: u32 = 1 << 16;
/// How many times as many are sent as are to arrive, before it is given up.
const MOST: u64 = 50;
/// One of so many packets may find nothing but confirmed connections where its own could lie.
const RARE: u64 = 10_000;
/// How many frames later an attacker goes on with a client; by then the answer to the first frame has come.
const LAG: u32 = 4096;
/// For what is still on its way.
const SETTLE: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(1);
const TIMEOUT_UDP: Duration = Duration::from_secs(2);
/// A timeout is rounded up twice to units of up to 0.5 s, and looking takes its time.
const TIMEOUT_SLACK: Duration = Duration::from_millis(1500);

const fn client(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 1, n)
}

fn number(name: &str, default: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

/// A flood, and what must become of it.
struct Flood {
    name: &'static str,
    kind: Kind,
    order: Order,
    from: (Ipv4Addr, u64, RangeInclusive<u16>),
    /// What becomes of it behind the load balancer, which is what is tested. Counted and dropped at the servers' end of the
    /// wire, or answered there as by a server with SYN cookies, at a rate that no kernel reaches: it would take the CPU
    /// time that clients and servers need. Packets that hit real connections do go to the servers.
    behind: Action,
    /// The reason for which all, or all that hit no connection, are dropped; else they are sent to backends.
    drop: Option<&'static str>,
    /// Its connections become confirmed, so that they take every slot that real ones do not have.
    confirms: bool,
}

fn floods() -> Vec<Flood> {
    let random = (FLOOD.0, FLOOD_CLIENTS, 1..=65_535);
    let flood = |name, kind| Flood {
        name,
        kind,
        order: Order::Random,
        from: random.clone(),
        behind: Action::Drop,
        drop: None,
        confirms: false,
    };
    let pairs = Kind::TcpPairs { first: SYN, second: ACK, lag: LAG };
    let rst = Flood { drop: Some("rst_unknown"), ..flood("RST", Kind::Tcp(RST)) };
    let talkers = (TALKERS[0], TALKERS.len() as u64 * 65_535, 1..=65_535);
    let one_client = (FLOOD.0, 65_535, 1..=65_535);
    vec![
        flood("SYN", Kind::Tcp(SYN)),
        Flood { behind: Action::Answer, ..flood("SYN, answered", Kind::Tcp(SYN)) },
        flood("ACK without SYN", Kind::Tcp(ACK)),
        Flood { behind: Action::Answer, ..flood("SYN and ACK, answered", pairs) },
        flood("UDP", Kind::Udp),
        Flood { behind: Action::Answer, ..flood("UDP, answered", Kind::Udp) },
        Flood { name: "RST in the clients' names", from: talkers, behind: Action::Pass, ..rst },
        Flood { name: "RST", from: random.clone(), behind: Action::Drop, ..rst },
        Flood {
            order: Order::Counting,
            from: one_client,
            ..flood("SYN, all ports of one client", Kind::Tcp(SYN))
        },
        // Where the bucket is full, some of its clients' other one may be full, too.
        Flood {
            order: Order::Listed,
            drop: Some("table_full"),
            ..flood("SYN, for one bucket by the key", Kind::Tcp(SYN))
        },
        Flood {
            behind: Action::Answer,
            drop: Some("table_full"),
            confirms: true,
            ..flood("UDP twice, answered", Kind::UdpTwice { lag: LAG })
        },
    ]
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_floods() -> Result<()> {
    let connections = number("XDP_LB_FLOOD_CONNECTIONS", 10_000)?;
    let factor = number("XDP_LB_FLOOD_FACTOR", 10)?;
    let rate = number("XDP_LB_FLOOD_RATE", 400_000)?;
    allow_files(connections + 1024)?;
    in_lab(move |lab| {
        let scene = Scene::set(lab, connections, factor, rate)?;
        println!("| flood | packets | a second | new connections | counted as | recovery |");
        println!("| --- | --- | --- | --- | --- | --- |");
        for (n, flood) in (1..).zip(floods()) {
            scene.flood(&flood, n).with_context(|| format!("flood: {}", flood.name))?;
        }
        let now = scene.conversations.answers();
        scene.conversations.all_answered_since(&now, PATIENCE)?;
        println!("all {} connections go on", now.len());
        Ok(())
    })
}

/// Everything that a flood meets. The first fields end first.
struct Scene<'a> {
    conversations: Conversations,
    lb: Balancer<'a>,
    _servers: Vec<Process>,
    generator: Generator,
    at_clients: FarEnd,
    at_servers: FarEnd,
    lab: &'a Lab,
    /// Of the load balancer and of the client.
    macs: [[u8; 6]; 2],
    ifindex: u32,
    vip: SocketAddrV4,
    /// Frames of a flood, and of a second.
    frames: u64,
    rate: u32,
}

/// What is counted, at one time.
struct Look {
    reasons: BTreeMap<String, u64>,
    confirmed: u64,
    at_clients: Passed,
    at_servers: Passed,
    /// What XDP sent and the veth had no room for: ahead of the load balancer, behind it, and of the answers.
    lost_ahead: u64,
    lost_behind: u64,
    lost_back: u64,
}

/// What was sent, and how it went.
struct Sent {
    frames: u64,
    took: Duration,
    ended: Instant,
    newcomers: Newcomers,
}

impl<'a> Scene<'a> {
    fn set(lab: &'a Lab, connections: u64, factor: u64, rate: u64) -> Result<Scene<'a>> {
        network(lab)?;
        let answers = Rule { clients: FLOOD, tos: 0, action: Action::Drop };
        let at_clients = FarEnd::attach(lab, "client", "eth0", answers)?;
        let at_servers = FarEnd::attach(lab, "switch", "lb", Rule { tos: TOS, ..answers })?;
        let servers = nginx_everywhere(lab)?;
        let vip = SocketAddrV4::new(VIP.parse()?, VIP_PORT);
        let lb = Balancer::start(
            lab,
            &format!(
                "eth0 --vip {vip}/any --assign-vip --max-connections {} --timeout-unconfirmed {}s \
                --timeout-udp {}s {}",
                connections * 5 / 4,
                TIMEOUT.as_secs(),
                TIMEOUT_UDP.as_secs(),
                WEBS.map(|(_, address)| format!("--backend {address}:{HTTP} ")).concat()
            ),
        )?;
        let slots = lb.figures()?.0["table"]["slots"].as_u64().context("no slots")?;
        let conversations = Conversations::open(lab, &TALKERS, vip, usize::try_from(connections)?, RATE)?;
        let now = conversations.answers();
        conversations.all_answered_since(&now, PATIENCE)?;
        println!("{connections} connections talk, the table has {slots} slots");
        // The first reply to an address waits for its MAC.
        let first = Newcomers::come(lab, &NEWCOMERS, vip, BETWEEN_NEWCOMERS, |n| n < LATER)?;
        ensure!(first.answered() == first.count(), "before any flood: {}", first.summary());
        Ok(Scene {
            conversations,
            lb,
            _servers: servers,
            generator: Generator::load(TCP_FRAME)?,
            at_clients,
            at_servers,
            lab,
            macs: [mac(lab, "lb", "eth0")?, mac(lab, "client", "eth0")?],
            ifindex: lab.within("client", || if_nametoindex("eth0"))??,
            vip,
            frames: slots * factor,
            rate: u32::try_from(rate)?,
        })
    }

    /// A flood, and what must be true during it and after it.
    fn flood(&self, flood: &Flood, number: u64) -> Result<()> {
        let mut plan = self.plan(flood, number)?;
        let mut aim = None;
        if flood.order == Order::Listed {
            let table = Pinned::open()?;
            let aimed = table.aim(FLOOD.0, 256)?;
            self.generator.list(&aimed.clients)?;
            plan.clients = aimed.clients.len() as u64;
            aim = Some((table, aimed));
        }
        self.generator.set(&plan)?;
        self.at_servers.set(Rule { clients: FLOOD, tos: TOS, action: flood.behind })?;
        let answers = self.conversations.answers();
        let before = self.look()?;
        let sent = self.send()?;
        ensure!(self.generator.sent(&plan)? == sent.frames, "the generator sent something else");
        thread::sleep(SETTLE);
        let after = self.look()?;
        let counted = Counted::new(&before, &after, sent.frames);
        counted.check(flood, &sent.newcomers)?;
        let talking = self.conversations.answers().len() as u64;
        ensure!(after.confirmed >= talking, "{} confirmed, {talking} talk", after.confirmed);
        let recovery = self.recovery(flood, &before, sent.ended)?;
        let later = self.come(|n| n < LATER)?;
        self.conversations.all_answered_since(&answers, PATIENCE)?;
        let hit = aim.map(|(table, aimed)| table.hit(&aimed)).transpose()?;
        println!(
            "| {} | {} | {:.0} k | {} | {}{} | {recovery:.1?} |",
            flood.name,
            counted.arrived,
            counted.arrived as f64 / sent.took.as_secs_f64() / 1e3,
            sent.newcomers.summary(),
            counted.summary(),
            hit.map(|hit| format!("; in the bucket then: {hit}")).unwrap_or_default(),
        );
        let during = &sent.newcomers;
        ensure!(during.count() >= FEW || flood.confirms, "only {} new connections", during.count());
        let good = during.at_once() * 10 >= during.count() * 9;
        ensure!(good || flood.confirms, "during the flood: {}", during.summary());
        ensure!(later.answered() == later.count(), "after the flood: {}", later.summary());
        Ok(())
    }

    fn plan(&self, flood: &Flood, number: u64) -> Result<Plan> {
        let (first_address, clients, ports) = flood.from.clone();
        Ok(Plan {
            kind: flood.kind,
            order: flood.order,
            // Else it would have the clients of the last flood, whose entries are still there.
            seed: number,
            first_address,
            clients,
            ports,
            target: self.vip,
            tos: TOS,
            to: self.macs[0],
            from: self.macs[1],
            ifindex: self.ifindex,
            most: Some(self.rate),
        })
    }

    fn come(&self, next: impl FnMut(u32) -> bool + Send) -> Result<Newcomers> {
        Newcomers::come(self.lab, &NEWCOMERS, self.vip, BETWEEN_NEWCOMERS, next)
    }

    /// Sends until enough has arrived at the load balancer; new clients come meanwhile.
    fn send(&self) -> Result<Sent> {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let newcomers = scope.spawn(|| self.come(|_| !done.load(Ordering::Relaxed)));
            let sent = self.lab.within("client", || self.send_enough());
            done.store(true, Ordering::Relaxed);
            let newcomers = newcomers.join().map_err(|_| anyhow!("a client panicked"))??;
            let (frames, took, ended) = sent??;
            Ok(Sent { frames, took, ended, newcomers })
        })
    }

    fn send_enough(&self) -> Result<(u64, Duration, Instant)> {
        let lost = lost_into(self.lab, "client", "eth0")?;
        let (mut sent, mut arrived, started) = (0, 0, Instant::now());
        while arrived < self.frames || started.elapsed() < LEAST {
            ensure!(sent < self.frames * MOST, "of {sent} packets only {arrived} arrived");
            self.generator.send(CHUNK)?;
            sent += u64::from(CHUNK);
            arrived = sent - (lost_into(self.lab, "client", "eth0")? - lost);
        }
        Ok((sent, started.elapsed(), Instant::now()))
    }

    fn look(&self) -> Result<Look> {
        let figures = self.lb.figures()?;
        let mut reasons = BTreeMap::new();
        for class in ["sent", "stack", "pass", "drop", "error"] {
            let named = |(name, count)| (format!("{class} {name}"), count);
            reasons.extend(figures.reasons(class).into_iter().map(named));
        }
        Ok(Look {
            reasons,
            confirmed: entries(&figures, "confirmed")?,
            at_clients: self.at_clients.passed()?,
            at_servers: self.at_servers.passed()?,
            lost_ahead: lost_into(self.lab, "client", "eth0")?,
            lost_behind: lost_into(self.lab, "lb", "eth1")?,
            lost_back: lost_into(self.lab, "switch", "lb")? + lost_into(self.lab, "lb", "eth0")?,
        })
    }

    /// Waits until each of the flood's entries may be replaced; how long after the flood that is.
    fn recovery(&self, flood: &Flood, before: &Look, ended: Instant) -> Result<Duration> {
        let timeout = if flood.confirms { TIMEOUT_UDP } else { TIMEOUT };
        let limit = (timeout + TIMEOUT_SLACK).saturating_sub(ended.elapsed());
        within(limit, "the flood's entries are over their timeout", || {
            let figures = self.lb.figures().ok()?;
            let over = entries(&figures, "unconfirmed").ok()? == 0
                && entries(&figures, "confirmed").ok()? <= before.confirmed + STRAYS;
            over.then_some(())
        });
        Ok(ended.elapsed())
    }
}

fn entries(figures: &Figures, kind: &str) -> Result<u64> {
    figures.0["table"][kind].as_u64().with_context(|| format!("no {kind}"))
}

/// Two arms, more clients, and a way back to the flood's.
fn network(lab: &Lab) -> Result<()> {
    two_arms_bare(lab)?;
    for address in TALKERS.iter().chain(&NEWCOMERS) {
        lab.ip("client", &format!("address add {address}/24 dev eth0"))?;
    }
    lab.ip("lb", &format!("route add {}/{} via {CLIENT}", FLOOD.0, FLOOD.1))?;
    // A flood of SYNs fills no queue of the servers then, and real clients are answered too.
    WEBS.iter().try_for_each(|(web, _)| lab.set_sysctl(web, "net/ipv4/tcp_syncookies", "2"))
}

fn mac(lab: &Lab, namespace: &str, interface: &str) -> Result<[u8; 6]> {
    let text = lab.ip_show(namespace, &format!("link show dev {interface}"))?;
    let (_, rest) = text.split_once("link/ether ").context("no MAC")?;
    let bytes: Result<Vec<u8>, _> = rest[..17].split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes?.try_into().map_err(|_| anyhow!("the MAC in {text}"))
}

/// Frames that XDP has sent into a veth while its ring was full.
fn lost_into(lab: &Lab, namespace: &str, interface: &str) -> Result<u64> {
    let text = lab.run(namespace, "ethtool", &["-S", interface])?;
    let counts = text.lines().filter_map(|line| line.trim().split_once(": "));
    let counts: Vec<u64> = counts
        .filter(|(name, _)| name.ends_with("_xdp_xmit_errors") || name.ends_with("_xdp_tx_errors"))
        .map(|(_, count)| count.parse())
        .collect::<Result<_, _>>()?;
    ensure!(!counts.is_empty(), "{interface} does not count what it loses:\n{text}");
    Ok(counts.iter().sum())
}

/// What became of a flood's packets.
#[derive(Debug)]
struct Counted {
    arrived: u64,
    to_servers: u64,
    /// All to clients that never were.
    answers: u64,
    lost_behind: u64,
    lost_back: u64,
    /// Of all packets, real ones too.
    reasons: BTreeMap<String, u64>,
}

impl Counted {
    fn new(before: &Look, after: &Look, sent: u64) -> Counted {
        let more = |(name, count): (&String, &u64)| {
            (name.clone(), count - before.reasons.get(name).copied().unwrap_or_default())
        };
        let answers = |passed: &Passed| passed.syn_acks + passed.rsts + passed.answers;
        Counted {
            arrived: sent - (after.lost_ahead - before.lost_ahead),
            to_servers: after.at_servers.marked - before.at_servers.marked,
            answers: answers(&after.at_clients) - answers(&before.at_clients),
            lost_behind: after.lost_behind - before.lost_behind,
            lost_back: after.lost_back - before.lost_back,
            reasons: after.reasons.iter().map(more).filter(|(_, count)| *count > 0).collect(),
        }
    }

    fn reason(&self, name: &str) -> u64 {
        self.reasons.get(name).copied().unwrap_or_default()
    }

    /// Fails unless all packets of the flood are counted, under the reason that they should be, and all answers to them.
    fn check(&self, flood: &Flood, newcomers: &Newcomers) -> Result<()> {
        // Packets of real clients are dropped too, if the flood has taken their connection before it was confirmed.
        let real = 8 * (newcomers.count() - newcomers.at_once()) as u64;
        let mut dropped = 0;
        for (name, count) in &self.reasons {
            let Some(name) = name.strip_prefix("drop ").or(name.strip_prefix("error ")) else { continue };
            dropped += count;
            let most = if flood.drop == Some(name) { self.arrived } else { self.arrived / RARE };
            ensure!(*count <= most + real, "{count} packets dropped as {name}: {self:?}");
        }
        let counted = self.to_servers + dropped;
        ensure!(
            counted <= self.arrived + real && counted + self.lost_behind >= self.arrived,
            "{counted} of {} packets are counted: {self:?}",
            self.arrived
        );
        let answerable = if flood.behind == Action::Answer { self.to_servers } else { 0 };
        let answered = self.answers + self.reason("pass no_connection");
        ensure!(
            self.answers <= answerable && answered + self.lost_back >= answerable,
            "{answered} of {answerable} answers are counted: {self:?}"
        );
        Ok(())
    }

    fn summary(&self) -> String {
        let mut parts = vec![format!("to_backend {}", self.to_servers)];
        let drops =
            self.reasons.iter().filter_map(|(name, count)| Some((name.strip_prefix("drop ")?, count)));
        parts.extend(drops.map(|(name, count)| format!("{name} {count}")));
        if self.answers > 0 {
            parts.push(format!("answers to_client {}", self.answers));
            parts.push(format!("no_connection {}", self.reason("pass no_connection")));
        }
        if self.lost_behind > 0 {
            parts.push(format!("lost in the veth behind {}", self.lost_behind));
        }
        parts.join(", ")
    }
}
