//! What is found before anything is attached: by `--check-only`, and at a start.

mod common;

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use anyhow::{Context as _, Result};
use common::balancer::{Balancer, PIN_DIR, XDP_LB, has_address, has_xdp, refused, weighted};
use common::clients::requests;
use common::netns::{Lab, find, in_lab};
use common::networks::{VIP, VIP_ONE_ARM, one_arm, two_arms, two_arms_bare, veth_peer};
use common::servers::{HTTP, nginx_everywhere};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

fn args(more: &str) -> String {
    format!("eth0 --vip {VIP}:80 {} --assign-vip {more}", weighted(HTTP))
}

/// What `--check-only` printed, line by line.
#[derive(Debug)]
struct Report {
    code: Option<i32>,
    lines: Vec<String>,
}

impl Report {
    /// Runs it, and sees that it changed nothing.
    fn of(lab: &Lab, args: &str) -> Result<Report> {
        Report::by(lab, lab.command("lb", XDP_LB)?, args)
    }

    fn by(lab: &Lab, mut command: std::process::Command, args: &str) -> Result<Report> {
        let before = state(lab)?;
        let output = command.args(args.split_whitespace()).arg("--check-only").output()?;
        assert_eq!(state(lab)?, before, "{args}: it changed something");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
        Ok(Report { code: output.status.code(), lines })
    }

    /// Panics unless it has a line of this level and name with these words in it; what stands behind `fix: `.
    fn fix(&self, level: &str, name: &str, words: &[&str]) -> String {
        let start = format!("{level:<8} {name}: ");
        let has = |line: &&String| line.starts_with(&start) && words.iter().all(|word| line.contains(word));
        let line = self.lines.iter().find(has).unwrap_or_else(|| panic!("no {start}{words:?} in {self:#?}"));
        line.split_once("; fix: ").map(|(_, fix)| fix.to_owned()).unwrap_or_default()
    }

    /// The lines of a level.
    fn of_level(&self, level: &str) -> Vec<&String> {
        self.lines.iter().filter(|line| line.starts_with(level)).collect()
    }
}

/// All that a start would change.
fn state(lab: &Lab) -> Result<String> {
    let mut state = lab.ip_show("lb", "-4 -o address")?;
    for interface in ["eth0", "eth1"] {
        // One with another name is none.
        state += &format!("{:?}", has_xdp(lab, "lb", interface).ok());
    }
    for name in ["lo/forwarding", "eth0/forwarding", "eth1/accept_local", "all/send_redirects"] {
        state += &lab.sysctl("lb", &format!("net/ipv4/conf/{name}")).unwrap_or_default();
    }
    let pins = fs::read_dir("/sys/fs/bpf")?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    state += &format!("{pins:?}");
    Ok(state + &fs::read_to_string("/proc/thread-self/mounts")?)
}

/// An error: `--check-only` tells it and its fix, and a start does too, and changes nothing.
fn assert_error(lab: &Lab, args: &str, name: &str, words: &[&str], fix: &str) -> Result<()> {
    let report = Report::of(lab, args)?;
    assert_eq!(report.code, Some(1), "{report:#?}");
    assert!(report.fix("error", name, words).contains(fix), "no {fix:?} in {report:#?}");
    let before = state(lab)?;
    let (code, said) = refused(lab, args)?;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(state(lab)?, before, "{args}: the start changed something");
    for word in words.iter().chain([&"xdp-lb: error: ", &fix, &"not started"]) {
        assert!(said.contains(word), "{args}: no {word:?} in {said}");
    }
    Ok(())
}

