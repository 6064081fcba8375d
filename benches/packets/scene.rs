//! A loaded program with its table in a certain state, and the counters that tell what packets did there.

use std::collections::{BTreeMap, HashMap};
use std::mem::offset_of;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use xdp_lb::dataplane::types::{lb_bucket, lb_conn};
use xdp_lb::dataplane::{Attached, Mode, Profile, Reason};
use xdp_lb::model::{Protocol, Scheduler, Timeouts};

use crate::case::{Kind, shot};
use crate::lab::{GATEWAY_MAC, Lab, Setup, VIP, service};
use crate::wrapper::{Draw, Shot, Wrapper};

const PER_BUCKET: usize = size_of::<lb_bucket>() / size_of::<lb_conn>();

/// Ten times what it takes to find the last free slot of a hundred thousand by chance.
const PASSES: usize = 5000;

/// What is in the table before anything is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    Empty,
    /// So many confirmed connections, of the first clients.
    Confirmed(u32),
    /// No slot is left that a new connection could have: all hold confirmed ones.
    Full,
    /// What a flood of SYNs leaves: unconfirmed connections wherever they may be.
    Flooded,
}

/// What a program is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    pub connections: u32,
    pub fill: Fill,
    /// A power of two.
    pub backends: u8,
    pub scheduler: Scheduler,
    pub sticky: bool,
}

impl Spec {
    pub fn new(connections: u32, fill: Fill) -> Spec {
        Spec {
            connections: connections.max(1000),
            fill,
            backends: 8,
            scheduler: Scheduler::RoundRobin,
            sticky: false,
        }
    }
}

/// What the counters have risen by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By "class reason".
    pub reasons: BTreeMap<String, u64>,
    pub connections: u64,
}

impl Counts {
    pub fn since(mut self, before: &Counts) -> Counts {
        for (reason, count) in &mut self.reasons {
            *count -= before.reasons.get(reason).copied().unwrap_or(0);
        }
        self.reasons.retain(|_, count| *count > 0);
        self.connections -= before.connections;
        self
    }

    pub fn of(&self, reason: &str) -> u64 {
        self.reasons.get(reason).copied().unwrap_or(0)
    }
}

pub struct Scene {
    lab: Lab,
    wrappers: HashMap<Profile, Wrapper>,
    backends: u32,
    /// The first client that has not been seen here.
    next: u64,
}

/// Nothing gets over its timeout meanwhile.
const PATIENT: Timeouts = Timeouts {
    established: Timeouts::MAX,
    unconfirmed: Timeouts::MAX,
    closing: Timeouts::MAX,
    udp: Timeouts::MAX,
};

impl Scene {
    pub fn set(spec: Spec, object: &Path) -> Result<Scene> {
        let backends: Vec<_> = (0..spec.backends).map(|n| (n, 1)).collect();
        let services = [Protocol::Tcp, Protocol::Udp].map(|protocol| {
            let mut service = service(VIP, protocol, spec.scheduler, &backends);
            service.sticky = spec.sticky.then_some(Duration::from_secs(3600));
            service
        });
        let mut lab = Lab::with(Setup {
            services: services.into(),
            profile: Profile::NATIVE,
            max_connections: spec.connections,
            timeouts: PATIENT,
            key: None,
        });
        lab.neighbour(GATEWAY_MAC);
        let mut scene = Scene { lab, wrappers: HashMap::new(), backends: u32::from(spec.backends), next: 0 };
        scene.prepare(Profile::NATIVE, object)?;
        scene.fill(spec.fill).with_context(|| format!("could not set up {spec:?}"))?;
        Ok(scene)
    }

    /// Loads the program for another profile, on the same tables.
    pub fn prepare(&mut self, profile: Profile, object: &Path) -> Result<()> {
        if !self.wrappers.contains_key(&profile) {
            let program = self.lab.plane.program(profile)?;
            self.wrappers.insert(profile, Wrapper::load(object, Some(program.fd()))?);
        }
        Ok(())
    }

    fn slots(&self) -> u64 {
        (self.lab.plane.tables().connections.len() * PER_BUCKET) as u64
    }

