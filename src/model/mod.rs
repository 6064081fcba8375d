//! What an operator asks for, as plain values: services, their backends and how connections are spread.
//!
//! Nothing here knows of the kernel, of files or of the command line.

mod backend;
mod diff;
mod scheduler;
mod service;
mod timeouts;

pub use backend::{Backend, Weight};
pub use diff::{Change, Step, diff};
pub use scheduler::Scheduler;
pub use service::{Protocol, Service};
pub use timeouts::Timeouts;
