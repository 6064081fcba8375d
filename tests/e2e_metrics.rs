//! The metrics against what others count: curl, nginx, and the kernel of the client.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::balancer::{Balancer, XDP_LB};
use common::clients::requests;
use common::eventually;
use common::live::{Visits, complaint, say, start, write};
use common::metrics::{METRICS, Scrape, get, nstat, promtool, status};
use common::netns::{Lab, Process, in_lab};
use common::networks::{VIP, WEBS, two_arms};
use common::servers::{HTTP, nginx_logged, requests_logged};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

/// Bytes of an Ethernet header, which the kernel's counters of IP leave out.
const ETHERNET: u64 = 14;
const OPENED: &str = "xdp_lb_connections_opened_total";

fn config(more: &str) -> String {
    let backends: Vec<String> =
        WEBS.iter().map(|(_, address)| format!("{{ address = \"{address}:{HTTP}\" }}")).collect();
    format!(
        "interface = \"eth0\"\nassign-vip = true\nstats-interval = 0\nmax-connections = 10_000\nmetrics = \"{METRICS}\"\n\
         [[service]]\nname = \"web\"\nvip = \"{VIP}:80\"\nscheduler = \"round-robin\"\n\
         health = {{ type = \"http\", path = \"/check\", interval = \"1s\" }}\n\
         backend = [ {} ]\n{more}",
        backends.join(", ")
    )
}

fn servers(lab: &Lab) -> Result<Vec<Process>> {
    let servers: Result<Vec<Process>> = WEBS.iter().map(|(web, _)| nginx_logged(lab, web)).collect();
    for (web, _) in WEBS {
        fs::write(lab.dir().join(web).join("check"), "ok")?;
        lab.wait_for_port(web, "tcp", HTTP)?;
    }
    servers
}

/// How many requests of clients, or of checks, each server has logged.
fn logged(lab: &Lab, checks: bool) -> Result<Vec<u64>> {
    let count = |(web, _): &(&str, &str)| {
        let lines = requests_logged(lab, web)?;
        Ok(lines.iter().filter(|line| line.starts_with("/check") == checks).count() as u64)
    };
    WEBS.iter().map(count).collect()
}

/// The same by a family's series.
fn by_server(scrape: &Scrape, name: &str, more: &str) -> Vec<u64> {
    let count = |(_, address): &(&str, &str)| {
        let labels = format!("service=web protocol=tcp backend_ip={address} backend_port={HTTP} {more}");
        scrape.one(name, &labels) as u64
    };
    WEBS.iter().map(count).collect()
}

/// Every connection that was opened has ended in one way, or lives.
fn assert_that_connections_add_up(scrape: &Scrape) {
    let sum = |name: &str| scrape.sum(&format!("xdp_lb_connections_{name}_total"), "");
    let ended: f64 = ["closed", "reset", "expired", "evicted", "moved"].map(sum).iter().sum();
    let live = scrape.sum("xdp_lb_connections", "");
    assert_eq!(sum("opened") + sum("revived"), ended + live, "{}", scrape.text);
    assert_eq!(live, scrape.one("xdp_lb_active_connections", ""));
    assert_eq!(live, scrape.sum("xdp_lb_backend_connections", ""));
    assert_eq!(live, scrape.one("xdp_lb_table_used", ""));
}

/// A scrape after which nothing has changed any more.
fn settled(lab: &Lab) -> Scrape {
    let figures = |scrape: &Scrape| {
        let names = ["xdp_lb_packets_total", "xdp_lb_connections_closed_total", "xdp_lb_connections"];
        names.map(|name| scrape.sum(name, ""))
    };
    let mut last = None;
    eventually("nothing changes", || {
        let scrape = Scrape::take(lab).ok()?;
        let same = last == Some(figures(&scrape));
        last = Some(figures(&scrape));
        sleep(Duration::from_millis(100));
        same.then_some(scrape)
    })
}

