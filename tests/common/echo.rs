//! Thousands of TCP connections that talk all the time, to the servers of [`super::servers::nginx_everywhere`], and know
//! who answers them.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::clients::body;
use super::netns::Lab;
use super::within;

/// How long a loop sleeps when nothing happens.
const TICK_MS: u8 = 5;
const EVENTS: usize = 512;
/// Requests that are not answered yet, at most: on a busy machine all become slower, none is left out.
const WINDOW: usize = 1000;

/// Lets this process, and those that it starts, have so many files open.
pub fn allow_files(count: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(count <= hard, "{count} open files are needed, {hard} are allowed (ulimit -Hn)");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(count), hard).context("allowing more open files")
}

/// A thread with an event loop, which ends with this.
struct Loop {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Loop {
    /// `turn` is given the events of each turn.
    fn start(epoll: Epoll, mut turn: impl FnMut(&Epoll, &[u64]) + Send + 'static) -> Loop {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut events = vec![EpollEvent::empty(); EVENTS];
            while !stopped.load(Ordering::Relaxed) {
                // An interrupted wait has no events.
                let count = epoll.wait(&mut events, TICK_MS).unwrap_or(0);
                let tokens: Vec<u64> = events[..count].iter().map(EpollEvent::data).collect();
                turn(&epoll, &tokens);
            }
        });
        Loop { stop, thread: Some(thread) }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Its panic has been printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A socket from a given address, any port, to a server, within a time limit that holds for each step.
pub fn connect_from(from: Ipv4Addr, to: SocketAddrV4, limit: Duration) -> Result<TcpStream> {
    connect_from_port(SocketAddrV4::new(from, 0), to, limit)
}

/// The same from a given port; 0 is any.
pub fn connect_from_port(from: SocketAddrV4, to: SocketAddrV4, limit: Duration) -> Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = TimeVal::new(limit.as_secs().try_into()?, limit.subsec_micros().into());
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request over a connection that is blocking; the server's name.
pub fn ask(stream: &mut TcpStream, number: u64) -> Result<String> {
    let local = stream.local_addr()?;
    stream.write_all(request(number).as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, "closed");
        answer.extend(&buffer[..length]);
        if let Some(server) = read_answer(&answer, local, number)? {
            return Ok(server);
        }
    }
}

fn request(number: u64) -> String {
    format!("GET /echo?{number} HTTP/1.1\r\nHost: test\r\n\r\n")
}

/// The server's name, once the answer is complete; it must be the one to this connection's last request.
fn read_answer(answer: &[u8], local: SocketAddr, number: u64) -> Result<Option<String>> {
    let Some(body) = body(std::str::from_utf8(answer)?)? else { return Ok(None) };
    let Some((server, rest)) = body.split_once(' ') else { bail!("not an answer: {body:?}") };
    let own = format!("{} {} {number}", local.ip(), local.port());
    ensure!(rest == own, "the answer to {rest:?}, it was {own:?} that asked");
    Ok(Some(server.to_owned()))
}

/// What the loop of the clients and the test share.
struct Told {
    /// By connection.
    answers: Vec<AtomicU64>,
    faults: Mutex<Vec<String>>,
}

/// Connections that ask again and again, each in its turn.
pub struct Conversations {
    told: Arc<Told>,
    _loop: Loop,
}

struct Conversation {
    stream: TcpStream,
    local: SocketAddr,
    server: String,
    number: u64,
    answer: Vec<u8>,
    asked: bool,
}

