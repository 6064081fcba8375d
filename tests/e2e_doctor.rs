//! `xdp-lb doctor`: faults that are planted are found, each under its name, and were not found before.

mod common;
mod doctor;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::Result;
use common::balancer::{Balancer, XDP_LB, weighted};
use common::eventually;
use common::netns::in_lab;
use common::networks::{VIP, VIP_ONE_ARM, one_arm, two_arms, two_arms_bare, veth_peer};
use common::servers::{HTTP, nginx_everywhere};
use doctor::{Fault, Report, carry_out, healthy, settled};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

const NO_TYPE: Option<&str> = None;

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_healthy_instance() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _lb = healthy(lab)?;
        let report = Report::of(lab, "")?;
        assert_eq!((report.code, report.bad()), (Some(0), vec![]), "{report:#?}");
        // Every check says something.
        for name in [
            "instance",
            "service",
            "backend",
            "privileges",
            "kernel",
            "btf",
            "jit",
            "memory",
            "bpffs",
            "pins",
            "interface",
            "driver",
            "mtu",
            "queues",
            "irq",
            "lro",
            "gro",
            "offloads",
            "veth",
            "program",
            "route",
            "neighbour",
            "clash",
            "client-subnet",
            "client-route",
            "vip",
            "delivery",
            "ip-forward",
            "sysctl",
            "firewall",
            "ports",
            "table",
        ] {
            report.fix("ok", name, &[]);
        }
        report.fix("ok", "instance", &["it runs with the pins in /sys/fs/bpf/xdp_lb (process "]);
        report.fix("ok", "neighbour", &["the MACs of 3 next hops to backends by eth1 are known"]);
        report.fix("ok", "table", &["0 of the 1000000 connections"]);
        // By its interface, and by name.
        for args in ["eth0", "eth1", "--pin-dir /sys/fs/bpf/xdp_lb", "--socket /run/xdp-lb/xdp_lb.sock"] {
            let report = Report::of(lab, args)?;
            report.fix("ok", "instance", &["it runs"]);
            assert_eq!(report.code, Some(0), "{args}: {report:#?}");
        }
        Ok(())
    })
}

