//! What each answer of a server means, without TLS.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::sleep;
use std::time::Duration;

use socket2::SockRef;
use xdp_lb::health::Failure;
use xdp_lb::model::{Health, Probe};

use crate::servers::{answer, fill, hold, listener, request, serve, whole};
use crate::{LONG, Watched, bad, http, ms, quick, target, verdict};

fn ok() -> Health {
    http(|_| ())
}

fn wants(body: &str) -> Health {
    http(|probe| probe.body = Some(body.into()))
}

fn impatient(health: Health) -> Health {
    Health { timeout: ms(300), ..health }
}

#[test]
fn tcp_is_up_where_somebody_listens() {
    let (kept, address) = listener();
    assert_eq!(verdict(address, &quick(Probe::Tcp)), Ok(()));
    drop(kept);
    let refused = Failure::Refused("connection refused".into());
    assert_eq!(verdict(address, &quick(Probe::Tcp)), Err(refused));
}

#[test]
fn a_server_notes_nothing_of_tcp_checks() {
    let (listener, address) = listener();
    listener.set_nonblocking(true).unwrap();
    let watched = Watched::new(vec![target(1, address, &quick(Probe::Tcp))]);
    let stats = watched.until(1, |stats| stats.checks >= 20);
    let accepted = std::iter::from_fn(|| listener.accept().ok()).count() as u64;
    // Where the thread is held up for 40 ms, the kernel ends the handshake after all.
    assert!(accepted <= stats.checks / 4, "{accepted} of {}", stats.checks);
    assert_eq!(stats.failures, 0);
}

#[test]
fn silence_is_a_timeout() {
    let (listener, address) = listener();
    let _full = fill(&listener);
    let timeout = Err(Failure::Timeout(ms(300)));
    assert_eq!(verdict(address, &impatient(quick(Probe::Tcp))), timeout);
    assert_eq!(verdict(address, &impatient(ok())), timeout);
    assert_eq!(verdict(serve(hold), &impatient(ok())), timeout);
}

#[test]
fn the_port_may_be_another() {
    let (_kept, address) = listener();
    let elsewhere = std::net::SocketAddrV4::new(*address.ip(), 1);
    let health = Health { port: Some(address.port()), ..quick(Probe::Tcp) };
    assert_eq!(verdict(elsewhere, &health), Ok(()));
}

#[test]
fn the_request_says_what_it_should() {
    let of = |health: &Health| {
        let (sender, requests) = mpsc::channel();
        let address = serve(move |mut stream| {
            let _ = sender.send(request(&mut stream));
            let _ = stream.write_all(whole("200 OK", "").as_bytes());
        });
        assert_eq!(verdict(address, health), Ok(()));
        (requests.recv_timeout(LONG).unwrap().to_lowercase(), address)
    };
    let agent = format!("user-agent: xdp-lb/{}\r\nconnection: close", env!("CARGO_PKG_VERSION"));
    let (usual, address) = of(&ok());
    assert_eq!(usual, format!("get / http/1.1\r\nhost: {address}\r\n{agent}\r\n\r\n"));
    let (special, _) = of(&http(|probe| {
        (probe.method, probe.path) = ("HEAD".into(), "/ready?now=1".into());
        probe.host = Some("shop.example".into());
    }));
    assert_eq!(special, format!("head /ready?now=1 http/1.1\r\nhost: shop.example\r\n{agent}\r\n\r\n"));
}

#[test]
fn the_status_decides() {
    assert_eq!(verdict(answer(whole("200 OK", "hello")), &ok()), Ok(()));
    // Nobody follows it.
    let moved = answer("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(verdict(moved, &ok()), Ok(()));
    assert_eq!(bad(moved, &http(|probe| probe.status = vec![200..=299])), "status 302");
    let unavailable = answer(whole("503 Service Unavailable", "sorry"));
    assert_eq!(bad(unavailable, &ok()), "status 503");
    let odd = http(|probe| probe.status = vec![200..=204, 503..=503]);
    assert_eq!(verdict(unavailable, &odd), Ok(()));
}

#[test]
fn the_body_decides_where_it_is_to() {
    let address = answer(whole("200 OK", "status: ok"));
    assert_eq!(verdict(address, &wants("ok")), Ok(()));
    assert_eq!(bad(address, &wants("fine")), "the body does not contain \"fine\"");
    let in_two = serve(|mut stream| {
        request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nstatus: o");
        sleep(ms(100));
        let _ = stream.write_all(b"k");
    });
    assert_eq!(verdict(in_two, &wants(": ok")), Ok(()));
}

#[test]
fn no_body_is_read_for_ever() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let endless = serve(move |mut stream| {
        request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while let Ok(n) = stream.write(&[b'x'; 4096]) {
            count.fetch_add(n, Ordering::Relaxed);
        }
    });
    assert_eq!(bad(endless, &wants("ok")), "the first 64 KiB of the body do not contain \"ok\"");
    assert_eq!(verdict(endless, &wants("xxx")), Ok(()));
    assert_eq!(verdict(endless, &ok()), Ok(()));
    // Each check is a connection whose buffers the server fills, some MB.
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < 300 << 20, "{sent} bytes were sent");
    let slow = serve(|mut stream| {
        request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(b"x").is_ok() {
            sleep(ms(20));
        }
    });
    assert_eq!(verdict(slow, &impatient(wants("ok"))), Err(Failure::Timeout(ms(300))));
    assert_eq!(verdict(slow, &ok()), Ok(()));
}

#[test]
fn something_else_than_http_is_bad() {
    let garbage = bad(answer("220 mail.example ESMTP\r\n"), &ok());
    assert!(garbage.starts_with("no answer of HTTP: "), "{garbage}");
    let endless_head = serve(|mut stream| {
        request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ");
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    });
    let head = bad(endless_head, &ok());
    assert!(head.starts_with("no answer of HTTP: "), "{head}");
    let silent = serve(|mut stream| drop(request(&mut stream)));
    assert_eq!(bad(silent, &ok()), "the connection was closed before the end of the answer");
    let cut = answer("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nstatus");
    let short = bad(cut, &wants("ok"));
    assert!(short.contains("closed before the end") || short.contains("end of file"), "{short}");
}

#[test]
fn headers_that_trickle_are_a_timeout() {
    let slow = serve(|mut stream| {
        request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"X: y\r\n").is_ok() {
            sleep(ms(30));
        }
    });
    assert_eq!(verdict(slow, &impatient(ok())), Err(Failure::Timeout(ms(300))));
}

#[test]
fn a_reset_is_a_refusal() {
    let reset = Err(Failure::Refused("connection reset by peer".into()));
    for head in ["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nstatus"] {
        let address = serve(move |mut stream| {
            request(&mut stream);
            let _ = stream.write_all(head.as_bytes());
            sleep(ms(100));
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        });
        assert_eq!(verdict(address, &wants("ok")), reset);
    }
}