/// A warning: told by `--check-only`, which ends well, and by a start, which goes on.
fn assert_warning(lab: &Lab, args: &str, name: &str, words: &[&str]) -> Result<String> {
    let report = Report::of(lab, args)?;
    assert_eq!(report.code, Some(0), "{report:#?}");
    let fix = report.fix("warning", name, words);
    let mut lb = Balancer::start(lab, args)?;
    let said = lb.process.stderr();
    for word in words.iter().chain([&"xdp-lb: warning: ", &fix.as_str()]) {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    lb.stop(Signal::SIGTERM)?;
    Ok(fix)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_nothing_to_find() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let report = Report::of(lab, &args(""))?;
        assert_eq!((report.code, report.of_level("ok").len()), (Some(0), report.lines.len()), "{report:#?}");
        for name in [
            "privileges",
            "kernel",
            "pins",
            "interface",
            "program",
            "route",
            "clash",
            "vip",
            "delivery",
            "sysctl",
            "firewall",
        ] {
            report.fix("ok", name, &[]);
        }
        report.fix("ok", "delivery", &["eth1 arrive: its far end lb has an XDP program"]);
        let lb = Balancer::start(lab, &args(""))?;
        assert!(!lb.process.stderr().contains("warning"), "{}", lb.process.stderr());
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_interfaces() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.ip("lb", "link add name idle type veth peer name far")?;
        let on = |interface: &str| args("").replace("eth0", interface);
        assert_error(
            lab,
            &on("eth7"),
            "interface",
            &["no interface eth7; there are: ", "eth1"],
            "name the one",
        )?;
        assert_error(lab, &on("lo"), "interface", &["lo is the loopback interface"], "name the one")?;
        assert_error(lab, &on("idle"), "interface", &["interface idle is down"], "ip link set idle up")?;
        lab.ip("lb", "link set idle up\nlink set far up")?;
        let report = Report::of(lab, &on("idle"))?;
        assert_eq!(report.code, Some(0), "{report:#?}");
        lab.ip("lb", "link add name br0 type bridge\nlink set br0 up")?;
        let native = format!("{} --xdp-mode native", on("br0"));
        assert_error(lab, &native, "interface", &["br0 is of the kind bridge"], "--xdp-mode auto")?;
        let report = Report::of(lab, &on("br0"))?;
        assert_eq!(report.code, Some(0), "{report:#?}");
        report.fix("ok", "interface", &["br0 is of the kind bridge", "it gets SKB mode"]);
        Ok(())
    })
}

/// As somebody else, and as a root that was deprived.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_privileges() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let run = |options: &[&str]| -> Result<Report> {
            let mut command = lab.command("lb", "setpriv")?;
            command.args(options).arg("--").arg(readable(lab)?);
            Report::by(lab, command, &args(""))
        };
        let nobody = run(&["--reuid=65534", "--regid=65534", "--clear-groups"])?;
        assert_eq!(nobody.code, Some(1));
        let missing = "missing: CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_NET_RAW";
        assert!(nobody.fix("error", "privileges", &[missing]).contains("sudo xdp-lb"), "{nobody:#?}");
        nobody.fix("ok", "route", &["10.0.0.10:8080 is reached by eth1"]);

        let only = |capabilities: &str| run(&[&format!("--bounding-set=-all,{capabilities}")]);
        let report = only("+bpf,+net_admin,+net_raw")?;
        report.fix("error", "privileges", &["missing: CAP_PERFMON"]);
        let report = only("+sys_admin,+net_admin")?;
        report.fix("error", "privileges", &["missing: CAP_NET_RAW"]);
        let report = only("+bpf,+net_admin,+perfmon,+net_raw,+dac_override")?;
        assert_eq!(report.code, Some(0), "{report:#?}");
        Ok(())
    })
}

/// The binary where everybody can read it.
fn readable(lab: &Lab) -> Result<std::path::PathBuf> {
    let copy = lab.dir().join("xdp-lb");
    fs::copy(XDP_LB, &copy)?;
    Ok(copy)
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_other_programs() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        veth_peer(lab, "lb", "eth1")?;
        let words = ["eth1 already has another XDP program (xdp_peer, id "];
        assert_error(lab, &args(""), "program", &words, "xdp-lb veth-peer eth1 --remove")?;
        lab.run("lb", XDP_LB, &["veth-peer", "eth1", "--remove"])?;

        let other = "--pin-dir /sys/fs/bpf/other";
        let lb = Balancer::start(lab, &args(other))?;
        let words = ["eth0 already has another xdp-lb (program id ", ", pinned in /sys/fs/bpf/other)"];
        assert_error(lab, &args(""), "program", &words, "stop that one")?;
        // To one with the same pins, the other one is what is in the way, not its programs.
        let process = format!("(process {})", process_of(lab)?);
        let words = ["another xdp-lb is running with the pin directory /sys/fs/bpf/other", &process];
        assert_error(lab, &args(other), "instance", &words, "--pin-dir")?;
        let report = Report::of(lab, &args(other))?;
        report.fix("ok", "program", &["eth0"]);
        drop(lb);
        // Killed: it is taken over.
        let report = Report::of(lab, &args(other))?;
        assert_eq!(report.code, Some(0), "{report:#?}");
        report.fix("ok", "pins", &["left by an instance before"]);
        Ok(())
    })
}

