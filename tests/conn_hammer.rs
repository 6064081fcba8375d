//! The connection table under concurrent use: two CPUs hammer the same few buckets with look-ups, inserts, evictions,
//! promotions, closes and deletions while the sweep of user space runs. A state of another key is never returned, and a
//! confirmed entry is never lost, and in the end the loads are those of the entries, and what was counted of a backend's
//! connections adds up.
//!
//! `XDP_LB_HAMMER_OPS` sets the number of operations (40,000,000), for instance to 1e9.

use std::collections::BTreeMap;
use std::env;
use std::mem::offset_of;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use libbpf_cargo::SkeletonBuilder;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{DataSec, MemberAttr, Struct, Var};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, Object, ObjectBuilder, ProgramInput};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use xdp_lb::dataplane::types::{
    lb_backend, lb_backend_counters, lb_backend_events, lb_backend_flags, lb_backend_load, lb_bucket,
    lb_conn, lb_nexthop, lb_phase, lb_profile, lb_settings, lb_state_layout,
};
use xdp_lb::dataplane::{Events, Loads, Rows, Sweeper, Walked};

const OPERATIONS: f64 = 40e6;
/// Longer runs begin again with other keys after so many.
const OPERATIONS_PER_SET: f64 = 200e6;

/// Each table's number of buckets, and whether user space sweeps it.
const ROUNDS: [(u32, bool); 4] = [(4, false), (4, true), (16, false), (16, true)];

const WORKERS: u8 = 2;
/// Runs of one system call; between runs the thread can be interrupted.
const REPEAT: u32 = 256;

// As in conn_hammer.bpf.c.
const PINNED: u64 = 4;
const BACKENDS: u16 = 1000;
const EPOCH_STRIDE: usize = 8;
const EPOCH_SWEEPER: usize = WORKERS as usize * EPOCH_STRIDE;
const EPOCH_CLOCK: usize = EPOCH_SWEEPER + EPOCH_STRIDE;
const EPOCH_RUNNING: u64 = 0x10000;
const EPOCH_IDLE: u64 = 0;
/// Running, and nobody knows yet how far: the clock stands.
const EPOCH_ENTERING: u64 = 1;

const ENTRY: usize = size_of::<lb_conn>();
const PER_BUCKET: usize = size_of::<lb_bucket>() / ENTRY;
const STATE: usize = offset_of!(lb_conn, state);

/// What a round must have none of.
const FAULTS: [&str; 10] = [
    "wrong_pairing",
    "lost_pinned",
    "lost_session",
    "expired_live",
    "left_claimed",
    "not_set_up",
    "loads_off",
    "counted_dead",
    "uncounted_live",
    "unbalanced",
];
/// What shows that the rounds were about anything.
const SIGNS: [&str; 17] = [
    "counted",
    "hits",
    "misses",
    "inserts",
    "table_full",
    "replaced",
    "deleted",
    "clock_steps",
    "sessions_confirmed",
    "sessions_ended",
    "sweeps",
    "events_opened",
    "events_closed",
    "events_reset",
    "events_expired",
    "events_evicted",
    "events_moved",
];
/// On one CPU nobody is overtaken, and the clock hardly steps.
const SIGNS_OF_TWO_CPUS: [&str; 3] = ["overtaken", "expired_hits", "events_revived"];

type Counts = BTreeMap<String, u64>;

