//! The command line as clap reads it: every value still the word that was typed, and nothing checked. Only what a command
//! is for is required, so that its help shows it as such.
//!
//! Values stay `OsString` so that every complaint about one has the same shape, from `parse` and `resolve`.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

const FORMS: &str = "xdp-lb [OPTIONS] IFACE
       xdp-lb status [--pin-dir DIR] [--json]
       xdp-lb verify
       xdp-lb veth-peer IFACE [--remove]
       xdp-lb detach IFACE [--pin-dir DIR]";

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
  What it is doing:
    sudo xdp-lb status

Durations are seconds, or like 500ms, 90s, 5m, 1h 30m.

Exit codes:
  0  it ended as it should (SIGINT, SIGTERM and SIGHUP included), or printed what was asked for
  1  it failed: the message says what was being done to what; or --check-only found an error
  2  the arguments are wrong: the first line names the part that is wrong and shows a right one";

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
    /// The same, for an interface that is named like a command
    #[arg(long, value_name = "IFACE")]
    pub(super) interface: Option<OsString>,
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
    /// auto (native, else skb with a warning), native or skb [default: auto]
    #[arg(long, value_name = "MODE")]
    pub(super) xdp_mode: Option<OsString>,
    /// auto (XDP where it arrives, else the kernel), direct (XDP), stack (kernel) [default: auto]
    #[arg(long, value_name = "WAY")]
    pub(super) deliver: Option<OsString>,
    /// Where program, links and maps are pinned [default: /sys/fs/bpf/xdp_lb]
    #[arg(long, value_name = "DIR")]
    pub(super) pin_dir: Option<OsString>,
    /// How often the statistics are printed; 0 for never [default: 5s]
    #[arg(long, value_name = "DURATION")]
    pub(super) stats_interval: Option<OsString>,
    /// Add the virtual address to the interface while running, and announce it
    #[arg(long)]
    pub(super) assign_vip: bool,
    /// Only print what would keep it from working here, and the fixes
    #[arg(long)]
    pub(super) check_only: bool,
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

/// The other verbs.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show backends, connections and counters of a running instance
    Status {
        /// Where that instance has its pins [default: /sys/fs/bpf/xdp_lb]
        #[arg(long, value_name = "DIR")]
        pin_dir: Option<OsString>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Have the kernel verify the programs, without attaching them
    Verify,
    /// Let the far end of a veth (inside a container) receive frames that native XDP sends
    VethPeer {
        /// The end of the veth
        #[arg(value_name = "IFACE", required = true)]
        interface: Option<OsString>,
        /// Detach it again
        #[arg(long)]
        remove: bool,
    },
    /// Remove everything of an instance that died: programs, pins, addresses, settings
    Detach {
        /// An interface that the program is on
        #[arg(value_name = "IFACE", required = true)]
        interface: Option<OsString>,
        /// Where that instance has its pins [default: /sys/fs/bpf/xdp_lb]
        #[arg(long, value_name = "DIR")]
        pin_dir: Option<OsString>,
    },
}
