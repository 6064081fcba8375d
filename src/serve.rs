//! HTTP on the connections of a listener: so many at once, and nobody who says nothing keeps others out.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{Instant, sleep, timeout};

/// How long what is under way may take to end when the server does.
pub const GRACE: Duration = Duration::from_secs(1);
/// A client that has come this moment is about to say something.
const MOMENT: Duration = Duration::from_millis(50);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many connections are served at once.
    pub connections: usize,
    /// How long the head of a request may take.
    pub head: Duration,
    /// How long all of a connection may take.
    pub whole: Duration,
    /// The same where others wait for room.
    pub crowded: Duration,
}

/// Whatever takes connections.
pub trait Listener {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Answers one request on each connection, by the router that is chosen for it, until it is stopped. `name` is the listener's, for
/// the log; `closed` is called as soon as nobody can connect any more.
pub async fn serve<L: Listener>(
    listener: L,
    name: &str,
    limits: Limits,
    router: impl Fn(&L::Stream) -> Router,
    mut stopped: oneshot::Receiver<()>,
    closed: impl FnOnce(),
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut open = Open(VecDeque::new());
    let accept = async {
        loop {
            match listener.next().await {
                Ok(stream) => {
                    let permit = open.room(&permits, limits).await;
                    let router = router(&stream);
                    open.begin(stream, router, permit, limits);
                }
                Err(error) => {
                    tracing::warn!("{name} takes no connection: {error}");
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        _ = &mut stopped => {}
    }
    drop(listener);
    closed();
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    let _ = timeout(GRACE, permits.acquire_many(all)).await;
}

/// The connections that there are, the oldest first.
struct Open(VecDeque<Connection>);

struct Connection {
    /// Since it is listened to.
    since: Arc<OnceLock<Instant>>,
    /// Its request is being answered.
    asked: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Open {
    /// Waits for room, and makes it at the expense of who has been silent for longest.
    async fn room(&mut self, permits: &Arc<Semaphore>, limits: Limits) -> Option<OwnedSemaphorePermit> {
        loop {
            if permits.available_permits() == 0 {
                // What has arrived by now is read first: connections may come without a pause, and this is asked before
                // those that are open. Once for the kernel's news, once for those that they are for.
                yield_now().await;
                yield_now().await;
            }
            if permits.available_permits() == 0 {
                self.give_one_up(limits);
            }
            // It is never closed.
            if let Ok(permit) = timeout(MOMENT / 5, permits.clone().acquire_owned()).await {
                self.0.retain(|connection| !connection.task.is_finished());
                return permit.ok();
            }
        }
    }

    fn give_one_up(&mut self, limits: Limits) {
        let is_dispensable = |one: &Connection| {
            let asked = one.asked.load(Ordering::Relaxed);
            let limit = if asked { limits.crowded } else { MOMENT };
            one.since.get().is_some_and(|since| since.elapsed() >= limit)
        };
        let silent = self.0.iter().position(|one| !one.asked.load(Ordering::Relaxed) && is_dispensable(one));
        let chosen = silent.or_else(|| self.0.iter().position(is_dispensable));
        if let Some(connection) = chosen.and_then(|at| self.0.remove(at)) {
            connection.task.abort();
        }
    }

    fn begin(
        &mut self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        router: Router,
        permit: Option<OwnedSemaphorePermit>,
        limits: Limits,
    ) {
        let asked = Arc::new(AtomicBool::new(false));
        let since = Arc::new(OnceLock::new());
        let (told, begun) = (asked.clone(), since.clone());
        let task = tokio::spawn(async move {
            begun.get_or_init(Instant::now);
            answer(stream, router, told, limits).await;
            drop(permit);
        });
        self.0.push_back(Connection { since, asked, task: task.abort_handle() });
    }
}

/// One request on one connection. What goes wrong with it is the client's concern.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    asked: Arc<AtomicBool>,
    limits: Limits,
) {
    let router = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .keep_alive(false)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| {
                asked.store(true, Ordering::Relaxed);
                router.call(request)
            }),
        );
    let _ = timeout(limits.whole, connection).await;
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};
    use std::thread;

    use axum::routing::get;

    use super::*;

    const LIMITS: Limits = Limits {
        connections: 8,
        head: Duration::from_secs(20),
        whole: Duration::from_secs(20),
        crowded: Duration::from_secs(20),
    };

    /// A server that answers `/` at once, `/late` after a second and `/never` never, while a test runs.
    fn with_server(limits: Limits, test: impl FnOnce(SocketAddr)) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let late = || async {
                sleep(Duration::from_secs(1)).await;
                "late"
            };
            let router = Router::new()
                .route("/", get(|| async { "at once" }))
                .route("/late", get(late))
                .route("/never", get(std::future::pending::<&str>));
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                serve(listener, "the test", limits, |_| router.clone(), stopped, || ()).await;
            });
        });
        test(address);
        stop.send(()).unwrap();
        server.join().unwrap();
    }

    fn begin(address: SocketAddr, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        stream
    }

    fn end(mut stream: TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }

    #[test]
    fn the_silent_keep_nobody_out() {
        with_server(LIMITS, |address| {
            let asked: Vec<TcpStream> = (0..3).map(|_| begin(address, "/late")).collect();
            let mut silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
            let begun = Instant::now();
            assert_eq!(end(begin(address, "/")), "at once");
            // 100 in groups of five, each of which has its moment.
            assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
            for stream in asked {
                assert_eq!(end(stream), "late", "who has asked is answered");
            }
            let mut rest = Vec::new();
            assert_eq!(silent[0].read_to_end(&mut rest).unwrap_or(0), 0, "the oldest is closed");
        });
    }

    #[test]
    fn those_who_come_all_at_once_are_all_answered() {
        with_server(LIMITS, |address| {
            let all: Vec<TcpStream> = (0..100).map(|_| begin(address, "/")).collect();
            for (at, stream) in all.into_iter().enumerate() {
                assert_eq!(end(stream), "at once", "{at}");
            }
        });
    }

    #[test]
    fn where_it_is_crowded_the_slow_make_room() {
        let limits = Limits { crowded: Duration::from_millis(300), ..LIMITS };
        with_server(limits, |address| {
            let slow: Vec<TcpStream> = (0..8).map(|_| begin(address, "/never")).collect();
            assert_eq!(end(begin(address, "/")), "at once");
            let is_open = |stream: &&TcpStream| {
                stream.set_nonblocking(true).unwrap();
                stream.peek(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            };
            assert_eq!(slow.iter().filter(is_open).count(), 7, "no more than needed are given up");
        });
    }
}