/// The process of the only instance in this lab.
fn process_of(lab: &Lab) -> Result<String> {
    let list = lab.run("lb", "ip", &["netns", "pids", "lb"])?;
    let is_it = |process: &&str| {
        fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim() == "xdp-lb")
    };
    Ok(list.lines().find(is_it).context("no process")?.to_owned())
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_backends() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.ip("lb", "route add blackhole 10.8.0.0/24\nroute add broadcast 10.9.0.1 dev eth1")?;
        let with = |backend: &str| format!("eth0 --vip {VIP}:80 --backend {backend} --assign-vip");
        let error = |backend, words: &str, fix| assert_error(lab, &with(backend), "route", &[words], fix);
        error("10.7.0.1:80", "no route to backend 10.7.0.1:80", "ip route add 10.7.0.1 via GATEWAY")?;
        error("10.8.0.1:80", "no route to backend 10.8.0.1:80", "ip route add 10.8.0.1 via GATEWAY")?;
        error("10.0.0.1:80", "10.0.0.1:80 is an address of this host", "another machine")?;
        error("10.9.0.1:80", "the route to backend 10.9.0.1:80 is not one to a machine", "ip route replace")?;
        lab.ip("lb", "link set eth1 down")?;
        error(
            "10.0.0.10:80",
            "no route to backend 10.0.0.10:80: eth1, in whose subnet it is, is down",
            "ip link set eth1 up",
        )?;
        lab.ip("lb", "link set eth1 up")?;
        assert_eq!(Report::of(lab, &with("10.0.0.10:80"))?.code, Some(0));
        // All are told, not the first only.
        let both = format!("{} --backend 10.8.0.1:80", with("10.7.0.1:80"));
        let (_, said) = refused(lab, &both)?;
        assert!(
            said.contains("10.7.0.1") && said.contains("10.8.0.1") && said.contains("2 errors"),
            "{said}"
        );
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_clients_beside_backends() -> Result<()> {
    in_lab(|lab| {
        one_arm(lab)?;
        let args = format!("eth0 --vip {VIP_ONE_ARM}:80 {} --assign-vip", weighted(HTTP));
        let words = ["clients in 10.0.0.0/24 would hang", "10.0.0.10 is in it too"];
        let fix = assert_warning(lab, &args, "client-subnet", &words)?;
        assert!(fix.contains("come from outside of 10.0.0.0/24"), "{fix}");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_vips() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let without = args("").replace("--assign-vip", "");
        let fix =
            assert_warning(lab, &without, "vip", &["192.168.1.100 is on no interface: nothing answers ARP"])?;
        assert_eq!(fix, "add --assign-vip");
        lab.ip("lb", &format!("address add {VIP}/32 dev lo"))?;
        Report::of(lab, &without)?.fix("ok", "vip", &["the VIP 192.168.1.100 is on lo"]);
        Ok(())
    })
}

/// The far end's MTU is what native mode depends on.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_mtu() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.ip("client", "link set eth0 mtu 3507")?;
        let words = ["the far end of eth0 has an MTU of 3507, native mode takes 3506 at most"];
        let fix = "nsenter --net=/run/netns/client ip link set eth0 mtu 3506";
        assert_error(lab, &args("--xdp-mode native"), "mtu", &words, fix)?;
        assert_eq!(assert_warning(lab, &args(""), "mtu", &words)?, fix);
        lab.run("lb", "sh", &["-c", fix])?;
        let mut lb = Balancer::start(lab, &args("--xdp-mode native"))?;
        assert_eq!(lb.stop(Signal::SIGTERM)?, Some(0));
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_kernel_without_types() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        mount(Some("tmpfs"), "/sys/kernel/btf", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        assert_error(lab, &args(""), "btf", &["/sys/kernel/btf/vmlinux is missing"], "CONFIG_DEBUG_INFO_BTF")
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_pin_dirs() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let dir = lab.dir().display().to_string();
        let error = |dir: &str, words: &[&str], fix: &str| {
            assert_error(lab, &args(&format!("--pin-dir {dir}")), "pins", words, fix)
        };
        error(
            &format!("{dir}/pins"),
            &[&dir, "is not in a bpffs"],
            "choose a --pin-dir in a bpffs, such as /sys/fs/bpf/pins",
        )?;
        error("/nowhere/pins", &["there is no directory /nowhere"], "such as /sys/fs/bpf/pins")?;
        error("/sys/fs/bpf/a/pins", &["there is no directory /sys/fs/bpf/a"], "mkdir -p /sys/fs/bpf/a")?;
        fs::create_dir_all("/sys/fs/bpf/others/theirs")?;
        error("/sys/fs/bpf/others", &["holds theirs, which is not ours"], "choose a --pin-dir")?;
        fs::create_dir("/sys/fs/bpf/foreign")?;
        chown("/sys/fs/bpf/foreign", Some(1000), None)?;
        error("/sys/fs/bpf/foreign", &["belongs to user 1000"], "rm ")?;
        symlink("/sys/fs/bpf/others", "/sys/fs/bpf/link")?;
        error("/sys/fs/bpf/link", &["is a symbolic link"], "rm ")?;
        Ok(())
    })
}

