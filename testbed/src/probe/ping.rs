//! ICMP and ICMPv6 echo with microsecond times.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::clock::{monotonic_ns, nanos, sleep_until, wall_ns};
use crate::error::{Doing, TestbedError};
use crate::namespace::Namespace;

/// Echo requests to send.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    /// Where to.
    pub destination: IpAddr,
    /// How many.
    pub count: u16,
    /// Time from one request to the next.
    pub interval: Duration,
    /// How long to wait for replies after the last request.
    pub timeout: Duration,
    /// Bytes after the ICMP header.
    pub payload: usize,
}

/// One answered echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoReply {
    /// Number of the request, from 0.
    pub sequence: u16,
    /// When the request was sent, by the wall clock, in nanoseconds.
    pub sent_at: u64,
    /// Time from request to reply.
    pub round_trip: Duration,
}

/// What became of the echo requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PingReport {
    /// When the first request was sent, by the wall clock, in nanoseconds.
    pub started_at: u64,
    /// Requests sent.
    pub sent: u16,
    /// Replies, in the order they came, without duplicates.
    pub replies: Vec<EchoReply>,
    /// Replies to requests that were answered already.
    pub duplicates: usize,
    /// Requests answered by "destination unreachable".
    pub unreachable: usize,
}

/// When a request was sent, by both clocks.
struct SentRequest {
    monotonic_ns: u64,
    wall_ns: u64,
}

/// An ICMP message that is about one of our requests.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Reply(u16),
    Unreachable,
}

impl Ping {
    /// One request, waited for at most ten seconds.
    pub fn once(destination: IpAddr) -> Self {
        Self {
            destination,
            count: 1,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            payload: 56,
        }
    }

    /// Sends the requests from a namespace and collects the replies.
    ///
    /// Returns as soon as all have been answered. Requests that the local system refuses to
    /// send (no route) count as sent.
    ///
    /// # Errors
    ///
    /// When no raw socket can be opened.
    pub fn run(&self, from: &Namespace) -> Result<PingReport, TestbedError> {
        self.run_announced(from, |_| ())
    }

    /// The same; `announce` is called with the wall clock, in nanoseconds, right before the
    /// first request is sent.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn run_announced(
        &self,
        from: &Namespace,
        announce: impl FnOnce(u64),
    ) -> Result<PingReport, TestbedError> {
        static IDENTIFIER: AtomicU16 = AtomicU16::new(1);
        let identifier = IDENTIFIER.fetch_add(1, Ordering::Relaxed);
        let socket = from
            .run(|| self.open())?
            .doing("open an ICMP socket in", from.name())?;
        announce(wall_ns());
        self.exchange(&socket, identifier)
            .doing("ping", self.destination)
    }

    fn open(&self) -> io::Result<Socket> {
        let (domain, protocol) = match self.destination {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_recv_buffer_size(4 << 20)?;
        Ok(socket)
    }

    fn exchange(&self, socket: &Socket, identifier: u16) -> io::Result<PingReport> {
        let destination = SockAddr::from(SocketAddr::new(self.destination, 0));
        let mut report = PingReport::default();
        let mut sent = Vec::new();
        let start = monotonic_ns();
        for sequence in 0..self.count {
            let turn = start.saturating_add(nanos(self.interval) * u64::from(sequence));
            self.collect(socket, identifier, turn, &sent, &mut report)?;
            sleep_until(turn);
            sent.push(SentRequest {
                monotonic_ns: monotonic_ns(),
                wall_ns: wall_ns(),
            });
            let request = self.request(identifier, sequence);
            if let Err(error) = socket.send_to(&request, &destination)
                && error.kind() == io::ErrorKind::PermissionDenied
            {
                return Err(error);
            }
        }
        report.sent = self.count;
        report.started_at = sent.first().map_or(0, |request| request.wall_ns);
        let end = monotonic_ns().saturating_add(nanos(self.timeout));
        self.collect(socket, identifier, end, &sent, &mut report)?;
        Ok(report)
    }

    /// Receives until the monotonic clock shows `end` or all requests are answered.
    fn collect(
        &self,
        mut socket: &Socket,
        identifier: u16,
        end: u64,
        sent: &[SentRequest],
        report: &mut PingReport,
    ) -> io::Result<()> {
        let mut buffer = [0; 2_048];
        loop {
            let left = end.saturating_sub(monotonic_ns());
            if left == 0 || report.answered() >= usize::from(self.count) {
                return Ok(());
            }
            // Zero would mean no timeout at all.
            socket.set_read_timeout(Some(Duration::from_nanos(left.max(MIN_TIMEOUT_NS))))?;
            // Errors are the timeout, or what an ICMP error of before left on the socket.
            let Ok(length) = socket.read(&mut buffer) else {
                continue;
            };
            let now = monotonic_ns();
            if let Some(message) = buffer.get(..length)
                && let Some(answer) = read_answer(message, self.destination.is_ipv6(), identifier)
            {
                report.note(answer, sent, now);
            }
        }
    }

    fn request(&self, identifier: u16, sequence: u16) -> Vec<u8> {
        let kind = if self.destination.is_ipv6() {
            ECHO_REQUEST_V6
        } else {
            ECHO_REQUEST_V4
        };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(identifier.to_be_bytes());
        message.extend(sequence.to_be_bytes());
        message.resize(HEADER + self.payload, 0x4c);
        // The kernel writes the checksum of ICMPv6 only.
        let sum = checksum(&message).to_be_bytes();
        for (place, byte) in message.iter_mut().skip(2).zip(sum) {
            *place = byte;
        }
        message
    }
}

