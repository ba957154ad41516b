//! Two agents, the paths between their uplinks, and WireGuard that answers where it was heard from.

use super::*;

/// How long a packet is under way: longer than the time from one to the next.
const DELAY: Duration = Duration::from_millis(10);
const PACE: Duration = Duration::from_millis(1);
/// The longest that packets may fail to arrive.
const BREAK: Duration = Duration::from_secs(1);
const KEYS: [PublicKey; 2] = [PublicKey([1; 32]), PublicKey([9; 32])];

fn address(end: usize, uplink: usize) -> IpAddr {
    let last = u8::try_from(end + 1).unwrap();
    match uplink {
        0 => [192, 0, 2, last].into(),
        _ => [198, 51, 100, last].into(),
    }
}

fn host(end: usize) -> IpAddr {
    addr(["10.0.0.1", "10.0.0.2"][end])
}

#[derive(Clone, Copy, PartialEq)]
enum Body {
    Data,
    Echo(u16),
    Answer(u16),
}

struct Packet {
    to: usize,
    src: SocketAddr,
    dst: SocketAddr,
    body: Body,
}

struct End {
    bench: Bench,
    uplinks: Vec<Uplink>,
    nonce: u64,
    endpoint: SocketAddr,
    /// Where the far end has reached us, and where we were told to send from.
    reached: Option<IpAddr>,
    chosen: Option<IpAddr>,
    rx: u64,
    tx: u64,
    /// When the latest packet came, and the longest time between two.
    heard: Timestamp,
    gap: Duration,
    echoes: u32,
    moves: u32,
}

struct World {
    now: Timestamp,
    ends: Vec<End>,
    on_the_way: BTreeMap<(Timestamp, u64), Packet>,
    sent: u64,
    /// Whether packets between these addresses are lost.
    loses: fn(IpAddr, IpAddr) -> bool,
    sends: [bool; 2],
}

impl World {
    /// Two ends with so many uplinks, that know each other.
    fn new(uplinks: [usize; 2]) -> Self {
        let ends = [0, 1].map(|end| {
            let uplinks = (0..uplinks[end]).map(|number| Uplink {
                address: address(end, number),
                priority: u8::try_from(number + 1).unwrap(),
                weight: 100,
                steers: uplinks[end] > 1,
            });
            let uplinks: Vec<_> = uplinks.collect();
            End {
                bench: Bench::with(Config {
                    eid_prefixes: vec![IpNet::from(host(end))],
                    public_key: KEYS[end],
                    rlocs: uplinks.clone(),
                    ..Bench::config()
                }),
                uplinks,
                nonce: 0,
                endpoint: SocketAddr::new(address(1 - end, 0), 51820),
                reached: None,
                chosen: None,
                rx: 92,
                tx: 148,
                heard: Timestamp::ZERO,
                gap: Duration::ZERO,
                echoes: 0,
                moves: 0,
            }
        });
        let mut world = Self {
            now: Timestamp::ZERO,
            ends: ends.into(),
            on_the_way: BTreeMap::new(),
            sent: 0,
            loses: |_, _| false,
            sends: [true; 2],
        };
        for end in [0, 1] {
            world.tells(end);
            let shaken = world.ends[end].bench.handshake(KEYS[1 - end], 92);
            world.follow(end, shaken);
        }
        world.pass(2_000);
        world
    }

    /// The map server tells `end` where the other one is.
    fn tells(&mut self, end: usize) {
        let mut record = record(
            &format!("{}/32", host(1 - end)),
            KEYS[1 - end],
            Ttl::from_minutes(15),
        );
        let template = record.locators.remove(0);
        for uplink in &self.ends[1 - end].uplinks {
            record.locators.push(Locator {
                priority: uplink.priority,
                local: true,
                rloc: Rloc::WireGuard {
                    endpoint: SocketAddr::new(uplink.address, 51820),
                    key: KEYS[1 - end],
                },
                ..template
            });
        }
        let it = &mut self.ends[end];
        it.nonce += 1;
        it.bench.now = self.now;
        let actions = it.bench.notify(it.nonce, &record);
        self.follow(end, actions);
    }

    /// `end` has these priorities from now on, and the other one hears of it.
    fn reload(&mut self, end: usize, priorities: [u8; 2]) {
        let it = &mut self.ends[end];
        for (uplink, priority) in it.uplinks.iter_mut().zip(priorities) {
            uplink.priority = priority;
        }
        let uplinks = it.uplinks.clone();
        it.bench.now = self.now;
        let actions = it.bench.input(Input::LocalRlocs(&uplinks));
        self.follow(end, actions);
        self.pass(20);
        self.tells(1 - end);
    }

