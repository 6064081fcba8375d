//! One rtnetlink socket: requests, and their answers put together from datagrams.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_ALIGNTO,
    NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use super::attributes::{attributes, string_value};

/// Longest wait for the kernel's next datagram. It answers within the call as a rule; it may have to wait for
/// the RTNL lock, which slow drivers hold for a second or more.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The kernel fills dump datagrams up to the size of the buffer it is read with, 32 KiB at most; single
/// messages (an interface with hundreds of virtual functions) may be longer.
const BUFFER_SIZE: usize = 128 * 1024;

/// How often a dump is started again that the kernel marked as inconsistent because the table changed
/// meanwhile.
const DUMP_ATTEMPTS: usize = 10;

/// `NLMSGERR_ATTR_MSG` of linux/netlink.h: the kernel's explanation of an error, as text.
const EXPLANATION: u16 = 1;

/// A socket to rtnetlink in the network namespace that the opening thread was in.
///
/// All methods talk to the kernel synchronously and give up after 5 seconds without a sign of it. When the
/// kernel refuses a request, the error's chain holds a [`std::io::Error`] with the kernel's errno
/// (`error.downcast_ref::<std::io::Error>()`), below the kernel's own explanation where it gave one.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace. Needs no privileges.
    pub fn open() -> Result<Netlink> {
        let socket = Socket::new(NETLINK_ROUTE).context("opening a netlink socket")?;
        // Connected to the kernel, so that no other process can send us answers.
        socket.connect(&SocketAddr::new(0, 0)).context("connecting a netlink socket to the kernel")?;
        let timeout = TimeVal::seconds(i64::try_from(TIMEOUT.as_secs())?);
        setsockopt(&socket, ReceiveTimeout, &timeout)
            .context("setting a netlink socket's receive timeout")?;
        // Explanations in words instead of our own request sent back.
        socket.set_ext_ack(true).context("asking for explanations of netlink errors")?;
        socket.set_cap_ack(true).context("asking for short netlink errors")?;
        Ok(Netlink { socket, sequence: 0, buffer: vec![0; BUFFER_SIZE] })
    }

    /// Everything that `parse` makes of a whole table: of each message of type `reply` that answers
    /// `message`.
    pub(super) fn dump<T>(
        &mut self,
        message: &RouteNetlinkMessage,
        reply: u16,
        parse: impl Fn(&[u8]) -> Result<Option<T>>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            let answer = self.transact(message.clone(), NLM_F_DUMP, reply, &parse)?;
            // Restarted before any error is looked at: what is inconsistent may also be unreadable.
            if answer.interrupted {
                continue;
            }
            return match answer.finish()? {
                Ok(items) => Ok(items),
                Err(refusal) => Err(refusal.into_error()),
            };
        }
        bail!("the table changed during each of {DUMP_ATTEMPTS} attempts to read it; try again")
    }

    /// What `parse` makes of the message of type `reply` that answers `message`, or the kernel's refusal.
    pub(super) fn get<T>(
        &mut self,
        message: RouteNetlinkMessage,
        reply: u16,
        parse: impl Fn(&[u8]) -> Result<Option<T>>,
    ) -> Result<Result<T, Refusal>> {
        match self.transact(message, NLM_F_ACK, reply, &parse)?.finish()? {
            Ok(items) => {
                Ok(Ok(items.into_iter().next().context("the kernel acknowledged without an answer")?))
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Has the kernel change something, with `flags` beside `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Result<(), Refusal>> {
        let answer = self.transact(message, NLM_F_ACK | flags, 0, &|_| Ok(None::<()>))?;
        Ok(answer.finish()?.map(drop))
    }

    /// Sends one request and reads its answer to the end, also when a part of it cannot be used: the socket
    /// answers EBUSY to the next dump while the rest of this one is still to be read.
    fn transact<T>(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        reply: u16,
        parse: &impl Fn(&[u8]) -> Result<Option<T>>,
    ) -> Result<Answer<T>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).context("sending a request to the kernel by netlink")?;

        let mut answer = Answer::new(self.sequence);
        while !answer.complete {
            let size = self.receive()?;
            // Never in a dump, see BUFFER_SIZE: nothing is left unread that the next request would trip over.
            let datagram = self.buffer.get(..size).with_context(|| {
                format!("the kernel's answer of {size} bytes is longer than {BUFFER_SIZE}")
            })?;
            answer.take(datagram, reply, parse)?;
        }
        Ok(answer)
    }

    /// Receives one datagram into the buffer. Returns its true size, which is more than the buffer's when it
    /// did not fit.
    fn receive(&mut self) -> Result<usize> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let mut space = &mut self.buffer[..];
            match self.socket.recv(&mut space, libc::MSG_TRUNC) {
                Ok(size) => return Ok(size),
                // A signal. The deadline bounds the wait also when signals come faster than the timeout.
                Err(error) if error.kind() == io::ErrorKind::Interrupted && Instant::now() < deadline => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    bail!("no answer from the kernel by netlink within {} seconds", TIMEOUT.as_secs())
                }
                Err(error) => return Err(error).context("receiving the kernel's answer by netlink"),
            }
        }
    }
}

/// The kernel's no to a request.
#[derive(Debug)]
pub(super) struct Refusal {
    error: io::Error,
    explanation: Option<String>,
}

impl Refusal {
    /// Why, as the kernel's error number.
    pub(super) fn errno(&self) -> Errno {
        Errno::from_raw(self.error.raw_os_error().unwrap_or_default())
    }

    /// As an error that holds the [`io::Error`], for a caller that did not expect it.
    pub(super) fn into_error(self) -> anyhow::Error {
        let denied = self.errno() == Errno::EPERM;
        let mut error = anyhow::Error::new(self.error);
        if let Some(explanation) = self.explanation {
            error = error.context(format!("the kernel says \"{explanation}\""));
        }
        if denied {
            error = error.context("not permitted: run as root or with CAP_NET_ADMIN");
        }
        error
    }
}

/// An answer, as far as it has arrived.
struct Answer<T> {
    sequence: u32,
    items: Vec<T>,
    complete: bool,
    /// The table changed while it was read: items may be missing or come twice.
    interrupted: bool,
    refusal: Option<Refusal>,
    /// The first thing in it that we could not use.
    failure: Option<anyhow::Error>,
}

impl<T> Answer<T> {
    fn new(sequence: u32) -> Answer<T> {
        Answer {
            sequence,
            items: Vec::new(),
            complete: false,
            interrupted: false,
            refusal: None,
            failure: None,
        }
    }

    /// Adds one datagram: any number of messages, each padded to 4 bytes. An error leaves no way to go on.
    fn take(
        &mut self,
        mut datagram: &[u8],
        reply: u16,
        parse: &impl Fn(&[u8]) -> Result<Option<T>>,
    ) -> Result<()> {
        while !datagram.is_empty() {
            let message = NetlinkBuffer::new_checked(datagram).context("reading the kernel's answer")?;
            let length = usize::try_from(message.length()).context("a netlink message's length")?;
            let rest = length.next_multiple_of(usize::from(NLMSG_ALIGNTO));
            let (flags, kind) = (message.flags(), message.message_type());
            // Another number: the rest of an answer that we gave up waiting for.
            if message.sequence_number() == self.sequence {
                let payload = datagram.get(netlink_header_len()..length).unwrap_or_default();
                self.interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match kind {
                    NLMSG_DONE => self.end(payload, flags, 4),
                    // The code, then the header of our request: what is behind that says NLM_F_CAPPED.
                    NLMSG_ERROR => self.end(payload, flags, 4 + netlink_header_len()),
                    NLMSG_OVERRUN => self.fail(anyhow!("the kernel lost a part of its answer")),
                    kind if kind == reply => match parse(payload) {
                        Ok(item) => self.items.extend(item),
                        Err(error) => self.fail(error.context("reading the kernel's answer")),
                    },
                    _ => {}
                }
            }
            datagram = datagram.get(rest..).unwrap_or_default();
        }
        Ok(())
    }

    /// The end of the answer: `payload` starts with 0 or a negative errno, explained at byte `explained_at`.
    fn end(&mut self, payload: &[u8], flags: u16, explained_at: usize) {
        self.complete = true;
        // Old kernels end a dump with an empty message.
        let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        if code == 0 {
            return;
        }
        let whole_request_inside = explained_at > 4 && flags & NLM_F_CAPPED == 0;
        let explanation = (flags & NLM_F_ACK_TLVS != 0 && !whole_request_inside)
            .then(|| payload.get(explained_at..).unwrap_or_default())
            .and_then(|bytes| attributes(bytes).flatten().find(|(kind, _)| *kind == EXPLANATION))
            .map(|(_, text)| string_value(text));
        let error = io::Error::from_raw_os_error(code.saturating_neg());
        self.refusal = Some(Refusal { error, explanation });
    }

    fn fail(&mut self, error: anyhow::Error) {
        self.failure.get_or_insert(error);
    }

    /// The items of a complete answer. A refusal goes before a failure, which may be its consequence.
    fn finish(self) -> Result<Result<Vec<T>, Refusal>> {
        match (self.refusal, self.failure) {
            (Some(refusal), _) => Ok(Err(refusal)),
            (None, Some(failure)) => Err(failure),
            (None, None) => Ok(Ok(self.items)),
        }
    }
}

/// The length of `struct nlmsghdr` in bytes.
const fn netlink_header_len() -> usize {
    16
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEQUENCE: u32 = 7;
    const REPLY: u16 = 16;

    /// A message padded to 4 bytes.
    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).expect("short");
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes()].concat();
        bytes.extend([sequence.to_ne_bytes(), [0; 4]].concat());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// The answer made of `datagrams`; an item is a payload, an empty payload is unreadable, "-" is skipped.
    fn answer(datagrams: &[Vec<u8>]) -> Answer<Vec<u8>> {
        let mut answer = Answer::new(SEQUENCE);
        for datagram in datagrams {
            assert!(!answer.complete, "one datagram too many");
            let parse = |payload: &[u8]| match payload {
                [] => bail!("empty"),
                b"-" => Ok(None),
                payload => Ok(Some(payload.to_vec())),
            };
            answer.take(datagram, REPLY, &parse).expect("well-formed");
        }
        answer
    }

    #[test]
    fn puts_several_datagrams_together() {
        let first = [message(REPLY, 2, SEQUENCE, b"one"), message(REPLY, 2, SEQUENCE, b"-")].concat();
        let stale = [message(REPLY, 2, 6, b"old"), message(NLMSG_DONE, 2, 6, &[0; 4])].concat();
        let other = message(99, 2, SEQUENCE, b"other type");
        let last = [message(REPLY, 2, SEQUENCE, b"two"), message(NLMSG_DONE, 2, SEQUENCE, &[0; 4])].concat();
        let answer = answer(&[first, stale, other, last]);
        assert!(answer.complete && !answer.interrupted);
        assert_eq!(answer.finish().expect("no failure").expect("no refusal"), [b"one", b"two"]);
    }

    #[test]
    fn notices_an_interrupted_dump_and_reads_it_to_the_end() {
        let first = message(REPLY, 2 | NLM_F_DUMP_INTR, SEQUENCE, b"one");
        let last = message(NLMSG_DONE, 2, SEQUENCE, &[]);
        let answer = answer(&[first, last]);
        assert!(answer.complete && answer.interrupted);
    }

    #[test]
    fn an_unreadable_message_fails_only_after_the_end() {
        let first = message(REPLY, 2, SEQUENCE, &[]);
        let last = [message(REPLY, 2, SEQUENCE, b"two"), message(NLMSG_DONE, 2, SEQUENCE, &[0; 4])].concat();
        let error = answer(&[first, last]).finish().expect_err("an unreadable message");
        assert_eq!(format!("{error:#}"), "reading the kernel's answer: empty");
    }

    #[test]
    fn an_error_brings_errno_and_explanation() {
        let text = [&12u16.to_ne_bytes()[..], &EXPLANATION.to_ne_bytes(), b"No such\0"].concat();
        let code = (-libc::ENODEV).to_ne_bytes();
        let payload = [&code[..], &[0; 16], &text].concat();
        let error = message(NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS, SEQUENCE, &payload);
        let done = message(NLMSG_DONE, NLM_F_ACK_TLVS, SEQUENCE, &[&code[..], &text].concat());
        for datagram in [error, done] {
            let refusal = answer(&[datagram]).finish().expect("readable").expect_err("refused");
            assert_eq!(refusal.errno(), Errno::ENODEV);
            let error = refusal.into_error();
            let kernel = error.downcast_ref::<io::Error>().expect("an io::Error inside");
            assert_eq!(kernel.raw_os_error(), Some(libc::ENODEV));
            assert!(format!("{error:#}").starts_with("the kernel says \"No such\": "), "{error:#}");
        }
    }

    #[test]
    fn denied_says_what_to_do() {
        let payload = [&(-libc::EPERM).to_ne_bytes()[..], &[0; 16]].concat();
        let refused = answer(&[message(NLMSG_ERROR, NLM_F_CAPPED, SEQUENCE, &payload)]);
        let error = refused.finish().expect("readable").expect_err("refused").into_error();
        assert!(format!("{error:#}").contains("CAP_NET_ADMIN"), "{error:#}");
    }

    #[test]
    fn an_acknowledgement_is_an_empty_answer() {
        let acknowledged = answer(&[message(NLMSG_ERROR, NLM_F_CAPPED, SEQUENCE, &[0; 20])]);
        assert!(acknowledged.complete);
        assert!(acknowledged.finish().expect("readable").expect("not refused").is_empty());
    }

    #[test]
    fn a_message_that_lies_about_its_length_is_refused() {
        let mut bytes = message(REPLY, 0, SEQUENCE, b"four");
        bytes.truncate(18);
        assert!(Answer::<()>::new(SEQUENCE).take(&bytes, REPLY, &|_| Ok(None)).is_err());
    }
}
