//! `xdp-lb explain` tells what then happens to real packets, and changes nothing by it.

mod common;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use common::balancer::{Balancer, PIN_DIR, pins, weighted};
use common::clients::KeepAlive;
use common::echo::connect_from_port;
use common::live::{ask, complaint, say};
use common::netns::{Lab, in_lab};
use common::networks::{CLIENT, VIP, WEBS, two_arms};
use common::servers::{HTTP, nginx_everywhere};
use common::{PATIENCE, eventually};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, MapInfo, MapType};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// As tests of one binary start it; few connections, so that the tables can be compared whole.
fn start<'a>(lab: &'a Lab, options: &str) -> Result<Balancer<'a>> {
    let args =
        format!("eth0 --vip {VIP}:80 {} --assign-vip --max-connections 2000 {options}", weighted(HTTP));
    Balancer::start(lab, &args)
}

fn explain(lab: &Lab, port: u16, options: &str) -> Result<Value> {
    ask(lab, &format!("explain {CLIENT}:{port} {VIP}:80 {options}"))
}

/// Connects from a port, and asks; the address of the backend whose server answers.
fn visit(lab: &Lab, port: u16) -> Result<String> {
    let vip = SocketAddrV4::new(VIP.parse()?, 80);
    let from = SocketAddrV4::new(CLIENT.parse::<Ipv4Addr>()?, port);
    let answer = lab.within("client", || -> Result<String> {
        let mut stream = connect_from_port(from, vip, PATIENCE)?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })??;
    let found = WEBS.iter().find(|(web, _)| answer.contains(&format!("{web} ")));
    let (_, address) = found.with_context(|| format!("no server answered: {answer}"))?;
    Ok(format!("{address}:{HTTP}"))
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_is_foretold_happens() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        for scheduler in ["weighted-round-robin", "maglev", "least-conn"] {
            let mut lb = start(lab, &format!("--scheduler {scheduler}"))?;
            for port in 20_001..20_021 {
                let told = explain(lab, port, "--syn")?;
                let backend = told["scheduler"]["backend"].as_str().context("no backend")?.to_owned();
                assert_eq!(told["service"]["scheduler"], scheduler);
                assert_eq!(told["connection"], Value::Null, "{told}");
                assert_eq!(
                    told["rewrite"]["destination"],
                    json!({"before": format!("{VIP}:80"), "after": backend})
                );
                assert_eq!(told["rewrite"]["ttl"], json!({"before": 64, "after": 63}));
                assert_eq!(
                    told["interface"],
                    json!({"name": "eth0", "guessed": false, "mode": "native", "profile": "native_virtual"})
                );
                let verdict = &told["verdict"];
                assert_eq!(verdict["action"], "XDP_REDIRECT", "{told}");
                assert_eq!(
                    (&verdict["interface"], &verdict["reason"]),
                    (&json!("eth1"), &json!("to_backend"))
                );
                assert_eq!(told["next_hop"]["interface"], "eth1");
                assert_eq!(visit(lab, port)?, backend, "{scheduler}, port {port}");
            }
            assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        }
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_connections_and_refusals_are_told() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = start(lab, "")?;
        let mut visitor = KeepAlive::open(lab, VIP, 80)?;
        let web = visitor.ask()?;
        let listed = ask(lab, "connections")?;
        let client = listed["connections"][0]["client"].as_str().context("no connection")?.to_owned();
        let told = ask(lab, &format!("explain {client} {VIP}:80"))?;
        let (_, address) = WEBS.iter().find(|(name, _)| web.contains(name)).context("no server")?;
        let backend = format!("{address}:{HTTP}");
        assert_eq!(told["connection"], json!({"backend": backend, "state": "established", "goes_on": true}));
        assert_eq!(
            (&told["scheduler"], &told["rewrite"]["destination"]["after"]),
            (&Value::Null, &json!(backend))
        );

        // The way back is told as well: from a backend, on the interface that faces it.
        let told = ask(lab, &format!("explain {backend} {client}"))?;
        assert_eq!(
            (&told["verdict"]["reason"], &told["interface"]["name"]),
            (&json!("to_client"), &json!("eth1"))
        );
        assert_eq!(told["rewrite"]["source"]["after"], format!("{VIP}:80"));
        let packet = &told["packet"];
        assert_eq!(
            [&packet["client"], &packet["vip"], &packet["source"], &packet["direction"]],
            [&json!(client), &json!(format!("{VIP}:80")), &json!(backend), &json!("to_client")]
        );
        assert_eq!(told["warnings"], json!([]));
        assert_eq!(
            (&told["connection"]["goes_on"], &told["connection"]["backend"]),
            (&json!(true), &json!(backend))
        );

        // An ACK of a connection that nobody knows gets a backend, whose RST tells the client.
        let told = explain(lab, 30_000, "")?;
        assert_eq!((&told["connection"], &told["packet"]["syn"]), (&Value::Null, &json!(false)));
        assert_eq!(told["verdict"]["reason"], "to_backend");

        let told = ask(lab, &format!("explain {CLIENT}:30000 {VIP}:81 --syn"))?;
        assert_eq!((&told["service"], &told["verdict"]["reason"]), (&Value::Null, &json!("no_service")));
        assert_eq!(told["verdict"]["action"], "XDP_PASS");
        let told = ask(lab, &format!("explain {CLIENT}:30000 {VIP}:80/udp"))?;
        assert_eq!((&told["service"], &told["verdict"]["reason"]), (&Value::Null, &json!("no_service")));
        let told = ask(lab, &format!("explain 127.0.0.1:30000 {VIP}:80 --syn --interface eth0"))?;
        assert_eq!(
            (&told["verdict"]["action"], &told["verdict"]["reason"]),
            (&json!("XDP_DROP"), &json!("bad_source"))
        );
        let told = ask(lab, &format!("explain 127.0.0.1:30000 {VIP}:80 --syn"))?;
        assert_eq!(told["interface"]["guessed"], true, "{told}");
        assert_eq!(told["packet"]["client"], "127.0.0.1:30000");

        for (_, address) in WEBS {
            say(lab, &format!("backend disable {VIP}:80 {address}:{HTTP}"))?;
        }
        let told = explain(lab, 30_000, "--syn")?;
        assert_eq!(
            (&told["verdict"]["action"], &told["verdict"]["reason"]),
            (&json!("XDP_DROP"), &json!("no_backend"))
        );
        assert_eq!(told["service"]["takes_new"], 0);
        let text = say(lab, &format!("explain {CLIENT}:30000 {VIP}:80 --syn"))?;
        assert!(text.contains("XDP_DROP: no backend takes new connections (drop no_backend)"), "{text}");
        assert!(text.contains("0 of 3 backends take new connections"), "{text}");

        // Without the process, too: the programs and tables go on.
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        assert_eq!(explain(lab, 30_000, "--syn")?["verdict"]["reason"], "no_backend");
        say(lab, "detach eth0")?;
        let complaint = complaint(lab, &format!("explain {CLIENT}:30000 {VIP}:80"))?;
        assert!(complaint.contains("no instance has its pins in /sys/fs/bpf/xdp_lb"), "{complaint}");
        Ok(())
    })
}

