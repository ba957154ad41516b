//! Numbered UDP packets at an even pace: which arrived, how often, in what order?

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::clock::{monotonic_ns, nanos, sleep_until};
use crate::error::{Doing, TestbedError};
use crate::namespace::Namespace;

/// A stream of numbered packets to send.
#[derive(Clone, Copy, Debug)]
pub struct UdpProbe {
    /// Address and port that the receiver binds and the sender sends to.
    pub destination: SocketAddr,
    /// Address to send from; `None` leaves it to the routing table.
    pub source: Option<IpAddr>,
    /// How many packets.
    pub count: u32,
    /// Time from one packet to the next.
    pub interval: Duration,
    /// Bytes of UDP payload, at least 16.
    pub payload: usize,
    /// How long nothing arrives, after the last one was sent, until what is missing is lost.
    pub timeout: Duration,
}

/// What became of the packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpReport {
    /// Packets that the local system accepted for sending.
    pub sent: u32,
    /// Packets that arrived at least once.
    pub received: u32,
    /// Numbers of those that never arrived.
    pub lost: Vec<u32>,
    /// Arrivals of packets that had arrived before.
    pub duplicates: u32,
    /// Arrivals after a packet with a higher number.
    pub reordered: u32,
    /// Time from sending to first arrival of each packet that arrived, by number.
    pub delays: Vec<(u32, Duration)>,
    /// Numbers of the packets in the order of their first arrival.
    pub order: Vec<u32>,
    /// Time from sending the first packet to the first arrival of any.
    pub first_arrival: Option<Duration>,
}

/// One packet as it arrived.
pub(crate) struct Arrival {
    pub(crate) number: u32,
    sent_ns: u64,
    arrived_ns: u64,
}

impl UdpProbe {
    /// 1,000 packets at 1 kHz.
    pub fn thousand_to(destination: SocketAddr) -> Self {
        Self {
            destination,
            source: None,
            count: 1_000,
            interval: Duration::from_millis(1),
            payload: 64,
            timeout: Duration::from_secs(5),
        }
    }

    /// Sends from one namespace to another and reports; returns once all have arrived.
    ///
    /// # Errors
    ///
    /// When a socket cannot be opened or bound.
    pub fn run(&self, from: &Namespace, to: &Namespace) -> Result<UdpReport, TestbedError> {
        let receiver = to.run(|| self.open(Some(self.destination)))?;
        let receiver = receiver.doing("bind", self.destination)?;
        let source = self.source.map(|address| SocketAddr::new(address, 0));
        let sender = from
            .run(|| self.open(source))?
            .doing("open a UDP socket in", from.name())?;
        let sending = AtomicBool::new(true);
        let (sent, arrivals) = thread::scope(|scope| {
            let received = scope.spawn(|| self.receive(&receiver, &sending));
            let sent = self.send(&sender);
            sending.store(false, Ordering::Relaxed);
            (sent, received.join().unwrap_or_default())
        });
        Ok(UdpReport::new(self.count, &sent, &arrivals))
    }

    fn open(&self, bind: Option<SocketAddr>) -> io::Result<Socket> {
        let domain = Domain::for_address(self.destination);
        let socket = Socket::new(domain, Type::DGRAM, None)?;
        // Above the limit of ordinary users: losses shall be the network's.
        setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))?;
        if let Some(address) = bind {
            socket.bind(&SockAddr::from(address))?;
        }
        Ok(socket)
    }

    /// Sends all packets; returns when each was sent, `None` for those refused locally.
    fn send(&self, socket: &Socket) -> Vec<Option<u64>> {
        let destination = SockAddr::from(self.destination);
        let start = monotonic_ns();
        let mut sent = Vec::new();
        for number in 0..self.count {
            sleep_until(start.saturating_add(nanos(self.interval) * u64::from(number)));
            let now = monotonic_ns();
            let mut packet = number.to_be_bytes().to_vec();
            packet.extend(now.to_be_bytes());
            packet.resize(self.payload.max(PAYLOAD_USED), 0x4c);
            sent.push(socket.send_to(&packet, &destination).ok().map(|_| now));
        }
        sent
    }

    /// Receives until all packets have arrived, or none has for the timeout since the last one was
    /// sent: on a busy machine sending takes longer than the intervals add up to.
    fn receive(&self, socket: &Socket, sending: &AtomicBool) -> Vec<Arrival> {
        // Zero would mean no timeout at all.
        let timeout = self.timeout.max(Duration::from_micros(1));
        let mut buffer = [0; 65_536];
        let mut arrivals = Vec::new();
        let mut missing: BTreeSet<u32> = (0..self.count).collect();
        if socket.set_read_timeout(Some(timeout)).is_err() {
            return arrivals;
        }
        while !missing.is_empty() {
            let was_sending = sending.load(Ordering::Relaxed);
            match io::Read::read(&mut &*socket, &mut buffer) {
                Ok(length) => {
                    let Some(arrival) = buffer.get(..length).and_then(Arrival::read) else {
                        continue;
                    };
                    missing.remove(&arrival.number);
                    arrivals.push(arrival);
                }
                // Quiet for the whole timeout, and nothing was sent meanwhile.
                Err(_) if !was_sending => break,
                Err(_) => {}
            }
        }
        arrivals
    }
}