/// What the kernel of the client has sent and received by IP, in packets and in bytes of frames.
fn client(lab: &Lab) -> Result<[u64; 4]> {
    let all = nstat(lab, "client")?;
    let (sent, received) = (all["IpOutRequests"], all["IpInReceives"]);
    let bytes = |octets: &str, packets: u64| all[octets] + ETHERNET * packets;
    Ok([sent, bytes("IpExtOutOctets", sent), received, bytes("IpExtInOctets", received)])
}

/// The same by the metrics.
fn balanced(scrape: &Scrape) -> [u64; 4] {
    let sum = |name: &str, direction: &str| scrape.sum(name, &format!("direction={direction}")) as u64;
    [
        sum("xdp_lb_packets_total", "to_backend"),
        sum("xdp_lb_bytes_total", "to_backend"),
        sum("xdp_lb_packets_total", "to_client"),
        sum("xdp_lb_bytes_total", "to_client"),
    ]
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_metrics_are_what_others_count() -> Result<()> {
    const REQUESTS: u64 = 300;
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = servers(lab)?;
        write(lab, &config(""))?;
        let lb = start(lab)?;
        assert!(lb.process.stdout().contains(&format!("metrics at http://{METRICS}/metrics")));
        let first = Scrape::take(lab)?;
        assert_that_everything_is_there_with_zero(&first);
        assert_that_it_is_documented(&first);

        let before = client(lab)?;
        assert_eq!(requests(lab, &format!("http://{VIP}/?[1-{REQUESTS}]"))?.len() as u64, REQUESTS);
        let scrape = settled(lab);
        let after = client(lab)?;
        let counted: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        println!("client: {counted:?} packets out, bytes out, packets in, bytes in");
        assert_eq!(balanced(&scrape).to_vec(), counted, "{}", scrape.text);

        let served = logged(lab, false)?;
        assert_eq!(served.iter().sum::<u64>(), REQUESTS);
        for name in [OPENED, "xdp_lb_connections_closed_total", "xdp_lb_handshake_seconds_count"] {
            assert_eq!(by_server(&scrape, name, ""), served, "{name}");
        }
        assert_eq!(by_server(&scrape, "xdp_lb_handshake_seconds_bucket", "le=+Inf"), served);
        assert!(scrape.sum("xdp_lb_handshake_seconds_sum", "") > 0.0);
        assert_that_connections_add_up(&scrape);
        assert_eq!(scrape.sum("xdp_lb_drops_total", "") + scrape.sum("xdp_lb_errors_total", ""), 0.0);
        assert_eq!(promtool(lab, &scrape.text)?, "");

        eventually("checks that nginx has logged", || {
            let (before, scrape, after) =
                (logged(lab, true).ok()?, Scrape::take(lab).ok()?, logged(lab, true).ok()?);
            let passed = by_server(&scrape, "xdp_lb_health_checks_total", "result=passed");
            let enough = before == after && before.iter().all(|count| *count >= 3);
            let durations = scrape.sum("xdp_lb_health_check_duration_seconds_count", "service=web");
            (enough && passed == before && durations == passed.iter().sum::<u64>() as f64).then_some(())
        });
        assert_eq!(scrape.sum("xdp_lb_health_checks_total", "result=failed"), 0.0);
        Ok(())
    })
}

/// Each family stands in the documentation with its type and its labels, and nothing else does.
fn assert_that_it_is_documented(scrape: &Scrape) {
    let rows = include_str!("../docs/metrics.md").lines().filter(|line| line.starts_with("| `xdp_lb_"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let labels = cells[3].split_whitespace().map(|label| label.trim_matches('`').to_owned());
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels.collect()))
    };
    let documented: BTreeMap<String, (String, BTreeSet<String>)> = rows.map(row).collect();
    assert_eq!(scrape.families(), documented);
}

