//! Two interfaces and the wire between them.

use bytes::Bytes;
use rand::SeedableRng;

use super::*;

const A: PublicKey = PublicKey([1; 32]);
const B: PublicKey = PublicKey([2; 32]);

/// Two interfaces; messages take 10 ms each way.
struct Bench {
    ends: [Interface; 2],
    /// What is under way: when it arrives, where, what.
    wire: Vec<(Timestamp, usize, Wire)>,
    now: Timestamp,
    wall_us: [u64; 2],
    rng: StdRng,
    received: [Vec<Bytes>; 2],
    lost: Vec<Lost>,
    initiations: usize,
    cut: bool,
}

impl Bench {
    fn new(backend: Backend) -> Self {
        let end = |key| Interface::new(key, backend, Timestamp::ZERO, 1_000);
        let mut bench = Self {
            ends: [end(A), end(B)],
            wire: Vec::new(),
            now: Timestamp::ZERO,
            wall_us: [1_000; 2],
            rng: StdRng::seed_from_u64(1),
            received: [Vec::new(), Vec::new()],
            lost: Vec::new(),
            initiations: 0,
            cut: false,
        };
        bench.know(0);
        bench.know(1);
        bench
    }

    /// Tells end `n` of the other one.
    fn know(&mut self, n: usize) {
        let spec = PeerSpec {
            key: [B, A][n],
            endpoint: Some(address(1 - n)),
            allowed_ips: vec![IpNet::from(address(1 - n).ip())],
            keepalive: None,
        };
        self.with(n, |end, cx| end.set_peer(&spec, cx));
    }

    fn with(&mut self, n: usize, act: impl FnOnce(&mut Interface, &mut Context<'_>)) {
        let mut out = Vec::new();
        let mut cx = Context {
            now: self.now,
            wall_us: self.wall_us[n] + self.now.0 / 1_000,
            rng: &mut self.rng,
            out: &mut out,
        };
        act(&mut self.ends[n], &mut cx);
        for out in out {
            match out {
                Out::Transmit { wire, .. } => {
                    self.initiations += usize::from(matches!(wire, Wire::Init { .. }));
                    if !self.cut {
                        self.wire
                            .push((self.now + Duration::from_millis(10), 1 - n, wire));
                    }
                }
                Out::Receive { inner } => self.received[n].push(inner.body),
                Out::Lost { why, .. } => self.lost.push(why),
            }
        }
    }

    fn send(&mut self, n: usize, body: &'static [u8]) {
        let inner = Inner {
            src: address(n).ip(),
            dst: address(1 - n).ip(),
            body: Bytes::from_static(body),
        };
        self.with(n, |end, cx| end.send(inner, cx));
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let arrival = self.wire.iter().map(|(at, ..)| *at).min();
            let timers = self.ends.iter().filter_map(Interface::next_deadline).min();
            let Some(next) = arrival
                .into_iter()
                .chain(timers)
                .min()
                .filter(|next| *next <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let at = self.wire.iter().position(|(at, ..)| *at == next).unwrap();
                let (_, n, wire) = self.wire.remove(at);
                self.with(n, |interface, cx| {
                    interface.receive(address(1 - n), wire, cx)
                });
            } else {
                self.with(0, Interface::tick);
                self.with(1, Interface::tick);
            }
        }
        self.now = end;
    }
}

fn address(n: usize) -> SocketAddr {
    ["10.0.0.1:1", "10.0.0.2:1"][n].parse().unwrap()
}

#[test]
fn packets_wait_for_the_handshake_and_arrive_in_order() {
    let mut bench = Bench::new(Backend::Kernel);
    bench.send(0, b"one");
    bench.send(0, b"two");
    bench.run(Duration::from_millis(29));
    assert!(bench.received[1].is_empty(), "three times 10 ms at least");
    bench.run(Duration::from_millis(2));
    assert_eq!(bench.received[1], [b"one".as_slice(), b"two"]);
    assert_eq!(bench.initiations, 1);
    bench.send(1, b"back");
    bench.run(Duration::from_millis(11));
    assert_eq!(bench.received[0], [b"back".as_slice()]);
}