/// Faults around an instance that runs, which go by XDP.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_faults_around_an_instance() -> Result<()> {
    const FAULTS: [Fault<'_>; 11] = [
        Fault {
            plant: &[("lb", "echo 0 > /proc/sys/net/ipv4/ip_forward")],
            mend: &[("lb", "echo 1 > /proc/sys/net/ipv4/ip_forward")],
            level: "warning",
            name: "ip-forward",
            words: &["net.ipv4.ip_forward is 0"],
            fix: "sysctl -w net.ipv4.ip_forward=1",
        },
        Fault {
            plant: &[("lb", "ip route add unreachable 10.0.0.12/32")],
            mend: &[("lb", "ip route del unreachable 10.0.0.12/32")],
            level: "error",
            name: "route",
            words: &["no route to backend 10.0.0.12:80"],
            fix: "ip route add 10.0.0.12 via GATEWAY",
        },
        Fault {
            plant: &[("web2", "ip link set eth0 down"), ("lb", "ip neigh flush dev eth1")],
            mend: &[("web2", "ip link set eth0 up; ip route add default via 10.0.0.1")],
            level: "warning",
            name: "neighbour",
            words: &["the backend 10.0.0.11 does not answer ARP on eth1"],
            fix: "ip neighbour show 10.0.0.11 dev eth1",
        },
        Fault {
            plant: &[(
                "lb",
                "nft 'add table ip t; add chain ip t f { type filter hook forward priority 0; policy drop; }'",
            )],
            mend: &[("lb", "nft delete table ip t")],
            level: "warning",
            name: "firewall",
            words: &["the chain f (nftables, table ip t)", "policy is drop", "not resolved yet"],
            fix: "nft insert rule ip t f",
        },
        Fault {
            plant: &[(
                "lb",
                "nft 'add table ip t; add chain ip t f { type filter hook forward priority 0; }; \
                 add rule ip t f ct state invalid drop'",
            )],
            mend: &[("lb", "nft delete table ip t")],
            level: "warning",
            name: "firewall",
            words: &["the chain f (nftables, table ip t)", "invalid"],
            fix: "nft insert rule ip t f",
        },
        Fault {
            plant: &[("lb", "iptables -P FORWARD DROP")],
            mend: &[("lb", "iptables -P FORWARD ACCEPT")],
            level: "warning",
            name: "firewall",
            words: &["FORWARD (iptables, table filter)"],
            fix: "iptables -I FORWARD",
        },
        Fault {
            plant: &[("lb", "echo 8000 60999 > /proc/sys/net/ipv4/ip_local_port_range")],
            mend: &[("lb", "echo 32768 60999 > /proc/sys/net/ipv4/ip_local_port_range")],
            level: "warning",
            name: "ports",
            words: &["net.ipv4.ip_local_port_range is 8000 60999", "port 8080"],
            fix: "sysctl -w net.ipv4.ip_local_reserved_ports=8080",
        },
        Fault {
            plant: &[("switch", "xdp-lb veth-peer lb --remove")],
            mend: &[("switch", "xdp-lb veth-peer lb")],
            level: "warning",
            name: "veth",
            words: &["eth1: its far end lb has neither an XDP program"],
            fix: "nsenter --net=/run/netns/switch xdp-lb veth-peer lb",
        },
        Fault {
            plant: &[("lb", "ip address del 192.168.1.100/32 dev eth0")],
            mend: &[("lb", "ip address add 192.168.1.100/32 dev eth0")],
            level: "warning",
            name: "vip",
            words: &["the VIP 192.168.1.100 is no more on eth0, where it was assigned"],
            fix: "ip address add 192.168.1.100/32 dev eth0",
        },
        // There is a service of UDP.
        Fault {
            plant: &[("lb", "ip link set eth1 mtu 1400")],
            mend: &[("lb", "ip link set eth1 mtu 1500")],
            level: "warning",
            name: "mtu",
            words: &["1500 bytes that arrive by eth0 (1500) are too big for eth1 (1400)"],
            fix: "the same MTU",
        },
        Fault {
            plant: &[("lb", "mv /run/xdp-lb/xdp_lb.sock /run/elsewhere")],
            mend: &[("lb", "mv /run/elsewhere /run/xdp-lb/xdp_lb.sock")],
            level: "error",
            name: "instance",
            words: &["holds the pins in /sys/fs/bpf/xdp_lb, but does not listen at /run/xdp-lb/xdp_lb.sock"],
            fix: "--socket",
        },
    ];
    in_lab(|lab| {
        two_arms(lab)?;
        let _lb = healthy(lab)?;
        FAULTS.iter().try_for_each(|fault| fault.assert_found(lab))
    })
}