/// Every byte of every pinned table.
type Dump = BTreeMap<String, BTreeMap<Vec<u8>, Vec<Vec<u8>>>>;

fn dump() -> Result<Dump> {
    let mut tables = Dump::new();
    for name in pins()? {
        let Ok(map) = MapHandle::from_pinned_path(format!("{PIN_DIR}/{name}")) else { continue };
        let rows = match map.map_type() {
            MapType::RingBuf => continue,
            MapType::ArrayOfMaps => {
                let id = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?.context("no directory")?;
                let id = u32::from_ne_bytes(id[..4].try_into()?);
                rows(&MapHandle::from_map_id(id)?)?
            }
            _ => rows(&map)?,
        };
        tables.insert(name, rows);
    }
    Ok(tables)
}

fn rows(map: &MapHandle) -> Result<BTreeMap<Vec<u8>, Vec<Vec<u8>>>> {
    let per_cpu = map.map_type().is_percpu();
    let value = |key: Vec<u8>| {
        let values = match per_cpu {
            true => map.lookup_percpu(&key, MapFlags::ANY)?.unwrap_or_default(),
            false => map.lookup(&key, MapFlags::ANY)?.into_iter().collect(),
        };
        Ok((key, values))
    };
    map.keys().map(value).collect()
}

/// Frames that are nobody's come and go in any network; what an explained packet would count is never among these.
fn without_noise(mut dump: Dump) -> Dump {
    use xdp_lb::dataplane::types::lb_reason;
    if let Some(reasons) = dump.get_mut("reason_counters") {
        for noise in [lb_reason::LB_PASS_NOT_IPV4, lb_reason::LB_PASS_MULTICAST] {
            reasons.remove(noise.0.to_ne_bytes().as_slice());
        }
    }
    dump
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_nothing_is_changed() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = start(lab, "--sticky 10m --scheduler least-conn")?;
        for port in 20_001..20_011 {
            visit(lab, port)?;
        }
        let _visitor = KeepAlive::open(lab, VIP, 80)?;
        // Its sweeps would change times and loads.
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        let before = without_noise(dump()?);
        assert!(before.len() > 15 && before["affinity"].len() == 1, "{:?}", before.keys());
        let programs = programs_of_tables()?;
        for port in 20_001..20_011 {
            explain(lab, port, "--syn")?;
            explain(lab, port, "")?;
            ask(lab, &format!("explain 10.0.0.10:{HTTP} {CLIENT}:{port}"))?;
            ask(lab, &format!("explain 198.51.100.{}:9 {VIP}:80 --syn --interface eth0", port % 200))?;
        }
        ask(lab, &format!("explain {CLIENT}:30000 {VIP}:81 --syn"))?;
        let after = without_noise(dump()?);
        for (table, rows) in &before {
            let changed = |(key, row): &(&Vec<u8>, &Vec<Vec<u8>>)| after[table].get(*key) != Some(row);
            let changed: Vec<_> =
                rows.iter().filter(changed).map(|(key, _)| (key, &after[table][key])).collect();
            assert!(changed.is_empty(), "{table} has changed: {changed:?}");
        }
        eventually("the copies that explain are unloaded", || {
            (programs_of_tables().ok()? == programs).then_some(())
        });
        // What can change is seen: a packet that is really sent.
        visit(lab, 30_000)?;
        let then = without_noise(dump()?);
        for table in ["connections", "reason_counters", "backend_counters", "backend_events"] {
            assert!(then[table] != after[table], "{table} is as before");
        }
        say(lab, "detach eth0").map(drop)
    })
}