#[derive(Clone, Copy)]
enum Act {
    SetUp = 0,
    Hammer = 1,
    Audit = 2,
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_two_cpus_on_the_same_buckets() -> Result<()> {
    let operations = match env::var("XDP_LB_HAMMER_OPS") {
        Ok(text) => text.parse().with_context(|| format!("XDP_LB_HAMMER_OPS={text} is not a number"))?,
        Err(_) => OPERATIONS,
    };
    let directory = tempfile::tempdir()?;
    let object = directory.path().join("conn_hammer.o");
    compile(&object)?;
    let cpus = cpus()?;
    if cpus.len() < usize::from(WORKERS) {
        eprintln!("only one CPU: the workers take turns on it, and hardly ever meet");
    }
    let sets = (operations / OPERATIONS_PER_SET).ceil().max(1.0);
    let share = (operations / sets / ROUNDS.len() as f64 / f64::from(WORKERS)).ceil() as u64;
    for set in 0..sets as u64 {
        let mut total = Counts::new();
        for (buckets, sweep) in ROUNDS {
            let round = Round::load(&object, buckets, set)?;
            let counts = round.run(&cpus, share, sweep)?;
            eprintln!("keys {set}, {buckets} buckets, {counts:?}");
            let faults: Vec<_> = FAULTS.iter().filter(|&&name| counts[name] > 0).collect();
            ensure!(faults.is_empty(), "faults with {buckets} buckets: {faults:?} in {counts:?}");
            add(&mut total, counts);
        }
        let signs = SIGNS.iter().chain(if cpus.len() > 1 { &SIGNS_OF_TWO_CPUS[..] } else { &[] });
        let absent: Vec<_> = signs.filter(|&&name| total[name] == 0).collect();
        ensure!(absent.is_empty(), "never happened: {absent:?} in {total:?}");
    }
    Ok(())
}

fn add(total: &mut Counts, counts: Counts) {
    for (name, count) in counts {
        *total.entry(name).or_default() += count;
    }
}

/// With the compiler and the flags of build.rs; libbpf's headers are found through libbpf-cargo.
fn compile(object: &Path) -> Result<()> {
    SkeletonBuilder::new()
        .source("tests/bpf/conn_hammer.bpf.c")
        .obj(object)
        .clang(env!("XDP_LB_CLANG"))
        .clang_args(env!("XDP_LB_CLANG_ARGS").split(' '))
        .build()
}

/// The CPUs that this process may run on.
fn cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect())
}

