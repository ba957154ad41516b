//! Scans of the overlay, and those who want to be heard in the middle of one.

use super::*;

/// What a map server makes of a scan.
#[derive(Clone, Copy, PartialEq)]
enum Server {
    Silent,
    DeniesHosts,
    DeniesHoles,
}

/// What came of a scan.
struct Outcome {
    /// The most Map-Requests in any second.
    most: usize,
    /// How long the real peer waited for its Map-Request.
    waited: Option<Duration>,
    /// The most destinations that were wanted at a time.
    wanted: usize,
}

const REAL: &str = "10.7.200.9";
const PER_SECOND: u32 = 50_000;

fn from_socket(port: [u8; 2], dst: &str) -> Vec<u8> {
    let mut packet = packet("10.0.0.1", dst, &[]);
    packet[20..22].copy_from_slice(&port);
    packet
}

/// All around an address that nobody serves: as much as is not the real peer.
fn hole_around(eid: IpAddr) -> IpNet {
    let number = |eid: IpAddr| match eid {
        IpAddr::V4(eid) => u32::from(eid),
        IpAddr::V6(_) => panic!("not in this scan"),
    };
    let same = (number(eid) ^ number(addr(REAL))).leading_zeros();
    IpNet::new(eid, u8::try_from(same).unwrap() + 1)
        .unwrap()
        .trunc()
}

/// A scan of 10.7.0.0/16 for three seconds, with a packet to a real peer after one of them.
fn scan(server: Server, socket: impl Fn(u32) -> [u8; 2]) -> Outcome {
    let mut bench = Bench::new();
    bench.now = Timestamp::ZERO + Duration::from_secs(10);
    let (start, mut asked) = (bench.now, Vec::new());
    let (mut real, mut waited, mut wanted) = (None, None, 0);
    let mut number = 0u32;
    while bench.now - start < Duration::from_secs(3) {
        let mut actions = bench.after(Duration::from_millis(1));
        for _ in 0..PER_SECOND / 1_000 {
            number = number.wrapping_add(1);
            let at = number.wrapping_mul(40_503) & 0xffff;
            let dst = std::net::Ipv4Addr::from(0x0a07_0000 | at).to_string();
            if dst != REAL {
                let port = socket(number);
                let packet = from_socket(port, &dst);
                actions.extend(bench.input(Input::TunPacket(&packet)));
            }
        }
        if real.is_none() && bench.now - start >= Duration::from_secs(1) {
            real = Some(bench.now);
            let packet = from_socket([0xc0, 0x01], REAL);
            actions.extend(bench.input(Input::TunPacket(&packet)));
        }
        wanted = wanted.max(bench.agent.sizes().requests);
        for request in requests(&actions) {
            asked.push(bench.now);
            let eid = request.eids().next().unwrap().eid.net();
            if eid == net(&format!("{REAL}/32")) {
                waited = waited.or_else(|| real.map(|since| bench.now - since));
            } else if server != Server::Silent {
                let none = match server {
                    Server::DeniesHoles => hole_around(eid.addr()),
                    Server::Silent | Server::DeniesHosts => eid,
                };
                let mut none = record(&none.to_string(), OWN, Ttl::from_minutes(15));
                none.locators.clear();
                bench.reply(request.nonce, &none);
            }
        }
    }
    let within = |first: &Timestamp| {
        let second = asked.iter().filter(|at| **at >= *first);
        second
            .take_while(|at| **at - *first < Duration::from_secs(1))
            .count()
    };
    Outcome {
        most: asked.iter().map(within).max().unwrap_or(0),
        waited,
        wanted,
    }
}

#[test]
fn a_scan_from_one_socket_asks_seldom_and_keeps_nobody_waiting() {
    for server in [Server::Silent, Server::DeniesHosts, Server::DeniesHoles] {
        let outcome = scan(server, |_| [0x12, 0x34]);
        assert!((1..=100).contains(&outcome.most), "{}", outcome.most);
        let waited = outcome.waited.expect("it is asked for");
        assert!(waited < Duration::from_millis(100), "{waited:?}");
        assert!(outcome.wanted < limits::OUTSTANDING_REQUESTS);
    }
}

#[test]
fn a_scan_from_many_sockets_is_over_when_its_holes_are_known() {
    let sockets = |number: u32| {
        let [_, _, high, low] = number.wrapping_mul(2_654_435_761).to_be_bytes();
        [high, low]
    };
    let outcome = scan(Server::DeniesHoles, sockets);
    assert!((1..=100).contains(&outcome.most), "{}", outcome.most);
    let waited = outcome.waited.expect("it is asked for");
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    let silent = scan(Server::Silent, sockets);
    assert!((1..=100).contains(&silent.most), "{}", silent.most);
    assert!(silent.wanted < limits::OUTSTANDING_REQUESTS);
}

#[test]
fn those_who_are_answered_may_ask_as_fast_as_that() {
    let mut bench = Bench::new();
    bench.now = Timestamp::ZERO + Duration::from_secs(10);
    let mut answered = 0;
    for round in 0..40u8 {
        let mut asked = Vec::new();
        for n in 0..24u8 {
            let dst = format!("10.8.{round}.{n}");
            asked.extend(bench.input(Input::TunPacket(&packet("10.0.0.1", &dst, &[n, 1]))));
        }
        for request in requests(&asked) {
            let eid = request.eids().next().unwrap().eid.net();
            let found = record(&eid.to_string(), BIGGER, Ttl::from_minutes(15));
            let installing = bench.reply(request.nonce, &found);
            bench.done(&installing);
            answered += 1;
        }
        bench.after(Duration::from_millis(10));
    }
    assert_eq!(answered, 40 * 24, "2,400 per second");
}
