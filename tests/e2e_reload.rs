//! The file is edited and read again; the verbs of the socket.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use common::balancer::{PIN_DIR, has_address};
use common::clients::{KeepAlive, requests, spread};
use common::live::{ask, complaint, file, say, start, state, three_backends, write};
use common::netns::{Lab, in_lab};
use common::networks::{VIP, two_arms};
use common::servers::nginx_everywhere;
use common::{eventually, within};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

fn web(more: &str) -> String {
    format!(
        "# Ours.\ninterface = \"eth0\"\nassign-vip = true\n{more}[[service]]\nname = \"web\"  # the shop\nvip = \"{VIP}:80\"\n\
         scheduler = \"round-robin\"\nhealth = \"none\"\nbackend = [ {} ]\n",
        three_backends()
    )
}

/// Every row of the tables that hold the configuration.
fn dump() -> Result<BTreeMap<(String, u32), Vec<u8>>> {
    let mut rows = BTreeMap::new();
    for name in ["directory", "services", "service_states", "rings", "backends", "backend_loads", "settings"]
    {
        let map = MapHandle::from_pinned_path(Path::new(PIN_DIR).join(name))?;
        for index in 0..map.max_entries() {
            if let Some(value) = map.lookup(&index.to_ne_bytes(), MapFlags::ANY)? {
                rows.insert((name.to_owned(), index), value);
            }
        }
    }
    Ok(rows)
}

/// Where what an instance remembers of the addresses that it assigned is full, a change fails in the middle: tables are
/// written, addresses assigned.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_reload_that_fails_in_the_middle_leaves_the_old_tables() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web(""))?;
        let lb = start(lab)?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        let before = dump()?;
        let mut many = web("");
        for n in 0..1000 {
            many += &format!(
                "[[service]]\nvip = \"192.168.{}.{}:80\"\nbackend = [ \"10.0.0.10:{}\" ]\n",
                10 + n / 200,
                1 + n % 200,
                1000 + n
            );
        }
        write(lab, &many)?;
        let said = complaint(lab, "reload")?;
        assert!(said.contains("record"), "{said}");
        let after = dump()?;
        let differ: Vec<_> = before.iter().filter(|(row, value)| after.get(*row) != Some(*value)).collect();
        assert!(
            differ.is_empty() && after.len() == before.len(),
            "{} rows differ: {:?}",
            differ.len(),
            differ.first()
        );
        assert!(!has_address(lab, "lb", "eth0", "192.168.10.1")?, "an address of the change that failed");
        assert!(has_address(lab, "lb", "eth0", VIP)?);
        assert_eq!(held.ask()?, server);
        assert_eq!(spread(&requests(lab, &format!("http://{VIP}/?[1-30]"))?).len(), 3);
        write(lab, &web(""))?;
        assert!(say(lab, "reload")?.contains("nothing"), "as it was");
        drop(lb);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_file_is_edited_and_read_again() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web(""))?;
        let lb = start(lab)?;
        let mut held = KeepAlive::open_many(lab, VIP, 80, 3)?;
        let servers: Vec<String> = held.iter_mut().map(KeepAlive::ask).collect::<Result<_>>()?;

        let less = web("").replace("{ address = \"10.0.0.11:8080\" }, ", "");
        write(lab, &less)?;
        let dry = say(lab, "reload --dry-run")?;
        let step = "service web: remove backend 10.0.0.11:8080: no new connections, live ones go on";
        assert!(dry.contains(step), "{dry}");
        assert_eq!(
            spread(&requests(lab, &format!("http://{VIP}/?[1-30]"))?).len(),
            3,
            "a dry run changes nothing"
        );
        assert!(say(lab, "reload")?.contains(step));
        let answers = requests(lab, &format!("http://{VIP}/?[1-30]"))?;
        assert_eq!(spread(&answers).keys().collect::<Vec<_>>(), [&"web1", &"web3"]);
        for (held, server) in held.iter_mut().zip(&servers) {
            assert_eq!(held.ask()?, *server, "a connection moved");
        }
        assert!(say(lab, "reload")?.contains("nothing"), "an unchanged file does nothing, visibly");

        // Bad input changes nothing.
        write(lab, &less.replace("round-robin", "fastest"))?;
        let said = complaint(lab, "reload")?;
        assert!(said.contains("xdp-lb.toml:7:13: \"fastest\": there is no such scheduler"), "{said}");
        assert_eq!(held[0].ask()?, servers[0]);

        // With --now its connections end.
        write(lab, &less.replace("{ address = \"10.0.0.12:8080\" } ", ""))?;
        say(lab, "reload --now")?;
        let at = servers.iter().position(|server| server == "web3").expect("one of web3");
        assert!(held[at].ask_within(Duration::from_secs(3)).is_err(), "a connection outlived --now");
        drop(lb);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_file_is_followed() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web("watch = true\n"))?;
        let lb = start(lab)?;
        // As an editor saves it.
        let new = lab.dir().join("new");
        fs::write(
            &new,
            web("watch = true\n").replace("10.0.0.11:8080", "10.0.0.11:8080\", state = \"drain"),
        )?;
        fs::rename(&new, file(lab))?;
        within(Duration::from_secs(5), "it drains", || {
            (state(lab, "10.0.0.11:8080").ok()? == "drain").then_some(())
        });
        write(lab, "nonsense")?;
        eventually("it complains", || {
            lb.process.stderr().contains("was changed, but not carried out").then_some(())
        });
        assert_eq!(spread(&requests(lab, &format!("http://{VIP}/?[1-20]"))?).len(), 2);
        Ok(())
    })
}