/// Timeouts of a few hundred operations. A confirmed entry that the test holds is used every 16 steps of the clock or so;
/// the common ones are left alone for longer than any timeout.
fn settings(buckets: u32, set: u64) -> lb_settings {
    let mut settings = lb_settings { buckets, ..Default::default() };
    for (n, word) in (1..).zip(&mut settings.key) {
        *word = (set * 8 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    let phases = [
        (lb_phase::LB_PHASE_UNCONFIRMED, 10),
        (lb_phase::LB_PHASE_ANSWERED, 10),
        (lb_phase::LB_PHASE_ESTABLISHED, 60),
        (lb_phase::LB_PHASE_CLOSING, 50),
        (lb_phase::LB_PHASE_REVIVING, 50),
        (lb_phase::LB_PHASE_CLOSED, u16::MAX),
        (lb_phase::LB_PHASE_CLAIMED, 20),
    ];
    for (phase, units) in phases {
        settings.timeout[phase.0 as usize] = units;
        settings.timeout[phase.0 as usize + 8] = units;
    }
    settings
}

/// A table, and the program that hammers it.
struct Round {
    object: Object,
    settings: lb_settings,
    members: Vec<(String, usize)>,
    connections: Rows<lb_bucket>,
    /// None is valid: the sweep takes the entries' next hops away.
    nexthops: Rows<lb_nexthop>,
    backends: Rows<lb_backend>,
    loads: Rows<lb_backend_load>,
    events: Rows<lb_backend_events>,
    epochs: Rows<u64>,
}

impl Round {
    fn load(path: &Path, buckets: u32, set: u64) -> Result<Round> {
        let btf = Btf::from_path(path)?;
        let settings = settings(buckets, set);
        let mut open = ObjectBuilder::default().open_file(path)?;
        for mut map in open.maps_mut() {
            match map.name().to_str() {
                Some("connections") => map.set_max_entries(buckets)?,
                Some("backends" | "backend_loads" | "backend_events" | "backend_counters") => {
                    map.set_max_entries(u32::from(BACKENDS) + 1)?
                }
                Some(name) if name.ends_with(".rodata") => {
                    let rodata = map.initial_value_mut().context("no .rodata")?;
                    let row = &mut rodata[offset(&btf, "lb_settings")?..][..size_of::<lb_settings>()];
                    *plain::from_mut_bytes(row).map_err(|_| anyhow!(".rodata is not aligned"))? = settings;
                    rodata[offset(&btf, "lb_profile")? + offset_of!(lb_profile, test_clock)] = 1;
                }
                _ => {}
            }
        }
        let object = open.load().context("could not load the hammer")?;
        let connections = Rows::map(map(&object, "connections")?)?;
        let nexthops = Rows::map(map(&object, "nexthops")?)?;
        let epochs = Rows::map(map(&object, "hammer_epochs")?)?;
        let (backends, loads) =
            (Rows::map(map(&object, "backends")?)?, Rows::map(map(&object, "backend_loads")?)?);
        let round = Round {
            settings,
            members: members(&btf)?,
            connections,
            nexthops,
            backends,
            loads,
            events: Rows::map(map(&object, "backend_events")?)?,
            epochs,
            object,
        };
        round.count_some(0);
        Ok(round)
    }

    /// Of three backends one is never counted, one always, and one at every other time.
    fn count_some(&self, time: u64) {
        const COUNTED: u8 = lb_backend_flags::LB_BACKEND_COUNTED.0 as u8;
        for backend in 1..=usize::from(BACKENDS) {
            let counted = is_always_counted(backend) || (backend % 3 == 2 && time % 2 == 0);
            if let Some(flags) = self.backends.byte(backend, offset_of!(lb_backend, flags)) {
                flags.store(if counted { COUNTED } else { 0 }, Ordering::Relaxed);
            }
        }
    }

    fn walked(&self) -> Walked<'_> {
        Walked {
            connections: &self.connections,
            backends: &self.backends,
            loads: Loads(&self.loads),
            events: Events(&self.events),
            nexthops: &self.nexthops,
        }
    }

    /// Sets up, hammers until each worker has done its share of operations, and looks at what is left.
    fn run(&self, cpus: &[usize], share: u64, sweep: bool) -> Result<Counts> {
        self.act(0, Act::SetUp, 1)?;
        for worker in 0..WORKERS {
            self.set_epoch(usize::from(worker) * EPOCH_STRIDE, EPOCH_ENTERING);
        }
        let done = AtomicBool::new(false);
        let started = Instant::now();
        let sweeps = thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|worker| {
                    let cpu = cpus[usize::from(worker) % cpus.len()];
                    scope.spawn(move || self.work(worker, cpu, share))
                })
                .collect();
            let sweeper = sweep.then(|| scope.spawn(|| self.sweep(&done)));
            let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            done.store(true, Ordering::Release);
            let sweeps = sweeper.map(|sweeper| sweeper.join().map_err(|_| anyhow!("the sweeper panicked")));
            for result in results {
                result.map_err(|_| anyhow!("a worker panicked"))??;
            }
            sweeps.transpose()?.transpose()
        })?;
        let milliseconds = started.elapsed().as_millis() as u64;
        self.act(0, Act::Audit, 1)?;
        let mut counts = self.counts(0)?;
        add(&mut counts, self.counts(1)?);
        counts.insert("sweeps".to_owned(), sweeps.unwrap_or(0));
        counts.insert("left_claimed".to_owned(), self.claimed());
        self.compare_loads(&mut counts);
        self.compare_events(&mut counts)?;
        counts.insert("milliseconds".to_owned(), milliseconds);
        Ok(counts)
    }

    /// The counted bits and the loads, once nobody writes.
    fn compare_loads(&self, counts: &mut Counts) {
        let census = Sweeper::new(self.walked(), self.settings, 0).count();
        let entries = |backend: u16| census.counted.get(usize::from(backend)).map_or(0, |c| c.entries as i64);
        let off = |backend: &u16| Loads(&self.loads).load(*backend) != entries(*backend);
        counts.insert("loads_off".to_owned(), (0..=BACKENDS).filter(off).count() as u64);
        counts.insert("counted".to_owned(), (0..=BACKENDS).map(|backend| entries(backend) as u64).sum());
        for name in ["counted_dead", "uncounted_live"] {
            counts.insert(name.to_owned(), 0);
        }
        for state in self.states() {
            let bit = |layout: lb_state_layout| state >> layout.0 & 1 == 1;
            let counted = bit(lb_state_layout::LB_STATE_COUNTED_SHIFT);
            let fault = match (counted, is_live(state)) {
                (true, false) => "counted_dead",
                (false, true) if is_always_counted(usize::from(state as u16)) => "uncounted_live",
                _ => continue,
            };
            *counts.entry(fault.to_owned()).or_default() += 1;
        }
    }

    /// Each backend's counts, once nobody writes: what came to it has ended, or lives.
    fn compare_events(&self, counts: &mut Counts) -> Result<()> {
        let mut live = vec![0; usize::from(BACKENDS) + 1];
        for state in self.states().filter(|state| is_live(*state)) {
            live[usize::from(state as u16)] += 1;
        }
        let mut unbalanced = 0;
        for (backend, live) in (0..).zip(live) {
            let row = self.events.get(backend as usize).context("a backend has no events")?;
            let opened: u64 = self.opened(backend)?;
            let deleted = self.row("hammer_deleted", backend)?.first_chunk().copied().map(u64::from_ne_bytes);
            let deleted = deleted.context("a backend has no deletions")?;
            let ended = row.closed + row.reset + row.expired + row.evicted + row.moved + deleted;
            unbalanced += u64::from(opened + row.revived != ended + live);
            let kinds = [
                ("events_opened", opened),
                ("events_closed", row.closed),
                ("events_reset", row.reset),
                ("events_expired", row.expired),
                ("events_evicted", row.evicted),
                ("events_moved", row.moved),
                ("events_revived", row.revived),
            ];
            kinds.into_iter().for_each(|(name, count)| *counts.entry(name.to_owned()).or_default() += count);
        }
        counts.insert("unbalanced".to_owned(), unbalanced);
        Ok(())
    }

    /// Connections of a backend, over all CPUs.
    fn opened(&self, backend: u32) -> Result<u64> {
        let rows = map(&self.object, "backend_counters")?
            .lookup_percpu(&backend.to_ne_bytes(), MapFlags::ANY)?
            .context("a backend has no counters")?;
        let connections = offset_of!(lb_backend_counters, connections);
        let count = |row: &Vec<u8>| {
            let bytes = row.get(connections..connections + size_of::<u64>()).context("a short row")?;
            Ok(u64::from_ne_bytes(bytes.try_into()?))
        };
        rows.iter().map(count).sum()
    }

    fn row(&self, name: &str, index: u32) -> Result<Vec<u8>> {
        map(&self.object, name)?.lookup(&index.to_ne_bytes(), MapFlags::ANY)?.context("a row is missing")
    }

    /// Slots that are CLAIMED; none may be once nobody writes.
    fn claimed(&self) -> u64 {
        let claimed = u64::from(lb_phase::LB_PHASE_CLAIMED.0);
        self.states().filter(|state| phase(*state) == claimed).count() as u64
    }

    fn states(&self) -> impl Iterator<Item = u64> {
        (0..self.connections.len())
            .flat_map(|bucket| (0..PER_BUCKET).map(move |slot| (bucket, slot * ENTRY + STATE)))
            .filter_map(|(bucket, offset)| self.connections.word(bucket, offset))
            .map(|state| state.load(Ordering::Acquire))
    }

    fn work(&self, worker: u8, cpu: usize, share: u64) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("could not run on CPU {cpu}"))?;
        while self.counts(worker)?["operations"] < share {
            self.act(worker, Act::Hammer, REPEAT)?;
        }
        self.set_epoch(usize::from(worker) * EPOCH_STRIDE, EPOCH_IDLE);
        Ok(())
    }

    /// Sweeps in bursts until the workers are done. A mapping that goes away between the bursts interrupts the workers
    /// wherever they are, since their CPUs must forget it; the pause keeps this thread from being interrupted itself.
    fn sweep(&self, done: &AtomicBool) -> Result<u64> {
        const BURST: u64 = 8;
        const PAUSE: Duration = Duration::from_micros(20);
        let mut sweeps = 0;
        while !done.load(Ordering::Acquire) {
            for _ in 0..BURST {
                self.sweep_once()?;
            }
            sweeps += BURST;
            self.count_some(sweeps / BURST);
            let again = Rows::<lb_bucket>::map(MapHandle::try_from(self.connections.handle())?)?;
            again.get(0);
            drop(again);
            thread::sleep(PAUSE);
        }
        Ok(sweeps)
    }

    /// The clock stands meanwhile: a real sweep is as short against the clock's unit.
    fn sweep_once(&self) -> Result<()> {
        self.set_epoch(EPOCH_SWEEPER, EPOCH_ENTERING);
        let now = self.epochs.word(EPOCH_CLOCK, 0).context("no clock")?.load(Ordering::SeqCst);
        self.set_epoch(EPOCH_SWEEPER, EPOCH_RUNNING | now);
        let census = Sweeper::new(self.walked(), self.settings, now as u16).sweep(|_| {});
        self.set_epoch(EPOCH_SWEEPER, EPOCH_IDLE);
        let confirmed = census.confirmed;
        ensure!(confirmed >= PINNED, "a sweep counted {confirmed} confirmed entries, {PINNED} are pinned");
        Ok(())
    }

    /// Sequentially consistent: the clock is read after everybody can see that this one runs.
    fn set_epoch(&self, row: usize, epoch: u64) {
        if let Some(word) = self.epochs.word(row, 0) {
            word.swap(epoch, Ordering::SeqCst);
        }
    }

    fn act(&self, worker: u8, act: Act, repeat: u32) -> Result<()> {
        const XDP_PASS: u32 = 2;
        const SHORTEST_FRAME: usize = 14;
        let mut frame = [0; SHORTEST_FRAME];
        frame[..2].copy_from_slice(&[worker, act as u8]);
        let program = self.object.progs_mut().next().context("no program")?;
        let output =
            program.test_run(ProgramInput { data_in: Some(&frame), repeat, ..ProgramInput::default() })?;
        ensure!(output.return_value == XDP_PASS, "the hammer returned {}", output.return_value);
        Ok(())
    }

    fn counts(&self, worker: u8) -> Result<Counts> {
        let row = map(&self.object, "hammer_workers")?
            .lookup(&u32::from(worker).to_ne_bytes(), MapFlags::ANY)?
            .context("no counts")?;
        let count = |offset: usize| -> Result<u64> {
            let bytes = row.get(offset..offset + size_of::<u64>()).context("a count beyond the row's end")?;
            Ok(u64::from_ne_bytes(bytes.try_into()?))
        };
        self.members.iter().map(|(name, offset)| Ok((name.clone(), count(*offset)?))).collect()
    }
}

