//! The commands as clap reads them; see `args`.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::args::ServiceArgs;

const DOCTOR_CODES: &str = "\
Exit codes, whatever is shown:
  0  nothing is wrong
  1  there are warnings; or it failed, as where what was found could not be written
  2  there are errors; or the arguments are wrong";

/// The other verbs.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Balance what a file says
    Run {
        /// The file, in TOML
        #[arg(long, value_name = "FILE")]
        config: Option<OsString>,
        /// Only print what would keep it from working here, and the fixes
        #[arg(long)]
        check_only: bool,
    },
    /// Tell whether a configuration file is right, without root
    Check {
        /// The file, in TOML
        #[arg(value_name = "FILE", required = true)]
        file: Option<OsString>,
    },
    /// Show backends, connections and counters of a running instance
    Status {
        #[command(flatten)]
        target: Target,
    },
    /// The same again and again, with rates
    Stats {
        /// How often [default: 2s]
        #[arg(long, value_name = "DURATION")]
        interval: Option<OsString>,
        /// How many times [default: until it is stopped]
        #[arg(long, value_name = "N")]
        count: Option<OsString>,
        #[command(flatten)]
        target: Target,
    },
    /// Tell what would become of a packet, step by step
    Explain {
        /// Who sends it; of a reply the backend
        #[arg(value_name = "CLIENT:PORT", required = true)]
        client: Option<OsString>,
        /// For whom it is: ADDR:PORT[/tcp|/udp]; of a reply the client
        #[arg(value_name = "VIP:PORT", required = true)]
        vip: Option<OsString>,
        /// It opens a connection of TCP, instead of belonging to one
        #[arg(long)]
        syn: bool,
        /// On which interface it arrives [default: that by which the client is reached]
        #[arg(long, value_name = "IFACE")]
        interface: Option<OsString>,
        #[command(flatten)]
        target: Target,
    },
    /// Show connections that open, are confirmed and end, and packets that are dropped
    Trace {
        #[command(flatten)]
        watch: WatchArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Write frames as they came and as they left into a file for Wireshark
    Capture {
        /// The file, in pcapng; - is stdout
        #[arg(short, long, value_name = "FILE", required = true)]
        write: Option<OsString>,
        /// So many bytes of each frame at most, 64 or more [default: 2048, which is the most]
        #[arg(long, value_name = "BYTES")]
        snaplen: Option<OsString>,
        #[command(flatten)]
        watch: WatchArgs,
        #[command(flatten)]
        target: Target,
    },
    /// See on a screen which backend is ill; keys sort, filter and drain
    Top {
        /// How often, and how long --once looks [default: 1s]
        #[arg(long, value_name = "DURATION")]
        interval: Option<OsString>,
        /// Print one screen and end
        #[arg(long)]
        once: bool,
        /// No colours, as with NO_COLOR
        #[arg(long)]
        no_color: bool,
        /// Where that instance listens [default: the only one that runs; with --pin-dir /run/xdp-lb/ and the last part of DIR]
        #[arg(long, value_name = "PATH")]
        socket: Option<OsString>,
        /// Where that instance has its pins [default: those of the only one that runs or left some, else /sys/fs/bpf/xdp_lb]
        #[arg(long, value_name = "DIR")]
        pin_dir: Option<OsString>,
    },
    /// List, add and remove services
    Service {
        #[command(subcommand)]
        verb: ServiceVerb,
        #[command(flatten)]
        target: Target,
    },
    /// List, add, remove, drain, enable, disable and weigh backends of a service
    Backend {
        #[command(subcommand)]
        verb: BackendVerb,
        #[command(flatten)]
        target: Target,
    },
    /// List live connections, or end them
    Connections {
        #[command(subcommand)]
        verb: Option<ConnectionsVerb>,
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        target: Target,
    },
    /// Show the configuration of a running instance
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
        #[command(flatten)]
        target: Target,
    },
    /// Read the configuration file once more
    Reload {
        /// Only tell what would be done
        #[arg(long)]
        dry_run: bool,
        /// Reset the connections of removed backends at once
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        target: Target,
    },
    /// End a running instance, as SIGTERM does
    Stop {
        #[command(flatten)]
        target: Target,
    },
    /// Print the completions of a shell
    Completions {
        /// bash, elvish, fish, powershell or zsh
        #[arg(value_name = "SHELL", required = true)]
        shell: Option<OsString>,
    },
    /// Print a manual page, or write all of them
    Man {
        /// The command that it is about
        #[arg(value_name = "COMMAND")]
        verb: Vec<OsString>,
        /// Where all pages are written to
        #[arg(long, value_name = "DIR")]
        dir: Option<OsString>,
    },
    /// Look for all that ails an instance or this host, each with its fix
    #[command(after_help = DOCTOR_CODES)]
    Doctor {
        /// Only this interface, and the instance on it [default: the running instance]
        #[arg(value_name = "IFACE")]
        interface: Option<OsString>,
        /// Carry out the fixes that harm nothing, after showing them
        #[arg(long)]
        fix: bool,
        /// Show only what is at least so bad: ok, warning or error [default: ok]
        #[arg(long, value_name = "LEVEL")]
        level: Option<OsString>,
        #[command(flatten)]
        target: Target,
    },
    /// Make this host faster: JIT, queues, interrupts, coalescing, busy polling
    Tune {
        /// The interface
        #[arg(value_name = "IFACE", required = true)]
        interface: Option<OsString>,
        /// Only tell what would be done
        #[arg(long)]
        dry_run: bool,
        /// Put back what was there before
        #[arg(long)]
        undo: bool,
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

/// Which instance, and how to print what it says.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// Where that instance listens [default: the only one that runs; with --pin-dir /run/xdp-lb/ and the last part of DIR]
    #[arg(long, value_name = "PATH", global = true)]
    pub(super) socket: Option<OsString>,
    /// Where that instance has its pins [default: those of the only one that runs or left some, else /sys/fs/bpf/xdp_lb]
    #[arg(long, value_name = "DIR", global = true)]
    pub(super) pin_dir: Option<OsString>,
    /// As JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

/// Which packets are watched, and for how long.
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// Those of this client, or of these
    #[arg(long, value_name = "ADDR[/BITS]")]
    pub(super) client: Option<OsString>,
    /// Those of this service, by its name or ADDR:PORT[/tcp|/udp]
    #[arg(long, value_name = "SERVICE")]
    pub(super) service: Option<OsString>,
    /// Those of this backend
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub(super) backend: Option<OsString>,
    /// Those that end like this: table_full, drop/no_backend, a whole class (sent, stack, pass, drop, error), or do this to
    /// their connection: opened, confirmed, closed, reset, revived, syn_retransmit, rst; can be repeated
    #[arg(long = "reason", value_name = "REASON")]
    pub(super) reasons: Vec<OsString>,
    /// End after so many
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<OsString>,
    /// End after this time
    #[arg(long, value_name = "DURATION")]
    pub(super) duration: Option<OsString>,
    /// One connection in so many
    #[arg(long, value_name = "N")]
    pub(super) sample: Option<OsString>,
    /// So many a second at most [default: 1000]
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<OsString>,
}