/// What changes the programs' own settings swaps them, and connections go on.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_settings_of_the_programs_change_while_they_run() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web("max-connections = 10000\n"))?;
        let lb = start(lab)?;
        let mut held = KeepAlive::open_many(lab, VIP, 80, 20)?;
        let servers: Vec<String> = held.iter_mut().map(KeepAlive::ask).collect::<Result<_>>()?;
        write(lab, &web("max-connections = 50000\ntimeout-established = \"20m\"\n"))?;
        let said = say(lab, "reload")?;
        assert!(said.contains("max-connections 10000 -> 50000"), "{said}");
        let slots = lb.figures()?.0["table"]["slots"].as_u64().unwrap_or(0);
        assert_eq!(slots, 175_000);
        for (held, server) in held.iter_mut().zip(&servers) {
            assert_eq!(held.ask()?, *server);
        }
        // Another interface: what clients came by before must not answer for the VIP any more.
        lab.ip("", "link add eth5 netns lb type veth peer name far5 netns client")?;
        lab.ip("lb", "address add 10.5.0.1/24 dev eth5\nlink set eth5 up")?;
        lab.ip("client", "link set far5 up")?;
        write(lab, &web("max-connections = 50000\n").replace("\"eth0\"", "\"eth5\""))?;
        say(lab, "reload")?;
        assert!(has_address(lab, "lb", "eth5", VIP)? && !has_address(lab, "lb", "eth0", VIP)?);
        write(lab, &web("max-connections = 50000\n"))?;
        say(lab, "reload")?;
        assert!(has_address(lab, "lb", "eth0", VIP)? && !has_address(lab, "lb", "eth5", VIP)?);
        assert!(complaint_of(lab, "xdp-mode = \"skb\"\n")?.contains("xdp-mode cannot change while it runs"));
        Ok(())
    })
}

