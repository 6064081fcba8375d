//! Which question is asked where, and how answers and refusals are written.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, PoisonError, RwLock};

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::api::{Answer, Ask, BackendChange, Done, Filter, LISTED, Refusal, Reload};
use super::project::{backends_of, services_of};
use super::server::{Limits, Reply};
use super::wire::{NewBackend, Patch};
use crate::model::Timeouts;

/// Everything there is.
const ROUTES: &str = "GET /v1/status, GET /v1/config, POST /v1/reload, GET and POST /v1/services, DELETE \
     /v1/services/{service}, GET and POST /v1/services/{service}/backends, PATCH and DELETE \
     /v1/services/{service}/backends/{address}, GET /v1/connections, POST /v1/connections/kill, POST /v1/stop";

/// What is read and thrown away of a body that is too large, so that its sender comes to read the answer.
const DISCARDED: usize = 16 << 20;

type Handler = dyn Fn(Ask, Reply) + Send + Sync;

/// What requests are answered with.
#[derive(Clone)]
pub(super) struct App {
    pub ask: Arc<Handler>,
    pub timeouts: Arc<RwLock<Timeouts>>,
    pub limits: Limits,
}

type Answered = Result<Json<Answer>, Problem>;

/// For those who may ask.
pub(super) fn router(app: App) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/config", get(config))
        .route("/v1/reload", post(reload))
        .route("/v1/services", get(services).post(add_services))
        .route("/v1/services/{service}", axum::routing::delete(remove_service))
        .route("/v1/services/{service}/backends", get(backends).post(add_backend))
        .route("/v1/services/{service}/backends/{address}", patch(change_backend).delete(remove_backend))
        .route("/v1/connections", get(connections))
        .route("/v1/connections/kill", post(kill))
        .route("/v1/stop", post(stop))
        .method_not_allowed_fallback(not_allowed)
        .fallback(unknown)
        .with_state(app)
}

/// For everybody else.
pub(super) fn strangers() -> Router {
    Router::new().fallback(forbidden)
}

/// Why a request is not answered, and with which status.
#[derive(Debug)]
struct Problem(StatusCode, Refusal);

impl Problem {
    fn new(status: StatusCode, kind: &str, error: String) -> Problem {
        Problem(status, Refusal { kind: kind.to_owned(), error })
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let status = match refusal.kind.as_str() {
            "invalid" => StatusCode::BAD_REQUEST,
            "not_found" => StatusCode::NOT_FOUND,
            "conflict" => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem(status, refusal)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

/// The names in a path, decoded.
struct Names<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Names<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Names<T>, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Names(names)),
            Err(error) => Err(Refusal::invalid(format!("the path is wrong: {}", error.body_text())).into()),
        }
    }
}

impl App {
    async fn ask(&self, ask: Ask) -> Result<Answer, Problem> {
        let (sender, answered) = oneshot::channel();
        (self.ask)(ask, Reply::new(sender));
        match timeout(self.limits.answer, answered).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => {
                let error = "the process is about to end and answers nothing any more".to_owned();
                Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", error))
            }
            Err(_) => {
                let error = format!(
                    "there was no answer within {}: the process is busy; what was asked may still be done",
                    humantime::format_duration(self.limits.answer)
                );
                Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", error))
            }
        }
    }

    async fn body(&self, body: Body) -> Result<Bytes, Problem> {
        match timeout(self.limits.request, read(body, self.limits.body)).await {
            Ok(read) => read,
            Err(_) => {
                let error = "the body did not come in time".to_owned();
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", error))
            }
        }
    }

    /// A body of JSON. One that is empty is an object without fields.
    async fn json<T: DeserializeOwned>(&self, body: Body) -> Result<T, Problem> {
        let bytes = self.body(body).await?;
        let bytes = if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes };
        serde_json::from_slice(&bytes).map_err(|error| {
            Refusal::invalid(format!("the body is not the JSON that is needed: {error}")).into()
        })
    }
}

async fn read(mut body: Body, limit: usize) -> Result<Bytes, Problem> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Refusal::invalid(format!("the body cannot be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > DISCARDED {
            break;
        }
        if length <= limit {
            bytes.extend_from_slice(&data);
        }
    }
    if length > limit {
        let error = format!("the body has more than {limit} bytes");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid", error));
    }
    Ok(bytes.into())
}

async fn status(State(app): State<App>) -> Answered {
    app.ask(Ask::Status).await.map(Json)
}

async fn stop(State(app): State<App>) -> Answered {
    app.ask(Ask::Stop).await.map(Json)
}

