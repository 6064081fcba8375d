//! What is noted of how backends answer new connections.

use std::net::SocketAddrV4;

use xdp_lb::dataplane::types::{lb_backend_answers, lb_backend_state};
use xdp_lb::model::{Protocol, Scheduler};

use super::frame::{tcp, udp};
use super::lab::*;
use super::replies::{reply, udp_reply};

pub fn from(port: u16) -> SocketAddrV4 {
    address([192, 168, 1, 2], port)
}

/// Everything goes to one backend.
pub fn one() -> Setup {
    let services = [Protocol::Tcp, Protocol::Udp].map(|p| service(VIP, p, Scheduler::RoundRobin, &[(0, 1)]));
    Setup { services: services.to_vec(), ..Setup::default() }
}

pub fn sends(lab: &mut Lab, port: u16, flags: &'static str) {
    lab.reaches_backend("client", &tcp(from(port), VIP, flags), 0);
}

pub fn answers(lab: &mut Lab, port: u16, flags: &'static str) {
    lab.reaches_client("backend", &reply(0, from(port), flags), CLIENT_MAC);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_syns_are_counted_until_one_is_answered() {
    lab(one(), |lab| {
        sends(lab, 1, "S");
        assert_eq!(lab.answers(0), (1, 0));
        sends(lab, 1, "S");
        assert_eq!(lab.answers(0), (1, 0), "one that is sent again opens nothing");
        sends(lab, 2, "S");
        sends(lab, 3, "SP");
        assert_eq!(lab.answers(0), (3, 0));
        answers(lab, 1, "A");
        assert_eq!(lab.answers(0), (3, 0), "this is no answer");
        answers(lab, 2, "SA");
        assert_eq!(lab.answers(0), (0, 0));
        sends(lab, 4, "S");
        answers(lab, 2, "SA");
        assert_eq!(lab.answers(0), (0, 0), "a SYN-ACK that is sent again is one, too");
        sends(lab, 2, "A");
        sends(lab, 5, "S");
        answers(lab, 2, "SA");
        assert_eq!(lab.answers(0), (1, 0), "but not in a connection that is confirmed");
        answers(lab, 2, "PA");
        answers(lab, 4, "SRA");
        assert_eq!(lab.answers(0), (1, 0), "nor with a RST");
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_only_a_syn_waits_for_an_answer() {
    lab(one(), |lab| {
        for (port, flags) in [(1, "A"), (2, "PA"), (3, "SA"), (4, "F"), (5, "SF"), (6, "")] {
            sends(lab, port, flags);
        }
        lab.reaches_backend("a datagram", &udp(CLIENT, VIP), 0);
        lab.reaches_client("its answer", &udp_reply(0, CLIENT), CLIENT_MAC);
        assert_eq!([lab.answers(0), lab.answers(1)], [(0, 0); 2]);
        lab.state(0, lb_backend_state::LB_BACKEND_DOWN);
        let syn = tcp(from(7), VIP, "S").bytes();
        lab.untouched("no backend", lab.front, &syn, (Verdict::Drop, "drop no_backend"));
        assert_eq!(lab.answers(0), (0, 0));
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_refused_connections_are_counted() {
    lab(one(), |lab| {
        sends(lab, 1, "S");
        answers(lab, 1, "RA");
        assert_eq!(lab.answers(0), (1, 1));
        answers(lab, 1, "RA");
        assert_eq!(lab.answers(0), (1, 1), "the connection was closed");
        sends(lab, 1, "S");
        assert_eq!(lab.answers(0), (2, 1), "a new one in its place");
        answers(lab, 1, "R");
        assert_eq!(lab.answers(0), (2, 1), "no SYN is refused so");
        sends(lab, 2, "A");
        answers(lab, 2, "R");
        assert_eq!(lab.answers(0), (2, 1), "a connection that came from elsewhere");
        sends(lab, 3, "S");
        answers(lab, 3, "SA");
        assert_eq!(lab.answers(0), (0, 0), "both are forgotten");
        answers(lab, 3, "RA");
        assert_eq!(lab.answers(0), (0, 0), "an answered one");
        sends(lab, 4, "S");
        answers(lab, 4, "SA");
        sends(lab, 4, "A");
        answers(lab, 4, "RA");
        assert_eq!(lab.answers(0), (0, 0), "and a confirmed one that end are no refusals");
    });
}

/// A SYN from an interface that does not face the backend says nothing of it, nor does a fragment.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_replies_that_are_none_are_no_answers() {
    lab(one(), |lab| {
        sends(lab, 1, "S");
        for flags in ["SA", "RA"] {
            let spoofed = reply(0, from(1), flags).bytes();
            lab.untouched("from elsewhere", lab.front, &spoofed, (Verdict::Pass, "pass wrong_interface"));
            let late = reply(0, from(1), flags).ttl(1).bytes();
            lab.untouched("too late", lab.back, &late, (Verdict::Drop, "drop ttl"));
            assert_eq!(lab.answers(0), (1, 0));
        }
    });
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_a_row_that_is_given_out_begins_with_no_answers() {
    lab(one(), |lab| {
        let used: Vec<u16> = lab.plane.backends().iter().map(|backend| backend.index).collect();
        for index in 1..10 {
            let row = lb_backend_answers { unanswered: 3, refused: 2 };
            lab.plane.tables().backend_answers.set(index, row).unwrap();
        }
        lab.plane.apply(&[service(VIP, Protocol::Tcp, Scheduler::RoundRobin, &[(0, 1), (1, 1)])]).unwrap();
        let new = lab.plane.backends().iter().position(|backend| !used.contains(&backend.index)).unwrap();
        assert_eq!([lab.answers(0), lab.answers(new)], [(3, 2), (0, 0)]);
    });
}
