//! What an operator asks for, as plain values: services, their backends and how connections are spread.
//!
//! Nothing here knows of the kernel, of files or of the command line.

mod backend;
mod diff;
mod health;
mod scheduler;
mod service;
mod timeouts;

pub use backend::{AdminState, Backend, Weight};
pub use diff::{Change, Step, diff};
pub use health::{Health, HttpProbe, Initial, Probe, TlsProbe};
pub use scheduler::Scheduler;
pub use service::{OnDown, OnEmpty, Protocol, Service, means_service};
pub use timeouts::Timeouts;
