//! Asks a running instance, by its admin socket.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use super::api::{Answer, Ask, BackendChange, Done, Filter, Refusal};
use super::halt::Halt;
use super::wire::{NewBackend, Patch};

/// Longer than the server waits for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is answered without the main loop is answered within this, however busy that is.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How soon one who found no room for his connection tries again.
const AGAIN: Duration = Duration::from_millis(20);

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens at this path.
    NoInstance(PathBuf),
    /// The one who asks may not.
    Denied(PathBuf),
    /// Somebody listens, and does not answer: who, and for how long already. Zero: he does not even take connections.
    Silent(String, Duration),
    /// The instance refuses.
    Refused(Refusal),
    /// Something else went wrong on the way.
    Broken(anyhow::Error),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::NoInstance(path) => write!(
                f,
                "no instance listens at {}: is one running? (--socket or --pin-dir name another)",
                path.display()
            ),
            ClientError::Denied(path) => {
                write!(f, "{} may not be asked by this user: use sudo", path.display())
            }
            ClientError::Silent(who, waited) if waited.is_zero() => {
                write!(f, "{who} takes no more connections")
            }
            ClientError::Silent(who, waited) => {
                write!(f, "{who} has not answered for {}", humantime::format_duration(*waited))
            }
            ClientError::Refused(refusal) => write!(f, "{refusal}"),
            ClientError::Broken(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for ClientError {}

/// Asks the instance that listens at a socket. Each question is a connection of its own.
pub struct Client {
    path: PathBuf,
    patience: Duration,
    /// Whether a process that gives no sign of life is not asked at all.
    wary: bool,
    /// It gave no answer when it was last asked.
    silent: Cell<bool>,
    /// The connection by which it was found, for the first question.
    first: Cell<Option<UnixStream>>,
    runtime: Runtime,
}

/// One request.
struct Call {
    method: Method,
    uri: String,
    body: String,
}

impl Call {
    fn new(method: Method, uri: impl Into<String>) -> Call {
        Call { method, uri: uri.into(), body: String::new() }
    }

    fn json(method: Method, uri: impl Into<String>, body: &impl Serialize) -> Result<Call, ClientError> {
        let body = serde_json::to_string(body).context("could not write the request as JSON");
        Ok(Call { method, uri: uri.into(), body: body.map_err(ClientError::Broken)? })
    }
}

impl Client {
    /// Finds out whether an instance listens at a path.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let client = Client::new(path)?;
        client.first.set(Some(client.runtime.block_on(client.open_within(SIGN_OF_LIFE))?));
        Ok(client)
    }

    /// The same for who only reads: see [`Client::patient`]. One that takes no more connections is found too; that is said when it
    /// is asked.
    pub fn reader(path: &Path, patience: Duration) -> Result<Client, ClientError> {
        let client = Client::new(path)?.patient(patience);
        match client.runtime.block_on(client.open_within(SIGN_OF_LIFE)) {
            Ok(stream) => client.first.set(Some(stream)),
            Err(ClientError::Silent(..)) => client.silent.set(true),
            Err(error) => return Err(error),
        }
        Ok(client)
    }

    /// Which process listens at a path. `None`: one who takes no more connections.
    ///
    /// # Errors
    /// Nobody does, or it could not be found out.
    pub fn knock(path: &Path) -> Result<Option<u32>, ClientError> {
        let client = Client::new(path)?;
        match client.runtime.block_on(client.open()) {
            Ok(stream) => Ok(stream.peer_cred().ok().and_then(|peer| peer.pid()?.try_into().ok())),
            Err(ClientError::Silent(..)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn new(path: &Path) -> Result<Client, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("could not start the runtime of the client")
            .map_err(ClientError::Broken)?;
        Ok(Client {
            path: path.to_owned(),
            patience: PATIENCE,
            wary: false,
            silent: Cell::new(false),
            first: Cell::new(None),
            runtime,
        })
    }

    /// Waits for an answer no longer than this; a process that is stopped is given up after a second, and one that was silent
    /// before sooner than that. For who can do without it.
    pub fn patient(self, patience: Duration) -> Client {
        Client { patience, wary: true, ..self }
    }

    /// Asks, and gives the JSON of the answer.
    pub fn ask(&self, ask: &Ask) -> Result<Answer, ClientError> {
        self.call(call_of(ask)?)
    }

    /// Every figure.
    pub fn status(&self) -> Result<Answer, ClientError> {
        self.ask(&Ask::Status)
    }

    /// The figures of the services only.
    pub fn services(&self) -> Result<Answer, ClientError> {
        self.call(Call::new(Method::GET, "/v1/services"))
    }

    /// The figures of a service's backends.
    pub fn backends(&self, service: &str) -> Result<Answer, ClientError> {
        self.call(Call::new(Method::GET, format!("{}/backends", service_path(service))))
    }

    /// The running configuration, as TOML.
    pub fn config(&self) -> Result<String, ClientError> {
        let answer = self.ask(&Ask::Config)?;
        let text = answer.get("toml").and_then(Answer::as_str).map(str::to_owned);
        text.ok_or_else(|| ClientError::Broken(anyhow!("the answer has no configuration in it")))
    }

    /// Has something changed.
    pub fn change(&self, ask: &Ask) -> Result<Done, ClientError> {
        from_json(self.ask(ask)?)
    }

    fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let answered = self.runtime.block_on(async {
            // Who was silent has shown already that he needs more than a moment.
            let (life, answer) = match self.silent.get() {
                true => (SIGN_OF_LIFE / 5, SIGN_OF_LIFE.min(self.patience)),
                false => (SIGN_OF_LIFE, self.patience),
            };
            if !self.wary {
                return self.send_within(self.patience, call).await;
            }
            // Nothing is there, which takes no main loop to tell.
            self.send_within(life.min(self.patience), Call::new(Method::GET, "/")).await?;
            self.send_within(answer, call).await
        });
        self.silent.set(matches!(answered, Err(ClientError::Silent(..))));
        let (status, bytes) = answered?;
        if status.is_success() {
            let answer = serde_json::from_slice(&bytes);
            return answer
                .context("the answer is not the JSON that was expected")
                .map_err(ClientError::Broken);
        }
        match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(_) if status == StatusCode::FORBIDDEN => Err(ClientError::Denied(self.path.clone())),
            Ok(refusal) => Err(ClientError::Refused(refusal)),
            Err(_) => Err(ClientError::Broken(anyhow!("{} answered {status}", self.path.display()))),
        }
    }

    async fn open(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(&self.path).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NoInstance(self.path.clone()),
            ErrorKind::PermissionDenied => ClientError::Denied(self.path.clone()),
            // Nobody has taken the connections before this one.
            ErrorKind::WouldBlock => ClientError::Silent(who(&self.path, None), Duration::ZERO),
            _ => ClientError::Broken(
                anyhow!(error).context(format!("could not connect to {}", self.path.display())),
            ),
        })
    }

    /// Many who ask at once fill the queue of one that is well, too, which has room again in a moment.
    async fn open_within(&self, limit: Duration) -> Result<UnixStream, ClientError> {
        let end = Instant::now() + limit;
        loop {
            match self.open().await {
                Err(ClientError::Silent(..)) if Instant::now() < end => sleep(AGAIN).await,
                opened => return opened,
            }
        }
    }

    async fn send_within(&self, limit: Duration, call: Call) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = match self.first.take() {
            Some(stream) => stream,
            None => self.open_within(limit.min(SIGN_OF_LIFE)).await?,
        };
        let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let answered = timeout(limit, self.send(stream, call)).await;
        answered.unwrap_or_else(|_| Err(ClientError::Silent(who(&self.path, process), limit)))
    }

    async fn send(&self, stream: UnixStream, call: Call) -> Result<(StatusCode, Bytes), ClientError> {
        let exchange = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let request = Request::builder()
                .method(call.method)
                .uri(call.uri)
                .header(header::HOST, "localhost")
                .body(Full::new(Bytes::from(call.body)))?;
            let connection = tokio::spawn(connection);
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            connection.abort();
            Ok::<_, anyhow::Error>((status, body))
        };
        let context = || format!("could not ask {}", self.path.display());
        exchange.await.with_context(context).map_err(ClientError::Broken)
    }
}

