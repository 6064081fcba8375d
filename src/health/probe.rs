//! One check: what is asked of a backend, and what its answer, or its silence, means.

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::http::Request;
use super::tls::{Tls, Trust};
use super::{Failure, Target};
use crate::model::Probe;

/// What came of a check.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The answer is good; it took so long.
    Good(Duration),
    /// The backend is to blame.
    Failed(Failure),
    /// This host could not ask: that says nothing about the backend.
    Unchecked(String),
}

/// Why a check ended early.
#[derive(Debug)]
pub(super) enum Trouble {
    /// As [`Outcome::Failed`].
    Failure(Failure),
    /// The kernel gave up before the check did.
    Silence,
    /// As [`Outcome::Unchecked`].
    Local(String),
}

/// All that the checks of one backend need, made once.
pub(super) struct Plan {
    address: SocketAddrV4,
    ask: Ask,
}

enum Ask {
    Tcp,
    Http(Request),
    Https(Request, Tls),
}

impl Plan {
    /// How to check `target`: not at all for [`Probe::None`]. An error tells what cannot be asked like that.
    pub fn of(target: &Target, trust: &mut Trust) -> Result<Option<Plan>, String> {
        let port = target.health.port.unwrap_or(target.address.port());
        let address = SocketAddrV4::new(*target.address.ip(), port);
        let ask = match &target.health.probe {
            Probe::None => return Ok(None),
            Probe::Tcp => Ask::Tcp,
            Probe::Http(http) => Ask::Http(Request::new(http, address)?),
            Probe::Https(http, tls) => {
                let tls = Tls::new(http.host.as_deref(), *address.ip(), trust.anchor(tls))?;
                Ask::Https(Request::new(http, address)?, tls)
            }
        };
        Ok(Some(Plan { address, ask }))
    }

    /// Where this asks.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// One check that takes no longer than `limit`.
    pub async fn check(self: Arc<Self>, limit: Duration) -> Outcome {
        // Reading certificates is no matter of the backend's: it costs none of its time.
        let tls = match &self.ask {
            Ask::Https(_, tls) => match tls.ready().await {
                Ok(tls) => Some(tls),
                Err(trouble) => return trouble.outcome(Duration::ZERO),
            },
            _ => None,
        };
        let began = Instant::now();
        let asked = async {
            let stream = connect(self.address, matches!(self.ask, Ask::Tcp)).await?;
            match (&self.ask, tls) {
                (Ask::Tcp, _) => Ok(began.elapsed()),
                (Ask::Http(request), _) => request.exchange(stream, began).await,
                (Ask::Https(request, _), Some(tls)) => {
                    request.exchange(tls.handshake(stream).await?, began).await
                }
                (Ask::Https(..), None) => Err(Trouble::Local("TLS was not prepared".into())),
            }
        };
        match timeout(limit, asked).await {
            Ok(Ok(latency)) => Outcome::Good(latency),
            Ok(Err(trouble)) => trouble.outcome(began.elapsed()),
            Err(_) => Outcome::Failed(Failure::Timeout(limit)),
        }
    }
}

/// Connects. With `only` nothing follows.
///
/// Then the socket is closed by a RST, and without TCP_QUICKACK the kernel waits with the ACK that would end the handshake:
/// the RST goes out in its place. The backend's kernel has shown that somebody listens and that the queue of connections has
/// room, but its server accepts nothing and so logs nothing; sshd, nginx (at level info), MySQL and others do note a
/// connection that says nothing, be it closed by a FIN or reset. It also leaves no TIME_WAIT on either side. Where the thread
/// is held up, the ACK goes out after all, and the server sees a connection that is reset.
async fn connect(address: SocketAddrV4, only: bool) -> Result<TcpStream, Trouble> {
    let socket = TcpSocket::new_v4()?;
    if only {
        socket.set_zero_linger()?;
        SockRef::from(&socket).set_tcp_quickack(false)?;
    }
    let stream = socket.connect(address.into()).await?;
    // On this host, where nobody listens on a port of the ephemeral range, a socket may get that port and meet itself.
    if stream.local_addr()? == address.into() {
        return Err(Trouble::Failure(Failure::Refused("connection refused".into())));
    }
    Ok(stream)
}

impl Trouble {
    /// The answer is not good.
    pub fn bad(why: impl Into<String>) -> Trouble {
        Trouble::Failure(Failure::Bad(why.into()))
    }

    /// What it makes of a check that has taken so long.
    fn outcome(self, took: Duration) -> Outcome {
        match self {
            Trouble::Failure(failure) => Outcome::Failed(failure),
            Trouble::Silence => Outcome::Failed(Failure::Timeout(Duration::from_secs(took.as_secs()))),
            Trouble::Local(why) => Outcome::Unchecked(why),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        use Errno::*;
        let Some(errno) = error.raw_os_error().map(Errno::from_raw) else {
            return Trouble::bad(error.to_string());
        };
        match errno {
            ECONNREFUSED | ECONNRESET | EPIPE => {
                Trouble::Failure(Failure::Refused(errno.desc().to_lowercase()))
            }
            ETIMEDOUT => Trouble::Silence,
            // Mostly ARP without an answer, or an interface of this host that is down: nobody has said no, but what
            // this host cannot reach its packets cannot reach either, whoever is to blame.
            EHOSTUNREACH | ENETUNREACH | ENETDOWN => Trouble::bad(errno.desc().to_lowercase()),
            EMFILE | ENFILE | ENOBUFS | ENOMEM | EADDRNOTAVAIL | EADDRINUSE | EPERM | EACCES | EAGAIN
            | EINVAL => Trouble::Local(errno.desc().to_lowercase()),
            _ => Trouble::bad(errno.desc().to_lowercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(errno: Errno) -> Outcome {
        Trouble::from(io::Error::from(errno)).outcome(Duration::from_millis(3210))
    }

    #[test]
    fn errors_are_held_against_whom_they_tell_of() {
        let Outcome::Failed(refused) = of(Errno::ECONNREFUSED) else {
            panic!("not held against the backend")
        };
        assert_eq!(refused, Failure::Refused("connection refused".into()));
        assert!(matches!(of(Errno::ECONNRESET), Outcome::Failed(Failure::Refused(_))));
        for errno in [Errno::EHOSTUNREACH, Errno::ENETUNREACH, Errno::ENETDOWN] {
            assert!(matches!(of(errno), Outcome::Failed(Failure::Bad(_))), "{errno}");
        }
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::EADDRNOTAVAIL, Errno::ENOBUFS, Errno::EPERM] {
            assert!(matches!(of(errno), Outcome::Unchecked(_)), "{errno}");
        }
        let three = Duration::from_secs(3);
        assert!(matches!(of(Errno::ETIMEDOUT), Outcome::Failed(Failure::Timeout(after)) if after == three));
        assert!(matches!(of(Errno::EPROTO), Outcome::Failed(Failure::Bad(_))));
    }
}
