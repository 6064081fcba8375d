//! The program in front of the one that is measured (benches/bpf/packets.bpf.c).

use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libbpf_cargo::SkeletonBuilder;
use libbpf_rs::{
    Link, MapCore as _, MapFlags, MapImpl, Mut, Object, ObjectBuilder, ProgramInput, ProgramMut,
};
use nix::time::{ClockId, clock_gettime};
use xdp_lb::dataplane::types::xdp_md;

const HEADERS: usize = 56;
const XDP_ABORTED: u32 = 0;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;

/// Whose packets they are. As in packets.bpf.c.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// Each packet is another client's.
    Count,
    /// Any of the first so many clients, each as likely.
    Random(u32),
    /// The first so many clients in turn, each time by another port.
    Walk(u32),
}

/// Packets of one kind.
#[derive(Clone)]
pub struct Shot {
    /// Of a client 0.0.0.0:0 and, if it is a reply, of the first backend.
    pub frame: Vec<u8>,
    pub draw: Draw,
    pub reply: bool,
    pub tcp: bool,
    pub partial: bool,
    /// Replies come from so many backends in turn, a power of two.
    pub backends: u32,
    /// The interface it arrives on.
    pub ifindex: u32,
}

impl Shot {
    fn plan(&self, next: u64) -> Result<Vec<u8>> {
        let (draw, clients) = match self.draw {
            Draw::Count => (0u32, 0u32),
            Draw::Random(clients) => (1, clients),
            Draw::Walk(clients) => (2, clients),
        };
        let mut plan = Vec::new();
        plan.extend(next.to_ne_bytes());
        // Another sequence in each run.
        plan.extend((next ^ 0x9e37_79b9_7f4a_7c15).to_ne_bytes());
        for word in [clients, draw, self.backends - 1] {
            plan.extend(word.to_ne_bytes());
        }
        plan.extend([self.reply.into(), self.tcp.into(), self.partial.into(), 0]);
        plan.extend(self.frame.get(..HEADERS).context("the frame is too short")?);
        Ok(plan)
    }
}

/// With the compiler and the flags of build.rs; libbpf's headers are found through libbpf-cargo.
pub fn compile(source: &str, object: &Path) -> Result<()> {
    SkeletonBuilder::new()
        .source(source)
        .obj(object)
        .clang(env!("XDP_LB_CLANG"))
        .clang_args(env!("XDP_LB_CLANG_ARGS").split(' '))
        .build()
        .with_context(|| format!("could not compile {source}"))
}

pub struct Wrapper {
    object: Object,
}

impl Wrapper {
    /// In front of a program, or of the base program.
    pub fn load(object: &Path, program: Option<BorrowedFd<'_>>) -> Result<Wrapper> {
        let object =
            ObjectBuilder::default().open_file(object)?.load().context("could not load the wrapper")?;
        let mut wrapper = Wrapper { object };
        let fd = match program {
            Some(fd) => fd.as_raw_fd(),
            None => wrapper.program("bench_base")?.as_fd().as_raw_fd(),
        };
        wrapper
            .map("bench_programs")?
            .update(&0u32.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
            .context("the wrapper cannot jump into the program")?;
        Ok(wrapper)
    }

    fn program(&mut self, name: &str) -> Result<ProgramMut<'_>> {
        self.object
            .progs_mut()
            .find(|program| program.name() == name)
            .with_context(|| format!("no program {name}"))
    }

    fn map(&mut self, name: &str) -> Result<MapImpl<'_, Mut>> {
        self.object.maps_mut().find(|map| map.name() == name).with_context(|| format!("no map {name}"))
    }

    fn set_plan(&mut self, shot: &Shot, next: u64) -> Result<()> {
        let plan = shot.plan(next)?;
        let plans = self.map("bench_plans")?;
        ensure!(plans.value_size() as usize == plan.len(), "struct bench_plan is not what is written here");
        plans.update(&0u32.to_ne_bytes(), &plan, MapFlags::ANY).context("could not set the plan")
    }

    /// Sends live frames out of the interface that the shot names.
    pub fn send_live(&mut self, shot: &Shot, next: u64, packets: u32) -> Result<()> {
        self.set_plan(shot, next)?;
        let mut context = context(shot.frame.len(), shot.ifindex);
        let input = ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(&shot.frame),
            repeat: packets,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            ..Default::default()
        };
        self.program("bench_send")?.test_run(input).context("could not send live frames")?;
        Ok(())
    }

    /// Attaches one of the wrapper's programs to an interface, until the link is dropped.
    pub fn attach(&mut self, program: &str, ifindex: u32) -> Result<Link> {
        self.program(program)?
            .attach_xdp(ifindex as i32)
            .with_context(|| format!("could not attach {program} to interface {ifindex}"))
    }

    /// How many frames the sink has received so far.
    pub fn received(&mut self) -> Result<u64> {
        let globals = self.object.maps().find(|map| map.name().to_string_lossy().ends_with(".bss"));
        let globals = globals.context("the wrapper has no globals")?;
        let bytes =
            globals.lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?.context("the wrapper has no globals")?;
        let first = bytes.first_chunk().context("the wrapper's globals are too short")?;
        Ok(u64::from_ne_bytes(*first))
    }

    /// Sends packets, the first of them client `next`'s. Returns the CPU time that they took.
    pub fn run(&mut self, shot: &Shot, next: u64, packets: u32) -> Result<Duration> {
        self.set_plan(shot, next)?;
        let program = self.program("bench_packet")?;
        let mut context = context(shot.frame.len(), shot.ifindex);
        let input = ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(&shot.frame),
            repeat: packets,
            ..Default::default()
        };
        let before = cpu_time()?;
        let output = program.test_run(input).context("could not run the wrapper")?;
        let took = cpu_time()? - before;
        ensure!(output.return_value != XDP_ABORTED, "the wrapper did not reach the program");
        Ok(took)
    }
}

/// A `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn context(length: usize, ifindex: u32) -> [u8; size_of::<xdp_md>()] {
    let mut context = [0; size_of::<xdp_md>()];
    let mut set = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    set(std::mem::offset_of!(xdp_md, data_end), length as u32);
    set(std::mem::offset_of!(xdp_md, ingress_ifindex), ifindex);
    context
}

fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