/// Who is silent, and why if that can be seen.
fn who(path: &Path, process: Option<i32>) -> String {
    let at = path.display();
    let Some(process) = process else { return format!("the process that listens at {at}") };
    let halt = u32::try_from(process).ok().and_then(Halt::of);
    let why = halt.map_or(String::new(), |halt| format!(" ({halt})"));
    format!("process {process}{why}, which listens at {at},")
}

fn from_json<T: DeserializeOwned>(answer: Answer) -> Result<T, ClientError> {
    let answer = serde_json::from_value(answer);
    answer.context("the answer is not the JSON that was expected").map_err(ClientError::Broken)
}

/// Where and how something is asked.
fn call_of(ask: &Ask) -> Result<Call, ClientError> {
    let persisted = |persist: bool| if persist { "?persist" } else { "" };
    Ok(match ask {
        Ask::Status => Call::new(Method::GET, "/v1/status"),
        Ask::Config => Call::new(Method::GET, "/v1/config"),
        Ask::Reload(reload) => Call::json(Method::POST, "/v1/reload", reload)?,
        Ask::AddServices { services, persist } => Call {
            method: Method::POST,
            uri: format!("/v1/services{}", persisted(*persist)),
            body: crate::config::render_services(services),
        },
        Ask::RemoveService { service, persist } => {
            Call::new(Method::DELETE, format!("{}{}", service_path(service), persisted(*persist)))
        }
        Ask::ChangeBackend { service, address, change, persist } => {
            let all = format!("{}/backends", service_path(service));
            let one = format!("{all}/{address}");
            match *change {
                BackendChange::Add(weight, state) => {
                    let (weight, state) = (Some(weight.get()), Some(state.name().to_owned()));
                    let new = NewBackend { address: *address, weight, state };
                    Call::json(Method::POST, format!("{all}{}", persisted(*persist)), &new)?
                }
                BackendChange::Remove { now } => {
                    let now = if now { "true" } else { "false" };
                    Call::new(Method::DELETE, format!("{one}?now={now}&persist={persist}"))
                }
                BackendChange::State { state, now, deadline } => {
                    Call::json(Method::PATCH, one, &Patch::of_state(state, now, deadline, *persist))?
                }
                BackendChange::Weight(weight) => {
                    let patch = Patch { weight: Some(weight.get()), persist: *persist, ..Patch::default() };
                    Call::json(Method::PATCH, one, &patch)?
                }
            }
        }
        Ask::Connections(filter) => Call::new(Method::GET, format!("/v1/connections?{}", query_of(filter))),
        Ask::Kill(filter) => Call::json(Method::POST, "/v1/connections/kill", filter)?,
        Ask::Stop => Call::new(Method::POST, "/v1/stop"),
    })
}

fn service_path(service: &str) -> String {
    format!("/v1/services/{}", encoded(service))
}

fn query_of(filter: &Filter) -> String {
    let pairs = [
        ("service", filter.service.clone()),
        ("backend", filter.backend.map(|backend| backend.to_string())),
        ("client", filter.client.map(|client| client.to_string())),
        ("state", filter.state.clone()),
        ("limit", filter.limit.map(|limit| limit.to_string())),
    ];
    let given = pairs.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", encoded(&value?))));
    given.collect::<Vec<_>>().join("&")
}

/// Text as it may stand in a part of a path or query (RFC 3986, 2.3).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            // Writing to a string cannot fail.
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
        encoded
    })
}
