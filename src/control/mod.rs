//! The admin socket: what can be asked of a running instance, by HTTP and JSON over a unix socket.

mod api;
mod client;
mod halt;
mod project;
mod routes;
mod server;
mod socket;
mod wire;

pub use api::{Answer, Ask, BackendChange, Done, Filter, LISTED, Refusal, Reload};
pub use client::{Client, ClientError};
pub use halt::Halt;
pub use project::{backends_of, services_of};
pub use server::{Limits, Reply, Server};