impl PingReport {
    /// The shortest round trip.
    pub fn shortest(&self) -> Option<Duration> {
        self.replies.iter().map(|reply| reply.round_trip).min()
    }

    fn answered(&self) -> usize {
        self.replies.len() + self.unreachable
    }

    fn note(&mut self, answer: Answer, sent: &[SentRequest], now: u64) {
        let Answer::Reply(sequence) = answer else {
            self.unreachable += 1;
            return;
        };
        let Some(request) = sent.get(usize::from(sequence)) else {
            return;
        };
        if self.replies.iter().any(|reply| reply.sequence == sequence) {
            self.duplicates += 1;
            return;
        }
        self.replies.push(EchoReply {
            sequence,
            sent_at: request.wall_ns,
            round_trip: Duration::from_nanos(now.saturating_sub(request.monotonic_ns)),
        });
    }
}

/// Reads an ICMP message as a raw socket delivers it: with the IP header for IPv4, without
/// for IPv6. `None` when it is not about a request of `identifier`.
fn read_answer(packet: &[u8], v6: bool, identifier: u16) -> Option<Answer> {
    let message = if v6 {
        packet
    } else {
        after_ipv4_header(packet)?
    };
    let (reply, unreachable) = if v6 { (129, 1) } else { (0, 3) };
    let kind = *message.first()?;
    if kind == reply {
        return sequence_of(message, identifier).map(Answer::Reply);
    }
    if kind != unreachable {
        return None;
    }
    let original = message.get(HEADER..)?;
    let request = if v6 {
        original.get(IPV6_HEADER..)?
    } else {
        after_ipv4_header(original)?
    };
    sequence_of(request, identifier).map(|_| Answer::Unreachable)
}

fn after_ipv4_header(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 0x0f) * 4..)
}

/// The sequence number of an echo message, when it has this identifier.
fn sequence_of(message: &[u8], identifier: u16) -> Option<u16> {
    let field = |at: usize| {
        Some(u16::from_be_bytes(
            message.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    (field(4)? == identifier).then(|| field(6)).flatten()
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

const HEADER: usize = 8;
const IPV6_HEADER: usize = 40;
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const MIN_TIMEOUT_NS: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_message_with_its_checksum_is_zero() {
        let request = Ping::once("192.0.2.1".parse().unwrap()).request(7, 3);
        assert_eq!(checksum(&request), 0);
        assert_eq!(sequence_of(&request, 7), Some(3));
        assert_eq!(sequence_of(&request, 8), None);
    }

    #[test]
    fn unreachables_are_matched_by_the_request_inside() {
        let request = Ping::once("2001:db8::1".parse().unwrap()).request(7, 3);
        // Type 1, code 0, checksum, unused; then an IPv6 header and the request.
        let mut packet = vec![1, 0, 0, 0, 0, 0, 0, 0];
        packet.resize(HEADER + IPV6_HEADER, 0);
        packet.extend(&request);
        assert_eq!(read_answer(&packet, true, 7), Some(Answer::Unreachable));
        assert_eq!(read_answer(&packet, true, 8), None);
        assert_eq!(read_answer(&packet[..30], true, 7), None);
    }

    #[test]
    fn a_reply_counts_once() {
        let sent = [SentRequest {
            monotonic_ns: 5,
            wall_ns: 100,
        }];
        let mut report = PingReport::default();
        report.note(Answer::Reply(0), &sent, 25);
        report.note(Answer::Reply(0), &sent, 35);
        report.note(Answer::Reply(9), &sent, 35);
        assert_eq!((report.replies.len(), report.duplicates), (1, 1));
        assert_eq!(report.shortest(), Some(Duration::from_nanos(20)));
    }
}
