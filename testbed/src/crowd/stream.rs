//! What members send by themselves, and what of it arrives elsewhere.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lisp_proto::Timestamp;
use socket2::{Domain, SockAddr, Socket, Type};

use super::member::Member;
use super::{Crowd, Outbox, ROUND};
use crate::clock::{monotonic_ns, nanos};
use crate::error::{Doing, TestbedError};
use crate::namespace::Namespace;
use crate::probe::{Arrival, UdpReport};

/// Numbered packets from the first members to one address, all at an even pace.
#[derive(Clone, Copy, Debug)]
pub struct CrowdStream {
    /// How many members send.
    pub members: u32,
    /// Where to.
    pub destination: SocketAddrV4,
    /// How many packets each sends.
    pub count: u32,
    /// Time from one packet of a member to its next one.
    pub interval: Duration,
    /// How long nothing arrives, after the last one was sent, until what is missing is lost.
    pub timeout: Duration,
}

/// A stream that goes on.
#[derive(Debug)]
pub(super) struct Sending {
    stream: CrowdStream,
    started_ns: u64,
    /// How many packets were sent, by all together.
    sent: u64,
}

impl CrowdStream {
    /// How many packets all members send together.
    fn total(&self) -> u64 {
        u64::from(self.members) * u64::from(self.count)
    }
}

impl Sending {
    pub(super) fn new(stream: CrowdStream) -> Self {
        Self {
            stream,
            started_ns: monotonic_ns(),
            sent: 0,
        }
    }

    /// When the next packet is due, by the monotonic clock; `None`: all were sent.
    pub(super) fn next_ns(&self) -> Option<u64> {
        let members = u64::from(self.stream.members.max(1));
        let span = nanos(self.stream.interval) / members;
        let due = self.started_ns.saturating_add(self.sent * span);
        (self.sent < self.stream.total()).then_some(due)
    }

    /// Lets members send what is due; returns which have.
    pub(super) fn go_on(
        &mut self,
        now: Timestamp,
        members: &mut [Member],
        out: &mut Outbox,
    ) -> Vec<usize> {
        let mut senders = Vec::new();
        let members_sending = u64::from(self.stream.members.max(1));
        while let Some(due) = self.next_ns()
            && due <= monotonic_ns()
        {
            let number = u32::try_from(self.sent / members_sending).unwrap_or(u32::MAX);
            let member = u32::try_from(self.sent % members_sending).unwrap_or(u32::MAX);
            self.sent += 1;
            let mut payload = number.to_be_bytes().to_vec();
            payload.extend(monotonic_ns().to_be_bytes());
            payload.extend(member.to_be_bytes());
            payload.resize(PAYLOAD, 0x4c);
            let member = usize::try_from(member).unwrap_or(usize::MAX);
            if let Some(sender) = members.get_mut(member) {
                sender.send(now, self.stream.destination, &payload, out);
                senders.push(member);
            }
        }
        senders
    }
}

impl Crowd {
    /// Has members send to a socket in `receiver`, and says of each what became of its packets.
    ///
    /// # Errors
    ///
    /// When that socket cannot be bound, or the thread has ended.
    pub fn stream(
        &self,
        stream: CrowdStream,
        receiver: &Namespace,
    ) -> Result<Vec<UdpReport>, TestbedError> {
        let socket = receiver.run(|| open(stream.destination))?;
        let socket = socket.doing("bind", stream.destination)?;
        let shared = &self.shared;
        let order = || shared.order.lock().unwrap_or_else(PoisonError::into_inner);
        shared.streaming.store(true, Ordering::Relaxed);
        *order() = Some(stream);
        let mut arrivals: Vec<Vec<Arrival>> = Vec::new();
        arrivals.resize_with(usize::try_from(stream.members).unwrap_or(0), Vec::new);
        let mut missing: BTreeSet<(u32, u32)> = BTreeSet::new();
        for number in 0..stream.count {
            missing.extend((0..stream.members).map(|member| (member, number)));
        }
        let mut buffer = [0; 2_048];
        let mut quiet_since = monotonic_ns();
        while !missing.is_empty() {
            let has_ended = self.thread.as_ref().is_none_or(|it| it.is_finished());
            if has_ended {
                return Err(TestbedError::Unexpected("the crowd has ended"));
            }
            let sending = shared.streaming.load(Ordering::Relaxed);
            let Ok(length) = (&socket).read(&mut buffer) else {
                let quiet = monotonic_ns().saturating_sub(quiet_since);
                if !sending && quiet > nanos(stream.timeout) {
                    break;
                }
                continue;
            };
            quiet_since = monotonic_ns();
            let packet = buffer.get(..length).unwrap_or_default();
            let Some((member, arrival)) = read(packet) else {
                continue;
            };
            missing.remove(&(member, arrival.number));
            let of = usize::try_from(member).ok();
            if let Some(of) = of.and_then(|member| arrivals.get_mut(member)) {
                of.push(arrival);
            }
        }
        let reports = arrivals.iter();
        Ok(reports
            .map(|arrivals| UdpReport::of_all_sent(stream.count, arrivals))
            .collect())
    }
}

fn open(at: SocketAddrV4) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // Above the limit of ordinary users: losses shall be the network's.
    socket.set_recv_buffer_size(16 << 20)?;
    socket.bind(&SockAddr::from(SocketAddr::V4(at)))?;
    socket.set_read_timeout(Some(ROUND))?;
    Ok(socket)
}

/// Who sent a packet, and what is in it.
fn read(packet: &[u8]) -> Option<(u32, Arrival)> {
    let arrival = Arrival::read(packet)?;
    let member = u32::from_be_bytes(*packet.get(12..)?.first_chunk()?);
    Some((member, arrival))
}

/// Bytes of UDP payload.
const PAYLOAD: usize = 64;