async fn not_allowed(method: Method, uri: Uri) -> Problem {
    let error = format!("{} cannot be done by {method}; there are {ROUTES}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "not_allowed", error)
}

async fn unknown(uri: Uri) -> Problem {
    let error = format!("there is no {}; there are {ROUTES}", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "not_found", error)
}

async fn forbidden() -> Problem {
    let error = "only root and the user that this process runs as may ask it anything: use sudo";
    Problem::new(StatusCode::FORBIDDEN, "forbidden", error.to_owned())
}

async fn config(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let answer = app.ask(Ask::Config).await?;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let text = answer.get("toml").and_then(Answer::as_str).filter(|_| accept.starts_with("text/plain"));
    Ok(match text {
        Some(text) => text.to_owned().into_response(),
        None => Json(answer).into_response(),
    })
}

async fn reload(State(app): State<App>, body: Body) -> Answered {
    let reload: Reload = app.json(body).await?;
    app.ask(Ask::Reload(reload)).await.map(Json)
}

async fn services(State(app): State<App>) -> Answered {
    let status = app.ask(Ask::Status).await?;
    Ok(Json(services_of(&status)))
}

async fn add_services(State(app): State<App>, uri: Uri, body: Body) -> Answered {
    let [persist] = flags(&uri, ["persist"])?;
    let text = app.body(body).await?;
    let text = std::str::from_utf8(&text).map_err(|_| Refusal::invalid("the body is not text"))?;
    let timeouts = *app.timeouts.read().unwrap_or_else(PoisonError::into_inner);
    let services =
        crate::config::services(text, &timeouts).map_err(|error| Refusal::invalid(error.to_string()))?;
    if services.is_empty() {
        return Err(Refusal::invalid("the body has no [[service]]").into());
    }
    app.ask(Ask::AddServices { services, persist }).await.map(Json)
}

async fn remove_service(State(app): State<App>, Names(service): Names<String>, uri: Uri) -> Answered {
    let [persist] = flags(&uri, ["persist"])?;
    app.ask(Ask::RemoveService { service, persist }).await.map(Json)
}

async fn backends(State(app): State<App>, Names(service): Names<String>) -> Answered {
    let status = app.ask(Ask::Status).await?;
    let backends = backends_of(&status, Some(&service));
    Ok(Json(backends.ok_or_else(|| Refusal::not_found(format!("there is no service {service:?}")))?))
}

async fn add_backend(
    State(app): State<App>,
    Names(service): Names<String>,
    uri: Uri,
    body: Body,
) -> Answered {
    let [persist] = flags(&uri, ["persist"])?;
    let new: NewBackend = app.json(body).await?;
    let (address, change) = (new.address, new.change()?);
    app.ask(Ask::ChangeBackend { service, address, change, persist }).await.map(Json)
}

/// Of several changes the later ones are tried only if those before worked.
async fn change_backend(
    State(app): State<App>,
    Names((service, address)): Names<(String, String)>,
    uri: Uri,
    body: Body,
) -> Answered {
    let [] = flags(&uri, [])?;
    let address = backend_address(&address)?;
    let patch: Patch = app.json(body).await?;
    let mut all: Option<Answer> = None;
    for change in patch.changes()? {
        let service = service.clone();
        let ask = Ask::ChangeBackend { service, address, change, persist: patch.persist };
        let answer = app.ask(ask).await.map_err(|Problem(status, mut refusal)| {
            if all.is_some() {
                refusal.error = format!("the weight was changed, the state was not: {}", refusal.error);
            }
            Problem(status, refusal)
        })?;
        all = Some(match all {
            Some(before) => both(before, answer)?,
            None => answer,
        });
    }
    Ok(Json(all.unwrap_or_default()))
}

fn both(before: Answer, after: Answer) -> Result<Answer, Problem> {
    let done = |answer| serde_json::from_value::<Done>(answer);
    let merged = done(before).and_then(|mut before| {
        let after = done(after)?;
        before.steps.extend(after.steps);
        before.ended = after.ended.or(before.ended);
        before.persisted = after.persisted.or(before.persisted);
        before.applied |= after.applied;
        serde_json::to_value(before)
    });
    merged.map_err(|error| Refusal::failed(&error.into()).into())
}

async fn remove_backend(
    State(app): State<App>,
    Names((service, address)): Names<(String, String)>,
    uri: Uri,
) -> Answered {
    let address = backend_address(&address)?;
    let [now, persist] = flags(&uri, ["now", "persist"])?;
    let change = BackendChange::Remove { now };
    app.ask(Ask::ChangeBackend { service, address, change, persist }).await.map(Json)
}

async fn connections(State(app): State<App>, uri: Uri) -> Answered {
    let Query(filter) = Query::<Filter>::try_from_uri(&uri)
        .map_err(|error| Refusal::invalid(format!("the query is wrong: {}", error.body_text())))?;
    let filter = checked(filter)?;
    let limit = Some(filter.limit.unwrap_or(LISTED));
    app.ask(Ask::Connections(Filter { limit, ..filter })).await.map(Json)
}

async fn kill(State(app): State<App>, body: Body) -> Answered {
    let filter: Filter = checked(app.json(body).await?)?;
    if filter.is_empty() {
        let wrong = "the filter is empty, which means all connections of all services; write {\"service\": \"web\"}, or \
                     another of backend, client and state";
        return Err(Refusal::invalid(wrong).into());
    }
    app.ask(Ask::Kill(filter)).await.map(Json)
}

fn checked(filter: Filter) -> Result<Filter, Refusal> {
    let known = |state: &String| Filter::STATES.contains(&state.as_str());
    match &filter.state {
        Some(state) if !known(state) => Err(Refusal::invalid(format!(
            "there is no state {state:?}; write unconfirmed, established or closing"
        ))),
        _ => Ok(filter),
    }
}

fn backend_address(word: &str) -> Result<SocketAddrV4, Refusal> {
    let example = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 10), 8080);
    word.parse().map_err(|_| {
        Refusal::invalid(format!("{word:?} is not the address and port of a backend; write {example}"))
    })
}

/// The query's flags: `?now`, `?now=true` and the like.
fn flags<const N: usize>(uri: &Uri, names: [&str; N]) -> Result<[bool; N], Refusal> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|error| Refusal::invalid(format!("the query is wrong: {}", error.body_text())))?;
    let mut flags = [false; N];
    for (key, value) in pairs {
        let at = names.iter().position(|name| *name == key).ok_or_else(|| {
            let known = if N == 0 { "it takes none".to_owned() } else { names.join(", ") };
            Refusal::invalid(format!("there is no {key:?} in this query; {known}"))
        })?;
        flags[at] = match value.as_str() {
            "" | "true" | "1" => true,
            "false" | "0" => false,
            other => return Err(Refusal::invalid(format!("{key} is {other:?}; write true or false"))),
        };
    }
    Ok(flags)
}