fn assert_that_everything_is_there_with_zero(scrape: &Scrape) {
    for name in ["xdp_lb_packets_total", "xdp_lb_bytes_total", OPENED, "xdp_lb_backend_connections"] {
        assert_eq!(scrape.sum(name, &format!("backend_ip=10.0.0.11 backend_port={HTTP}")), 0.0);
        assert!(scrape.samples.iter().any(|sample| sample.name == name), "{name}");
    }
    for reason in ["ttl", "table_full", "no_backend"] {
        assert_eq!(scrape.one("xdp_lb_drops_total", &format!("reason={reason}")), 0.0);
    }
    assert_eq!(scrape.one("xdp_lb_errors_total", "reason=tables"), 0.0);
    for (_, address) in WEBS {
        let labels = format!("backend_ip={address} backend_port={HTTP}");
        assert_eq!(scrape.one("xdp_lb_backend_health", &labels), 1.0);
        assert_eq!(scrape.one("xdp_lb_backend_connections", &labels), 0.0);
    }
    assert_eq!(scrape.one("xdp_lb_active_connections", ""), 0.0);
    assert_eq!(scrape.one("xdp_lb_reloads_total", "result=applied"), 0.0);
    assert_eq!(scrape.one("xdp_lb_last_reload_successful", ""), 1.0);
    assert_eq!(scrape.one("xdp_lb_build_info", &format!("version={}", env!("CARGO_PKG_VERSION"))), 1.0);
    let scheduler = format!("service=web protocol=tcp vip={VIP}:80 scheduler=round-robin");
    assert_eq!(scrape.one("xdp_lb_service_info", &scheduler), 1.0);
}

/// One SYN with a TTL that allows no hop behind the balancer.
fn dying_syn(lab: &Lab) -> Result<()> {
    lab.within("client", || -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_ttl_v4(1)?;
        let vip: std::net::SocketAddr = format!("{VIP}:80").parse()?;
        assert!(socket.connect_timeout(&vip.into(), Duration::from_millis(200)).is_err());
        Ok(())
    })?
}

