//! Listens, and hands on what is asked.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::api::{Answer, Ask, Refusal};
use super::routes::{self, App};
use super::socket::{self, Place};
use crate::model::Timeouts;
use crate::serve;

/// What is to be told to whoever asked. Dropped without a word it tells that the process is about to end.
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Result<Answer, Refusal>>);

impl Reply {
    pub(super) fn new(sender: oneshot::Sender<Result<Answer, Refusal>>) -> Reply {
        Reply(sender)
    }

    /// Tells it. One who has gone meanwhile is no error.
    pub fn send(self, answer: Result<Answer, Refusal>) {
        let _ = self.0.send(answer);
    }
}

/// How much a client may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long it may take for what is asked to be answered.
    pub answer: Duration,
    /// How long a client may take for its request's head, and then again for its body.
    pub request: Duration,
    /// How many connections are served at once; more wait, or take the place of who says nothing.
    pub connections: usize,
    /// How many bytes a request's body may have.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            answer: Duration::from_secs(30),
            request: Duration::from_secs(10),
            connections: 64,
            body: 1 << 20,
        }
    }
}

/// Listens at the admin socket, in a thread of its own, until it is dropped.
pub struct Server {
    timeouts: Arc<RwLock<Timeouts>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _place: Place,
}

impl Server {
    /// Listens at a path. `ask` is told of each question, in the server's thread: it must hand it on without waiting.
    /// `timeouts` are those of services to be added that name none.
    ///
    /// # Errors
    /// Another instance listens there, or something that is no socket is there.
    pub fn start(
        path: &Path,
        timeouts: Timeouts,
        ask: impl Fn(Ask, Reply) + Send + Sync + 'static,
    ) -> Result<Server> {
        Server::start_with(path, timeouts, Limits::default(), ask)
    }

    /// The same with other limits.
    pub fn start_with(
        path: &Path,
        timeouts: Timeouts,
        limits: Limits,
        ask: impl Fn(Ask, Reply) + Send + Sync + 'static,
    ) -> Result<Server> {
        let (listener, place) = socket::listen_at(path)?;
        let timeouts = Arc::new(RwLock::new(timeouts));
        let app = App { ask: Arc::new(ask), timeouts: timeouts.clone(), limits };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("could not start the runtime of the admin socket")?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(listener).context("could not listen at the admin socket")?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || runtime.block_on(run(listener, app, stopped)))
            .context("could not start the thread of the admin socket")?;
        Ok(Server { timeouts, stop: Some(stop), thread: Some(thread), _place: place })
    }

    /// The timeouts of services to be added that name none are others from now on.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        *self.timeouts.write().unwrap_or_else(PoisonError::into_inner) = timeouts;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(listener: UnixListener, app: App, stopped: oneshot::Receiver<()>) {
    let Limits { answer, request, connections, .. } = app.limits;
    let whole = answer + 3 * request;
    // A change takes the time that it takes.
    let limits = serve::Limits { connections, head: request, whole, crowded: whole };
    let (served, strangers) = (routes::router(app), routes::strangers());
    let router = |stream: &UnixStream| if is_allowed(stream) { &served } else { &strangers }.clone();
    serve::serve(listener, "the admin socket", limits, router, stopped, || ()).await;
}

/// Root, and whoever this process runs as.
fn is_allowed(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}
