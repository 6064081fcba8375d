use libbpf_rs::MapType;

use super::*;
use crate::dataplane::types::lb_backend_counters;

struct Maps {
    counters: MapHandle,
    events: Rows<lb_backend_events>,
    checks: Rows<lb_backend_checks>,
    history: Rows<lb_history>,
}

fn map<T>(map_type: MapType, rows: u32, map_flags: u32) -> MapHandle {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        map_flags,
        ..Default::default()
    };
    MapHandle::create(map_type, Some("rows"), 4, size_of::<T>() as u32, rows, &options).unwrap()
}

fn array<T: Plain + Copy>(rows: u32) -> Rows<T> {
    Rows::map(map::<T>(MapType::Array, rows, libbpf_sys::BPF_F_MMAPABLE)).unwrap()
}

/// Row 0 has counted something before, row 3 is to be given back.
fn maps() -> Maps {
    let counters = map::<lb_backend_counters>(MapType::PercpuArray, 5, 0);
    for (row, connections) in [(0, 100), (3, 7)] {
        let value = lb_backend_counters { connections, timed: 5 << 32, ..Default::default() };
        let cpus = of_cpus(&counters, row).unwrap().len();
        set_of_cpus(&counters, row, &vec![as_bytes(&value).to_vec(); cpus]).unwrap();
    }
    let maps = Maps { counters, events: array(5), checks: array(5), history: array(1) };
    maps.events.set(3, lb_backend_events { closed: 4, ..Default::default() }).unwrap();
    maps.checks.set(3, lb_backend_checks { passed: 2, ..Default::default() }).unwrap();
    maps
}

impl Maps {
    fn retirement(&self) -> Retirement<'_> {
        let Maps { counters, events, checks, history } = self;
        Retirement { counters, events, checks, history }
    }

    /// By rows: connections on each CPU, those that ended, checks.
    fn counted(&self, row: u16) -> (Vec<u64>, u64, u64) {
        let cpus = of_cpus(&self.counters, row).unwrap();
        let connections = cpus.iter().map(|value| words(value).next().unwrap()).collect();
        let (events, checks) = (self.events.get(row.into()).unwrap(), self.checks.get(row.into()).unwrap());
        (connections, events.closed, checks.passed)
    }

    fn assert_retired(&self, what: &str) {
        let cpus = of_cpus(&self.counters, 0).unwrap().len();
        assert_eq!(self.counted(0), (vec![107; cpus], 4, 2), "{what}");
        assert_eq!(self.counted(3), (vec![0; cpus], 0, 0), "{what}");
        assert_eq!(retirements(&self.history), Some(1), "{what}");
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_row_that_is_given_back_counts_once() {
    let maps = maps();
    assert_eq!(retirements(&maps.history), Some(0));
    maps.retirement().retire(3).unwrap();
    maps.assert_retired("once");
    // There is nothing of it any more, and nobody who reads has to begin again.
    maps.retirement().retire(3).unwrap();
    maps.retirement().resume().unwrap();
    maps.assert_retired("again");
}

/// Killed after any of the steps, which are those of `retire`.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_was_killed_in_the_middle_counts_once() {
    for steps in 0..4 {
        let maps = maps();
        let retirement = maps.retirement();
        let sums = retirement.sums(&of_cpus(&maps.counters, 3).unwrap()).unwrap();
        retirement.begin(3, &sums).unwrap();
        if steps > 0 {
            set_of_cpus(&maps.counters, 0, &sums).unwrap();
        }
        if steps > 1 {
            retirement.clear_counters(3).unwrap();
        }
        if steps > 2 {
            move_words(&maps.events, 3);
        }
        // Who reads now would have it twice.
        assert_eq!(retirements(&maps.history), None);
        retirement.resume().unwrap();
        maps.assert_retired(&format!("after step {steps}"));
    }
}

/// A swap of programs makes other handles of the same tables.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_who_has_other_handles_sees_it_too() {
    let maps = maps();
    let watching: Rows<lb_history> = Rows::map(MapHandle::try_from(maps.history.handle()).unwrap()).unwrap();
    let sums = maps.retirement().sums(&of_cpus(&maps.counters, 3).unwrap()).unwrap();
    maps.retirement().begin(3, &sums).unwrap();
    assert_eq!(retirements(&watching), None);
    maps.retirement().resume().unwrap();
    assert_eq!(retirements(&watching), Some(1));
}

/// A start makes larger tables, which share the history, and is killed before they are anybody's.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_was_begun_in_tables_that_are_gone_moves_nothing() {
    let (maps, mut gone) = (maps(), maps());
    gone.history = Rows::map(MapHandle::try_from(maps.history.handle()).unwrap()).unwrap();
    gone.retirement()
        .begin(3, &gone.retirement().sums(&of_cpus(&gone.counters, 3).unwrap()).unwrap())
        .unwrap();
    let before = (maps.counted(0), maps.counted(3));
    maps.retirement().resume().unwrap();
    assert_eq!((maps.counted(0), maps.counted(3)), before);
    assert_eq!(retirements(&maps.history), Some(1));
}
