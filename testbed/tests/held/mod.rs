//! First packets of all kinds between two places that know nothing of each other: none is lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use testbed::{Namespace, UdpProbe};

/// Payload that takes six packets.
const FRAGMENTED: usize = 8_000;
/// How long segments may be on their way that were sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens a TCP connection: every segment that was sent arrives, so none of the kernel's tries to make
/// up for a lost one was needed, however slow the machine is.
pub(crate) fn connects(from: &Namespace, to: &Namespace, address: IpAddr) {
    let destination = SocketAddr::new(address, 9_001);
    let before = (segments(from), segments(to));
    let listener = to.run(|| TcpListener::bind(destination)).unwrap().unwrap();
    let client = from.run(|| TcpStream::connect_timeout(&destination, PATIENCE));
    let client = client.unwrap().unwrap();
    let (server, _) = listener.accept().unwrap();
    let (mut sent, mut arrived) = (0, 0);
    for _ in 0..200 {
        // Not those of the other end, which counts a SYN-ACK that it sends again twice.
        sent = segments(from).sent - before.0.sent;
        arrived = segments(to).received - before.1.received;
        if sent == arrived {
            break;
        }
        testbed::sleep(PATIENCE / 200);
    }
    assert_eq!(sent, arrived, "segments that were sent, and that arrived");
    assert!(sent >= 2, "a SYN and an acknowledgement: {sent}");
    drop((client, server));
}

/// Sends datagrams that take several packets each: they arrive whole.
pub(crate) fn fragments_arrive(from: &Namespace, to: &Namespace, address: IpAddr, pace: Duration) {
    let probe = UdpProbe {
        count: 20,
        interval: pace,
        payload: FRAGMENTED,
        ..UdpProbe::thousand_to(SocketAddr::new(address, 9_002))
    };
    let report = probe.run(from, to).unwrap();
    assert!(report.is_perfect(), "to {address}: {report:?}");
}

/// TCP segments of a namespace, repeated ones included.
struct Segments {
    sent: u64,
    received: u64,
}

fn segments(namespace: &Namespace) -> Segments {
    let read = || fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let text = namespace.run(read).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let value = |wanted: &str| -> u64 {
        let mut columns = names.split(' ').zip(values.split(' '));
        let (_, value) = columns.find(|(name, _)| *name == wanted).unwrap();
        value.parse().unwrap()
    };
    Segments {
        sent: value("OutSegs") + value("RetransSegs"),
        received: value("InSegs"),
    }
}
