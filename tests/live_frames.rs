//! The generator of packets that floods and benches use: its frames are what its plan says, all of them arrive, and their
//! checksums are right.

mod common;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use common::far_end::{Action, FarEnd, Rule};
use common::generator::{ACK, Generator, Kind, Order, Plan, RST, SYN};
use common::netns::{Lab, in_lab};
use etherparse::{Ipv4HeaderSlice, TcpHeaderSlice, UdpHeaderSlice};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};

const TARGET: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 100), 80);
const CLIENTS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const TOS: u8 = 0x04;
const TCP_FRAME: usize = 54;
const FRAMES: u32 = 256;
const MANY: u32 = 300_000;

/// A veth from `from` to `to`, whose end has a program that counts.
fn veth(lab: &Lab, action: Action) -> Result<(FarEnd, u32)> {
    lab.add(&["from", "to"])?;
    lab.ip("", "link add eth0 netns from type veth peer name eth0 netns to")?;
    lab.ip("from", "link set eth0 up")?;
    lab.ip("to", "link set eth0 up")?;
    let far_end = FarEnd::attach(lab, "to", "eth0", Rule { clients: (CLIENTS, 15), tos: TOS, action })?;
    Ok((far_end, lab.within("from", || if_nametoindex("eth0"))??))
}

fn plan(kind: Kind, order: Order, ifindex: u32) -> Plan {
    Plan {
        kind,
        order,
        seed: 7,
        first_address: CLIENTS,
        clients: 300,
        ports: 1024..=1123,
        target: TARGET,
        tos: TOS,
        to: [0xff; 6],
        from: [2, 0, 0, 0, 0, 1],
        ifindex,
        most: None,
    }
}

/// Everything that arrives in a namespace, from now on.
fn listen(lab: &Lab, namespace: &str) -> Result<OwnedFd> {
    let socket = lab.within(namespace, || {
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll)
    })??;
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
    Ok(socket)
}

/// The generator's frames that have arrived, without their Ethernet headers.
fn arrived(socket: &OwnedFd) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut frame = [0; 2048];
    while let Ok(length) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
        if frame[12..14] == [8, 0] && frame[15] == TOS {
            frames.push(frame[14..length].to_vec());
        }
    }
    frames
}

/// Who sent a frame, and its TCP flags, once everything else about it is as planned.
fn check(frame: &[u8], kind: Kind) -> Result<(Ipv4Addr, u16, u8)> {
    let ip = Ipv4HeaderSlice::from_slice(frame)?;
    assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
    assert_eq!((ip.destination_addr(), ip.ttl()), (*TARGET.ip(), 64));
    assert_eq!(usize::from(ip.total_len()), frame.len());
    let rest = &frame[20..];
    if kind == Kind::Udp {
        let udp = UdpHeaderSlice::from_slice(rest)?;
        assert_eq!((udp.destination_port(), udp.checksum()), (TARGET.port(), 0));
        assert_eq!(usize::from(udp.length()), rest.len());
        return Ok((ip.source_addr(), udp.source_port(), 0));
    }
    let tcp = TcpHeaderSlice::from_slice(rest)?;
    assert_eq!(tcp.destination_port(), TARGET.port());
    assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(&ip, &rest[20..])?);
    Ok((ip.source_addr(), tcp.source_port(), rest[13]))
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_frames_are_as_planned() -> Result<()> {
    in_lab(|lab| {
        let (far_end, ifindex) = veth(lab, Action::Pass)?;
        let generator = Generator::load(TCP_FRAME)?;
        let pairs = Kind::TcpPairs { first: SYN, second: ACK, lag: 5 };
        for (kind, order, clients) in [
            (Kind::Tcp(SYN), Order::Counting, 256),
            (Kind::Tcp(RST | ACK), Order::Random, 150),
            (pairs, Order::Counting, 128 + 5),
            (Kind::Udp, Order::Listed, 2),
        ] {
            let socket = listen(lab, "to")?;
            let mut plan = plan(kind, order, ifindex);
            if order == Order::Listed {
                generator.list(&[(CLIENTS, 1), (Ipv4Addr::new(198, 18, 9, 9), 65535)])?;
                plan.clients = 2;
            }
            generator.set(&plan)?;
            let before = far_end.passed()?.marked;
            lab.within("from", || generator.send(FRAMES))??;
            assert_eq!(generator.sent(&plan)?, u64::from(FRAMES));
            assert_eq!(far_end.passed()?.marked - before, u64::from(FRAMES), "{kind:?}");
            let seen: Vec<_> = arrived(&socket).iter().map(|f| check(f, kind)).collect::<Result<_>>()?;
            assert_eq!(seen.len(), FRAMES as usize, "{kind:?}");
            let senders: BTreeSet<_> = seen.iter().map(|(address, port, _)| (*address, *port)).collect();
            assert!(
                senders.len().abs_diff(clients) < if order == Order::Random { 50 } else { 1 },
                "{senders:?}"
            );
            if let Kind::TcpPairs { lag, .. } = kind {
                let syns: Vec<_> = seen.iter().filter(|frame| frame.2 == SYN).collect();
                let acks: Vec<_> = seen.iter().filter(|frame| frame.2 == ACK).collect();
                let later = acks.get(lag as usize..).context("too few")?;
                assert!(syns.iter().zip(later).all(|(syn, ack)| (syn.0, syn.1) == (ack.0, ack.1)));
            }
        }
        Ok(())
    })
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_many_frames_arrive() -> Result<()> {
    in_lab(|lab| {
        let (far_end, ifindex) = veth(lab, Action::Drop)?;
        let generator = Generator::load(TCP_FRAME)?;
        generator.set(&plan(Kind::Tcp(SYN), Order::Random, ifindex))?;
        let took = lab.within("from", || generator.send(MANY))??;
        println!("{:.2} million frames a second", f64::from(MANY) / took.as_secs_f64() / 1e6);
        assert_eq!(far_end.passed()?.marked, u64::from(MANY));
        Ok(())
    })
}

/// What a server without state would say.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_frames_are_answered() -> Result<()> {
    in_lab(|lab| {
        let (_far_end, ifindex) = veth(lab, Action::Answer)?;
        let back = Rule { clients: (CLIENTS, 15), tos: 0, action: Action::Pass };
        let here = FarEnd::attach(lab, "from", "eth0", back)?;
        let generator = Generator::load(TCP_FRAME)?;
        for (kind, answer) in
            [(Kind::Tcp(SYN), Some(SYN | ACK)), (Kind::Tcp(ACK), Some(RST)), (Kind::Tcp(RST), None)]
        {
            let socket = listen(lab, "from")?;
            generator.set(&plan(kind, Order::Counting, ifindex))?;
            let before = here.passed()?;
            lab.within("from", || generator.send(FRAMES))??;
            let passed = here.passed()?;
            let frames = arrived(&socket);
            assert_eq!(frames.len(), answer.map_or(0, |_| FRAMES as usize), "{kind:?}");
            assert_eq!(passed.syn_acks - before.syn_acks, if kind == Kind::Tcp(SYN) { 256 } else { 0 });
            assert_eq!(passed.rsts - before.rsts, if kind == Kind::Tcp(ACK) { 256 } else { 0 });
            for frame in frames {
                let ip = Ipv4HeaderSlice::from_slice(&frame)?;
                let tcp = TcpHeaderSlice::from_slice(&frame[20..])?;
                assert_eq!(ip.source_addr(), *TARGET.ip());
                assert_eq!((tcp.source_port(), Some(frame[33])), (TARGET.port(), answer));
                assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(&ip, &[])?);
            }
        }
        Ok(())
    })
}
