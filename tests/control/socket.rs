//! The socket: who may connect, what it replaces, what becomes of it, and clients that are slow or talk nonsense.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use serde_json::Value;
use xdp_lb::control::{Ask, Client, ClientError, Limits, Reply, Server};
use xdp_lb::model::Timeouts;

use super::instance::*;

#[test]
fn slow_clients_do_not_pile_up() {
    let limits = Limits { request: Duration::from_millis(300), connections: 2, ..Limits::default() };
    let instance = start_with(limits, |ask, reply| reply.send(answer(&ask)));
    let path = instance.path();
    let silent: Vec<_> = (0..6).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut half = UnixStream::connect(&path).unwrap();
    half.write_all(head("POST /v1/reload", "", 10).as_bytes()).unwrap();
    let since = Instant::now();
    assert_eq!(instance.http("GET /v1/status", "").0, 200, "all before it were given up");
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    let (status, text) = parts(half);
    assert_eq!(status, 408, "{text}");
    for mut stream in silent {
        let mut rest = Vec::new();
        assert!(stream.read_to_end(&mut rest).is_ok(), "it is closed");
    }
}

#[test]
fn nonsense_ends_the_connection_and_nothing_else() {
    let instance = start();
    for text in ["\0\u{1}\u{2}\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let mut stream = UnixStream::connect(instance.path()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let (status, _) = parts(stream);
        assert!([0, 400, 505].contains(&status), "{text:?}: {status}");
    }
    drop(UnixStream::connect(instance.path()).unwrap());
    assert_eq!(instance.http("GET /v1/status", "").0, 200);
}

#[test]
fn only_its_owner_may_connect() {
    let instance = start();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&instance.path()), 0o600);
    assert_eq!(mode(instance.path().parent().unwrap()), 0o755);
    let rest: Vec<_> = fs::read_dir(instance.path().parent().unwrap()).unwrap().collect();
    assert_eq!(rest.len(), 1, "{rest:?}");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn root_others_are_told_so_where_the_socket_lets_them() {
    let instance = start();
    fs::set_permissions(instance.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let get = || {
        let curl = std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--clear-groups", "curl", "-s", "--unix-socket"])
            .arg(instance.path())
            .arg("http://localhost/v1/status")
            .output();
        curl.map(|output| String::from_utf8(output.stdout).unwrap())
    };
    let Ok(answer) = get() else { return };
    assert_eq!(answer, "", "by its mode");
    fs::set_permissions(instance.path(), fs::Permissions::from_mode(0o666)).unwrap();
    let answer: Value = serde_json::from_str(&get().unwrap()).unwrap();
    assert_eq!(answer["kind"], "forbidden");
    assert!(answer["error"].as_str().unwrap().contains("sudo"));
    assert_eq!(instance.asked(), []);
}

#[test]
fn a_second_instance_finds_the_first() {
    let instance = start();
    let second = Server::start(&instance.path(), Timeouts::default(), |_, _| {});
    let error = second.err().unwrap().to_string();
    assert!(error.contains("another instance listens at"), "{error}");
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    assert!(error.contains("--socket") && error.contains("--pin-dir"), "{error}");
    assert_eq!(instance.http("GET /v1/status", "").0, 200);
}

#[test]
fn of_many_that_start_at_once_one_listens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lb.sock");
    // As of an instance that was killed.
    drop(UnixListener::bind(&path).unwrap());
    let start = || Server::start(&path, Timeouts::default(), |ask, reply| reply.send(answer(&ask)));
    let servers: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(servers.iter().filter(|server| server.is_ok()).count(), 1);
    assert!(Client::connect(&path).unwrap().status().is_ok());
}

#[test]
fn the_socket_of_the_dead_is_replaced_and_ones_own_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/lb.sock");
    fs::create_dir(dir.path().join("run")).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(Client::connect(&path), Err(ClientError::NoInstance(_))));
    let instance = start_in(dir, Limits::default(), |ask, reply| reply.send(answer(&ask)));
    assert!(instance.client().status().is_ok());
    let Instance { dir, server, .. } = instance;
    drop(server);
    assert!(!path.exists());
    drop(dir);
}

