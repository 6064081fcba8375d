//! Serves metrics and probes by HTTP, in a thread of its own.

use std::net::TcpListener as StdListener;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Bytes;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::{Mutex, oneshot};
use tokio::task::spawn_blocking;

use super::collector::Text;
use super::{About, Board, Collector, exposition};
use crate::serve::{self, GRACE, Limits};

/// Whoever watches a probe waits a few seconds at most.
const LIMITS: Limits = Limits {
    connections: 32,
    head: Duration::from_secs(5),
    whole: Duration::from_secs(30),
    crowded: Duration::from_secs(5),
};

/// Everything there is.
const PATHS: &str = "there are GET /metrics, /healthz and /readyz\n";

/// Serves until it is dropped.
pub struct Server {
    /// The listening socket, for who is to listen beside it.
    listener: StdListener,
    stop: Option<oneshot::Sender<()>>,
    /// Tells, or ends, once nobody can connect any more.
    closed: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves what the board tells to whoever connects to the listener.
    pub fn start(listener: StdListener, board: Arc<Board>, about: About) -> Result<Server> {
        let collector = Collector::new(board.clone(), about)?;
        let app = App { board, collector: Arc::new(Mutex::new(collector)) };
        // One blocking thread: who reads a hundred thousand series must not keep the probes waiting.
        let runtime = Builder::new_current_thread().enable_io().enable_time().max_blocking_threads(1).build();
        let runtime = runtime.context("could not start the runtime of the metrics")?;
        let kept = listener.try_clone().context("could not keep the socket of the metrics")?;
        listener.set_nonblocking(true).context("could not prepare the socket of the metrics")?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener).context("could not listen for metrics")?
        };
        let (stop, stopped) = oneshot::channel();
        let (closing, closed) = mpsc::channel();
        let serve = move || {
            let (router, closed) = (router(app), || drop(closing));
            let serve =
                serve::serve(listener, "the metrics' socket", LIMITS, |_| router.clone(), stopped, closed);
            runtime.block_on(serve);
            runtime.shutdown_timeout(GRACE);
        };
        let thread = thread::Builder::new().name("metrics".into()).spawn(serve);
        let thread = thread.context("could not start the thread of the metrics")?;
        Ok(Server { listener: kept, stop: Some(stop), closed, thread: Some(thread) })
    }

    /// The listening socket.
    pub fn listener(&self) -> &StdListener {
        &self.listener
    }

    /// Stops to listen. Who is being answered is answered to the end, for which nobody waits.
    pub fn leave(mut self) {
        self.stop();
        let _ = self.closed.recv_timeout(GRACE);
        self.thread = None;
    }

    fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What requests are answered with.
#[derive(Clone)]
struct App {
    board: Arc<Board>,
    collector: Arc<Mutex<Collector>>,
}

fn router(app: App) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .method_not_allowed_fallback(|| async { (StatusCode::METHOD_NOT_ALLOWED, PATHS) })
        .fallback(|| async { (StatusCode::NOT_FOUND, PATHS) })
        .with_state(app)
}

/// A text's bytes, shared with all who get them.
struct Shared(Text);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

async fn metrics(State(app): State<App>) -> Response {
    let mut collector = app.collector.lock_owned().await;
    match spawn_blocking(move || collector.text()).await {
        Ok(Ok(text)) => {
            let body = Body::from(Bytes::from_owner(Shared(text)));
            ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], body).into_response()
        }
        Ok(Err(error)) => refusal(format!("{error:#}")),
        Err(error) => refusal(format!("the figures could not be read: {error}")),
    }
}

async fn healthz(State(app): State<App>) -> Response {
    app.board.illness().map_or_else(|| "ok\n".into_response(), refusal)
}

async fn readyz(State(app): State<App>) -> Response {
    app.board.obstacle().map_or_else(|| "ready\n".into_response(), refusal)
}

fn refusal(why: String) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response()
}