    fn follow(&mut self, end: usize, actions: Vec<Action>) {
        let mut actions = std::collections::VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let it = &mut self.ends[end];
            let more = match action {
                Action::Apply { id, change } => {
                    if let Change::SetPeer(spec) = change
                        && let Some(endpoint) = spec.endpoint
                    {
                        (it.endpoint, it.reached) = (endpoint, None);
                    }
                    it.bench.input(Input::Applied { id, ok: true })
                }
                Action::LeaveFrom { to, from } => {
                    if to == it.endpoint.ip() || from.is_some() {
                        it.chosen = from;
                    }
                    Vec::new()
                }
                Action::ReadPeerStats(_) | Action::ReadPeerStatsAnew(_) => {
                    let stats = [PeerStats {
                        key: KEYS[1 - end],
                        endpoint: Some(it.endpoint),
                        handshake_seen: true,
                        rx_bytes: it.rx,
                        tx_bytes: it.tx,
                        read_at: self.now,
                    }];
                    it.bench.input(Input::PeerStats(&stats))
                }
                Action::Echo { number, .. } => {
                    it.echoes += 1;
                    self.send(end, Body::Echo(number));
                    Vec::new()
                }
                Action::Event(Event::LocatorMoved { .. }) => {
                    it.moves += 1;
                    Vec::new()
                }
                _ => Vec::new(),
            };
            actions.extend(more);
        }
    }

    fn send(&mut self, end: usize, body: Body) {
        let it = &mut self.ends[end];
        it.tx += length(body);
        let from = it.chosen.or(it.reached);
        let src = SocketAddr::new(from.unwrap_or(it.uplinks[0].address), 51820);
        let packet = Packet {
            to: 1 - end,
            src,
            dst: it.endpoint,
            body,
        };
        if !(self.loses)(packet.src.ip(), packet.dst.ip()) {
            self.sent += 1;
            let due = (self.now + DELAY, self.sent);
            self.on_the_way.insert(due, packet);
        }
    }

    fn arrive(&mut self, packet: &Packet) {
        let end = packet.to;
        let it = &mut self.ends[end];
        (it.endpoint, it.reached) = (packet.src, Some(packet.dst.ip()));
        it.rx += length(packet.body);
        match packet.body {
            Body::Data => {
                it.gap = it.gap.max(self.now - it.heard);
                it.heard = self.now;
            }
            Body::Echo(number) => self.send(end, Body::Answer(number)),
            Body::Answer(number) => {
                let from = host(1 - end);
                it.bench.now = self.now;
                let actions = it.bench.input(Input::EchoAnswered { from, number });
                self.follow(end, actions);
            }
        }
    }

    /// So many milliseconds pass.
    fn pass(&mut self, milliseconds: u32) {
        for _ in 0..milliseconds {
            self.now = self.now + PACE;
            while let Some(first) = self.on_the_way.first_entry()
                && first.key().0 <= self.now
            {
                let packet = first.remove();
                self.arrive(&packet);
            }
            for end in [0, 1] {
                if self.sends[end] {
                    self.send(end, Body::Data);
                }
                let it = &mut self.ends[end];
                it.bench.now = self.now;
                if it
                    .bench
                    .agent
                    .next_deadline()
                    .is_some_and(|at| at <= self.now)
                {
                    let actions = it.bench.input(Input::Tick);
                    self.follow(end, actions);
                }
            }
        }
    }

    /// The longest time in which nothing arrives at `end`, of so many milliseconds from now on.
    fn gap(&mut self, end: usize, milliseconds: u32) -> Duration {
        let it = &mut self.ends[end];
        (it.gap, it.heard) = (Duration::ZERO, self.now);
        self.pass(milliseconds);
        let it = &self.ends[end];
        it.gap.max(self.now - it.heard)
    }

    fn uses(&self, end: usize) -> IpAddr {
        self.ends[end].endpoint.ip()
    }
}

const fn length(body: Body) -> u64 {
    match body {
        Body::Data => 1_000,
        Body::Echo(_) | Body::Answer(_) => 96,
    }
}

/// The ways in which the first uplink of the second end fails: altogether, what comes, what goes.
const FAILURES: [fn(IpAddr, IpAddr) -> bool; 3] = [
    |src, dst| [src, dst].contains(&address(1, 0)),
    |_, dst| dst == address(1, 0),
    |src, _| src == address(1, 0),
];

#[test]
fn packets_go_on_however_an_uplink_fails_and_whoever_sends() {
    for uplinks in [[1, 2], [2, 2]] {
        for (kind, failure) in FAILURES.into_iter().enumerate() {
            for sends in [[true, true], [true, false], [false, true]] {
                let mut world = World::new(uplinks);
                world.sends = sends;
                world.pass(3_000);
                world.loses = failure;
                for end in [0, 1].into_iter().filter(|end| sends[1 - end]) {
                    let gap = world.gap(end, 3_000);
                    println!("{uplinks:?} {kind} {sends:?}: {gap:?}");
                    assert!(gap < BREAK, "{uplinks:?} {kind} {sends:?}: {gap:?}");
                }
                let moves: u32 = world.ends.iter().map(|end| end.moves).sum();
                world.pass(20_000);
                let later: u32 = world.ends.iter().map(|end| end.moves).sum();
                assert_eq!(moves, later, "{uplinks:?} {kind} {sends:?}: no flapping");
            }
        }
    }
}

#[test]
fn they_come_back_when_told_though_packets_of_the_old_way_are_under_way() {
    for (kind, failure) in FAILURES.into_iter().enumerate() {
        let mut world = World::new([1, 2]);
        world.loses = failure;
        world.pass(3_000);
        assert_eq!(world.uses(0), address(1, 1), "{kind}");
        world.loses = |_, _| false;
        world.tells(0);
        world.pass(10_000);
        assert_eq!(world.uses(0), address(1, 1), "{kind}: not by itself");
        world.reload(1, [1, 3]);
        world.pass(5_000);
        assert_eq!(world.uses(0), address(1, 0), "{kind}");
        let gaps = [0, 1].map(|end| world.gap(end, 1_000));
        assert!(gaps.iter().all(|gap| *gap <= PACE * 2), "{kind}: {gaps:?}");
    }
}

#[test]
fn two_ends_that_watch_each_other_are_silent_when_nothing_flows() {
    let mut world = World::new([2, 2]);
    world.sends = [false; 2];
    world.pass(10_000);
    for end in &mut world.ends {
        assert!(end.echoes > 0);
        end.echoes = 0;
    }
    world.pass(60_000);
    let echoes: Vec<_> = world.ends.iter().map(|end| end.echoes).collect();
    assert_eq!(echoes, [0, 0]);
}