/// What may be written is asked of the kernel, which goes by the capabilities.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_sysctls_by_capability() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        const NET_ADMIN: [&str; 3] = ["--reuid=65534", "--inh-caps=+net_admin", "--ambient-caps=+net_admin"];
        let mut command = lab.command("lb", "setpriv")?;
        command.args(NET_ADMIN).arg("--").arg(readable(lab)?);
        let report = Report::by(lab, command, &args(""))?;
        report.fix("ok", "sysctl", &["net.ipv4.conf.eth0.forwarding is 0 and will be set to 1"]);
        let nobody = {
            let mut command = lab.command("lb", "setpriv")?;
            command.arg(NET_ADMIN[0]).arg("--").arg(readable(lab)?);
            Report::by(lab, command, &args(""))?
        };
        nobody.fix("warning", "sysctl", &["net.ipv4.conf.eth0.forwarding is 0", "cannot be set from here"]);
        Ok(())
    })
}

/// A host whose /proc/sys cannot be written, as in a container.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_sysctls() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        lab.set_sysctl("lb", "net/ipv4/conf/eth1/rp_filter", "1")?;
        const NEEDED: [(&str, &str); 4] = [
            ("eth0.forwarding", "1"),
            ("eth1.forwarding", "1"),
            ("eth1.accept_local", "1"),
            ("eth1.rp_filter", "2"),
        ];
        let report = Report::of(lab, &args(""))?;
        for (name, value) in NEEDED {
            report.fix(
                "ok",
                "sysctl",
                &[&format!("net.ipv4.conf.{name} is "), &format!("be set to {value}")],
            );
        }
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(Some("/proc/sys"), "/proc/sys", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        mount(None::<&str>, "/proc/sys", None::<&str>, read_only, None::<&str>)?;
        let report = Report::of(lab, &args(""))?;
        assert_eq!(report.code, Some(0), "{report:#?}");
        for (name, value) in NEEDED {
            let fix = report.fix("warning", "sysctl", &[&format!("net.ipv4.conf.{name} is ")]);
            assert_eq!(fix, format!("sysctl -w net.ipv4.conf.{name}={value}"));
        }
        Ok(())
    })
}

