//! What a dead instance leaves in any state: half written, without some pins, refused, and removed.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::balancer::{
    Balancer, FOUND, LOOKUPS, PIN_DIR, XDP_LB, assert_nothing_left, has_address, has_xdp, pins, refused,
    restart, weighted,
};
use common::clients::{KeepAlive, assert_weighted, requests};
use common::eventually;
use common::netns::{Lab, in_lab};
use common::networks::{VIP, two_arms, veth_peer};
use common::servers::{HTTP, nginx_everywhere};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

fn args() -> String {
    format!("eth0 --vip {VIP}:80 {} --assign-vip", weighted(HTTP))
}

fn remove_links() -> Result<()> {
    for name in pins()?.into_iter().filter(|name| name.starts_with("link_")) {
        fs::remove_file(Path::new(PIN_DIR).join(name))?;
    }
    Ok(())
}

/// Whatever keeps a start from coming about, what was left goes on.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_start_that_fails_leaves_what_it_found() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.ip("lb", "link add name eth2 type veth peer name far\nlink set eth2 up\nlink set far up")?;
        lab.ip("lb", "address add 10.4.0.1/24 dev eth2")?;
        let mut lb = Balancer::start(lab, &args())?;
        let mut kept = KeepAlive::open(lab, VIP, 80)?;
        let web = kept.ask()?;
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        let before = pins()?;

        let behind_eth2 = format!("{} --backend 10.4.0.10:80", args());
        let mut fails = |args: &str, words: &str| -> Result<()> {
            let (code, said) = refused(lab, args)?;
            assert_eq!(code, Some(1), "{args}: {said}");
            assert!(said.contains(words), "{args}: no {words:?} in {said}");
            assert_eq!(pins()?, before, "after {args}");
            assert_eq!(kept.ask()?, web, "after {args}");
            assert!(has_address(lab, "lb", "eth0", VIP)? && lab.sysctl("lb", LOOKUPS)? == "1", "{args}");
            Ok(())
        };
        fails(&args().replace("eth0", "eth7"), "no interface eth7")?;
        fails(&format!("{} --backend 10.77.0.1:80", args()), "no route to backend")?;
        // Another program is where ours has to be.
        veth_peer(lab, "lb", "eth2")?;
        fails(&behind_eth2, "eth2 already has another XDP program")?;
        lab.run("lb", XDP_LB, &["veth-peer", "eth2", "--remove"])?;
        // No memory for the new tables.
        let limited = ["--as=400000000", XDP_LB];
        let more = format!("{} --max-connections 10000000", args());
        let words: Vec<&str> = limited.into_iter().chain(more.split_whitespace()).collect();
        let mut process = lab.start("lb", "prlimit", &words)?;
        assert_eq!(process.wait()?.code(), Some(1), "{}", process.stderr());
        assert!(process.stderr().contains("goes on"), "{}", process.stderr());
        fails(&args().replace("eth0", "eth7"), "no interface eth7")?;

        let mut lb = Balancer::start(lab, &args())?;
        assert_eq!(lb.figures()?.connections("tcp").values().sum::<u64>(), 1);
        assert!(!has_xdp(lab, "lb", "eth2")?);
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert_nothing_left(lab)
    })
}

/// Pins only name what the attached program uses: without some of them nothing is lost.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_pin_directories_that_are_not_whole() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let mut lb = Balancer::start(lab, &args())?;
        let whole = pins()?;
        let mut kept = KeepAlive::open(lab, VIP, 80)?;
        let web = kept.ask()?;
        for missing in
            [vec!["connections"], vec!["services", "settings"], vec!["program_native_virtual", "directory"]]
        {
            assert_eq!(lb.stop(Signal::SIGKILL)?, None);
            for name in &missing {
                fs::remove_file(Path::new(PIN_DIR).join(name))?;
            }
            lb = Balancer::start(lab, &args())?;
            assert!(lb.process.stderr().contains(FOUND), "{}", lb.process.stderr());
            assert_eq!(kept.ask()?, web, "without {missing:?}");
            assert_eq!(pins()?, whole);
        }
        // Without links nothing runs; whole tables are taken over all the same, others are cleared away.
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        remove_links()?;
        eventually("the programs are gone", || (!has_xdp(lab, "lb", "eth0").ok()?).then_some(()));
        let mut lb = Balancer::start(lab, &args())?;
        assert_eq!(kept.ask()?, web);
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        remove_links()?;
        fs::remove_file(Path::new(PIN_DIR).join("rings"))?;
        let mut lb = Balancer::start(lab, &args())?;
        assert!(lb.process.stderr().contains("had left some pins"), "{}", lb.process.stderr());
        assert_eq!(pins()?, whole);
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert_nothing_left(lab)
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_pin_directories_that_are_refused() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let at = "/sys/fs/bpf/mine";
        let with = format!("{} --pin-dir {at}", args());
        let refuses = |words: &[&str]| -> Result<()> {
            let (code, said) = refused(lab, &with)?;
            assert_eq!(code, Some(1), "{said}");
            words.iter().for_each(|word| assert!(said.contains(word), "no {word:?} in {said}"));
            assert!(!has_xdp(lab, "lb", "eth0")? && !has_address(lab, "lb", "eth0", VIP)?);
            Ok(())
        };
        fs::create_dir("/sys/fs/bpf/elsewhere")?;
        symlink("/sys/fs/bpf/elsewhere", at)?;
        refuses(&[at, "symbolic link", "rm "])?;
        fs::remove_file(at)?;
        fs::create_dir(at)?;
        chown(at, Some(4711), None)?;
        refuses(&[at, "belongs to user 4711", "rm -r"])?;
        chown(at, Some(0), None)?;
        fs::create_dir(format!("{at}/theirs"))?;
        refuses(&["theirs", "not ours"])?;
        fs::remove_dir(format!("{at}/theirs"))?;
        let _lb = Balancer::start(lab, &with)?;
        Ok(())
    })
}