/// Faults that an instance would not have started with, or that its end leaves.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_without_its_process() -> Result<()> {
    in_lab(|lab| {
        two_arms_bare(lab)?;
        lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
        let args = format!("eth0 --vip {VIP}:80 {} --deliver stack --health none", weighted(HTTP));
        lab.ip("lb", &format!("address add {VIP}/32 dev eth0"))?;
        let mut lb = Balancer::start(lab, &args)?;
        settled(lab, "")?;
        assert_eq!(lb.stop(Signal::SIGKILL)?, None);
        let left = Report::of(lab, "")?;
        let fix =
            left.fix("warning", "instance", &["no process runs for what is pinned in /sys/fs/bpf/xdp_lb"]);
        assert!(fix.contains("start it again") && fix.contains("xdp-lb detach"), "{fix}");
        // What delivers is not known any more, so that the far ends matter; nothing else does.
        assert!(left.bad().iter().all(|(_, name, _)| ["instance", "veth"].contains(name)), "{left:#?}");
        left.fix("ok", "route", &["3 backends are reached by eth1"]);
        left.fix("ok", "interface", &["eth0 is an Ethernet interface"]);
        left.fix("ok", "client-subnet", &[]);
        left.fix("ok", "table", &["0 of the 1000000 connections"]);

        // Nobody sets it again.
        lab.set_sysctl("lb", "net/ipv4/conf/eth1/accept_local", "0")?;
        let report = Report::of(lab, "")?;
        let fix = report.fix("warning", "sysctl", &["net.ipv4.conf.eth1.accept_local is 0, must be 1"]);
        assert_eq!(fix, "sysctl -w net.ipv4.conf.eth1.accept_local=1");
        lab.set_sysctl("lb", "net/ipv4/conf/all/rp_filter", "1")?;
        lab.set_sysctl("lb", "net/ipv4/conf/eth1/rp_filter", "1")?;
        Report::of(lab, "")?.fix("warning", "sysctl", &["net.ipv4.conf.eth1.rp_filter is 1, must be 2"]);
        lab.ip("lb", &format!("address del {VIP}/32 dev eth0"))?;
        Report::of(lab, "")?.fix("warning", "vip", &["the VIP 192.168.1.100 is on no interface"]);

        // Somebody took the programs off.
        lab.run("lb", "sh", &["-c", "rm /sys/fs/bpf/xdp_lb/link_*"])?;
        let fix = Report::of(lab, "")?.fix("warning", "program", &["the program is not on eth1"]);
        assert_eq!(fix, "start the instance again");
        Ok(())
    })
}

/// Of a host without an instance, and of one interface of it.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_without_an_instance() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
        let host = Report::of(lab, "")?;
        assert_eq!((host.code, host.bad()), (Some(0), vec![]), "{host:#?}");
        host.fix("ok", "instance", &["no instance runs with the pins in /sys/fs/bpf/xdp_lb"]);
        host.fix("ok", "route", &["not looked at: no instance runs"]);
        host.fix("ok", "mtu", &["no interface was named"]);
        settled(lab, "eth0")?;

        // Nobody asked for a router: it is said, and left to the operator.
        lab.set_sysctl("lb", "net/ipv4/ip_forward", "0")?;
        let report = Report::of(lab, "eth0 --fix")?;
        let fix = report.fix("warning", "ip-forward", &["net.ipv4.ip_forward is 0"]);
        assert_eq!(fix, "sysctl -w net.ipv4.ip_forward=1");
        assert_eq!((report.stderr.as_str(), lab.sysctl("lb", "net/ipv4/ip_forward")?.as_str()), ("", "0"));
        lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;

        veth_peer(lab, "lb", "eth0")?;
        let words = ["eth0 already has another XDP program (xdp_peer, id "];
        let fix = Report::of(lab, "eth0")?.fix("error", "program", &words);
        assert_eq!(fix, "xdp-lb veth-peer eth0 --remove");
        // Not on the other one.
        settled(lab, "eth1")?;
        lab.run("lb", XDP_LB, &["veth-peer", "eth0", "--remove"])?;
        settled(lab, "eth0")?;

        lab.ip("client", "link set eth0 mtu 3507")?;
        let words = ["the far end of eth0 has an MTU of 3507, native mode takes 3506 at most"];
        let fix = Report::of(lab, "eth0")?.fix("warning", "mtu", &words);
        assert_eq!(fix, "nsenter --net=/run/netns/client ip link set eth0 mtu 3506");
        lab.run("lb", "sh", &["-c", &fix])?;
        settled(lab, "eth0")?;

        lab.ip("lb", "link set eth0 down")?;
        assert_eq!(
            Report::of(lab, "eth0")?.fix("error", "interface", &["eth0 is down"]),
            "ip link set eth0 up"
        );
        Report::of(lab, "eth7")?.fix("error", "interface", &["there is no interface eth7"]);

        mount(Some("tmpfs"), "/sys/kernel/btf", Some("tmpfs"), MsFlags::empty(), NO_TYPE)?;
        Report::of(lab, "")?.fix("error", "btf", &["/sys/kernel/btf/vmlinux is missing"]);
        Ok(())
    })
}