/// How many programs use the table of connections.
fn programs_of_tables() -> Result<usize> {
    let connections = MapHandle::from_pinned_path(format!("{PIN_DIR}/connections"))?;
    let id = MapInfo::new(connections.as_fd())?.info.id;
    let uses = |program: &libbpf_rs::query::ProgramInfo| program.map_ids.contains(&id);
    Ok(libbpf_rs::query::ProgInfoIter::with_query_opts(
        libbpf_rs::query::ProgInfoQueryOptions::default().include_map_ids(true),
    )
    .filter(uses)
    .count())
}

/// The names of the warnings, each with its interface.
fn warnings(told: &Value) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = told["warnings"].as_array().into_iter().flatten();
    all.map(|one| (word(&one["name"]), word(&one["interface"]))).collect()
}

/// What the program sends is lost where the interface or the neighbour is not there: it cannot know, and is not believed.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_is_lost_behind_the_program_is_told() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = start(lab, "--health none")?;
        visit(lab, 20_001)?;
        assert_eq!(warnings(&explain(lab, 20_002, "--syn")?), []);
        let eth1 = |name: &str| vec![(name.to_owned(), "eth1".to_owned())];

        // Nobody resolves the neighbours again now.
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        for (_, address) in WEBS {
            lab.ip("lb", &format!("neigh replace {address} dev eth1 nud failed"))?;
        }
        let told = explain(lab, 20_002, "--syn")?;
        assert_eq!(told["verdict"]["action"], "XDP_REDIRECT", "{told}");
        assert_eq!(warnings(&told), eth1("neighbour_unreachable"), "{told}");

        lab.ip("switch", "link set lb down")?;
        assert_eq!(warnings(&explain(lab, 20_002, "--syn")?), eth1("no_carrier"));
        lab.ip("lb", "link set eth1 down")?;
        let told = explain(lab, 20_002, "--syn")?;
        assert_eq!(warnings(&told), eth1("interface_down"), "{told}");
        let text = say(lab, &format!("explain {CLIENT}:20002 {VIP}:80 --syn"))?;
        assert!(text.contains("warning     eth1 is down: what is sent by it is lost"), "{text}");
        // Nothing can come by it either.
        let told = ask(lab, &format!("explain 10.0.0.10:{HTTP} {CLIENT}:20002 --interface eth1"))?;
        assert_eq!(warnings(&told), eth1("interface_down"), "{told}");
        say(lab, "detach eth0").map(drop)
    })
}

/// Who may not look at pins cannot know whether there are any.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_others_are_told_that_it_needs_root() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _lb = start(lab, "")?;
        for words in ["explain 192.168.1.2:9 192.168.1.100:80", "trace"] {
            let words = format!("--reuid 65534 --clear-groups {} {words}", common::balancer::XDP_LB);
            let output = lab.command("lb", "setpriv")?.args(words.split_whitespace()).output()?;
            let said = String::from_utf8(output.stderr)?;
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.starts_with("xdp-lb: only root may read the pins"), "{said}");
            assert!(!said.contains("is one running"), "{said}");
        }
        Ok(())
    })
}
