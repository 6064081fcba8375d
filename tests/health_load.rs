//! What checks cost, and that none waits for others: 2,000 backends, each checked once a second.
//!
//! The backends are in a process of their own, but what the kernel does for a packet that never leaves the host is charged to
//! whoever sends it: the checker pays for both ends of each handshake here, so that real ones cost less.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{Backlog, listen};
use nix::unistd::{SysconfVar, sysconf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use xdp_lb::health::{Checker, Event, Stats, Target};
use xdp_lb::model::{Health, HttpProbe, Probe, TlsProbe};

const BACKENDS: usize = 2000;
/// Of ten backends one is a black hole, where there are any.
const BLACK: usize = 10;
const INTERVAL: Duration = Duration::from_secs(1);
/// Until the first checks are over.
const WARM_UP: Duration = Duration::from_secs(4);
const MEASURED: Duration = Duration::from_secs(12);
/// No check begins later.
const LATE: Duration = Duration::from_millis(200);
/// The part of a CPU that checks may take; what is not optimised takes more.
const TCP: f64 = if cfg!(debug_assertions) { 0.5 } else { 0.1 };
const HTTP: f64 = if cfg!(debug_assertions) { 1.0 } else { 0.25 };

/// Makes this binary be the backends.
const SERVE: &str = "XDP_LB_TEST_SERVE";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";

/// The backends, and how to end them.
struct Backends {
    process: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<std::process::ChildStdout>,
    addresses: Vec<SocketAddrV4>,
}

impl Backends {
    fn start(probe: &Probe) -> Backends {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "serve", "--nocapture"]).env(SERVE, probe.name());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take().unwrap());
        let mut stdout = BufReader::new(stdout);
        let mut addresses = Vec::new();
        while addresses.len() < BACKENDS {
            let mut line = String::new();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "the backends ended");
            addresses.extend(line.strip_prefix("at ").map(|at| at.trim().parse::<SocketAddrV4>().unwrap()));
        }
        Backends { process, stdin, stdout, addresses }
    }

    /// Ends them and tells the longest time that one waited for its next request.
    fn longest_pause(mut self) -> Duration {
        drop(self.stdin.take());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert!(self.process.wait().unwrap().success());
        let pause = rest.lines().find_map(|line| line.strip_prefix("pause "));
        Duration::from_micros(pause.expect("a pause").parse().unwrap())
    }
}

#[test]
fn serve() {
    let Ok(probe) = env::var(SERVE) else { return };
    let tls = (probe == "https").then(acceptor);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let longest = Arc::new(AtomicU64::new(0));
    let mut addresses = String::new();
    for n in 0..BACKENDS {
        let ip = Ipv4Addr::new(127, 1, (n / 250) as u8, (n % 250 + 1) as u8);
        let listener = TcpListener::bind((ip, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        addresses += &format!("at {}\n", listener.local_addr().unwrap());
        runtime.spawn(backend(listener, tls.clone(), longest.clone()));
    }
    print!("\n{addresses}");
    io::stdout().flush().unwrap();
    std::thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        // A test that failed does not read it.
        let _ = writeln!(io::stdout(), "\npause {}", longest.load(Ordering::Relaxed));
        std::process::exit(0);
    });
    runtime.block_on(std::future::pending::<()>());
}