impl UdpReport {
    /// What became of `count` packets, all of which were sent.
    pub(crate) fn of_all_sent(count: u32, arrivals: &[Arrival]) -> Self {
        let sent = arrivals.iter().map(|arrival| arrival.sent_ns).min();
        let sent = vec![sent.or(Some(0)); usize::try_from(count).unwrap_or(0)];
        Self::new(count, &sent, arrivals)
    }

    fn new(count: u32, sent: &[Option<u64>], arrivals: &[Arrival]) -> Self {
        let sent_count = u32::try_from(sent.iter().flatten().count()).unwrap_or(u32::MAX);
        let mut report = Self {
            sent: sent_count,
            ..Self::default()
        };
        let mut seen = BTreeMap::new();
        let mut highest = None;
        for arrival in arrivals {
            let delay = Duration::from_nanos(arrival.arrived_ns.saturating_sub(arrival.sent_ns));
            if seen.contains_key(&arrival.number) {
                report.duplicates += 1;
                continue;
            }
            seen.insert(arrival.number, delay);
            report.order.push(arrival.number);
            if highest > Some(arrival.number) {
                report.reordered += 1;
            }
            highest = highest.max(Some(arrival.number));
        }
        report.received = u32::try_from(seen.len()).unwrap_or(u32::MAX);
        report.lost = (0..count)
            .filter(|number| !seen.contains_key(number))
            .collect();
        report.delays = seen.into_iter().collect();
        let first_sent = sent.iter().flatten().next();
        let first_arrived = arrivals.first().map(|arrival| arrival.arrived_ns);
        report.first_arrival = first_sent
            .zip(first_arrived)
            .map(|(sent, arrived)| Duration::from_nanos(arrived.saturating_sub(*sent)));
        report
    }

    /// The longest time without an arrival, when packets were sent `interval` apart: from the first
    /// one sent on. What never arrived again lasts to the end.
    pub fn longest_gap(&self, interval: Duration) -> Duration {
        let end = interval * self.sent;
        let arrival = |(number, delay): &(u32, Duration)| interval * *number + *delay;
        let mut times: Vec<_> = self.delays.iter().map(arrival).collect();
        times.sort_unstable();
        let mut last = Duration::ZERO;
        let mut longest = Duration::ZERO;
        for time in times.into_iter().chain([end]) {
            longest = longest.max(time.saturating_sub(last));
            last = time;
        }
        longest
    }

    /// Whether every packet arrived once and in order.
    pub fn is_perfect(&self) -> bool {
        self.lost.is_empty() && self.duplicates == 0 && self.reordered == 0
    }
}

impl Arrival {
    /// Reads a packet that arrives now.
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let (number, rest) = packet.split_first_chunk()?;
        Some(Self {
            number: u32::from_be_bytes(*number),
            sent_ns: u64::from_be_bytes(*rest.first_chunk()?),
            arrived_ns: monotonic_ns(),
        })
    }
}

/// A number and a time.
const PAYLOAD_USED: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn report(numbers: &[u32]) -> UdpReport {
        let arrival = |number: &u32| Arrival {
            number: *number,
            sent_ns: 10,
            arrived_ns: 30,
        };
        let arrivals: Vec<_> = numbers.iter().map(arrival).collect();
        UdpReport::new(4, &[Some(10), Some(11), Some(12), Some(13)], &arrivals)
    }

    #[test]
    fn all_in_order_is_perfect() {
        let report = report(&[0, 1, 2, 3]);
        assert!(report.is_perfect());
        assert_eq!((report.sent, report.received), (4, 4));
        assert_eq!(report.first_arrival, Some(Duration::from_nanos(20)));
    }

    #[test]
    fn lost_late_and_doubled_packets_are_told_apart() {
        let report = report(&[0, 2, 1, 2]);
        assert_eq!(report.order, [0, 2, 1]);
        assert_eq!(report.lost, [3]);
        assert_eq!(
            (report.duplicates, report.reordered, report.received),
            (1, 1, 3)
        );
    }

    #[test]
    fn a_gap_ends_with_the_next_arrival_or_never() {
        let ms = Duration::from_millis;
        let arrived = |numbers: &[u32]| UdpReport {
            sent: 10,
            delays: numbers.iter().map(|number| (*number, ms(2))).collect(),
            ..UdpReport::default()
        };
        assert_eq!(
            arrived(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]).longest_gap(ms(10)),
            ms(10)
        );
        assert_eq!(arrived(&[0, 1, 5, 6, 7, 8, 9]).longest_gap(ms(10)), ms(40));
        assert_eq!(arrived(&[0, 1]).longest_gap(ms(10)), ms(88));
        assert_eq!(arrived(&[]).longest_gap(ms(10)), ms(100));
    }
}
