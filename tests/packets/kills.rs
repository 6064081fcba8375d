//! Connections that an operator ends: the client hears of it from a backend that knows nothing of them.

use xdp_lb::dataplane::{Entries, Which};
use xdp_lb::model::{Protocol, Scheduler};

use super::frame::{tcp, udp};
use super::lab::*;
use super::replies::{reply, udp_reply};

const NOW: u16 = 1000;

fn end(lab: &Lab, which: &Which) -> u64 {
    Entries::new(lab.plane.tables(), *lab.plane.settings(), NOW).end(which).unwrap()
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_the_next_segment_of_an_ended_connection_reaches_a_stranger() {
    let services = vec![service(VIP, Protocol::Tcp, Scheduler::LeastConn, &[(0, 1), (1, 1)])];
    lab(Setup { services, ..Setup::default() }, |lab| {
        lab.clock(NOW);
        let other = address([192, 168, 1, 2], 40001);
        let (first, second) = (lab.connect(CLIENT), lab.connect(other));
        assert_ne!(first, second);
        let which = Which { client: Some(*CLIENT.ip()), backend: Some(backend(first)), ..Which::default() };
        assert_eq!(end(lab, &which), 1);
        assert_eq!((lab.load(first.into()), lab.load(second.into())), (0, 2));

        let late = reply(first, CLIENT, "PA").bytes();
        assert_ne!(lab.send(lab.back, &late).1, "sent to_client", "its own backend is not heard any more");
        lab.reaches_backend("data for it", &tcp(CLIENT, VIP, "PA"), second);
        lab.reaches_client("the stranger's RST", &reply(second, CLIENT, "R"), CLIENT_MAC);
        assert_eq!((lab.load(first.into()), lab.load(second.into())), (0, 1), "and that is the end of it");
        lab.reaches_backend("the other connection goes on", &tcp(other, VIP, "A"), second);
        for _ in 0..3 {
            assert_eq!(lab.sweep(NOW.into()).corrected, 0);
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_an_ended_flow_of_udp_starts_anew() {
    lab(Setup::default(), |lab| {
        lab.clock(NOW);
        lab.reaches_backend("a datagram", &udp(CLIENT, VIP), 0);
        lab.reaches_client("its answer", &udp_reply(0, CLIENT), CLIENT_MAC);
        lab.reaches_backend("the next of it", &udp(CLIENT, VIP), 0);
        let services = Some(vec![(VIP, Protocol::Udp)]);
        assert_eq!(end(lab, &Which { services, ..Which::default() }), 1);
        lab.reaches_backend("then it is new", &udp(CLIENT, VIP), 1);
    });
}
