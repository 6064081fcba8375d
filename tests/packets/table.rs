//! Several services, shared backends, and what the control plane's walk over the table sees.

use xdp_lb::dataplane::types::{lb_service, lb_state_layout};
use xdp_lb::dataplane::{Reason, Sweeper};
use xdp_lb::model::{Protocol, Scheduler};

use super::frame::{tcp, udp};
use super::lab::*;
use super::replies::reply;

const OTHER_VIP: std::net::SocketAddrV4 = address([192, 168, 1, 101], 443);

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_services_may_share_backends() {
    let services = vec![
        service(VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1), (1, 1)]),
        service(OTHER_VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1), (1, 1)]),
    ];
    lab(Setup { services, ..Setup::default() }, |lab| {
        lab.reaches_backend("one service", &tcp(CLIENT, VIP, "S"), 0);
        let tuple = tcp(CLIENT, OTHER_VIP, "S");
        lab.reaches_backend(
            "the same client's port by another: not where its replies could not be told",
            &tuple,
            1,
        );
        lab.reaches_client("replies of the one", &reply(0, CLIENT, "SA"), CLIENT_MAC);
        let answer = reply(1, CLIENT, "SA");
        let after = answer.clone().from(OTHER_VIP).ttl(63).macs(CLIENT_MAC, LB_MAC).bytes();
        lab.expect(
            "replies of the other",
            lab.back,
            &answer.bytes(),
            (Verdict::Redirect, "sent to_client"),
            &after,
        );

        let next = address([192, 168, 1, 2], 40001);
        lab.reaches_backend("the next in turn", &tcp(next, OTHER_VIP, "S"), 1);
        let next = address([192, 168, 1, 2], 40002);
        lab.reaches_backend("another port is free to go anywhere", &tcp(next, OTHER_VIP, "S"), 0);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_tuple_in_use_everywhere_is_refused() {
    let services = vec![
        service(VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1)]),
        service(OTHER_VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1)]),
    ];
    lab(Setup { services, ..Setup::default() }, |lab| {
        lab.reaches_backend("one service", &tcp(CLIENT, VIP, "S"), 0);
        let syn = tcp(CLIENT, OTHER_VIP, "S").bytes();
        lab.untouched("the other", lab.front, &syn, (Verdict::Drop, "drop tuple_in_use"));
        lab.reaches_client("the one ends", &reply(0, CLIENT, "RA"), CLIENT_MAC);
        lab.reaches_backend("and its tuple is free", &tcp(CLIENT, OTHER_VIP, "S"), 0);
        let answer = reply(0, CLIENT, "SA");
        let after = answer.clone().from(OTHER_VIP).ttl(63).macs(CLIENT_MAC, LB_MAC).bytes();
        let then = (Verdict::Redirect, "sent to_client");
        lab.expect("replies are the other's now", lab.back, &answer.bytes(), then, &after);

        let syn = tcp(CLIENT, VIP, "S").bytes();
        lab.untouched("and the one's turn to wait", lab.front, &syn, (Verdict::Drop, "drop tuple_in_use"));
        lab.clock(1000 + 100);
        lab.reaches_backend("until the other is over its timeout", &tcp(CLIENT, VIP, "S"), 0);
        lab.reaches_client("replies are the one's", &reply(0, CLIENT, "SA"), CLIENT_MAC);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_ring_beyond_the_table_is_an_error() {
    lab(Setup::default(), |lab| {
        let services = &lab.plane.tables().services;
        let row: lb_service = services.get(1).unwrap();
        services.set(1, lb_service { ring: row.ring | 0xff_ffff, ..row }).unwrap();
        let syn = tcp(CLIENT, VIP, "S").bytes();
        lab.untouched("a broken table", lab.front, &syn, (Verdict::Drop, "error tables"));
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_walk_counts_what_packets_made() {
    lab(Setup::default(), |lab| {
        for n in 1..=90 {
            lab.send(lab.front, &tcp(address([192, 168, 1, 2], n), VIP, "S").bytes());
        }
        lab.reaches_client(
            "one of them is answered",
            &reply(0, address([192, 168, 1, 2], 1), "SA"),
            CLIENT_MAC,
        );
        lab.reaches_backend("and confirmed", &tcp(address([192, 168, 1, 2], 1), VIP, "A"), 0);
        lab.reaches_client("one is closed", &reply(1, address([192, 168, 1, 2], 2), "R"), CLIENT_MAC);
        let walk = |lab: &Lab, now| {
            Sweeper::new(lab.plane.tables().walked(), *lab.plane.settings(), now).sweep(|_| {})
        };
        let census = walk(lab, 1000);
        assert_eq!((census.confirmed, census.unconfirmed, census.replaceable), (1, 88, 1));
        assert_eq!(census.active[1..], [30, 29, 30]);

        let census = walk(lab, 1000 + 200);
        assert_eq!((census.confirmed, census.unconfirmed, census.replaceable), (1, 0, 89));
        // The first walk marked them: the clock may wrap around now.
        let census = walk(lab, 1000);
        assert_eq!((census.confirmed, census.unconfirmed, census.replaceable), (1, 0, 89));
        lab.reaches_backend("a marked one is usable", &tcp(address([192, 168, 1, 2], 3), VIP, "A"), 2);
        let census = walk(lab, 1000);
        assert_eq!((census.confirmed, census.unconfirmed, census.replaceable), (1, 1, 88));
    });
}

/// Packets go by the longest timeouts; a service with shorter ones has its connections marked by the walk.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_walk_goes_by_a_services_own_timeouts() {
    let mut short = service(VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1)]);
    short.timeouts.unconfirmed = std::time::Duration::from_secs(2);
    let other = address([192, 168, 1, 101], 80);
    let long = service(other, Protocol::Tcp, Scheduler::RoundRobin, &[(1, 1)]);
    lab(Setup { services: vec![short, long], ..Setup::default() }, move |lab| {
        lab.reaches_backend("short", &tcp(CLIENT, VIP, "S"), 0);
        lab.reaches_backend("long", &tcp(CLIENT, other, "S"), 1);
        let (tables, settings) = (lab.plane.tables(), *lab.plane.settings());
        let hz = f64::from(settings.hz) / f64::from(1u32 << settings.clock_shift);
        let walk = |seconds: f64| {
            let now = 1000 + (seconds * hz) as u16;
            Sweeper::new(tables.walked(), settings, now).with_services(&tables.services).count()
        };
        assert_eq!((walk(1.0).unconfirmed, walk(1.0).replaceable), (2, 0));
        assert_eq!((walk(4.0).unconfirmed, walk(4.0).replaceable), (1, 1));
        assert_eq!((walk(12.0).unconfirmed, walk(12.0).replaceable), (0, 2));
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_walk_frees_what_can_never_be_found() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a connection", &udp(CLIENT, VIP), 0);
        let rows = &lab.plane.tables().connections;
        let (bucket, slot) = (0..rows.len())
            .flat_map(|bucket| (0..4).map(move |slot| (bucket, slot)))
            .find(|(bucket, slot)| rows.get(*bucket).unwrap().conn[*slot].state != 0)
            .unwrap();
        let mut row = rows.get(bucket).unwrap();
        let twin = (slot + 1) % 4;
        row.conn[twin] = row.conn[slot];
        rows.set(bucket, row).unwrap();
        let sweeper = Sweeper::new(lab.plane.tables().walked(), *lab.plane.settings(), 1000);
        let census = sweeper.sweep(|_| {});
        assert_eq!(census.unconfirmed, 2);
        let row = rows.get(bucket).unwrap();
        assert_eq!(row.conn.iter().filter(|conn| conn.state != 0).count(), 1);
        assert_eq!(sweeper.sweep(|_| {}).unconfirmed, 1);
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_both_sides_agree_where_a_connection_lies() {
    lab(Setup::default(), |lab| {
        for n in 1..=900 {
            lab.send(lab.front, &tcp(address([192, 168, 1, 2], n), VIP, "S").bytes());
        }
        let rows = &lab.plane.tables().connections;
        let sweeper = Sweeper::new(lab.plane.tables().walked(), *lab.plane.settings(), 1000);
        let mut seconds = 0;
        for bucket in 0..rows.len() {
            for conn in rows.get(bucket).unwrap().conn.iter().filter(|conn| conn.state != 0) {
                let candidates = sweeper.candidates(conn.key);
                assert!(candidates.contains(&bucket), "{:x} in {bucket}, not in {candidates:?}", conn.key);
                seconds += usize::from(bucket != candidates[0]);
            }
        }
        assert!((20..250).contains(&seconds), "{seconds} of 900 in their second bucket");

        // A twin in the second bucket is never found while the first has one.
        let mut conn = (0..rows.len()).flat_map(|b| rows.get(b).unwrap().conn.map(|conn| (b, conn)));
        let (_, twin) =
            conn.find(|(b, conn)| conn.state != 0 && sweeper.candidates(conn.key)[0] == *b).unwrap();
        let second = sweeper.candidates(twin.key)[1];
        let mut row = rows.get(second).unwrap();
        let free = row.conn.iter().position(|conn| conn.state == 0).unwrap();
        row.conn[free] = twin;
        rows.set(second, row).unwrap();
        sweeper.sweep(|_| {});
        assert_eq!(rows.get(second).unwrap().conn[free].state, 0);
    });
}

/// So many that some lie in the second of their two lines of the directory.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_each_of_many_services_and_backends_is_found() {
    const SERVICES: u8 = 200;
    let vip = |n: u8| address([192, 168, 7, n], 80);
    let services =
        (0..SERVICES).map(|n| service(vip(n), Protocol::Tcp, Scheduler::RoundRobin, &[(n, 1)])).collect();
    lab(Setup { services, ..Setup::default() }, move |lab| {
        for n in 0..SERVICES {
            lab.reaches_backend("a client's", &tcp(CLIENT, vip(n), "S"), n);
            let answer = reply(n, CLIENT, "SA");
            let after = answer.clone().from(vip(n)).ttl(63).macs(CLIENT_MAC, LB_MAC).bytes();
            let then = (Verdict::Redirect, "sent to_client");
            lab.expect("its backend's", lab.back, &answer.bytes(), then, &after);
        }
    });
}

/// A writer that was held up between its claim and the key it stores: the slot may be another's by then.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_key_with_the_state_of_another_is_not_found() {
    lab(Setup::default(), |lab| {
        lab.reaches_backend("a connection", &tcp(CLIENT, VIP, "S"), 0);
        let rows = &lab.plane.tables().connections;
        let (bucket, slot) = (0..rows.len())
            .flat_map(|bucket| (0..4).map(move |slot| (bucket, slot)))
            .find(|(bucket, slot)| rows.get(*bucket).unwrap().conn[*slot].state != 0)
            .unwrap();
        let mut row = rows.get(bucket).unwrap();
        row.conn[slot].state ^= 1 << lb_state_layout::LB_STATE_TAG_SHIFT.0;
        rows.set(bucket, row).unwrap();
        lab.reaches_backend("its next packet opens another", &tcp(CLIENT, VIP, "A"), 1);
    });
}

/// While a flood leaves no slot free, what is confirmed must still spread over the buckets: else one in 40 is full of
/// them at the promised number, and one new connection in 2,000 finds both of its buckets so.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_what_is_confirmed_during_a_flood_spreads() {
    const PROMISED: u16 = 1000;
    lab(Setup { max_connections: PROMISED.into(), ..Setup::default() }, |lab| {
        let mut flood = (0..).map(|n: u32| {
            let [_, a, b, c] = n.to_be_bytes();
            tcp(address([198, 18 | a, b, c], 7), VIP, "S").bytes()
        });
        let mut send = |lab: &mut Lab, count: usize| {
            for syn in flood.by_ref().take(count) {
                lab.send(lab.front, &syn);
            }
        };
        let buckets = lab.plane.tables().connections.len();
        send(lab, 4 * buckets);
        for n in 1..=PROMISED {
            lab.connect(address([192, 168, 1, 2], n));
            send(lab, 2);
        }
        let confirmed = |bucket: usize| {
            let row = lab.plane.tables().connections.get(bucket).unwrap();
            row.conn.iter().filter(|conn| conn.state >> 16 & 7 == 3).count()
        };
        let full = (0..buckets).filter(|bucket| confirmed(*bucket) == 4).count();
        assert_eq!((0..buckets).map(confirmed).sum::<usize>(), usize::from(PROMISED));
        // 2 on average; 25 if it is chance alone that decides.
        assert!(full <= 9, "{full} of {buckets} buckets are full of confirmed connections");
    });
}

/// The program, and what each packet of this suite was counted under, say the same: no reason lacks a row.
#[test]
fn every_reason_of_a_drop_has_a_row() {
    let rows = [
        include_str!("checksums.rs"),
        include_str!("delivery.rs"),
        include_str!("forward.rs"),
        include_str!("replies.rs"),
        include_str!("refused.rs"),
        include_str!("lives.rs"),
        include_str!("states.rs"),
        include_str!("table.rs"),
    ]
    .concat();
    // The frame's length was checked before: it cannot happen unless the kernel changes its mind.
    let impossible = ["error checksum"];
    for reason in Reason::ALL {
        let name = format!("{} {}", reason.class.name(), reason.name);
        assert!(
            impossible.contains(&name.as_str()) || rows.contains(&format!("\"{name}\"")),
            "{name} has no row"
        );
    }
}
