//! The command line as clap reads it: every value still the word that was typed, and nothing checked. Only what a command
//! is for is required, so that its help shows it as such.
//!
//! Values stay `OsString` so that every complaint about one has the same shape, from `parse` and `resolve`.

use std::ffi::OsString;

use clap::Parser;

use super::verbs::Verb;

const FORMS: &str = "xdp-lb [OPTIONS] IFACE
       xdp-lb run --config FILE
       xdp-lb COMMAND [OPTIONS]";

const EXAMPLES: &str = "\
Examples:
  Balance HTTP over three servers, in the proportion 50 to 30 to 20:
    sudo xdp-lb eth0 --vip 192.168.1.100:80 \\
        --backend 10.0.0.10:8080:50 --backend 10.0.0.11:8080:30 --backend 10.0.0.12:8080:20
  DNS over UDP and TCP, a client always on the same server, the address added to eth0:
    sudo xdp-lb eth0 --vip 192.168.1.53:53/any --assign-vip --scheduler ip-hash \\
        --backend 10.0.0.10:53 --backend 10.0.0.11:53
  Would it work here?
    xdp-lb eth0 --vip 192.168.1.100:80 --backend 10.0.0.10:8080 --check-only
  Long connections to the least busy server, a client kept on its server for ten minutes:
    sudo xdp-lb eth0 --vip 192.168.1.100:443 --scheduler least-conn --sticky 10m \\
        --backend 10.0.0.10:443:2 --backend 10.0.0.11:443
  Several services, from a file:
    sudo xdp-lb run --config /etc/xdp-lb.toml
  What it is doing, and one server less without losing a connection:
    sudo xdp-lb status
    sudo xdp-lb backend drain 192.168.1.100:80 10.0.0.10:8080 --deadline 5m --wait

Durations are seconds, or like 500ms, 90s, 5m, 1h 30m.

Exit codes:
  0  it ended as it should (SIGINT, SIGTERM and SIGHUP included), or printed what was asked for
  1  it failed: the message says what was being done to what; or --check-only found an error
  2  the arguments are wrong: the first line names the part that is wrong and shows a right one
Those of `doctor` say what it found: 0 nothing, 1 warnings, 2 errors.";

/// A TCP and UDP load balancer in the kernel's XDP hook.
#[derive(Debug, Parser)]
#[command(
    name = "xdp-lb",
    bin_name = "xdp-lb",
    version,
    propagate_version = true,
    override_usage = FORMS,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,
    #[command(flatten)]
    pub(super) run: Run,
}

/// The default verb: attach and balance.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    // More than one is refused by `resolve`: clap takes a second one for a command.
    /// The interface the clients' packets arrive on
    #[arg(value_name = "IFACE")]
    pub(super) positional: Vec<OsString>,
    /// A further one, or one that is named like a command; as often as needed
    #[arg(long, value_name = "IFACE")]
    pub(super) interface: Vec<OsString>,
    #[command(flatten)]
    pub(super) service: ServiceArgs,
    /// What the service is called [default: its address and port]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<OsString>,
    /// auto (native, else skb with a warning), native or skb [default: auto]
    #[arg(long, value_name = "MODE")]
    pub(super) xdp_mode: Option<OsString>,
    /// auto (XDP where it arrives, else the kernel), direct (XDP), stack (kernel) [default: auto]
    #[arg(long, value_name = "WAY")]
    pub(super) deliver: Option<OsString>,
    /// Where program, links and maps are pinned [default: /sys/fs/bpf/xdp_lb]
    #[arg(long, value_name = "DIR")]
    pub(super) pin_dir: Option<OsString>,
    /// Where it listens for the other commands [default: /run/xdp-lb/ and the last part of DIR]
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<OsString>,
    /// How often the statistics are printed; 0 for never [default: 5s]
    #[arg(long, value_name = "DURATION")]
    pub(super) stats_interval: Option<OsString>,
    /// Add the virtual address to the interface while running, and announce it
    #[arg(long)]
    pub(super) assign_vip: bool,
    /// Go on balancing when the process ends, until it is started again or detached
    #[arg(long)]
    pub(super) persist: bool,
    /// Serve Prometheus metrics, /healthz and /readyz there [default: not at all]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) metrics: Option<OsString>,
    /// Only print what would keep it from working here, and the fixes
    #[arg(long)]
    pub(super) check_only: bool,
    /// human or json, a line each [default: human]
    #[arg(long, value_name = "FORMAT")]
    pub(super) log_format: Option<OsString>,
    /// How much memory the schedulers' tables may take [default: 256MB]
    #[arg(long, value_name = "BYTES")]
    pub(super) ring_memory: Option<OsString>,
    /// How many connections the table has room for [default: 1000000]
    #[arg(long, value_name = "N")]
    pub(super) max_connections: Option<OsString>,
    /// How long an idle TCP connection is safe from eviction [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub(super) timeout_established: Option<OsString>,
    /// The same for one that has not seen packets of both sides yet [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub(super) timeout_unconfirmed: Option<OsString>,
    /// The same for a TCP connection that one side has closed [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub(super) timeout_closing: Option<OsString>,
    /// The same for a UDP flow [default: 1m]
    #[arg(long, value_name = "DURATION")]
    pub(super) timeout_udp: Option<OsString>,
}

/// What a service is.
#[derive(Debug, clap::Args)]
pub(super) struct ServiceArgs {
    /// The virtual address that clients connect to; any is TCP and UDP [default protocol: tcp]
    #[arg(long, value_name = "ADDR:PORT[/tcp|/udp|/any]")]
    pub(super) vip: Option<OsString>,
    /// A server behind it, 1 to 1024 times; weights are 1 to 100 [default weight: 1]
    #[arg(long, value_name = "ADDR:PORT[:WEIGHT]")]
    pub(super) backend: Vec<OsString>,
    /// round-robin (rr), weighted-round-robin (wrr), ip-hash (sh), maglev (mh),
    /// least-conn (lc) [default: wrr]
    #[arg(long, value_name = "NAME", verbatim_doc_comment)]
    pub(super) scheduler: Option<OsString>,
    /// How long a client stays on its backend after its last connection; 0 for not [default: 0]
    #[arg(long, value_name = "DURATION")]
    pub(super) sticky: Option<OsString>,
    /// none, tcp, http or https, then keys: http,path=/health [default: tcp; none for UDP]
    #[arg(long, value_name = "TYPE[,KEY=VALUE...]")]
    pub(super) health: Option<OsString>,
    /// What becomes of a new connection that no backend takes: drop or pass [default: drop]
    #[arg(long, value_name = "WAY")]
    pub(super) on_empty: Option<OsString>,
    /// Connections of a backend that goes down: auto, keep or reset [default: auto]
    #[arg(long, value_name = "WAY")]
    pub(super) on_down: Option<OsString>,
    /// How long a backend that came back takes to its whole share; 0 for at once [default: 0]
    #[arg(long, value_name = "DURATION")]
    pub(super) slow_start: Option<OsString>,
}