impl Conversations {
    /// Opens them from the namespace `client`, evenly from some addresses, and has each answered once. `rate`: requests a
    /// second, of all together.
    pub fn open(
        lab: &Lab,
        from: &[Ipv4Addr],
        to: SocketAddrV4,
        count: usize,
        rate: u64,
    ) -> Result<Conversations> {
        let open = |n: usize| -> Result<Conversation> {
            let mut stream = connect_from(from[n % from.len()], to, super::PATIENCE)?;
            let server = ask(&mut stream, 0)?;
            stream.set_nonblocking(true)?;
            let local = stream.local_addr()?;
            Ok(Conversation { stream, local, server, number: 0, answer: Vec::new(), asked: false })
        };
        let all: Result<Vec<_>> = lab.within("client", || (0..count).map(open).collect())?;
        let all = all?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (n, one) in all.iter().enumerate() {
            epoll.add(&one.stream, EpollEvent::new(EpollFlags::EPOLLIN, n as u64))?;
        }
        let answers = (0..count).map(|_| AtomicU64::new(0)).collect();
        let told = Arc::new(Told { answers, faults: Mutex::default() });
        let mut talk = Talk {
            all,
            told: told.clone(),
            waiting: (0..count).collect(),
            asked: 0,
            open: 0,
            rate,
            started: Instant::now(),
        };
        Ok(Conversations { told, _loop: Loop::start(epoll, move |epoll, ready| talk.turn(epoll, ready)) })
    }

    /// How often each has been answered.
    pub fn answers(&self) -> Vec<u64> {
        self.told.answers.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Waits until each has been answered twice more than it was, so that one of the requests was asked since then. Fails
    /// if any was lost or moved, whenever that was.
    pub fn all_answered_since(&self, before: &[u64], limit: Duration) -> Result<()> {
        within(limit, "an answer to every connection", || {
            let late = self.answers().iter().zip(before).any(|(now, before)| now < &(before + 2));
            (!late || !self.faults().is_empty()).then_some(())
        });
        let faults = self.faults();
        ensure!(faults.is_empty(), "{} connections were lost or moved: {:?}", faults.len(), faults.first());
        Ok(())
    }

    /// What has become of those that were lost or moved.
    pub fn faults(&self) -> Vec<String> {
        self.told.faults.lock().map(|faults| faults.clone()).unwrap_or_default()
    }
}

/// The clients, in their thread.
struct Talk {
    all: Vec<Conversation>,
    told: Arc<Told>,
    /// Whose turn to ask it is.
    waiting: VecDeque<usize>,
    asked: u64,
    /// How many wait for an answer.
    open: usize,
    rate: u64,
    started: Instant,
}

impl Talk {
    fn turn(&mut self, epoll: &Epoll, ready: &[u64]) {
        for n in ready.iter().map(|token| *token as usize) {
            let asked = self.all[n].asked;
            match self.all[n].listen() {
                Ok(false) => continue,
                Ok(true) => {
                    self.told.answers[n].fetch_add(1, Ordering::Relaxed);
                    self.waiting.push_back(n);
                }
                Err(error) => self.end(n, epoll, &error),
            }
            self.open -= usize::from(asked);
        }
        let due = (self.started.elapsed().as_secs_f64() * self.rate as f64) as u64;
        while self.open < WINDOW && self.asked < due {
            let Some(n) = self.waiting.pop_front() else { break };
            self.asked += 1;
            match self.all[n].ask() {
                Ok(()) => self.open += 1,
                Err(error) => self.end(n, epoll, &error),
            }
        }
        // What could not be asked in time is not made up for.
        self.asked = self.asked.max(due.saturating_sub(self.rate / 10));
    }

    fn end(&self, n: usize, epoll: &Epoll, error: &anyhow::Error) {
        let one = &self.all[n];
        // It is not listened to any more, whatever this says.
        let _ = epoll.delete(&one.stream);
        let text = format!("connection {n}, request {}: {error:#}", one.number);
        self.told.faults.lock().expect("nobody panicked with it").push(text);
    }
}

impl Conversation {
    fn ask(&mut self) -> Result<()> {
        self.number += 1;
        self.stream.write_all(request(self.number).as_bytes())?;
        self.asked = true;
        Ok(())
    }

    /// Whether the answer is complete.
    fn listen(&mut self) -> Result<bool> {
        let mut buffer = [0; 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("closed"),
            Ok(length) => self.answer.extend(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let Some(server) = read_answer(&self.answer, self.local, self.number)? else { return Ok(false) };
        ensure!(server == self.server, "moved from {} to {server}", self.server);
        self.answer.clear();
        self.asked = false;
        Ok(true)
    }
}
