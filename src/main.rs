//! The command: arguments in, exit code out.
#![deny(unsafe_code)]
#![warn(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::process::ExitCode;

use xdp_lb::cli::{self, Command};
use xdp_lb::{daemon, log};

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(usage) => return usage.report(),
    };
    match cli::load(command).and_then(cli::find).and_then(|command| carry_out(&command)) {
        Ok(code) => code,
        Err(error) => {
            log::failure(&format!("{error:#}"));
            if !nix::unistd::geteuid().is_root() && is_permission(&error) {
                log::failure("run it as root: sudo xdp-lb ...");
            }
            ExitCode::FAILURE
        }
    }
}

/// A failure without an error: what was looked for is not so, and everything has been said.
fn carry_out(command: &Command) -> anyhow::Result<ExitCode> {
    let of = |is_so: bool| if is_so { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    match command {
        Command::Check(config) => return cli::check(config).map(of),
        Command::Change { ask, wait, instance } => return cli::change(ask, *wait, instance).map(of),
        Command::Doctor { interface, instance, fix, level } => {
            return cli::doctor(interface.as_deref(), instance, *fix, *level).map(ExitCode::from);
        }
        Command::Tune { interface, dry_run, undo, json } => {
            return cli::tune(interface, *dry_run, *undo, *json).map(of);
        }
        Command::Run { config, file } => {
            log::start(config.log_format);
            daemon::run(config, file.clone())
        }
        Command::RunFile { file, .. } | Command::CheckFile(file) => cli::check_file(file),
        Command::Show(show, instance) => cli::show(show, instance),
        Command::Explain { packet, interface, instance } => {
            cli::explain(packet, interface.as_deref(), instance)
        }
        Command::Trace(watching, instance) => cli::trace(watching, instance),
        Command::Capture { watching, file, length, instance } => {
            cli::capture(watching, file, *length, instance)
        }
        Command::Top(show, instance) => cli::top(show, instance),
        Command::Completions(shell) => cli::completions(*shell),
        Command::Manual { verb, dir } => cli::manual(verb, dir.as_deref()),
        Command::Verify => cli::verify(),
        Command::VethPeer { interface, remove } => cli::veth_peer(interface, *remove),
        Command::Detach { interface, pin_dir } => cli::detach(interface, pin_dir),
    }
    .map(|()| ExitCode::SUCCESS)
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