fn map(object: &Object, name: &str) -> Result<MapHandle> {
    let map = object.maps().find(|map| map.name() == name).with_context(|| format!("no map {name}"))?;
    Ok(MapHandle::try_from(&map)?)
}

fn phase(state: u64) -> u64 {
    state >> lb_state_layout::LB_STATE_PHASE_SHIFT.0 & 7
}

fn is_live(state: u64) -> bool {
    matches!(phase(state), 1..=5) && state >> lb_state_layout::LB_STATE_EXPIRED_SHIFT.0 & 1 == 0
}

fn is_always_counted(backend: usize) -> bool {
    backend % 3 == 1
}

/// Where a global lies in .rodata.
fn offset(btf: &Btf<'_>, global: &str) -> Result<usize> {
    let section: DataSec<'_> = btf.type_by_name(".rodata").context("no .rodata in the BTF")?;
    let is_it =
        |ty| btf.type_by_id::<Var<'_>>(ty).and_then(|var| var.name()).is_some_and(|name| name == global);
    let info =
        section.iter().find(|info| is_it(info.ty)).with_context(|| format!("no {global} in .rodata"))?;
    Ok(info.offset as usize)
}

/// The counts of `struct hammer_worker` and their offsets.
fn members(btf: &Btf<'_>) -> Result<Vec<(String, usize)>> {
    let worker: Struct<'_> = btf.type_by_name("hammer_worker").context("no hammer_worker in the BTF")?;
    let mut members = Vec::new();
    for member in worker.iter() {
        let name = member.name.and_then(|name| name.to_str()).context("a member without a name")?;
        let MemberAttr::Normal { offset: bits } = member.attr else { continue };
        if name == "random" {
            break;
        }
        members.push((name.to_owned(), bits as usize / 8));
    }
    Ok(members)
}