#[test]
fn an_initiation_from_a_stranger_is_ignored_and_repeated_after_five_seconds() {
    for (backend, most) in [(Backend::Kernel, 5_400), (Backend::Embedded, 600)] {
        let mut bench = Bench::new(backend);
        bench.with(1, |end, cx| end.remove_peer(&A, cx));
        bench.send(0, b"hello");
        bench.run(Duration::from_millis(20));
        bench.know(1);
        bench.run(Duration::from_millis(250));
        assert!(bench.received[1].is_empty());
        bench.run(Duration::from_millis(most));
        assert_eq!(bench.received[1], [b"hello".as_slice()]);
    }
}

#[test]
fn crossing_initiations_cancel_each_other_out() {
    let mut bench = Bench::new(Backend::Kernel);
    bench.send(0, b"a");
    bench.send(1, b"b");
    bench.run(Duration::from_millis(4_900));
    assert!(bench.received.iter().all(Vec::is_empty));
    bench.run(Duration::from_millis(600));
    assert!(bench.received.iter().all(|received| received.len() == 1));
}

#[test]
fn a_kick_says_hello_with_and_without_a_session() {
    let mut bench = Bench::new(Backend::Kernel);
    let mut heard = 0;
    for _ in 0..3 {
        bench.with(0, |end, cx| end.kick(&B, cx));
        bench.run(Duration::from_secs(1));
        let now = bench.ends[1].stats(&A).unwrap().rx_bytes;
        assert!(now > heard);
        heard = now;
    }
    assert_eq!(bench.initiations, 1);
}

#[test]
fn a_peer_that_lost_its_session_is_found_out_after_fifteen_seconds() {
    let mut bench = Bench::new(Backend::Kernel);
    bench.send(0, b"one");
    bench.run(Duration::from_secs(1));
    bench.ends[1] = Interface::new(B, Backend::Kernel, bench.now, 1_000);
    bench.know(1);
    bench.send(0, b"lost");
    bench.run(Duration::from_secs(14));
    bench.send(0, b"lost too");
    bench.run(Duration::from_secs(2));
    bench.send(0, b"found");
    bench.run(Duration::from_secs(1));
    assert_eq!(bench.received[1], [b"one".as_slice(), b"found"]);
}

#[test]
fn a_kernel_whose_wall_clock_went_back_is_not_heard() {
    for (backend, arrived) in [(Backend::Kernel, 1), (Backend::Embedded, 2)] {
        let mut bench = Bench::new(backend);
        bench.wall_us[0] = 900_000_000;
        bench.ends[0] = Interface::new(A, backend, bench.now, bench.wall_us[0]);
        bench.know(0);
        bench.send(0, b"one");
        bench.run(Duration::from_secs(200));
        bench.wall_us[0] = 0;
        bench.send(0, b"two");
        bench.run(Duration::from_secs(60));
        assert_eq!(bench.received[1].len(), arrived);
    }
}

#[test]
fn a_one_way_flow_is_kept_alive_by_keepalives_and_rekeyed() {
    let mut bench = Bench::new(Backend::Kernel);
    for _ in 0..400 {
        bench.send(0, b"tick");
        bench.run(Duration::from_secs(1));
    }
    assert_eq!(bench.received[1].len(), 400);
    assert!(
        (3..=5).contains(&bench.initiations),
        "one per 120 s, not {}",
        bench.initiations
    );
    assert!(bench.ends[0].stats(&B).unwrap().rx_bytes > 0);
}

#[test]
fn without_an_answer_waiting_packets_are_given_up_and_the_queue_is_bounded() {
    let mut bench = Bench::new(Backend::Kernel);
    bench.cut = true;
    for _ in 0..130 {
        bench.send(0, b"x");
    }
    bench.run(Duration::from_secs(120));
    let full = bench
        .lost
        .iter()
        .filter(|why| **why == Lost::QueueFull)
        .count();
    let given_up = bench
        .lost
        .iter()
        .filter(|why| **why == Lost::NoHandshake)
        .count();
    assert_eq!((full, given_up), (2, 128));
    assert!((18..=20).contains(&bench.initiations));
}

#[test]
fn what_no_peer_is_responsible_for_is_lost() {
    let mut bench = Bench::new(Backend::Kernel);
    bench.with(0, |end, cx| end.remove_peer(&B, cx));
    bench.send(0, b"x");
    assert_eq!(bench.lost, [Lost::NoPeer]);
}
