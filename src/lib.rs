//! xdp-lb: a TCP and UDP load balancer in the kernel's XDP hook.
//!
//! The binary is `src/main.rs`; this library is what it is made of, so that tests can reach the parts.
#![deny(unsafe_code)]
#![warn(clippy::unwrap_used)]
#![deny(clippy::print_stderr)]

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("xdp-lb needs Linux on x86-64: the connection table relies on the order of x86 stores");

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod egress;
pub mod health;
pub mod log;
pub mod metrics;
pub mod model;
pub mod net;
pub mod preflight;
pub mod ring;
mod serve;
#[cfg(test)]
mod testing;
pub mod tune;