/// Drops, refusals, kills, removals and additions: no figure is lost, none goes back.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_counters_never_go_back() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = servers(lab)?;
        let refusing = format!(
            "[[service]]\nname = \"refuses\"\nvip = \"{VIP}:81\"\nhealth = \"none\"\nbackend = [ \"10.0.0.10:9999\" ]\n"
        );
        write(lab, &config(&refusing))?;
        let mut lb = start(lab)?;
        let mut watched = Watched::default();
        for _ in 0..5 {
            dying_syn(lab)?;
            assert!(requests(lab, &format!("http://{VIP}:81/")).is_err(), "a server that refuses");
        }
        requests(lab, &format!("http://{VIP}/?[1-30]"))?;
        let scrape = settled(lab);
        watched.look(&scrape);
        assert_eq!(scrape.one("xdp_lb_drops_total", "reason=ttl"), 5.0);
        assert_eq!(scrape.sum("xdp_lb_drops_total", ""), 5.0);
        for name in [OPENED, "xdp_lb_connections_reset_total", "xdp_lb_backend_rsts_total"] {
            assert_eq!(scrape.one(name, "service=refuses backend_port=9999"), 5.0, "{name}");
        }
        assert_that_connections_add_up(&scrape);

        // Killed, and started over what it left.
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        lb = start(lab)?;
        let scrape = settled(lab);
        watched.look(&scrape);
        assert_eq!(scrape.sum(OPENED, ""), 35.0);
        assert_eq!(scrape.one("xdp_lb_changes_total", ""), 0.0, "the same configuration");

        // A backend that goes and comes back, twice; a service that goes.
        for round in 0..2 {
            say(lab, &format!("backend remove web 10.0.0.11:{HTTP} --now"))?;
            watched.look(&Scrape::take(lab)?);
            requests(lab, &format!("http://{VIP}/?[1-10]"))?;
            say(lab, &format!("backend add web 10.0.0.11:{HTTP}"))?;
            requests(lab, &format!("http://{VIP}/?[1-9]"))?;
            let scrape = settled(lab);
            watched.look(&scrape);
            assert_eq!(scrape.sum(OPENED, ""), (35 + 19 * (round + 1)) as f64);
            assert_that_connections_add_up(&scrape);
        }
        say(lab, "service remove refuses")?;
        let scrape = settled(lab);
        watched.look(&scrape);
        assert_eq!(scrape.sum(OPENED, ""), 73.0);
        assert_eq!(scrape.sum(OPENED, "service=refuses"), 0.0);
        assert_eq!(scrape.one("xdp_lb_changes_total", ""), 5.0);
        // Larger tables, other programs.
        write(lab, &config("").replace("10_000", "20_000"))?;
        say(lab, "reload")?;
        let scrape = settled(lab);
        watched.look(&scrape);
        assert_eq!(scrape.sum(OPENED, ""), 73.0);
        assert_that_connections_add_up(&scrape);
        // More rows than there are: all tables of the configuration are made anew under traffic.
        let many = (2000..2300).map(|port| format!("[[service]]\nvip = \"{VIP}:{port}\"\nbackend = []\n"));
        write(lab, &config(&many.collect::<String>()).replace("10_000", "20_000"))?;
        let visits = Visits::begin(lab, VIP, 80, Duration::from_secs(5))?;
        sleep(Duration::from_millis(300));
        let mut reload = lab.command("lb", XDP_LB)?.arg("reload").stdout(Stdio::null()).spawn()?;
        while reload.try_wait()?.is_none() {
            watched.look(&Scrape::of(get(lab, METRICS, "/metrics")?)?);
        }
        sleep(Duration::from_millis(300));
        let visits = visits.end();
        assert!(visits.iter().all(|visit| visit.outcome.is_ok()), "{visits:?}");
        let scrape = settled(lab);
        watched.look(&scrape);
        assert_eq!(scrape.sum("xdp_lb_service_info", ""), 301.0);
        let served: u64 = logged(lab, false)?.iter().sum();
        assert_eq!(served as usize, 68 + visits.len());
        assert_eq!(scrape.sum(OPENED, ""), (73 + visits.len()) as f64);
        assert_eq!(scrape.sum("xdp_lb_connections_closed_total", ""), served as f64);
        assert_that_connections_add_up(&scrape);
        let passed = |scrape: &Scrape| scrape.sum("xdp_lb_health_checks_total", "result=passed");
        let checks = passed(&scrape);
        eventually("checks go on", || (passed(&Scrape::take(lab).ok()?) > checks + 3.0).then_some(()));
        drop(lb);
        Ok(())
    })
}

/// The sums of all counters so far.
#[derive(Default)]
struct Watched(BTreeMap<String, f64>);