/// When a start is killed.
enum Moment {
    /// After a time.
    At(Duration),
    /// When there are so many pins.
    Pins(usize),
    /// So long after the first table was pinned anew.
    Repinned(u64, Duration),
}

impl Moment {
    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        match self {
            Moment::At(time) => sleep(*time),
            Moment::Pins(count) => {
                while pins().map_or(0, |pins| pins.len()) < *count && Instant::now() < deadline {}
            }
            Moment::Repinned(before, time) => {
                while inode("directory").is_none_or(|now| now == *before) && Instant::now() < deadline {}
                let due = Instant::now() + *time;
                while Instant::now() < due {}
            }
        }
    }
}

fn inode(pin: &str) -> Option<u64> {
    Some(fs::metadata(Path::new(PIN_DIR).join(pin)).ok()?.ino())
}

/// A start that is killed at any moment leaves nothing that the next one cannot start over.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_starts_that_are_killed() -> Result<()> {
    const TIMES: u32 = 30;
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let begin = Instant::now();
        let mut lb = Balancer::start(lab, &args())?;
        let typical = begin.elapsed();
        let whole = pins()?;
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        let mut kept: Option<(KeepAlive, String)> = None;
        for turn in 0..TIMES {
            // By turns over nothing, over what was left, and into a table of another size.
            let size =
                if turn % 3 == 2 { format!("--max-connections {}", 1000 + turn) } else { String::new() };
            let moment = match (turn / 3 % 2, inode("directory")) {
                (0, _) => Moment::At(typical * turn / (TIMES * 4 / 5)),
                (_, None) => Moment::Pins(2 + turn as usize / 3),
                (_, Some(before)) => Moment::Repinned(before, Duration::from_micros(u64::from(turn) * 10)),
            };
            kill_a_start(lab, &format!("{} {size}", args()), &moment)?;

            let mut lb = Balancer::start(lab, &args()).with_context(|| format!("turn {turn}"))?;
            assert_eq!(pins()?, whole, "turn {turn}");
            assert_eq!(requests(lab, &format!("http://{VIP}/?[1-10]"))?.len(), 10, "turn {turn}");
            if let Some((connection, web)) = &mut kept {
                assert_eq!(&connection.ask().with_context(|| format!("turn {turn}"))?, web);
            }
            if turn % 3 == 2 {
                kept = None;
                assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
                assert_nothing_left(lab)?;
                continue;
            }
            if kept.is_none() {
                let mut connection = KeepAlive::open(lab, VIP, 80)?;
                let web = connection.ask()?;
                kept = Some((connection, web));
            }
            assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        }
        Ok(())
    })
}

fn kill_a_start(lab: &Lab, args: &str, moment: &Moment) -> Result<()> {
    let words: Vec<&str> = args.split_whitespace().collect();
    let mut killed = lab.start("lb", XDP_LB, &words)?;
    moment.wait();
    killed.signal(Signal::SIGKILL)?;
    killed.wait()?;
    Ok(())
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_pins_that_go_away_are_made_again() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let lb = Balancer::start(lab, &args())?;
        let whole = pins()?;
        let mut kept = KeepAlive::open(lab, VIP, 80)?;
        let web = kept.ask()?;
        let mut back = |how: &str| -> Result<()> {
            assert_eq!(kept.ask()?, web, "after {how}");
            eventually(&format!("pins after {how}"), || (pins().ok()? == whole).then_some(()));
            Ok(())
        };
        fs::remove_dir_all(PIN_DIR)?;
        back("rm")?;
        umount2("/sys/fs/bpf", MntFlags::MNT_DETACH)?;
        back("umount")?;
        // They are as good as the first.
        let mut lb = restart(lab, lb, &args())?;
        back("a restart")?;
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        assert_nothing_left(lab)
    })
}