/// A backend in the clients' subnet, on the only arm.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_clients_beside_backends() -> Result<()> {
    in_lab(|lab| {
        one_arm(lab)?;
        lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
        let args = format!("eth0 --vip {VIP_ONE_ARM}:80 {} --assign-vip --health none", weighted(HTTP));
        let _lb = Balancer::start(lab, &args)?;
        let report = Report::of(lab, "")?;
        report.fix("warning", "client-subnet", &["clients in 10.0.0.0/24 would hang"]);
        assert_eq!(report.bad().len(), 1, "{report:#?}");
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_table_that_fills_up() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
        let _servers = nginx_everywhere(lab)?;
        let args =
            format!("eth0 --vip {VIP}:80 {} --assign-vip --health none --max-connections 10", weighted(HTTP));
        let mut lb = Balancer::start(lab, &args)?;
        let connect = |count: usize| {
            lab.within("client", || {
                (0..count).map(|_| TcpStream::connect((VIP, 80))).collect::<Result<Vec<_>, _>>()
            })
        };
        let first = connect(8)??;
        Report::of(lab, "")?.fix("ok", "table", &["8 of the 10 connections"]);
        let ninth = connect(1)??;
        let report = Report::of(lab, "")?;
        let fix = report.fix(
            "warning",
            "table",
            &["9 of the 10 connections that there is room for are live (90 %"],
        );
        assert!(fix.starts_with("--max-connections 20"), "{fix}");
        let tenth = connect(1)??;
        let report = Report::of(lab, "")?;
        report.fix("error", "table", &["10 of the 10 connections", "new ones may find none"]);
        // Without the process too.
        lb.stop(Signal::SIGKILL)?;
        Report::of(lab, "")?.fix("error", "table", &["10 of the 10 connections"]);
        drop((first, ninth, tenth));
        Ok(())
    })
}

/// It mends what harms nothing, after it has said so, and nothing else.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_fix() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let lb = healthy(lab)?;
        // Of the whole host, so that the test has files of its own.
        let host = lab.dir().join("core");
        fs::create_dir(&host)?;
        fs::write(host.join("bpf_jit_enable"), "0\n")?;
        // Each network namespace has its own of that name.
        lab.within("lb", || mount(Some(&host), "/proc/sys/net/core", NO_TYPE, MsFlags::MS_BIND, NO_TYPE))??;
        carry_out(
            lab,
            &[
                ("lb", "echo 0 > /proc/sys/net/ipv4/ip_forward"),
                ("lb", "echo 8000 60999 > /proc/sys/net/ipv4/ip_local_port_range"),
                ("lb", "echo 9000 > /proc/sys/net/ipv4/ip_local_reserved_ports"),
                ("lb", "iptables -P FORWARD DROP"),
            ],
        )?;
        // With ip_forward it went too; the instance sets its own again.
        eventually("forwarding of lo", || {
            lab.sysctl("lb", "net/ipv4/conf/lo/forwarding").ok().filter(|value| value == "1")
        });
        let jit = Report::of(lab, "")?;
        jit.fix("warning", "jit", &["net.core.bpf_jit_enable is 0"]);
        let report = Report::of(lab, "--fix")?;
        let shown: Vec<&str> = report.stderr.lines().collect();
        let expected = [
            "xdp-lb: fix: sysctl -w net.core.bpf_jit_enable=1",
            "xdp-lb: fix: sysctl -w net.ipv4.ip_forward=1",
            "xdp-lb: fix: sysctl -w net.ipv4.ip_local_reserved_ports=9000,8080",
        ];
        assert_eq!(shown, expected, "{report:#?}");
        // The rules are the operator's.
        report.fix("warning", "firewall", &["FORWARD (iptables, table filter)"]);
        assert_eq!(report.bad().len(), 1, "{report:#?}");
        assert_eq!(lab.sysctl("lb", "net/ipv4/ip_forward")?, "1");
        assert_eq!(lab.sysctl("lb", "net/ipv4/ip_local_reserved_ports")?, "8080,9000");
        assert_eq!(fs::read_to_string(host.join("bpf_jit_enable"))?, "1");
        assert!(lab.run("lb", "iptables", &["-S", "FORWARD"])?.contains("-P FORWARD DROP"));
        lab.run("lb", "iptables", &["-P", "FORWARD", "ACCEPT"])?;
        let again = Report::of(lab, "--fix")?;
        assert_eq!((again.code, again.stderr.as_str()), (Some(0), ""), "{again:#?}");
        drop(lb);

        // A host without a bpffs.
        let bare = lab.dir().join("bare");
        fs::create_dir(&bare)?;
        mount(Some("tmpfs"), "/sys/fs/bpf", Some("tmpfs"), MsFlags::empty(), NO_TYPE)?;
        let fix = Report::of(lab, "eth0")?.fix("warning", "bpffs", &["there is no bpffs at /sys/fs/bpf"]);
        assert_eq!(fix, "mount -t bpf -o mode=0700 bpf /sys/fs/bpf");
        let fixed = Report::of(lab, "eth0 --fix")?;
        fixed.fix("ok", "bpffs", &["/sys/fs/bpf is a bpffs"]);
        assert!(fixed.stderr.contains(&format!("fix: {fix}")), "{fixed:#?}");
        assert_eq!(
            fs::metadata("/sys/fs/bpf")?.permissions().mode() & 0o777,
            0o700,
            "others may write there"
        );
        Ok(())
    })
}