    fn fill(&mut self, fill: Fill) -> Result<()> {
        match fill {
            Fill::Empty => Ok(()),
            Fill::Confirmed(connections) => {
                // Few at a time: unconfirmed ones may hold half of a bucket only.
                let step = (connections / 64).max(1);
                while self.next < u64::from(connections) {
                    let count = step.min(connections - self.next as u32);
                    let counts = self.connect(count)?;
                    ensure!(
                        (counts.of("sent to_backend"), counts.of("sent to_client"), counts.connections)
                            == (2 * u64::from(count), count.into(), count.into()),
                        "{count} connections were not made: {counts:?}"
                    );
                }
                Ok(())
            }
            Fill::Full => {
                // Few at a time: else they take the last free slots from each other before they are confirmed.
                let step = (self.slots() / 64).max(1) as u32;
                for _ in 0..PASSES {
                    self.connect(step)?;
                    if self.lab.plane.sweep()?.confirmed == self.slots() {
                        return Ok(());
                    }
                }
                bail!("the table does not get full")
            }
            Fill::Flooded => {
                let count = (self.slots() * 3) as u32;
                let syn = shot(Kind::Syn, Draw::Count, self.backends);
                self.counted(Profile::NATIVE, &syn, count).map(|_| ())
            }
        }
    }

    /// Whole connections of clients that have not been seen.
    fn connect(&mut self, count: u32) -> Result<Counts> {
        let before = self.counts()?;
        let next = self.next;
        for kind in [Kind::Syn, Kind::SynAck, Kind::Ack] {
            self.next = next;
            self.send(Profile::NATIVE, &shot(kind, Draw::Count, self.backends), count)?;
        }
        Ok(self.counts()?.since(&before))
    }

    /// Sends packets; clients of [`Draw::Count`] are ones that have not been seen.
    fn send(&mut self, profile: Profile, shot: &Shot, packets: u32) -> Result<Duration> {
        let wrapper = self.wrappers.get_mut(&profile).context("the profile is not prepared")?;
        let took = wrapper.run(shot, self.next, packets)?;
        self.next += u64::from(packets);
        Ok(took)
    }

    /// Sends packets. Returns the CPU time and what the counters say of them.
    pub fn counted(&mut self, profile: Profile, shot: &Shot, packets: u32) -> Result<(Duration, Counts)> {
        let before = self.counts()?;
        let took = self.send(profile, shot, packets)?;
        Ok((took, self.counts()?.since(&before)))
    }

    /// The first client that has not been seen.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The interface that faces clients.
    pub fn front(&self) -> u32 {
        self.lab.front
    }

    /// Has the balancer run on the interface that faces clients.
    pub fn attach(&mut self) -> Result<()> {
        match self.lab.plane.attach(self.lab.front, "front", Mode::Native, Profile::NATIVE)? {
            Attached::Yes => Ok(()),
            Attached::Unsupported(error) => Err(error).context("no native mode on a veth"),
        }
    }

    /// Takes it off again.
    pub fn detach(&mut self) -> Result<()> {
        self.lab.plane.detach(self.lab.front).map(|_| ())
    }

    /// Lets the last so many packets be sent again, as others by the same clients.
    pub fn rewind(&mut self, packets: u32) {
        self.next -= u64::from(packets);
    }

    /// Empties the table.
    pub fn clear(&mut self) -> Result<()> {
        let connections = &self.lab.plane.tables().connections;
        for bucket in 0..connections.len() {
            for slot in 0..PER_BUCKET {
                let at = slot * size_of::<lb_conn>() + offset_of!(lb_conn, state);
                connections.word(bucket, at).context("no such slot")?.store(0, Ordering::Relaxed);
            }
        }
        self.lab.plane.recount_loads()?;
        Ok(())
    }

    pub fn counts(&self) -> Result<Counts> {
        let tables = self.lab.plane.tables();
        let mut counts = Counts::default();
        for reason in Reason::ALL {
            let name = format!("{} {}", reason.class.name(), reason.name);
            counts.reasons.insert(name, tables.reason_counter(reason.code())?.packets);
        }
        for backend in self.lab.plane.backends() {
            counts.connections += tables.backend_counters(backend.index)?.connections;
        }
        Ok(counts)
    }
}