/// What there is to be done with services.
#[derive(Debug, Subcommand)]
pub(super) enum ServiceVerb {
    /// Show services
    List,
    /// Add a service
    Add {
        /// What it is called
        #[arg(value_name = "NAME", required = true)]
        name: Option<OsString>,
        #[command(flatten)]
        service: Box<ServiceArgs>,
        /// Change the configuration file too
        #[arg(long)]
        persist: bool,
    },
    /// Remove a service, and with it its connections
    Remove {
        /// Its name, or ADDR:PORT[/tcp|/udp]
        #[arg(value_name = "SERVICE", required = true)]
        service: Option<OsString>,
        /// Change the configuration file too
        #[arg(long)]
        persist: bool,
    },
}

/// What there is to be done with backends.
#[derive(Debug, Subcommand)]
pub(super) enum BackendVerb {
    /// Show backends
    List {
        /// Of this service only
        #[arg(value_name = "SERVICE")]
        service: Option<OsString>,
    },
    /// Add a backend to a service
    Add {
        /// Its name, or ADDR:PORT[/tcp|/udp]
        #[arg(value_name = "SERVICE", required = true)]
        service: Option<OsString>,
        /// Address, port and weight
        #[arg(value_name = "ADDR:PORT[:WEIGHT]", required = true)]
        backend: Option<OsString>,
        /// enabled, drain or disabled [default: enabled]
        #[arg(long, value_name = "STATE")]
        state: Option<OsString>,
        /// Change the configuration file too
        #[arg(long)]
        persist: bool,
    },
    /// Remove a backend: no new connections, live ones go on
    Remove {
        #[command(flatten)]
        which: WhichBackend,
        /// Reset live connections at once
        #[arg(long)]
        now: bool,
        /// Wait until it has no connections any more
        #[arg(long)]
        wait: bool,
    },
    /// No new connections, live ones go on
    Drain {
        #[command(flatten)]
        which: WhichBackend,
        /// Reset live connections after this time
        #[arg(long, value_name = "DURATION")]
        deadline: Option<OsString>,
        /// Wait until it has no connections any more, or the deadline has passed
        #[arg(long)]
        wait: bool,
        /// Reset live connections at once
        #[arg(long)]
        now: bool,
    },
    /// New connections again
    Enable {
        #[command(flatten)]
        which: WhichBackend,
    },
    /// No new connections and no checks
    Disable {
        #[command(flatten)]
        which: WhichBackend,
        /// Reset live connections at once
        #[arg(long)]
        now: bool,
    },
    /// Change its share of new connections
    Weight {
        #[command(flatten)]
        which: WhichBackend,
        /// 1 to 100
        #[arg(value_name = "N", required = true)]
        weight: Option<OsString>,
    },
}

/// A backend of a service.
#[derive(Debug, Args)]
pub(super) struct WhichBackend {
    /// Its name, or ADDR:PORT[/tcp|/udp]
    #[arg(value_name = "SERVICE", required = true)]
    pub(super) service: Option<OsString>,
    /// Address and port of the backend
    #[arg(value_name = "ADDR:PORT", required = true)]
    pub(super) backend: Option<OsString>,
    /// Change the configuration file too
    #[arg(long)]
    pub(super) persist: bool,
}

/// What there is to be done with connections.
#[derive(Debug, Subcommand)]
pub(super) enum ConnectionsVerb {
    /// End them: each client's next segment is answered with a RST
    Kill,
}

/// Which connections.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// Those of this service, by its name or ADDR:PORT[/tcp|/udp]
    #[arg(long, value_name = "SERVICE", global = true)]
    pub(super) service: Option<OsString>,
    /// Those of this backend
    #[arg(long, value_name = "ADDR:PORT", global = true)]
    pub(super) backend: Option<OsString>,
    /// Those of this client
    #[arg(long, value_name = "ADDR", global = true)]
    pub(super) client: Option<OsString>,
    /// Those that are unconfirmed, established or closing
    #[arg(long, value_name = "STATE", global = true)]
    pub(super) state: Option<OsString>,
    /// No more than so many [default: 1000 are listed, all are killed]
    #[arg(long, value_name = "N", global = true)]
    pub(super) limit: Option<OsString>,
}

/// What there is to be done with the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Print it as TOML
    Show,
}