#[test]
fn a_socket_that_is_not_ones_own_any_more_stays() {
    let instance = start();
    let path = instance.path();
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    let Instance { dir, server, .. } = instance;
    drop(server);
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    drop((other, dir));
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let start = |path: &Path| Server::start(path, Timeouts::default(), |_, _| {}).err().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    for path in [&file, dir.path()] {
        let error = start(path).to_string();
        assert!(error.contains("is no socket: remove it, or name another path with --socket"), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    let long = start(&dir.path().join("x".repeat(200)));
    assert!(format!("{long:#}").contains("too long"), "{long:#}");
    let below = start(&file.join("lb.sock"));
    assert!(format!("{below:#}").contains("could not make the directory"), "{below:#}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn what_the_client_says_where_nobody_listens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.sock");
    let error = Client::connect(&path).err().unwrap();
    assert!(matches!(&error, ClientError::NoInstance(at) if *at == path));
    let text = error.to_string();
    assert!(text.contains("no instance listens at") && text.contains("--socket or --pin-dir"), "{text}");
    let denied = ClientError::Denied(path).to_string();
    assert!(denied.contains("sudo"), "{denied}");

    let listener = UnixListener::bind(dir.path().join("odd.sock")).unwrap();
    let odd = thread::spawn(move || {
        for stream in listener.incoming().take(1) {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(b"SSH-2.0-nonsense\r\n\r\n");
        }
    });
    let client = Client::connect(&dir.path().join("odd.sock")).unwrap();
    assert!(matches!(client.status(), Err(ClientError::Broken(_))));
    odd.join().unwrap();
}

#[test]
fn one_that_is_asked_to_stop_still_answers() {
    let (sender, asked) = std::sync::mpsc::channel::<(Ask, Reply)>();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lb.sock");
    let server = Server::start(&path, Timeouts::default(), move |ask, reply| {
        let _ = sender.send((ask, reply));
    })
    .unwrap();
    let main = thread::spawn(move || {
        let (ask, reply) = asked.recv().unwrap();
        assert_eq!(ask, Ask::Stop);
        reply.send(answer(&ask));
        drop(server);
    });
    let done = Client::connect(&path).unwrap().change(&Ask::Stop).unwrap();
    assert!(done.applied);
    main.join().unwrap();
    assert!(!path.exists());
}

/// A process that is stopped, or hangs: its kernel takes connections, and it says nothing.
#[test]
fn who_can_do_without_an_answer_does_not_wait_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lb.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let begun = Instant::now();
    let client = Client::connect(&path).unwrap().patient(Duration::from_secs(20));
    let Err(error @ ClientError::Silent(..)) = client.status() else { panic!("an answer of nobody") };
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let said = error.to_string();
    let expected = format!(
        "process {}, which listens at {}, has not answered for 1s",
        std::process::id(),
        path.display()
    );
    assert_eq!(said, expected);
}

/// A listener whose queue is full, and those who wait in it.
fn full_queue(path: &Path) -> (OwnedFd, Vec<UnixStream>) {
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let waiting = (0..2).map(|_| UnixStream::connect(path).unwrap()).collect();
    (listener, waiting)
}

/// Nor does one that has not even room for another connection hold anybody up.
#[test]
fn a_full_queue_is_silence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lb.sock");
    let (listener, _waiting) = full_queue(&path);
    let Err(error @ ClientError::Silent(..)) = Client::connect(&path) else { panic!("it had no room") };
    let expected = format!("the process that listens at {} takes no more connections", path.display());
    assert_eq!(error.to_string(), expected);
    // Who only reads has other sources, and so a client that says it when it is asked.
    let client = Client::reader(&path, Duration::from_secs(20)).unwrap();
    let begun = Instant::now();
    let Err(error @ ClientError::Silent(..)) = client.status() else { panic!("it had no room") };
    assert_eq!(error.to_string(), expected);
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    Client::knock(&path).unwrap();
    drop(listener);
    assert!(matches!(Client::knock(&path), Err(ClientError::NoInstance(_))));
}

/// Many who ask at once are no sign that it does not live.
#[test]
fn a_full_queue_that_is_served_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lb.sock");
    let (listener, _waiting) = full_queue(&path);
    let listener = UnixListener::from(listener);
    let server = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        (0..3).map(|_| listener.accept().unwrap().0).collect::<Vec<_>>()
    });
    assert!(Client::connect(&path).is_ok());
    drop(server.join().unwrap());
}

/// A main loop that hangs costs the whole patience once: the process lives, and says so each time.
#[test]
fn a_hung_instance_is_waited_for_once() {
    let (questions, asked) = std::sync::mpsc::channel();
    let questions = std::sync::Mutex::new(questions);
    let hung = start_with(Limits::default(), move |_, reply| questions.lock().unwrap().send(reply).unwrap());
    let client = Client::reader(&hung.path(), Duration::from_secs(3)).unwrap();
    let silent_for = || match client.status() {
        Err(ClientError::Silent(_, waited)) => waited,
        answer => panic!("{answer:?}"),
    };
    assert_eq!(silent_for(), Duration::from_secs(3));
    assert_eq!([silent_for(), silent_for()], [Duration::from_secs(1); 2]);
    drop(asked);
}

/// A main loop that is busy is waited for: the process lives.
#[test]
fn a_busy_instance_is_waited_for() {
    let instance = start_with(Limits::default(), |_, reply| {
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(2));
            reply.send(Ok(figures()));
        });
    });
    assert_eq!(instance.client().patient(Duration::from_secs(20)).status().unwrap(), figures());
    let patience = Duration::from_millis(1200);
    let answer = instance.client().patient(patience).status();
    assert!(matches!(answer, Err(ClientError::Silent(_, waited)) if waited == patience), "{answer:?}");
}
