//! Real clients in the namespace `client`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::PATIENCE;
use super::netns::Lab;

/// One answer of a server of [`super::servers::nginx_everywhere`], with what both ends saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// The client's address and port, as the server saw them.
    pub seen: (String, u16),
    /// As the client knows them.
    pub own: (String, u16),
    /// The address that the client talked to.
    pub remote: String,
    /// Whether the client opened a connection for this request.
    pub new_connection: bool,
}

/// Sends HTTP requests one after the other, each over a connection of its own. `url` may have curl's ranges: `/?[1-9]`.
pub fn requests(lab: &Lab, url: &str) -> Result<Vec<Answer>> {
    requests_with(lab, &["-H", "Connection: close", url])
}

/// The same with curl's arguments, by which it may keep a connection for several.
pub fn requests_with(lab: &Lab, args: &[&str]) -> Result<Vec<Answer>> {
    const SAY: &str = " %{local_ip} %{local_port} %{remote_ip} %{num_connects} %{http_code}\\n";
    let text =
        lab.run("client", "curl", &[&["-sS", "--fail-early", "--max-time", "30", "-w", SAY], args].concat())?;
    text.lines().map(|line| answer(line).with_context(|| format!("the answer {line:?}"))).collect()
}

fn answer(line: &str) -> Result<Answer> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [server, seen, seen_port, own, own_port, remote, connects, code] = words[..] else {
        anyhow::bail!("not eight words");
    };
    ensure!(code == "200", "HTTP status {code}");
    Ok(Answer {
        server: server.into(),
        seen: (seen.into(), seen_port.parse()?),
        own: (own.into(), own_port.parse()?),
        remote: remote.into(),
        new_connection: connects == "1",
    })
}

/// How many answers each server gave.
pub fn spread(answers: &[Answer]) -> BTreeMap<&str, usize> {
    let mut spread = BTreeMap::new();
    answers.iter().for_each(|answer| *spread.entry(answer.server.as_str()).or_default() += 1);
    spread
}

/// Panics unless any 100 answers in a row came 50, 30 and 20 times from the three servers, each over a connection of its
/// own whose client the server saw under its own address and port.
pub fn assert_weighted(answers: &[Answer], vip: &str) {
    assert!(answers.len() >= 100, "{} answers", answers.len());
    let expected = BTreeMap::from([("web1", 50), ("web2", 30), ("web3", 20)]);
    for window in answers.windows(100) {
        assert_eq!(spread(window), expected);
    }
    for answer in answers {
        assert!(answer.new_connection, "{answer:?}");
        assert_eq!(answer.seen, answer.own, "the client as the server saw it: {answer:?}");
        assert_eq!(answer.remote, vip);
    }
}

/// Runs iperf3 for some seconds; its JSON.
pub fn iperf3(lab: &Lab, address: &str, args: &str) -> Result<Value> {
    let args: Vec<&str> = ["-c", address, "-J", "--connect-timeout", "20000"]
        .into_iter()
        .chain(args.split_whitespace())
        .collect();
    let output = lab.command("client", "iperf3")?.args(&args).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text)
        .with_context(|| format!("iperf3: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    ensure!(report.get("error").is_none(), "iperf3 {args:?}: {}", report["error"]);
    Ok(report)
}

/// The lines that dig prints for a query.
pub fn dig(lab: &Lab, address: &str, args: &str) -> Result<Vec<String>> {
    let at = format!("@{address}");
    let args: Vec<&str> =
        [at.as_str(), "+tries=1", "+time=10", "+short"].into_iter().chain(args.split_whitespace()).collect();
    Ok(lab.run("client", "dig", &args)?.lines().map(str::to_owned).collect())
}

/// A connection that is kept for several requests.
pub struct KeepAlive(TcpStream);

impl KeepAlive {
    /// Opens it, without a request.
    pub fn open(lab: &Lab, address: &str, port: u16) -> Result<KeepAlive> {
        KeepAlive::open_many(lab, address, port, 1)?.pop().context("no connection")
    }

    /// Opens many, one after the other.
    pub fn open_many(lab: &Lab, address: &str, port: u16, count: usize) -> Result<Vec<KeepAlive>> {
        let target = (address.to_owned(), port);
        let open = || {
            let stream = TcpStream::connect(&target)?;
            stream.set_nodelay(true)?;
            Ok(KeepAlive(stream))
        };
        lab.within("client", || (0..count).map(|_| open()).collect())?
    }

    /// Asks for `/`; the server's name.
    pub fn ask(&mut self) -> Result<String> {
        self.ask_within(PATIENCE)
    }

    /// The same with a time limit that is part of what is tested.
    pub fn ask_within(&mut self, limit: Duration) -> Result<String> {
        self.0.set_read_timeout(Some(limit))?;
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
        let mut answer = String::new();
        let mut buffer = [0; 1024];
        loop {
            let length = self.0.read(&mut buffer).context("no answer")?;
            ensure!(length > 0, "closed by the server after {answer:?}");
            answer += std::str::from_utf8(&buffer[..length])?;
            if let Some(body) = body(&answer)? {
                return Ok(body.split(' ').next().unwrap_or_default().to_owned());
            }
        }
    }
}

/// The body of an answer, once it is there as a whole.
pub(super) fn body(answer: &str) -> Result<Option<&str>> {
    const LENGTH: &str = "Content-Length: ";
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return Ok(None) };
    let length = head.lines().find_map(|line| line.strip_prefix(LENGTH)).context("no length")?;
    Ok(Some(body).filter(|body| Some(body.len()) == length.parse().ok()))
}
