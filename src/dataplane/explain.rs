use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::attach::{Attachment, Mode};
use super::capacity::Capacity;
use super::connections::State;
use super::directory::ipv4_of;
use super::entries::LifeState;
use super::inspect::program_behind;
use super::load::{Profile, Program, load};
use super::pin::{LINK_PREFIX, PROGRAM_PREFIX};
use super::tables::Tables;
use super::types::{lb_backend, lb_explained};
use super::{Class, Reason, scheduler_of};
use crate::model::{Protocol, Scheduler};

/// An interface that an instance's program is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnInterface {
    /// The interface.
    pub ifindex: u32,
    /// How the program runs there.
    pub mode: Mode,
    /// What it is specialised for.
    pub profile: Profile,
}

/// The interfaces that an instance's program is on, by what is pinned in a directory.
///
/// # Errors
/// The directory cannot be read, or holds no program of this version.
pub fn on_interfaces(pin_dir: &Path) -> Result<Vec<OnInterface>> {
    let listing = || format!("could not look through the pins in {}", pin_dir.display());
    let mut links = Vec::new();
    let mut programs = Vec::new();
    for entry in std::fs::read_dir(pin_dir).with_context(listing)? {
        let entry = entry.with_context(listing)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(LINK_PREFIX) {
            links.extend(Attachment::open(&entry.path())?);
        } else if let Some(profile) = name.strip_prefix(PROGRAM_PREFIX).and_then(Profile::from_name) {
            programs.extend(program_behind(&entry.path()).map(|id| (id, profile)));
        }
    }
    let profile = |program: u32| programs.iter().find(|(id, _)| *id == program).map(|(_, profile)| *profile);
    let on = |(link, program): &(Attachment, u32)| {
        Some(OnInterface { ifindex: link.ifindex, mode: link.mode, profile: profile(*program)? })
    };
    let found: Vec<OnInterface> = links.iter().filter_map(on).collect();
    ensure!(!found.is_empty(), "no program of this version is attached by {}", pin_dir.display());
    Ok(found)
}

/// A copy of the program that changes no table and counts nothing: it tells what would become of a packet now.
pub struct Explainer {
    program: Program,
    tables: Tables,
}

/// What would become of a packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The end of its way.
    pub reason: &'static Reason,
    /// The XDP verdict.
    pub verdict: u32,
    /// The frame as it would leave the program.
    pub frame: Vec<u8>,
    /// By which interface XDP would send it.
    pub out_ifindex: Option<u32>,
    /// The service, if it belongs to one.
    pub service: Option<ServiceFound>,
    /// The connection that it hits.
    pub connection: Option<ConnectionFound>,
    /// How a new connection got its backend, if one was asked for.
    pub choice: Option<Choice>,
    /// Where it would go, if that was looked for.
    pub next_hop: Option<HopFound>,
}

/// A service that a packet belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFound {
    /// Its address and port.
    pub vip: SocketAddrV4,
    /// Its protocol.
    pub protocol: Protocol,
    /// How it spreads connections.
    pub scheduler: Option<Scheduler>,
    /// Its backends, and how many of them take new connections.
    pub backends: (usize, usize),
}

/// A connection that a packet hits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionFound {
    /// Whose it is.
    pub backend: Option<SocketAddrV4>,
    /// What it goes through; `None`: it is closed, or found over its timeout.
    pub state: Option<LifeState>,
    /// Whether the packet goes on with it; else the packet may open a new one.
    pub goes_on: bool,
}

/// How a new connection got its backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The slots of the ring; 0: it was not looked at.
    pub ring_length: u32,
    /// The slot where the search begins.
    pub ring_position: u32,
    /// To whom the client is to come back, by its record.
    pub recorded: Option<SocketAddrV4>,
    /// Who has the least load, where the scheduler asks for it.
    pub least: Option<SocketAddrV4>,
    /// Who was passed over, and why.
    pub refusals: Vec<(SocketAddrV4, &'static Reason)>,
    /// Who takes it.
    pub backend: Option<SocketAddrV4>,
    /// Whether the connection table has no slot for it.
    pub no_slot: bool,
}

/// Where a packet would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopFound {
    /// The interface; 0: the kernel is to find it.
    pub ifindex: u32,
    /// The largest packet that fits, in bytes from the IP header on.
    pub mtu: u32,
    /// Destination and source MAC.
    pub macs: ([u8; 6], [u8; 6]),
    /// Whether the kernel was asked for the route, as for the first reply of a connection.
    pub by_fib: bool,
}

