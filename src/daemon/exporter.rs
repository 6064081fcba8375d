//! Metrics: where they are served, and what of this process they are made of.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use nix::sys::utsname::uname;

use crate::config::Config;
use crate::dataplane::Plane;
use crate::metrics::{About, Board, Server, names_of};
use crate::model::Service;
use crate::net::listen;

/// Serves the metrics, if that is asked for.
pub struct Exporter {
    board: Arc<Board>,
    about: About,
    server: Option<(SocketAddr, Server)>,
}

/// A socket that listens, and is served once the configuration that asks for it holds.
pub struct Listening(Option<(SocketAddr, TcpListener)>);

impl Listening {
    /// Of a start.
    pub fn begin(config: &Config) -> Result<Listening> {
        Listening::at(config.metrics, None)
    }

    fn at(address: Option<SocketAddr>, beside: Option<&TcpListener>) -> Result<Listening> {
        let listen = |address| Ok::<_, anyhow::Error>((address, listen(address, beside).context(METRICS)?));
        Ok(Listening(address.map(listen).transpose()?))
    }
}

const METRICS: &str = "the metrics cannot be served where --metrics (in the file: metrics) says";

impl Exporter {
    /// Serves the figures of this plane, with the names of the configuration. It balances already: what fails is only said.
    pub fn start(listening: Listening, plane: &Plane, config: &Config) -> Exporter {
        let board = Arc::new(Board::new(plane.shared_tables(), names_of(&config.services)));
        board.turned(!plane.attached().is_empty());
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let about = About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: plane.settings().abi,
            kernel: uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
            started: started.unwrap_or_default(),
        };
        let mut exporter = Exporter { board, about, server: None };
        exporter.serve(listening);
        exporter
    }

    /// What another configuration needs, before it holds: a socket, if it wants another one than there is; and names, so that
    /// new services have theirs from the first moment on.
    pub fn prepare(&self, new: &Config) -> Result<Option<Listening>> {
        let other = self.address() != new.metrics;
        let beside = self.server.as_ref().map(|(_, server)| server.listener());
        let listening = other.then(|| Listening::at(new.metrics, beside)).transpose()?;
        self.board.announce(names_of(&new.services));
        Ok(listening)
    }

    /// The configuration holds, or the one before still does: these are its tables and its names.
    pub fn follow(&self, plane: &Plane, services: &[Service]) {
        self.board.tell(plane.shared_tables(), names_of(services));
    }

    /// Serves what was prepared, in the place of what was served before. The configuration holds already: what fails is only
    /// said, and what was served before goes on.
    pub fn serve(&mut self, listening: Listening) {
        let server = listening.0.map(|(address, listener)| {
            let server = Server::start(listener, self.board.clone(), self.about.clone());
            Ok::<_, anyhow::Error>((address, server?))
        });
        match (server.transpose(), self.address()) {
            (Ok(server), _) => {
                if let Some((_, before)) = std::mem::replace(&mut self.server, server) {
                    before.leave();
                }
            }
            (Err(error), Some(address)) => {
                tracing::warn!("the metrics are still served at {address}, until the next change: {error:#}")
            }
            (Err(error), None) => tracing::warn!("there are no metrics: {error:#}"),
        }
    }

    /// The main loop has come round.
    pub fn turned(&self, plane: &Plane) {
        self.board.turned(!plane.attached().is_empty());
    }

    /// Where it serves.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(|(address, _)| *address)
    }
}
