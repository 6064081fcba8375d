//! Least connections with held ones: where they go, and that every way for them to end is counted.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::balancer::{Balancer, Figures, PIN_DIR};
use common::clients::requests;
use common::netns::{Lab, Process, in_lab};
use common::networks::{VIP, two_arms};
use common::servers::{HTTP, nginx_everywhere};
use common::within;
use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use nix::sys::signal::Signal;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;

/// A timeout of a second, rounded up to the table's clock, and the sweep that finds it. Less than two sweeps, which would
/// put right what was not counted.
const A_SWEEP: Duration = Duration::from_millis(11_700);

/// Two of the servers, with weights of 2 and 1.
fn start<'a>(lab: &'a Lab, options: &str) -> Result<(Balancer<'a>, Vec<Process>)> {
    two_arms(lab)?;
    let servers = nginx_everywhere(lab)?;
    Ok((Balancer::start(lab, &args(options))?, servers))
}

fn args(options: &str) -> String {
    let backends = format!("--backend 10.0.0.10:{HTTP}:2 --backend 10.0.0.11:{HTTP}:1");
    format!("eth0 --vip {VIP}:80 --scheduler least-conn {backends} --assign-vip --stats-interval 0 {options}")
}

/// Opens connections one after the other, and keeps them.
fn hold(lab: &Lab, count: usize) -> Result<Vec<TcpStream>> {
    let vip: SocketAddr = format!("{VIP}:80").parse()?;
    let connect = || TcpStream::connect_timeout(&vip, Duration::from_secs(10));
    Ok(lab.within("client", || (0..count).map(|_| connect()).collect::<Result<Vec<_>, _>>())??)
}

fn of_backends(figures: &Figures, field: &str) -> Vec<i64> {
    figures.backends("tcp").iter().map(|b| b[field].as_i64().expect("a number")).collect()
}

fn loads(lb: &Balancer) -> Result<Vec<i64>> {
    Ok(of_backends(&lb.figures()?, "load"))
}

/// Connections that a server has, as it sees them.
fn at_server(lab: &Lab, web: &str) -> Result<usize> {
    let args = ["-Htn", "state", "established", &format!("sport = :{HTTP}")];
    Ok(lab.run(web, "ss", &args)?.lines().count())
}

fn end_at_none(lb: &Balancer, limit: Duration) {
    within(limit, "loads of 0", || loads(lb).is_ok_and(|loads| loads == [0, 0]).then_some(()));
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_thirty_held_ones_make_twenty_and_ten() -> Result<()> {
    in_lab(|lab| {
        let (lb, _servers) = start(lab, "")?;
        let mut held = hold(lab, 30)?;
        assert_eq!([at_server(lab, "web1")?, at_server(lab, "web2")?], [20, 10]);
        let figures = lb.figures()?;
        assert_eq!(of_backends(&figures, "load"), [20, 10]);
        assert_eq!(of_backends(&figures, "active"), [20, 10]);

        // Those of one server end: it gets all that come until it has its share again.
        let of_second = |stream: &mut TcpStream| -> Result<bool> {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
            let mut answer = [0; 1024];
            let count = stream.read(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer[..count]).contains("web2"))
        };
        let mut kept = Vec::new();
        for mut stream in held.drain(..) {
            if !of_second(&mut stream)? {
                kept.push(stream);
            }
        }
        within(A_SWEEP, "those of web2 have ended", || {
            loads(&lb).is_ok_and(|loads| loads == [20, 0]).then_some(())
        });
        held.extend(hold(lab, 10)?);
        assert_eq!([at_server(lab, "web1")?, at_server(lab, "web2")?], [20, 10]);

        drop((held, kept));
        end_at_none(&lb, Duration::from_secs(5));
        lb.figures()?.assert_all_direct();
        Ok(())
    })
}

/// A process killed between a change of an entry and that of its count leaves a wrong load; the next start counts anew, and
/// does not wait for sweeps to find out.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_take_over_counts_anew() -> Result<()> {
    in_lab(|lab| {
        let (mut lb, _servers) = start(lab, "")?;
        let held = hold(lab, 30)?;
        assert_eq!(loads(&lb)?, [20, 10]);
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        let table = MapHandle::from_pinned_path(format!("{PIN_DIR}/backend_loads"))?;
        let first = 1u32.to_ne_bytes();
        let mut row = table.lookup(&first, MapFlags::ANY)?.context("no load of the first backend")?;
        // As if so many more had been opened.
        row[0] += 7;
        table.update(&first, &row, MapFlags::ANY)?;
        assert_eq!(of_backends(&Figures::read(lab)?, "load"), [27, 10]);
        let lb = Balancer::start(lab, &args(""))?;
        assert_eq!(loads(&lb)?, [20, 10]);
        drop(held);
        end_at_none(&lb, Duration::from_secs(5));
        Ok(())
    })
}

/// Nothing held: all loads are 0, and what is left is weighted round robin.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_short_ones_take_turns_by_weight() -> Result<()> {
    in_lab(|lab| {
        let (lb, _servers) = start(lab, "")?;
        let answers = requests(lab, &format!("http://{VIP}/?[1-60]"))?;
        let spread = lb.figures()?.connections("tcp");
        assert_eq!((answers.len(), spread.values().sum::<u64>()), (60, 60));
        // The last one may still be closing when the next begins: its server is then not the one whose turn it is.
        assert!((36..=44).contains(&spread["10.0.0.10:8080"]), "{spread:?}");
        end_at_none(&lb, Duration::from_secs(5));
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_killed_clients_are_counted_out() -> Result<()> {
    in_lab(|lab| {
        let (lb, _servers) = start(lab, "--timeout-closing 1s")?;
        let held = hold(lab, 30)?;
        assert_eq!(loads(&lb)?, [20, 10]);
        for stream in held {
            // It sends a RST, as the kernel does for a process that is killed with something unread.
            setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        }
        end_at_none(&lb, A_SWEEP);
        assert_eq!([at_server(lab, "web1")?, at_server(lab, "web2")?], [0, 0]);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_idle_ones_are_counted_out_and_in_again() -> Result<()> {
    in_lab(|lab| {
        let (lb, _servers) = start(lab, "--timeout-established 1s")?;
        let mut held = hold(lab, 30)?;
        assert_eq!(loads(&lb)?, [20, 10]);
        end_at_none(&lb, A_SWEEP);
        assert_eq!([at_server(lab, "web1")?, at_server(lab, "web2")?], [20, 10], "they are still there");
        held[0].write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
        assert!(held[0].read(&mut [0; 1024])? > 0);
        assert_eq!(loads(&lb)?.iter().sum::<i64>(), 1);
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_evicted_ones_are_counted_out() -> Result<()> {
    in_lab(|lab| {
        // 28 slots.
        let (lb, _servers) = start(lab, "--max-connections 8 --timeout-established 1s --timeout-closing 1s")?;
        let held = hold(lab, 12)?;
        assert_eq!(loads(&lb)?, [8, 4]);
        sleep(Duration::from_millis(1900));
        requests(lab, &format!("http://{VIP}/?[1-300]"))?;
        let figures = lb.figures()?;
        let table = &figures.0["table"];
        assert!(table["replaceable"].as_u64() > Some(12), "{table}");
        // Hundreds came and went in a table of 28 slots while the held ones were over their timeout.
        let left: i64 = loads(&lb)?.iter().sum();
        assert!(left < 12, "none of the held ones was evicted: {left}");
        end_at_none(&lb, A_SWEEP);
        drop(held);
        Ok(())
    })
}
