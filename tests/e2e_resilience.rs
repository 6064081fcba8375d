//! Never loses what works: trouble around the process leaves the data plane forwarding.

mod common;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::balancer::{Balancer, Figures, PIN_DIR, XDP_LB, has_xdp, refused, weighted};
use common::clients::{KeepAlive, assert_weighted, requests};
use common::netns::{Lab, in_lab};
use common::networks::{VIP, two_arms};
use common::servers::{HTTP, nginx_everywhere};
use common::{eventually, within};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;

fn args() -> String {
    format!("eth0 --vip {VIP}:80 {} --assign-vip --stats-interval 100ms", weighted(HTTP))
}

/// A process whose output goes where a test wants it.
struct Instance(Child);

impl Instance {
    fn start(lab: &Lab, stdout: Stdio, stderr: Stdio) -> Result<Instance> {
        let args = args();
        let args: Vec<&str> = args.split_whitespace().collect();
        Ok(Instance(lab.command("lb", XDP_LB)?.args(args).stdout(stdout).stderr(stderr).spawn()?))
    }

    fn alive(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    fn stop(&mut self) -> Result<Option<i32>> {
        kill(Pid::from_raw(self.0.id().try_into()?), Signal::SIGTERM)?;
        let child = &mut self.0;
        Ok(within(common::PATIENCE, "its end", || child.try_wait().transpose())?.code())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn balances(lab: &Lab) -> Result<()> {
    eventually("the program attached", || has_xdp(lab, "lb", "eth1").ok().filter(|is| *is));
    eventually("the VIP", || common::balancer::has_address(lab, "lb", "eth0", VIP).ok().filter(|is| *is));
    assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
    Ok(())
}

/// `xdp-lb ... | head`: the reader of its output is gone.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_nobody_reads_its_output() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = Instance::start(lab, Stdio::piped(), Stdio::piped())?;
        let mut line = String::new();
        BufReader::new(lb.0.stdout.take().context("no stdout")?).read_line(&mut line)?;
        assert!(line.starts_with("xdp-lb "), "{line}");
        drop(lb.0.stderr.take());
        balances(lab)?;
        // Several tables later, and after something to be said on stderr.
        lab.ip("lb", "link set eth1 down\nlink set eth1 up")?;
        sleep(Duration::from_secs(1));
        assert!(lb.alive()?);
        balances(lab)?;
        assert_eq!(lb.stop()?, Some(0));
        assert!(!has_xdp(lab, "lb", "eth0")? && !Path::new(PIN_DIR).exists());
        Ok(())
    })
}

/// Its output goes to a file on a disk that is full.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_full_disk_under_its_output() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let disk = lab.dir().join("disk");
        fs::create_dir(&disk)?;
        mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=16k"))?;
        let (out, err) = (File::create(disk.join("out"))?, File::create(disk.join("err"))?);
        let mut lb = Instance::start(lab, out.into(), err.into())?;
        balances(lab)?;
        eventually("the disk is full", || (statvfs(&disk).ok()?.blocks_available() == 0).then_some(()));
        assert!(lb.alive()?);
        balances(lab)?;
        assert_eq!(lb.stop()?, Some(0));
        Ok(())
    })
}

/// The table would be larger than this machine's memory: an error that says so, and nothing is changed.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_no_memory_for_the_table() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let much = args().replace("--stats-interval 100ms", "--max-connections 500000000");
        let (code, said) = refused(lab, &much)?;
        assert_eq!(code, Some(1), "{said}");
        for word in ["500000000 connections", "28.0 GB", "memory", "--max-connections"] {
            assert!(said.contains(word), "no {word:?} in {said}");
        }
        assert!(!has_xdp(lab, "lb", "eth0")? && !Path::new(PIN_DIR).exists());
        let lb = Balancer::start(lab, &args())?;
        balances(lab)?;
        assert_eq!(lb.figures()?.reasons("drop"), [].into());
        Ok(())
    })
}

/// Stopped for a while, as on a machine whose hypervisor pauses it, and with a flood of news when it wakes up.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_process_that_is_held_up() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args())?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        lb.process.signal(Signal::SIGSTOP)?;
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        let neighbours: String = (0..8000u32)
            .map(|n| {
                format!(
                    "neigh replace 10.0.{}.{} lladdr 02:00:00:00:00:09 dev eth1\n",
                    1 + n % 8,
                    n / 8 % 250
                )
            })
            .collect();
        lab.ip("lb", &neighbours)?;
        sleep(Duration::from_secs(3));
        assert_eq!(held.ask()?, server);
        lb.process.signal(Signal::SIGCONT)?;
        sleep(Duration::from_secs(1));
        assert_eq!(held.ask()?, server);
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert_eq!(Figures::read(lab)?.reasons("drop"), [].into());
        Ok(())
    })
}

/// The wall clock jumps, by a day and back: nothing here goes by it.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_clock_step() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let step = lab.dir().join("step");
        fs::write(&step, "+0")?;
        let args = args();
        let args: Vec<&str> = args.split_whitespace().collect();
        let out = lab.dir().join("stepped.out");
        let child = lab
            .command("lb", XDP_LB)?
            .args(args)
            .env("LD_PRELOAD", faketime()?)
            .env("FAKETIME_TIMESTAMP_FILE", &step)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .stdout(File::create(&out)?)
            .stderr(File::create(lab.dir().join("stepped.err"))?)
            .spawn()?;
        let mut lb = Instance(child);
        balances(lab)?;
        let mut held = KeepAlive::open(lab, VIP, 80)?;
        let server = held.ask()?;
        for offset in ["+1d", "-1d", "+0"] {
            fs::write(&step, offset)?;
            let tables = || fs::read_to_string(&out).unwrap_or_default().matches("connections: ").count();
            let before = tables();
            // Neither a pause nor a rush.
            within(Duration::from_secs(10), "more tables", || (tables() >= before + 5).then_some(()));
            assert_eq!(held.ask()?, server, "{offset}");
            assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        }
        assert!(lb.alive()?);
        assert_eq!(lb.stop()?, Some(0));
        Ok(())
    })
}

/// Debian and Fedora put it into different places.
fn faketime() -> Result<String> {
    let places =
        ["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib64/faketime/libfaketime.so.1"];
    let found = places.iter().find(|place| Path::new(place).exists());
    Ok((*found.context("libfaketime is missing: install the package faketime (make deps)")?).to_owned())
}