impl Explainer {
    /// Loads the copy on the tables of an instance, for the profile that its program has on an interface.
    pub fn load(tables: &Tables, profile: Profile) -> Result<Explainer> {
        let settings = tables.settings()?;
        let there = tables.shared()?;
        let capacity = Capacity::of_tables(&there, &settings).context("tables are missing")?;
        let profile = Profile { explain: true, ..profile };
        let (program, tables) = load(profile, &settings, &capacity, &there)
            .context("could not load the copy of the program that explains")?;
        Ok(Explainer { program, tables })
    }

    /// What would become of a frame that arrives now on the interface with this index.
    pub fn explain(&self, frame: &[u8], ifindex: u32) -> Result<Explanation> {
        self.program.begin_anew(None)?;
        self.run(frame, ifindex)
    }

    /// The same with the clock, the random number and all else that the program itself keeps between packets: for tests,
    /// which compare it with what that program then does.
    pub fn explain_like(&self, program: &Program, frame: &[u8], ifindex: u32) -> Result<Explanation> {
        self.program.begin_anew(Some(program))?;
        self.run(frame, ifindex)
    }

    fn run(&self, frame: &[u8], ifindex: u32) -> Result<Explanation> {
        let (verdict, frame) = self.program.test_run(frame, ifindex)?;
        let noted = self.program.explained()?;
        let reason = Reason::of_code(noted.reason).context("the program ended without a reason")?;
        Ok(Explanation {
            reason,
            verdict,
            frame,
            out_ifindex: (noted.out_ifindex != 0).then_some(noted.out_ifindex),
            service: self.service(noted.service),
            connection: self.connection(&noted),
            choice: self.choice(&noted),
            next_hop: hop(&noted),
        })
    }

    fn service(&self, index: u16) -> Option<ServiceFound> {
        let row = self.tables.services.get(usize::from(index)).filter(|_| index != 0)?;
        let backends = (1..self.tables.backends.len()).filter_map(|at| self.tables.backends.get(at));
        let own: Vec<lb_backend> = backends.filter(|row| row.service == index && row.state != 0).collect();
        Some(ServiceFound {
            vip: SocketAddrV4::new(ipv4_of(row.addr), u16::from_be(row.port)),
            protocol: Protocol::from_number(row.proto)?,
            scheduler: scheduler_of(row.scheduler),
            backends: (own.len(), own.iter().filter(|row| super::entries::is_up(row)).count()),
        })
    }

    fn connection(&self, noted: &lb_explained) -> Option<ConnectionFound> {
        let state = State(noted.state);
        state.is_entry().then(|| ConnectionFound {
            backend: self.backend(noted.found),
            state: LifeState::of(state).filter(|_| !state.expired()),
            goes_on: noted.goes_on != 0,
        })
    }

    fn choice(&self, noted: &lb_explained) -> Option<Choice> {
        let refusals = noted.refusal.iter().take(usize::from(noted.refusals));
        let refusals = refusals.filter_map(|refusal| {
            let reason = Reason::of_code(u32::from(refusal.reason))?;
            Some((self.backend(refusal.backend).unwrap_or(NOBODY), reason))
        });
        let choice = Choice {
            ring_length: noted.ring_length,
            ring_position: noted.ring_position,
            recorded: self.backend(noted.recorded),
            least: self.backend(noted.least),
            refusals: refusals.collect(),
            backend: self.backend(noted.chosen),
            no_slot: noted.no_slot != 0,
        };
        (choice != Choice::default()).then_some(choice)
    }

    fn backend(&self, index: u16) -> Option<SocketAddrV4> {
        let row = self.tables.backends.get(usize::from(index)).filter(|_| index != 0)?;
        Some(SocketAddrV4::new(ipv4_of(row.addr), u16::from_be(row.port)))
    }
}

/// In the place of a backend whose slot of the ring is empty.
const NOBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);

fn hop(noted: &lb_explained) -> Option<HopFound> {
    let mac = |at: usize| std::array::from_fn(|byte| noted.macs[at + byte]);
    let class = Reason::of_code(noted.reason).map(|reason| reason.class);
    let translated = matches!(class, Some(Class::Sent | Class::Stack)) || noted.hop_ifindex != 0;
    translated.then(|| HopFound {
        ifindex: noted.hop_ifindex,
        mtu: noted.hop_mtu,
        macs: (mac(0), mac(6)),
        by_fib: noted.by_fib != 0,
    })
}
