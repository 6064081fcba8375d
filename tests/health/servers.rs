//! Servers that answer well or badly.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use nix::sys::socket::{Backlog, listen};

pub fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => panic!("{address} is none of IPv4"),
    }
}

/// Listens on a port of its own; nobody accepts.
pub fn listener() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = v4(listener.local_addr().expect("its address"));
    (listener, address)
}

/// Does this with each connection, on a thread of its own.
pub fn serve(with: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddrV4 {
    let (listener, address) = listener();
    serve_at(listener, with);
    address
}

pub fn serve_at(listener: TcpListener, with: impl Fn(TcpStream) + Send + Sync + 'static) {
    let with = Arc::new(with);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let with = with.clone();
            thread::spawn(move || with(stream));
        }
    });
}

/// Reads a request, up to the empty line.
pub fn request(stream: &mut impl std::io::Read) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads a request and sends this.
pub fn answer(text: impl Into<String>) -> SocketAddrV4 {
    let text = text.into();
    serve(move |mut stream| {
        request(&mut stream);
        let _ = stream.write_all(text.as_bytes());
    })
}

/// A whole answer.
pub fn whole(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// Holds a connection until the other side has had enough.
pub fn hold(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Makes a listener drop all SYNs from now on: its queue is full. That ends with what is returned.
pub fn fill(listener: &TcpListener) -> Vec<TcpStream> {
    listen(listener, Backlog::new(0).expect("a backlog")).expect("a shorter queue");
    let address = listener.local_addr().expect("its address");
    // One is queued; a second one may be too, where the kernel counts in another way.
    (0..4).map_while(|_| TcpStream::connect_timeout(&address, crate::ms(200)).ok()).collect()
}