/// A certificate that nobody trusts.
fn acceptor() -> TlsAcceptor {
    let issued = rcgen::generate_simple_self_signed(["shop.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Arc::new(config.with_single_cert(vec![issued.cert.der().clone()], key).unwrap()).into()
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut request = [0; 1024];
    if stream.read(&mut request).await.is_ok_and(|n| n > 0) {
        let _ = stream.write_all(ANSWER).await;
        let _ = stream.shutdown().await;
    }
}

async fn backend(listener: TcpListener, tls: Option<TlsAcceptor>, longest: Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut last: Option<Instant> = None;
    while let Ok((stream, _)) = listener.accept().await {
        let pause = last.replace(Instant::now()).map_or(Duration::ZERO, |last| last.elapsed());
        longest.fetch_max(pause.as_micros() as u64, Ordering::Relaxed);
        match tls.clone() {
            None => tokio::spawn(answer(stream)),
            Some(tls) => tokio::spawn(async move {
                if let Ok(stream) = tls.accept(stream).await {
                    answer(stream).await;
                }
            }),
        };
    }
}

/// A listener whose queue is full: it drops all SYNs.
fn black_hole() -> (SocketAddrV4, TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let full = (0..4).map_while(|_| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok());
    let full = full.collect();
    let SocketAddr::V4(address) = address else { panic!("{address}") };
    (address, listener, full)
}

/// The CPU time of the checker's thread.
fn cpu() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let mut checkers = tasks.filter(|task| fs::read_to_string(task.join("comm")).unwrap() == "health\n");
    let stat = fs::read_to_string(checkers.next().expect("a checker").join("stat")).unwrap();
    assert_eq!(checkers.next(), None);
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    Duration::from_secs_f64(ticks as f64 / second as f64)
}

/// What came of a run.
struct Run {
    /// The part of one CPU.
    cpu: f64,
    checks: u64,
    late: Duration,
    slowest: Duration,
}

fn run(name: &str, probe: Probe, count: usize, black: bool) -> (Run, Duration) {
    let backends = Backends::start(&probe);
    let (hole, _listener, _full) = black_hole();
    let health = Health { interval: INTERVAL, ..Health::of(probe) };
    let is_black = move |id: u64| black && id % BLACK as u64 == 0;
    let targets = backends.addresses.iter().zip(0..).map(|(&address, id)| {
        let address = if is_black(id) { hole } else { address };
        Target { id, address, health: health.clone(), up: true }
    });
    let checker = Checker::start(move |event| {
        let Event::Change { id, up, why, .. } = event;
        assert!(!up && is_black(id), "{id}: {why:?}");
    });
    let checker = checker.unwrap();
    checker.set(targets.take(count).collect());
    sleep(INTERVAL + Duration::from_millis(200));
    let first = checker.stats();
    let begun = |(id, stats): &(u64, Stats)| is_black(*id) || stats.checks > 0;
    assert!(first.iter().all(begun), "a first check came late");
    sleep(WARM_UP - INTERVAL);
    let (before, start, spent) = (checks(&checker.stats()), Instant::now(), cpu());
    sleep(MEASURED);
    let (stats, spent, took) = (checker.stats(), cpu() - spent, start.elapsed());
    drop(checker);
    let good = stats.iter().filter(|(id, _)| !is_black(*id));
    let run = Run {
        cpu: spent.as_secs_f64() / took.as_secs_f64(),
        checks: checks(&stats) - before,
        late: stats.iter().map(|(_, stats)| stats.late).max().unwrap(),
        slowest: good.clone().filter_map(|(_, stats)| stats.smoothed).max().unwrap(),
    };
    for (id, stats) in good {
        assert!(stats.failures == 0 && stats.unchecked == 0, "{id}: {stats:?}");
    }
    println!(
        "{name}: {:.1} % of a CPU, {:.0} checks/s, {:.1} µs each; late by {:?} at most; {:?} the slowest backend",
        run.cpu * 100.0,
        run.checks as f64 / took.as_secs_f64(),
        spent.as_secs_f64() / run.checks as f64 * 1e6,
        run.late,
        run.slowest
    );
    (run, backends.longest_pause())
}

fn checks(stats: &[(u64, Stats)]) -> u64 {
    stats.iter().map(|(_, stats)| stats.checks).sum()
}

fn request() -> HttpProbe {
    HttpProbe { body: Some("ok".into()), ..HttpProbe::default() }
}

#[test]
#[ignore = "takes a minute: make test-all"]
fn checks_cost_little_and_delay_no_others() {
    let (tcp, _) = run("tcp", Probe::Tcp, BACKENDS, false);
    let (http_run, pause) = run("http", Probe::Http(request()), BACKENDS, false);
    let (holes, holes_pause) = run("http with black holes", Probe::Http(request()), BACKENDS, true);
    // Cryptography costs more than all the rest, on both ends.
    let https = Probe::Https(request(), TlsProbe { ca: None, skip_verify: true });
    run("https", https, BACKENDS / 10, false);
    for run in [&tcp, &http_run, &holes] {
        assert!(run.late < LATE && run.slowest < LATE, "{:?} late, {:?}", run.late, run.slowest);
    }
    println!("a backend waited for {:?} at most, {:?} beside black holes", pause, holes_pause);
    let most = INTERVAL.mul_f64(1.1) + LATE;
    assert!(pause < most && holes_pause < most, "{pause:?}, {holes_pause:?}");
    let due = BACKENDS as f64 * MEASURED.as_secs_f64() / INTERVAL.as_secs_f64();
    assert!(tcp.checks as f64 > due * 0.95 && http_run.checks as f64 > due * 0.95);
    assert!(tcp.cpu < TCP && http_run.cpu < HTTP, "{} and {}", tcp.cpu, http_run.cpu);
}
