//! Troubles of this host are not held against backends. Each happens in a process of its own.

use std::net::SocketAddrV4;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use std::{env, io::Write as _};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::servers::{listener, request, serve, whole};
use crate::{Watched, http, ms, quick, target};
use xdp_lb::model::{Health, Probe};

/// Tells a test which is run again as a child what it is to check.
const ADDRESS: &str = "XDP_LB_TEST_ADDRESS";

fn child(test: &str, address: SocketAddrV4) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--include-ignored"]).env(ADDRESS, address.to_string());
    command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn given() -> Option<SocketAddrV4> {
    env::var(ADDRESS).ok().map(|address| address.parse().unwrap())
}

#[test]
fn no_more_files_may_be_opened() {
    let Some(address) = given() else {
        let (_kept, address) = listener();
        let output = child("host::no_more_files_may_be_opened", address).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let warnings: Vec<&str> = said.lines().filter(|line| line.contains("could not check")).collect();
        assert_eq!(warnings.len(), 1, "{said}");
        assert!(warnings[0].contains("too many open files"), "{said}");
        return;
    };
    xdp_lb::log::start(xdp_lb::config::LogFormat::Human);
    let watched = Watched::new(vec![target(1, address, &quick(Probe::Tcp))]);
    watched.until(1, |stats| stats.checks >= 2);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    watched.until(1, |stats| stats.unchecked >= 5);
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let checks = watched.stats(1).checks;
    let stats = watched.until(1, |stats| stats.checks >= checks + 2);
    assert_eq!((stats.failures, stats.up), (0, true));
    watched.nothing_within(Duration::ZERO);
}

#[test]
fn the_process_was_suspended() {
    let health = Health { timeout: Duration::from_secs(1), ..http(|_| ()) };
    if let Some(address) = given() {
        let watched = Watched::new(vec![target(1, address, &health)]);
        watched.until(1, |stats| stats.checks >= 2);
        return watched.nothing_within(Duration::from_secs(6));
    }
    // Mostly a check runs when the process stops.
    let address = serve(|mut stream| {
        request(&mut stream);
        sleep(ms(95));
        let _ = stream.write_all(whole("200 OK", "").as_bytes());
    });
    let child = child("host::the_process_was_suspended", address);
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    sleep(ms(1000));
    for _ in 0..3 {
        kill(pid, Signal::SIGSTOP).unwrap();
        sleep(ms(1500));
        kill(pid, Signal::SIGCONT).unwrap();
        sleep(ms(300));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