/// Which instance is looked at.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_only_other_instance() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
        let args = format!("eth0 --vip {VIP}:80 {} --assign-vip --health none", weighted(HTTP));
        let _lb = Balancer::start(lab, &format!("{args} --pin-dir /sys/fs/bpf/other"))?;
        let report = Report::of(lab, "")?;
        report.fix("ok", "instance", &["it runs with the pins in /sys/fs/bpf/other"]);
        assert_eq!(report.code, Some(0), "{report:#?}");
        settled(lab, "eth1")?;
        // From another network it is not to be judged.
        let output = lab.command("client", XDP_LB)?.args(["doctor", "--json"]).output()?;
        let text = String::from_utf8(output.stdout)?;
        assert!(output.status.code() == Some(2) && text.contains("in another network namespace"), "{text}");
        assert!(text.contains("nsenter --net=/proc/"), "{text}");
        Ok(())
    })
}

/// Without root it tells what it may, and that it may not see all.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_as_somebody_else() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        let _lb = healthy(lab)?;
        let copy = lab.dir().join("xdp-lb");
        fs::copy(XDP_LB, &copy)?;
        let mut command = lab.command("lb", "setpriv")?;
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&copy);
        let output = command.args(["doctor"]).output()?;
        let text = String::from_utf8(output.stdout)?;
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("error    privileges: missing: CAP_BPF"), "{text}");
        assert!(text.contains("error    instance: ") && text.contains("sudo"), "{text}");
        Ok(())
    })
}

/// Native mode was refused.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_skb_mode_by_its_mtu() -> Result<()> {
    in_lab(|lab| {
        two_arms(lab)?;
        lab.set_sysctl("lb", "net/ipv4/ip_forward", "1")?;
        lab.run("client", XDP_LB, &["veth-peer", "eth0", "--remove"])?;
        lab.ip("client", "link set eth0 mtu 3507")?;
        let args = format!("eth0 --vip {VIP}:80 {} --assign-vip --health none", weighted(HTTP));
        let _lb = Balancer::start(lab, &args)?;
        let report = Report::of(lab, "")?;
        let words =
            ["the far end of eth0 has an MTU of 3507, native mode takes 3506 at most: it has SKB mode"];
        let fix = report.fix("warning", "mtu", &words);
        assert_eq!(fix, "nsenter --net=/run/netns/client ip link set eth0 mtu 3506");
        report.fix("warning", "driver", &["the program on eth0 (veth) is in SKB mode"]);
        report.fix("ok", "driver", &["eth1 (veth) has native XDP"]);
        Ok(())
    })
}
