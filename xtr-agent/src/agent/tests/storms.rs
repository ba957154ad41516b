//! Scans of the overlay, and those who want to be heard in the middle of one.

use super::*;

/// What a map server makes of a scan.
#[derive(Clone, Copy, PartialEq)]
enum Server {
    Silent,
    DeniesHosts,
    DeniesHoles,
}

/// A scan of 10.7.0.0/16 at [`PER_SECOND`], and somebody who wants to reach [`REAL`] meanwhile.
struct Scan {
    server: Server,
    /// The source port of each packet of the scan, by its number.
    port: fn(u32) -> [u8; 2],
    seconds: u64,
    /// Who wants to reach the real peer, how long after the start, and how often.
    source: &'static str,
    after: Duration,
    every: Option<Duration>,
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

fn from_socket(source: &str, port: [u8; 2], dst: &str) -> Vec<u8> {
    let mut packet = packet(source, dst, &[]);
    packet[20..22].copy_from_slice(&port);
    packet
}

/// A new socket for every packet.
fn new_socket(number: u32) -> [u8; 2] {
    let [high, low, ..] = number.wrapping_mul(2_654_435_761).to_be_bytes();
    [high, low]
}

fn one_socket(_: u32) -> [u8; 2] {
    [0x12, 0x34]
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

impl Scan {
    fn new(server: Server, port: fn(u32) -> [u8; 2]) -> Self {
        Self {
            server,
            port,
            seconds: 3,
            source: "10.0.0.1",
            after: Duration::from_secs(1),
            every: None,
        }
    }

    fn run(self) -> Outcome {
        let mut config = Bench::config();
        config.eid_prefixes = vec![net("10.0.0.0/24")];
        let mut bench = Bench::with(config);
        bench.now = Timestamp::ZERO + Duration::from_secs(10);
        let (start, mut asked) = (bench.now, Vec::new());
        let (mut first, mut next, mut waited, mut wanted) = (None, start + self.after, None, 0);
        let mut scanning = from_socket("10.0.0.1", [0; 2], "10.7.0.0");
        let real = from_socket(self.source, [0xc0, 0x01], REAL);
        let mut number = 0u32;
        while bench.now - start < Duration::from_secs(self.seconds) {
            let mut actions = bench.after(Duration::from_millis(1));
            for _ in 0..PER_SECOND / 1_000 {
                number = number.wrapping_add(1);
                let at = number.wrapping_mul(40_503) & 0xffff;
                let dst = std::net::Ipv4Addr::from(0x0a07_0000 | at);
                if dst != addr(REAL) {
                    scanning[16..20].copy_from_slice(&dst.octets());
                    scanning[20..22].copy_from_slice(&(self.port)(number));
                    actions.extend(bench.input(Input::TunPacket(&scanning)));
                }
            }
            if next <= bench.now {
                first = first.or(Some(bench.now));
                next = bench.now + self.every.unwrap_or(Duration::MAX);
                actions.extend(bench.input(Input::TunPacket(&real)));
            }
            wanted = wanted.max(bench.agent.sizes().requests);
            for request in requests(&actions) {
                asked.push(bench.now);
                let eid = request.eids().next().unwrap().eid.net();
                if eid == net(&format!("{REAL}/32")) {
                    waited = waited.or_else(|| first.map(|since| bench.now - since));
                } else if self.server != Server::Silent {
                    let none = match self.server {
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
}

#[test]
fn a_scan_from_one_socket_asks_seldom_and_keeps_nobody_waiting() {
    for server in [Server::Silent, Server::DeniesHosts, Server::DeniesHoles] {
        let outcome = Scan::new(server, one_socket).run();
        assert!((1..=100).contains(&outcome.most), "{}", outcome.most);
        let waited = outcome.waited.expect("it is asked for");
        assert!(waited < Duration::from_millis(100), "{waited:?}");
        assert!(outcome.wanted < limits::OUTSTANDING_REQUESTS);
    }
}

#[test]
fn a_scan_from_many_sockets_is_over_when_its_holes_are_known() {
    let outcome = Scan::new(Server::DeniesHoles, new_socket).run();
    assert!((1..=100).contains(&outcome.most), "{}", outcome.most);
    let waited = outcome.waited.expect("it is asked for");
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    let silent = Scan::new(Server::Silent, new_socket).run();
    assert!((1..=100).contains(&silent.most), "{}", silent.most);
    assert!(silent.wanted < limits::OUTSTANDING_REQUESTS);
}

#[test]
fn who_tries_again_is_heard_in_a_scan_with_a_new_socket_for_every_packet() {
    for (server, seconds) in [(Server::DeniesHosts, 10), (Server::Silent, 3)] {
        let outcome = Scan {
            seconds,
            after: Duration::from_secs(seconds - 1),
            every: Some(Duration::from_millis(200)),
            ..Scan::new(server, new_socket)
        }
        .run();
        assert!((1..=100).contains(&outcome.most), "{}", outcome.most);
        let waited = outcome.waited.expect("it is asked for");
        assert!(waited < Duration::from_millis(500), "{waited:?}");
        assert!(outcome.wanted < limits::OUTSTANDING_REQUESTS);
    }
}

#[test]
fn tcp_and_ping_which_try_again_after_a_second_are_heard_then() {
    let outcome = Scan {
        seconds: 5,
        after: Duration::from_secs(2),
        every: Some(Duration::from_millis(1_010)),
        ..Scan::new(Server::DeniesHosts, new_socket)
    };
    let waited = outcome.run().waited.expect("it is asked for");
    assert!(waited < Duration::from_millis(1_200), "{waited:?}");
}

#[test]
fn a_host_behind_a_gateway_does_not_notice_the_scan_of_another_one() {
    let outcome = Scan {
        source: "10.0.0.77",
        ..Scan::new(Server::DeniesHosts, new_socket)
    };
    let waited = outcome.run().waited.expect("it is asked for");
    assert!(waited < Duration::from_millis(100), "{waited:?}");
}

#[test]
fn packets_of_a_scan_that_find_no_room_are_counted_and_nothing_else() {
    let mut bench = Bench::new();
    let storm = (0..20_000u32).map(|number| {
        let dst = std::net::Ipv4Addr::from(0x0a07_0000 + number).to_string();
        let packet = from_socket("10.0.0.1", new_socket(number), &dst);
        bench.input(Input::TunPacket(&packet))
    });
    let dropped = storm.filter(|actions| {
        let held = [Action::Count(DropReason::TooManyDestinations)];
        actions.as_slice() == held
    });
    // Those that take the place of others in longer lanes are few.
    assert!(dropped.count() > 20_000 - 2 * limits::WAITING);
}

#[test]
fn those_who_are_answered_may_ask_as_fast_as_that() {
    let mut bench = Bench::new();
    assert_eq!(busy(&mut bench), 40 * 24, "2,400 per second");
}

/// Wants 24 destinations every 10 ms for 400 ms, all of which are answered at once; returns how many were asked for.
fn busy(bench: &mut Bench) -> usize {
    bench.now = Timestamp::ZERO + Duration::from_secs(10);
    let mut answered = 0;
    for round in 0..40u8 {
        let mut actions = Vec::new();
        for n in 0..24u8 {
            let dst = format!("10.8.{round}.{n}");
            actions.extend(bench.input(Input::TunPacket(&packet("10.0.0.1", &dst, &[n, 1]))));
        }
        while !requests(&actions).is_empty() {
            let mut next = Vec::new();
            for request in requests(&actions) {
                let eid = request.eids().next().unwrap().eid.net();
                let found = record(&eid.to_string(), BIGGER, Ttl::from_minutes(15));
                let installing = bench.reply(request.nonce, &found);
                bench.done(&installing);
                next.extend(installing);
                answered += 1;
            }
            actions = next;
        }
        bench.after(Duration::from_millis(10));
    }
    answered
}

#[test]
fn what_a_busy_gateway_has_earned_is_not_for_a_scan() {
    let mut bench = Bench::new();
    busy(&mut bench);
    let mut asked = 0;
    for n in 0..50_000_u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let dst = format!("10.9.{high}.{low}");
        let packet = from_socket("10.0.0.1", new_socket(n), &dst);
        bench.now = bench.now + Duration::from_micros(20);
        asked += requests(&bench.input(Input::TunPacket(&packet))).len();
    }
    assert!((40..=100).contains(&asked), "{asked} in a second");
}