/// Where they cannot be made again it is said once, and the end is as clean as any.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_pins_that_stay_away() -> Result<()> {
    in_lab(|lab| {
        use nix::mount::{MsFlags, mount};
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let bpffs = lab.dir().join("bpf");
        fs::create_dir(&bpffs)?;
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        let mut lb = Balancer::start(lab, &format!("{} --pin-dir {}/mine", args(), bpffs.display()))?;
        umount2(&bpffs, MntFlags::MNT_DETACH)?;
        let warning = "could not make the pins";
        eventually("a warning", || lb.process.stderr().contains(warning).then_some(()));
        sleep(Duration::from_secs(3));
        assert_eq!(lb.process.stderr().matches(warning).count(), 1, "{}", lb.process.stderr());
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0), "{}", lb.process.stderr());
        assert_nothing_left(lab)
    })
}

/// Exit code, stdout and stderr of `xdp-lb detach`.
fn detach(lab: &Lab, words: &str) -> Result<(Option<i32>, String)> {
    let output = lab.command("lb", XDP_LB)?.arg("detach").args(words.split_whitespace()).output()?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok((output.status.code(), said.concat()))
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_detach_removes_what_a_dead_instance_left() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        // While it runs it is refused.
        let mut lb = Balancer::start(lab, &args())?;
        let (code, said) = detach(lab, "eth0")?;
        assert!(code == Some(1) && said.contains("still running (process "), "{said}");
        let process = said.split("(process ").nth(1).and_then(|rest| rest.split(')').next());
        let command = fs::read_to_string(format!("/proc/{}/cmdline", process.context("no process")?))?;
        assert!(command.contains("xdp-lb"), "{command:?}");
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);

        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        // A slip of the pen ends nothing.
        let (code, said) = detach(lab, "eth7")?;
        assert!(code == Some(1) && said.contains("there is no interface eth7; the instance with"), "{said}");
        assert!(said.contains("is on eth0, eth1: name one of these"), "{said}");
        assert_weighted(&requests(lab, &format!("http://{VIP}/?[1-100]"))?, VIP);
        let (code, said) = detach(lab, "eth1")?;
        assert!(
            code == Some(0) && said.contains(&format!("removed what an instance had left in {PIN_DIR}")),
            "{said}"
        );
        assert_nothing_left(lab)?;
        let (code, said) = detach(lab, "eth1")?;
        assert!(code == Some(0) && said.contains("nothing of xdp-lb is on eth1"), "{said}");
        let (code, said) = detach(lab, "eth7")?;
        assert!(code == Some(1) && said.contains("no interface eth7"), "{said}");

        // Pins elsewhere are found and named, not touched.
        let elsewhere = format!("{} --pin-dir /sys/fs/bpf/mine", args());
        let mut lb = Balancer::start(lab, &elsewhere)?;
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        let (code, said) = detach(lab, "eth0")?;
        assert!(code == Some(1) && said.contains("--pin-dir /sys/fs/bpf/mine"), "{said}");
        assert!(has_xdp(lab, "lb", "eth0")?);
        let (code, said) = detach(lab, "eth0 --pin-dir /sys/fs/bpf/mine")?;
        assert_eq!(code, Some(0), "{said}");
        assert!(!Path::new("/sys/fs/bpf/mine").exists());
        assert_nothing_left(lab)?;

        // What belongs to another interface stays.
        lab.ip("lb", "link add name idle type veth peer name far\nlink set idle up\nlink set far up")?;
        let mut lb = Balancer::start(lab, &args())?;
        veth_peer(lab, "lb", "idle")?;
        for killed in [false, true] {
            if killed {
                assert_eq!(lb.stop(Signal::SIGKILL)?, None);
            }
            let (code, said) = detach(lab, "idle")?;
            let expected =
                if killed { "nothing of xdp-lb is on idle" } else { "detached xdp_peer from idle" };
            assert!(code == Some(0) && said.contains(expected), "{said}");
            assert!(has_xdp(lab, "lb", "eth0")? && !has_xdp(lab, "lb", "idle")?);
        }
        Ok(())
    })
}

/// Neither the interface nor the bpffs need have been there before, or be there still.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_detach_without_the_interface() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        let is_mounted = || {
            Ok::<_, anyhow::Error>(
                fs::read_to_string("/proc/thread-self/mounts")?.contains(" /sys/fs/bpf bpf "),
            )
        };
        while is_mounted()? {
            umount2("/sys/fs/bpf", MntFlags::MNT_DETACH)?;
        }
        let mut lb = Balancer::start(lab, &args())?;
        assert!(lb.process.stderr().contains("mounted a bpffs") && is_mounted()?, "{}", lb.process.stderr());
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        lab.ip("lb", "link delete eth1")?;
        let (code, said) = detach(lab, "eth1")?;
        assert_eq!(code, Some(0), "{said}");
        assert!(!has_xdp(lab, "lb", "eth0")? && !has_address(lab, "lb", "eth0", VIP)?);
        assert_eq!(lab.sysctl("lb", LOOKUPS)?, "0");
        assert!(!is_mounted()?, "the bpffs that was mounted");
        Ok(())
    })
}
