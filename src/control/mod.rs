//! The admin socket: what can be asked of a running instance, by HTTP and JSON over a unix socket.

mod api;

pub use api::{Answer, Ask, BackendChange, Done, Filter, Refusal, Reload};