fn complaint_of(lab: &Lab, more: &str) -> Result<String> {
    write(lab, &web(more))?;
    complaint(lab, "reload")
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_live_changes_and_the_file() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web(""))?;
        fs::set_permissions(file(lab), fs::Permissions::from_mode(0o640))?;
        let _lb = start(lab)?;
        say(lab, "backend drain web 10.0.0.10:8080")?;
        assert_eq!(state(lab, "10.0.0.10:8080")?, "drain");
        // A file that says nothing new of it leaves it so.
        write(lab, &web("").replace("round-robin", "weighted-round-robin"))?;
        say(lab, "reload")?;
        assert_eq!(state(lab, "10.0.0.10:8080")?, "drain");

        say(lab, "backend weight web 10.0.0.12:8080 7 --persist")?;
        let text = fs::read_to_string(file(lab))?;
        assert!(
            text.contains("weight = 7") && text.contains("# the shop") && !text.contains("drain"),
            "{text}"
        );
        assert_eq!(fs::metadata(file(lab))?.mode() & 0o777, 0o640);
        assert!(say(lab, "reload")?.contains("nothing"), "what was persisted is known");

        // What somebody else wrote into the file meanwhile is still to be read.
        let edited =
            fs::read_to_string(file(lab))?.replace("10.0.0.11:8080\"", "10.0.0.11:8080\", weight = 4");
        write(lab, &edited)?;
        say(lab, "backend drain web 10.0.0.12:8080 --persist")?;
        let said = say(lab, "reload")?;
        assert!(said.contains("backend 10.0.0.11:8080: weight 1 -> 4") && !said.contains("drain"), "{said}");
        say(lab, "backend enable web 10.0.0.12:8080 --persist")?;

        let added = say(lab, &format!("service add dns --vip {VIP}:53/any --backend 10.0.0.10:53"))?;
        assert!(added.contains("service dns"), "{added}");
        let shown = say(lab, "config show")?;
        assert!(shown.contains("name = \"dns\"") && shown.contains("state = \"drain\""), "{shown}");
        say(lab, "service remove dns")?;
        let unknown = complaint(lab, "backend drain shop 10.0.0.10:8080")?;
        assert!(unknown.contains("there is no service shop; there are: web"), "{unknown}");
        let unknown = complaint(lab, "backend drain web 10.0.0.77:8080")?;
        assert!(unknown.contains("is no backend of the service web"), "{unknown}");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_connections_are_listed_and_killed() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web(""))?;
        let mut lb = start(lab)?;
        let mut held = KeepAlive::open_many(lab, VIP, 80, 3)?;
        let servers: Vec<String> = held.iter_mut().map(KeepAlive::ask).collect::<Result<_>>()?;
        let all = ask(lab, "connections --service web --state established")?;
        assert_eq!(all["connections"].as_array().map(Vec::len), Some(3), "{all}");
        say(lab, "connections kill --backend 10.0.0.11:8080")?;
        for (held, server) in held.iter_mut().zip(&servers) {
            assert_eq!(held.ask_within(Duration::from_secs(3)).is_err(), server == "web2", "{server}");
        }
        // Without the process reading goes on.
        lb.stop(nix::sys::signal::Signal::SIGKILL)?;
        let status = ask(lab, "status")?;
        assert_eq!(status["running"], false);
        assert_eq!(ask(lab, "connections")?["connections"].as_array().map(Vec::len), Some(2));
        Ok(())
    })
}

/// The socket is there in one-command mode too, and goes with the process.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_one_command_has_a_socket() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = common::balancer::Balancer::start(
            lab,
            &format!("eth0 --vip {VIP}:80 --assign-vip --backend 10.0.0.10:8080 --backend 10.0.0.11:8080"),
        )?;
        let mode = fs::metadata("/run/xdp-lb/xdp_lb.sock")?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        say(lab, &format!("backend drain {VIP}:80 10.0.0.10:8080"))?;
        assert_eq!(spread(&requests(lab, &format!("http://{VIP}/?[1-10]"))?).len(), 1);
        assert!(complaint(lab, "reload")?.contains("without a configuration file"));
        say(lab, "stop")?;
        assert_eq!(lb.process.wait()?.code(), Some(0));
        assert!(!Path::new("/run/xdp-lb/xdp_lb.sock").exists());
        Ok(())
    })
}

/// With `persist` a stop is no outage, and the next start takes over.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_persist_goes_on_after_a_stop() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        write(lab, &web("persist = true\n"))?;
        let mut lb = start(lab)?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        assert_eq!(lb.stop(nix::sys::signal::Signal::SIGTERM)?, Some(0));
        assert_eq!(held.ask()?, server);
        assert_eq!(spread(&requests(lab, &format!("http://{VIP}/?[1-30]"))?).len(), 3);
        let mut lb = start(lab)?;
        assert_eq!(held.ask()?, server);
        write(lab, &web(""))?;
        say(lab, "reload")?;
        assert_eq!(lb.stop(nix::sys::signal::Signal::SIGTERM)?, Some(0));
        common::balancer::assert_nothing_left(lab)
    })
}
