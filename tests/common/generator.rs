//! Packets by the million, from a BPF program that the kernel runs in live-frames mode.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libbpf_cargo::SkeletonBuilder;
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, Object, ObjectBuilder, ProgramInput};

pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// BPF_F_TEST_XDP_LIVE_FRAMES. The kernel then takes 64 frames at a time, which is its default. Larger batches are hardly
/// faster (128: 4 %), and one of 256 fills the ring of a veth, which then drops some.
const LIVE_FRAMES: u32 = 2;
/// Of `struct generator_plan` and of a row of its list.
const PLAN_BYTES: usize = 80;
const TUPLE_BYTES: usize = 8;
const NANOSECONDS: u32 = 1_000_000_000;

/// Which clients the frames come from, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In order, and from the first again.
    Counting,
    /// Drawn evenly from all of them.
    Random,
    /// Those of [`Generator::list`].
    Listed,
}

/// What the frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Udp,
    /// With these flags.
    Tcp(u8),
    /// Frames of both flags by turns: the first of a client, and the second of the client that was `lag` frames of the first
    /// kind before it.
    TcpPairs {
        first: u8,
        second: u8,
        lag: u32,
    },
    /// By turns a new client's, and that of a client `lag` datagrams before it, again.
    UdpTwice {
        lag: u32,
    },
}

impl Kind {
    fn lag(self) -> u32 {
        match self {
            Kind::Udp | Kind::Tcp(_) => 0,
            Kind::TcpPairs { lag, .. } | Kind::UdpTwice { lag } => lag,
        }
    }
}

/// What to send, and where to.
#[derive(Clone, Debug)]
pub struct Plan {
    pub kind: Kind,
    pub order: Order,
    /// Where the random order, and the TCP sequence numbers, begin.
    pub seed: u64,
    pub first_address: Ipv4Addr,
    /// How many clients there are: ports of the first address, then of the next one.
    pub clients: u64,
    pub ports: RangeInclusive<u16>,
    pub target: SocketAddrV4,
    /// The TOS of the frames, by which others can tell them.
    pub tos: u8,
    pub to: [u8; 6],
    pub from: [u8; 6],
    /// Where they are redirected to. 0: sent by XDP_TX, from the loopback interface.
    pub ifindex: u32,
    /// Frames a second, at most; not below 100,000.
    pub most: Option<u32>,
}

/// The program and what it has been told.
pub struct Generator {
    object: Object,
    frame: Vec<u8>,
}

impl Generator {
    /// Loads it. `bytes` is the length of each frame.
    pub fn load(bytes: usize) -> Result<Generator> {
        let object = compile("generator")?;
        ensure!(map(&object, "generator_plan")?.value_size() as usize == PLAN_BYTES, "another plan");
        ensure!(map(&object, "generator_tuples")?.value_size() as usize == TUPLE_BYTES, "another tuple");
        Ok(Generator { object, frame: vec![0; bytes] })
    }

    /// Sets what is sent from now on.
    pub fn set(&self, plan: &Plan) -> Result<()> {
        let mut bytes = Vec::with_capacity(PLAN_BYTES);
        const ANY: u8 = 1;
        let (proto, flags, after) = match plan.kind {
            Kind::Udp => (UDP, 0, 0),
            Kind::UdpTwice { .. } => (UDP, 0, ANY),
            Kind::Tcp(flags) => (TCP, flags, 0),
            Kind::TcpPairs { first, second, .. } => (TCP, first, second),
        };
        let lag = plan.kind.lag();
        let pause = plan.most.map_or(0, |rate| NANOSECONDS / rate.max(1));
        let ports = u32::from(plan.ports.end() - plan.ports.start()) + 1;
        // The numbers begin beyond the lag: an earlier client than the first would be none.
        let next = 2 * u64::from(lag);
        [next, plan.seed, plan.clients, 0].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        let (first, target) = (plan.first_address.to_bits(), plan.target.ip().to_bits());
        [first, ports, target, plan.ifindex, pause, lag]
            .iter()
            .for_each(|word| bytes.extend(word.to_ne_bytes()));
        [*plan.ports.start(), plan.target.port()].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes.extend([plan.order as u8, proto, flags, after, plan.tos]);
        bytes.extend(plan.to.iter().chain(&plan.from));
        bytes.resize(PLAN_BYTES, 0);
        Ok(map(&self.object, "generator_plan")?.update(&0u32.to_ne_bytes(), &bytes, MapFlags::ANY)?)
    }

    /// Sets the clients of the order [`Order::Listed`]; [`Plan::clients`] is their number.
    pub fn list(&self, clients: &[(Ipv4Addr, u16)]) -> Result<()> {
        let tuples = map(&self.object, "generator_tuples")?;
        for (row, (address, port)) in (0u32..).zip(clients) {
            let mut bytes = address.to_bits().to_ne_bytes().to_vec();
            bytes.extend(port.to_ne_bytes());
            bytes.resize(TUPLE_BYTES, 0);
            tuples.update(&row.to_ne_bytes(), &bytes, MapFlags::ANY).context("more clients than rows")?;
        }
        Ok(())
    }

    /// Sends so many frames, from the network namespace that the caller is in; how long it took.
    pub fn send(&self, frames: u32) -> Result<Duration> {
        let program = self.object.progs_mut().next().context("no program")?;
        let started = Instant::now();
        program
            .test_run(ProgramInput {
                data_in: Some(&self.frame),
                flags: LIVE_FRAMES,
                repeat: frames,
                ..ProgramInput::default()
            })
            .context("could not send live frames (Linux 5.18 or newer)")?;
        Ok(started.elapsed())
    }

    /// How many frames have been sent since [`Generator::set`], as the program itself counted them.
    pub fn sent(&self, plan: &Plan) -> Result<u64> {
        let row = map(&self.object, "generator_plan")?
            .lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?
            .context("no plan")?;
        let next = u64::from_ne_bytes(row[..8].try_into()?);
        Ok(next - 2 * u64::from(plan.kind.lag()))
    }
}

/// Loads a program of tests/bpf, compiled with the compiler and the flags of build.rs.
pub fn compile(name: &str) -> Result<Object> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("program.o");
    SkeletonBuilder::new()
        .source(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/bpf/{name}.bpf.c")))
        .obj(&path)
        .clang(env!("XDP_LB_CLANG"))
        .clang_args(env!("XDP_LB_CLANG_ARGS").split(' '))
        .build()?;
    ObjectBuilder::default().open_file(&path)?.load().with_context(|| format!("could not load {name}"))
}

/// One of its tables.
pub fn map(object: &Object, name: &str) -> Result<MapHandle> {
    let map = object.maps().find(|map| map.name() == name).with_context(|| format!("no map {name}"))?;
    Ok(MapHandle::try_from(&map)?)
}
