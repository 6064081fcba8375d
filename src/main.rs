//! The command: arguments in, exit code out.
#![deny(unsafe_code)]
#![warn(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::process::ExitCode;

use xdp_lb::cli::{self, Command};
use xdp_lb::daemon;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(usage) => return usage.report(),
    };
    let result = match command {
        Command::Check(config) => match cli::check(&config) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Command::Run(config) => daemon::run(&config),
        Command::Status { pin_dir, json } => cli::status(&pin_dir, json),
        Command::Verify => cli::verify(),
        Command::VethPeer { interface, remove } => cli::veth_peer(&interface, remove),
        Command::Detach { interface, pin_dir } => daemon::detach(&interface, &pin_dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            xdp_lb::note!("{error:#}");
            if !nix::unistd::geteuid().is_root() && is_permission(&error) {
                xdp_lb::note!("run it as root: sudo xdp-lb ...");
            }
            ExitCode::FAILURE
        }
    }
}

fn is_permission(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io =
            cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::PermissionDenied);
        let errno = cause.downcast_ref::<nix::errno::Errno>();
        let bpf = cause.downcast_ref::<libbpf_rs::Error>();
        io || matches!(errno, Some(nix::errno::Errno::EPERM | nix::errno::Errno::EACCES))
            || bpf.is_some_and(|e| e.kind() == libbpf_rs::ErrorKind::PermissionDenied)
    })
}
