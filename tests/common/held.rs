//! Connections that are held while something happens to the load balancer or to the network.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::PATIENCE;
use super::netns::Lab;

/// A connection of `client` to a server of [`super::servers::nginx_everywhere`], kept alive.
pub struct Held {
    stream: TcpStream,
    address: String,
}

impl Held {
    /// Opens one.
    pub fn open(lab: &Lab, address: &str) -> Result<Held> {
        let stream = lab.within("client", || TcpStream::connect(address))??;
        stream.set_nodelay(true)?;
        Ok(Held { stream, address: address.to_owned() })
    }

    /// Sends a request and waits for its answer; the server's name.
    pub fn ask(&mut self) -> Result<String> {
        self.ask_within(PATIENCE)
    }

    /// The same with a time limit that is part of what is tested.
    pub fn ask_within(&mut self, limit: Duration) -> Result<String> {
        self.stream.set_read_timeout(Some(limit))?;
        write!(self.stream, "GET / HTTP/1.1\r\nHost: {}\r\n\r\n", self.address)?;
        let mut answer = String::new();
        let mut buffer = [0; 4096];
        loop {
            let size = self.stream.read(&mut buffer).context("no answer on a held connection")?;
            if size == 0 {
                bail!("the connection was closed: {answer:?}");
            }
            answer += std::str::from_utf8(&buffer[..size])?;
            if let Some(body) = body(&answer) {
                return Ok(body.split_whitespace().next().context("an empty answer")?.to_owned());
            }
        }
    }
}

/// The body of an answer that is there to its end.
fn body(answer: &str) -> Option<&str> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "))?;
    (body.len() >= length.trim().parse().ok()?).then_some(body)
}