/// Rules that stop forwarded packets are named, and what is printed makes them let ours through.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_firewalls() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        const NATIVE: &str = "add table inet mine; \
                              add chain inet mine forwarded { type filter hook forward priority 0; policy drop; }; \
                              add rule inet mine forwarded ct state established,related accept";
        let open = Report::of(lab, &args(""))?;
        open.fix("ok", "firewall", &["no rule stops"]);

        // As Docker leaves it.
        let in_lb = |command: &str| lab.run("lb", "sh", &["-c", command]);
        in_lb("iptables -P FORWARD DROP")?;
        in_lb("iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")?;
        in_lb("iptables -t mangle -A FORWARD -m conntrack --ctstate INVALID -j DROP")?;
        in_lb(&format!("nft '{NATIVE}'"))?;
        let report = Report::of(lab, &args(""))?;
        assert_eq!(report.code, Some(0), "{report:#?}");
        let fixes = [
            report.fix("warning", "firewall", &["FORWARD (iptables, table filter)", "its policy is drop"]),
            report.fix("warning", "firewall", &["FORWARD (iptables, table mangle)", "invalid"]),
            report.fix(
                "warning",
                "firewall",
                &["forwarded (nftables, table inet mine)", "its policy is drop"],
            ),
        ];
        assert_eq!(report.of_level("warning").len(), fixes.len(), "{report:#?}");
        assert!(
            fixes[0].contains("iptables -I FORWARD -d 10.0.0.12 -p tcp --dport 8080 -j ACCEPT"),
            "{fixes:?}"
        );
        assert!(
            fixes[0].contains("iptables -I FORWARD -s 192.168.1.100 -p tcp --sport 80 -j ACCEPT"),
            "{fixes:?}"
        );
        let (first, others) = fixes.split_first().context("no fix")?;
        in_lb(first)?;
        let report = Report::of(lab, &args(""))?;
        assert_eq!(report.of_level("warning").len(), others.len(), "{report:#?}");
        for fix in others {
            in_lb(fix)?;
        }
        let report = Report::of(lab, &args(""))?;
        assert!(report.of_level("warning").is_empty(), "{report:#?}");
        report.fix("ok", "firewall", &["no rule stops"]);
        Ok(())
    })
}

/// At a start too; and where XDP delivers by itself, nobody asks.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_firewall_matters_to_the_stack_only() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.run("lb", "iptables", &["-P", "FORWARD", "DROP"])?;
        let direct = Report::of(lab, &args(""))?;
        assert!(direct.of_level("warning").is_empty(), "{direct:#?}");
        direct.fix("ok", "firewall", &["not looked at"]);
        let words = ["FORWARD (iptables, table filter)"];
        let fix = assert_warning(lab, &args("--xdp-mode skb"), "firewall", &words)?;
        assert!(fix.contains("iptables -I FORWARD"), "{fix}");
        Ok(())
    })
}

/// Tables of the older iptables, where this kernel has them.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_legacy_iptables() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        let tables = || lab.within("lb", || fs::read_to_string("/proc/thread-self/net/ip_tables_names"));
        Report::of(lab, &args(""))?;
        assert_eq!(tables()?.unwrap_or_default(), "", "looking made tables");
        if let Err(error) = lab.run("lb", "iptables-legacy", &["-P", "FORWARD", "DROP"]) {
            eprintln!("SKIPPED: no legacy iptables here: {error:#}");
            return Ok(());
        }
        let report = Report::of(lab, &args(""))?;
        let fix = report.fix("warning", "firewall", &["FORWARD (iptables-legacy, table filter)"]);
        lab.run("lb", "sh", &["-c", &fix])?;
        let report = Report::of(lab, &args(""))?;
        assert!(report.of_level("warning").is_empty(), "{report:#?}");
        Ok(())
    })
}

/// Without the tool nobody can tell, and that is said.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_firewall_out_of_sight() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        mount(Some("/dev/null"), &find("nft")?, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        let words = ["could not look at the rules of nftables: nft is not installed"];
        let report = Report::of(lab, &args(""))?;
        assert!(report.fix("warning", "firewall", &words).contains("install nftables"), "{report:#?}");
        // What iptables shows is looked at all the same.
        lab.run("lb", "iptables", &["-P", "FORWARD", "DROP"])?;
        Report::of(lab, &args(""))?.fix("warning", "firewall", &["FORWARD (iptables, table filter)"]);
        Ok(())
    })
}

/// After the errors are gone, it works.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_fixed_means_that_it_works() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _servers = nginx_everywhere(lab)?;
        lab.ip("lb", "link set eth0 down")?;
        let report = Report::of(lab, &args(""))?;
        let fix = report.fix("error", "interface", &["eth0 is down"]);
        lab.run("lb", "sh", &["-c", &fix])?;
        assert_eq!(Report::of(lab, &args(""))?.code, Some(0));
        let mut lb = Balancer::start(lab, &args(""))?;
        assert_eq!(requests(lab, &format!("http://{VIP}/?[1-10]"))?.len(), 10);
        lb.stop(Signal::SIGTERM)?;
        assert!(!Path::new(PIN_DIR).exists() && !has_address(lab, "lb", "eth0", VIP)?);
        assert!(!has_xdp(lab, "lb", "eth0")?);
        Ok(())
    })
}