impl Watched {
    /// Panics where one has gone back.
    fn look(&mut self, scrape: &Scrape) {
        for (name, (kind, _)) in scrape.families() {
            let counters = match kind.as_str() {
                "counter" => vec![name],
                "histogram" => vec![format!("{name}_sum"), format!("{name}_count")],
                _ => Vec::new(),
            };
            for name in counters {
                let sum = scrape.sum(&name, "");
                let before = self.0.insert(name.clone(), sum).unwrap_or_default();
                assert!(sum >= before, "{name} went back from {before} to {sum}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_late_answer_is_measured() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = servers(lab)?;
        let file = config("");
        let (checked, _) = file.split_once("health = ").unwrap_or_default();
        let (_, backends) = file.split_once("}\n").unwrap_or_default();
        write(lab, &format!("{checked}health = \"none\"\n{backends}"))?;
        let _lb = start(lab)?;
        for (web, _) in WEBS {
            lab.run(web, "nft", &["add table ip t; add chain ip t c { type filter hook input priority 0; }; add rule ip t c tcp dport 8080 drop"])?;
        }
        // The kernel sends its SYN again after a second, which is let in.
        let client = lab
            .command("client", "curl")?
            .args(["-sS", "--max-time", "10", &format!("http://{VIP}/")])
            .spawn();
        let mut client = client?;
        sleep(Duration::from_millis(500));
        for (web, _) in WEBS {
            lab.run(web, "nft", &["delete table ip t"])?;
        }
        assert!(client.wait()?.success());
        let scrape = settled(lab);
        assert_eq!(scrape.sum("xdp_lb_syn_retransmits_total", ""), 1.0, "{}", scrape.text);
        assert_eq!(scrape.sum("xdp_lb_handshake_seconds_count", ""), 1.0);
        let took = scrape.sum("xdp_lb_handshake_seconds_sum", "");
        assert!((1.0..1.5).contains(&took), "{took} s");
        assert_eq!(scrape.sum("xdp_lb_handshake_seconds_bucket", "le=0.262144"), 0.0);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_probes_reloads_and_addresses() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = servers(lab)?;
        write(lab, &config(""))?;
        let mut lb: Balancer<'_> = start(lab)?;
        assert_eq!(status(lab, "/healthz")?, (200, "ok\n".into()));
        assert_eq!(status(lab, "/readyz")?, (200, "ready\n".into()));
        assert_eq!(status(lab, "/other")?.0, 404);
        let post = [
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-X",
            "POST",
            &format!("http://{METRICS}/metrics"),
        ];
        assert_eq!(lab.run("lb", "curl", &post)?, "405");
        for (_, address) in WEBS {
            say(lab, &format!("backend disable web {address}:{HTTP}"))?;
        }
        let (code, why) = status(lab, "/readyz")?;
        assert_eq!((code, why.as_str()), (503, "no backend takes new connections of the services web/tcp\n"));
        let scrape = Scrape::take(lab)?;
        assert_eq!(
            (scrape.sum("xdp_lb_backend_health", ""), scrape.sum("xdp_lb_backend_disabled", "")),
            (0.0, 3.0)
        );
        assert_eq!(scrape.one("xdp_lb_changes_total", ""), 3.0);
        assert!(
            scrape.one("xdp_lb_last_change_timestamp_seconds", "")
                >= scrape.one("xdp_lb_start_time_seconds", "").floor()
        );
        say(lab, &format!("backend enable web 10.0.0.10:{HTTP}"))?;
        assert_eq!(status(lab, "/readyz")?.0, 200);

        // A file that is wrong, and one that is right.
        write(lab, "nonsense")?;
        complaint(lab, "reload")?;
        let reloads = |scrape: &Scrape| {
            let count = |result: &str| scrape.one("xdp_lb_reloads_total", &format!("result={result}")) as u64;
            (count("applied"), count("failed"), scrape.one("xdp_lb_last_reload_successful", "") as u64)
        };
        assert_eq!(reloads(&Scrape::take(lab)?), (0, 1, 0));
        write(lab, &config(""))?;
        say(lab, "reload --dry-run")?;
        assert_eq!(reloads(&Scrape::take(lab)?), (0, 1, 0));
        say(lab, "reload")?;
        assert_eq!(reloads(&Scrape::take(lab)?), (1, 1, 1));

        // A start with the mended file.
        write(lab, "nonsense")?;
        complaint(lab, "reload")?;
        assert_eq!(reloads(&Scrape::take(lab)?), (1, 2, 0));
        write(lab, &config(""))?;
        lb.stop(Signal::SIGKILL)?;
        lb = start(lab)?;
        assert_eq!(reloads(&Scrape::take(lab)?), (1, 2, 1));

        // An address that is a VIP's, and a VIP that takes the address.
        write(lab, &config("").replace(METRICS, &format!("{VIP}:80")))?;
        let said = complaint(lab, "reload")?;
        assert!(
            said.contains(&format!("asks for metrics at {VIP}:80 is balanced by the service web")),
            "{said}"
        );
        let taken = format!("{VIP}:9108");
        write(lab, &config("").replace(METRICS, &taken))?;
        say(lab, "reload")?;
        let said = complaint(lab, &format!("service add late --vip {taken}"))?;
        assert!(said.contains(&format!("asks for metrics at {taken} is balanced by the service")), "{said}");
        assert!(get(lab, &taken, "/healthz").is_ok(), "it goes on");
        write(lab, &config(""))?;
        say(lab, "reload")?;

        // Another port, one that is taken, all addresses, none.
        let elsewhere = config("").replace(METRICS, "127.0.0.1:9106");
        write(lab, &elsewhere)?;
        assert!(say(lab, "reload")?.contains("metrics 127.0.0.1:9105 -> 127.0.0.1:9106"));
        assert!(get(lab, "127.0.0.1:9106", "/metrics").is_ok() && get(lab, METRICS, "/metrics").is_err());
        let _taken = lab.within("lb", || std::net::TcpListener::bind("127.0.0.1:9107"))??;
        write(lab, &config("").replace(METRICS, "127.0.0.1:9107"))?;
        let said = complaint(lab, "reload")?;
        assert!(
            said.contains("could not listen at 127.0.0.1:9107: Address already in use: stop who does"),
            "{said}"
        );
        assert!(get(lab, "127.0.0.1:9106", "/healthz").is_ok(), "the one before goes on");
        write(lab, &config("").replace(METRICS, "0.0.0.0:9106"))?;
        say(lab, "reload")?;
        assert!(get(lab, "10.0.0.1:9106", "/healthz").is_ok());
        write(lab, &config("").replace(&format!("metrics = \"{METRICS}\"\n"), ""))?;
        assert!(say(lab, "reload")?.contains("metrics 0.0.0.0:9106 -> off"));
        assert!(get(lab, "127.0.0.1:9106", "/healthz").is_err());
        drop(lb);

        // A start where somebody listens already.
        let args = format!("eth0 --vip {VIP}:80 --backend 10.0.0.10:{HTTP} --metrics 127.0.0.1:9107");
        let (code, said) = common::balancer::refused(lab, &args)?;
        assert_eq!(code, Some(1));
        assert!(said.contains("127.0.0.1:9107") && said.contains("ss -ltnp 'sport = :9107'"), "{said}");
        Ok(())
    })
}

/// Clients that connect and say nothing, or are slow to take what they asked for, keep nobody from the probes.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_idle_clients_do_not_silence_the_probes() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = servers(lab)?;
        write(lab, &config(""))?;
        let _lb = start(lab)?;
        let idle: Vec<TcpStream> = lab.within("lb", || {
            (0..200).map(|_| TcpStream::connect(METRICS)).collect::<std::io::Result<Vec<_>>>()
        })??;
        for path in ["/healthz", "/readyz", "/metrics"] {
            let begun = Instant::now();
            assert_eq!(status(lab, path)?.0, 200, "{path}");
            // A busy machine takes its time; nobody waits for those who say nothing, which have five seconds each.
            assert!(begun.elapsed() < Duration::from_secs(4), "{path}: {:?}", begun.elapsed());
        }
        // Who says nothing is given up after five seconds, crowd or not.
        for stream in idle {
            stream.set_read_timeout(Some(Duration::from_secs(8)))?;
            let read = (&stream).read(&mut [0; 16]);
            let is_closed = match &read {
                Ok(length) => *length == 0,
                Err(error) => error.kind() == ErrorKind::ConnectionReset,
            };
            assert!(is_closed, "{read:?}");
        }
        Ok(())
    })
}

/// What runs after a start is what the start was asked for, by a file or not: there is nothing to be mended any more.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_start_without_a_file_ends_a_failed_reload_too() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = servers(lab)?;
        write(lab, &config(""))?;
        let mut lb = start(lab)?;
        write(lab, "nonsense")?;
        complaint(lab, "reload")?;
        let successful =
            || Ok::<_, anyhow::Error>(Scrape::take(lab)?.one("xdp_lb_last_reload_successful", ""));
        assert_eq!(successful()?, 0.0);
        lb.stop(Signal::SIGKILL)?;
        let args = format!(
            "eth0 --vip {VIP}:80 --backend 10.0.0.10:{HTTP} --assign-vip --max-connections 10000 --metrics {METRICS}"
        );
        let _lb = Balancer::start(lab, &args)?;
        assert_eq!(successful()?, 1.0);
        Ok(())
    })
}
