//! The connection table at its default size and full: fewer than one new connection in 10^6 finds no slot. It is the code of
//! `src/bpf/conn.h`, compiled for user space (`benches/table/sim.c`).

#[path = "../benches/table/run.rs"]
mod run;

use std::fs;
use std::path::Path;

use run::{Simulator, check};

const CONNECTIONS: u64 = 100_000;
const INSERTS: u64 = 2_000_000;

#[test]
fn new_connections_find_a_slot() {
    check(&Simulator::compile(None).unwrap(), CONNECTIONS, INSERTS).unwrap();
}

/// Where one of these is done to the choice of buckets, the check fails.
#[test]
fn the_check_can_fail() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bpf/conn.h");
    let text = fs::read_to_string(source).unwrap();
    let faults = [
        ("closed slots are no room", "lb_below(LB_RANK_UNCONFIRMED, rank);", "lb_equal(rank, LB_RANK_FREE);"),
        (
            "always the first bucket",
            "other = lb_below(one, two);\n\t\t/* A full",
            "other = 0;\n\t\t/* A full",
        ),
        ("always the second bucket", "other |= lb_equal(one, 0);", "other = 1;"),
        (
            "the fuller bucket",
            "other = lb_below(one, two);\n\t\t/* A full",
            "other = lb_below(two, one);\n\t\t/* A full",
        ),
        ("one candidate", "lb_scale(hash, lb_settings.buckets)", "first"),
    ];
    for (fault, from, to) in faults {
        assert_eq!(text.matches(from).count(), 1, "{fault}: its place is not there any more: {from}");
        let headers = tempfile::tempdir().unwrap();
        fs::write(headers.path().join("conn.h"), text.replace(from, to)).unwrap();
        let simulator = Simulator::compile(Some(headers.path())).unwrap();
        let error = check(&simulator, CONNECTIONS, INSERTS).expect_err(fault);
        println!("{fault}: {error}");
    }
}
