//! A request over a connection of its own, and whether its answer is good.

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddrV4;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use super::probe::Trouble;
use crate::model::HttpProbe;

/// No more of a body is read.
const BODY: usize = 64 * 1024;
/// No longer head of an answer is taken, and no more is read at once.
const BUFFER: usize = 64 * 1024;
/// So long a body is read that nobody waits for.
const POLITE: Duration = Duration::from_millis(50);

/// What is asked, and which answer is good.
pub(super) struct Request {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    status: Vec<RangeInclusive<u16>>,
    body: Option<String>,
}

impl Request {
    /// The request to `address`; an error tells which word of the probe cannot be part of one.
    pub fn new(probe: &HttpProbe, address: SocketAddrV4) -> Result<Request, String> {
        let wrong = |what: &str, word: &str| format!("{what} {word:?} cannot be sent");
        let method = Method::from_bytes(probe.method.as_bytes());
        let host = probe.host.clone().unwrap_or_else(|| address.to_string());
        let host_header = HeaderValue::from_str(&host).map_err(|_| wrong("the host", &host))?;
        let agent = HeaderValue::from_static(concat!("xdp-lb/", env!("CARGO_PKG_VERSION")));
        let close = HeaderValue::from_static("close");
        Ok(Request {
            method: method.map_err(|_| wrong("the method", &probe.method))?,
            uri: probe.path.parse().map_err(|_| wrong("the path", &probe.path))?,
            headers: HeaderMap::from_iter([(HOST, host_header), (USER_AGENT, agent), (CONNECTION, close)]),
            status: probe.status.clone(),
            body: probe.body.clone().filter(|body| !body.is_empty()),
        })
    }

    /// Asks over `stream`. What is good took so long since `began`.
    pub async fn exchange<S>(&self, stream: S, began: Instant) -> Result<Duration, Trouble>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = http1::Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(trouble)?;
        let mut request = hyper::Request::new(Empty::<Bytes>::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let exchange = async move {
            let answer = sender.send_request(request).await.map_err(trouble)?;
            let status = answer.status().as_u16();
            if !self.status.iter().any(|good| good.contains(&status)) {
                drain(answer.into_body()).await;
                return Err(Trouble::bad(format!("status {status}")));
            }
            let Some(wanted) = &self.body else {
                let took = began.elapsed();
                drain(answer.into_body()).await;
                return Ok(took);
            };
            find(answer.into_body(), wanted).await.map(|()| began.elapsed())
        };
        drive(connection, exchange).await
    }
}

/// Lets the connection work until the exchange is over, and then once more, to say goodbye.
async fn drive<T>(connection: impl Future, exchange: impl Future<Output = T>) -> T {
    let (mut connection, mut exchange) = (pin!(connection), pin!(exchange));
    let mut over = false;
    poll_fn(|context| {
        over = over || connection.as_mut().poll(context).is_ready();
        let answer = exchange.as_mut().poll(context);
        over = over || (answer.is_ready() && connection.as_mut().poll(context).is_ready());
        answer
    })
    .await
}

/// Reads a body that does not matter, for many servers log it as an error when they cannot write all of an answer.
async fn drain(mut body: Incoming) {
    let read = async {
        let mut seen = 0;
        while seen < BODY {
            match body.frame().await {
                Some(Ok(frame)) => seen += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) | None => return,
            }
        }
    };
    let _ = timeout(POLITE, read).await;
}

/// Whether the body has `wanted` in its first part.
async fn find(mut body: Incoming, wanted: &str) -> Result<(), Trouble> {
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(trouble)?.into_data() else { continue };
        let room = BODY - seen.len();
        // It may have begun in what came before.
        let from = (seen.len() + 1).saturating_sub(wanted.len());
        seen.extend_from_slice(&data[..data.len().min(room)]);
        if seen[from.min(seen.len())..].windows(wanted.len()).any(|part| part == wanted.as_bytes()) {
            return Ok(());
        }
        if data.len() >= room {
            return Err(Trouble::bad(format!("the first 64 KiB of the body do not contain {wanted:?}")));
        }
    }
    Err(Trouble::bad(format!("the body does not contain {wanted:?}")))
}

fn trouble(error: hyper::Error) -> Trouble {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            // Errors of the kernel are told apart by their numbers; those of TLS speak for themselves.
            let copy = io.raw_os_error().map(io::Error::from_raw_os_error);
            return copy.map_or_else(|| Trouble::bad(io.to_string()), Trouble::from);
        }
        source = inner.source();
    }
    if error.is_incomplete_message() {
        Trouble::bad("the connection was closed before the end of the answer")
    } else if error.is_parse() {
        let detail = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        Trouble::bad(format!("no answer of HTTP: {detail}"))
    } else {
        Trouble::bad(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_cannot_be_sent_are_named() {
        let address = SocketAddrV4::new([127, 0, 0, 1].into(), 80);
        let of = |change: fn(&mut HttpProbe)| {
            let mut probe = HttpProbe::default();
            change(&mut probe);
            Request::new(&probe, address).err().unwrap_or_default()
        };
        assert_eq!(of(|_| ()), "");
        assert_eq!(of(|probe| probe.method = "G T".into()), "the method \"G T\" cannot be sent");
        assert_eq!(of(|probe| probe.path = "/a b".into()), "the path \"/a b\" cannot be sent");
        assert_eq!(of(|probe| probe.host = Some("a\nb".into())), "the host \"a\\nb\" cannot be sent");
    }
}
