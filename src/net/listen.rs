//! A listening TCP socket, or what to do so that there can be one.

use std::io;
use std::net::{SocketAddr, TcpListener};

use anyhow::Result;
use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// How many connections wait to be taken at most.
const BACKLOG: i32 = 128;

/// Listens at an address. `beside` is a socket of this process that listens at the same port, of another address or of all of
/// them, and goes on until the new one can take its place.
pub fn listen(address: SocketAddr, beside: Option<&TcpListener>) -> Result<TcpListener> {
    let first = TcpListener::bind(address);
    let listener = match (first, beside) {
        (Err(error), Some(beside)) if is_in_use(&error) && is_at_port(beside, address.port()) => {
            listen_beside(address, beside)
        }
        (first, _) => first,
    };
    listener.map_err(|error| {
        let fix = advice(&error, address);
        let text = format!("could not listen at {address}: {}", plain(&error));
        match fix {
            Some(fix) => anyhow::anyhow!("{text}: {fix}"),
            None => anyhow::anyhow!(text),
        }
    })
}

/// What went wrong, without the number of the error.
fn plain(error: &io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |code| nix::errno::Errno::from_raw(code).desc().to_owned())
}

fn advice(error: &io::Error, address: SocketAddr) -> Option<String> {
    let port = address.port();
    match error.raw_os_error()? {
        libc::EADDRINUSE => {
            Some(format!("stop who does (ss -ltnp 'sport = :{port}' tells), or choose another port"))
        }
        libc::EADDRNOTAVAIL => {
            Some("write an address that this host has, or 0.0.0.0 for all of them".to_owned())
        }
        libc::EACCES => Some(format!("choose a port from 1024 on, {port} needs CAP_NET_BIND_SERVICE")),
        _ => None,
    }
}

fn is_in_use(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EADDRINUSE)
}

fn is_at_port(listener: &TcpListener, port: u16) -> bool {
    listener.local_addr().is_ok_and(|local| local.port() == port)
}

/// Both may have the port for as long as it takes: nobody else can come between, and neither stays so.
fn listen_beside(address: SocketAddr, beside: &TcpListener) -> io::Result<TcpListener> {
    if beside.local_addr()? == address {
        return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
    }
    let beside = SockRef::from(beside);
    beside.set_reuse_port(true)?;
    let listener = (|| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_reuse_port(false)?;
        Ok(TcpListener::from(socket))
    })();
    beside.set_reuse_port(false)?;
    listener
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(address: &str) -> String {
        format!("{:#}", listen(address.parse().unwrap(), None).unwrap_err())
    }

    #[test]
    fn what_is_taken_is_told_with_what_to_do() {
        let taken = listen("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let address = taken.local_addr().unwrap();
        let said = complaint(&address.to_string());
        assert!(
            said.starts_with(&format!("could not listen at {address}: Address already in use: stop ")),
            "{said}"
        );
        assert!(said.contains(&format!("ss -ltnp 'sport = :{}'", address.port())), "{said}");
        let said = complaint("192.0.2.77:9105");
        assert!(said.contains("Cannot assign requested address: write an address"), "{said}");
    }

    #[test]
    fn the_same_port_of_all_addresses_can_be_taken_over() {
        for (old, new) in [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.2")] {
            let before = listen(format!("{old}:0").parse().unwrap(), None).unwrap();
            let address = format!("{new}:{}", before.local_addr().unwrap().port()).parse().unwrap();
            let after = listen(address, Some(&before)).unwrap();
            assert!(listen(address, None).is_err(), "{new} is shared with others");
            drop(before);
            assert!(listen(address, None).is_err(), "{new} is shared with others");
            std::net::TcpStream::connect(after.local_addr().unwrap()).unwrap();
        }
        // The same address is in use as for anybody else.
        let before = listen("127.0.0.1:0".parse().unwrap(), None).unwrap();
        assert!(listen(before.local_addr().unwrap(), Some(&before)).is_err());
    }
}
