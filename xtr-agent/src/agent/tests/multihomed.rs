//! A far end with several locators falls silent, and is reached another way.

use super::*;
use crate::agent::limits::{PROBE_EVERY, VERDICTS};

mod pair;

const FAR: &str = "10.0.0.2";

fn at(number: u8) -> SocketAddr {
    SocketAddr::new([192, 0, 2, number].into(), 51820)
}

/// The far end with these locators, by number and priority.
fn reached_at(locators: &[(u8, u8)]) -> Record {
    let mut record = far_end(SMALLER);
    let template = record.locators.remove(0);
    record.locators = locators
        .iter()
        .map(|(number, priority)| Locator {
            priority: *priority,
            local: true,
            rloc: Rloc::WireGuard {
                endpoint: at(*number),
                key: SMALLER,
            },
            ..template
        })
        .collect();
    record
}

/// An agent, its data plane, and a far end that answers at some of its locators.
struct Scene {
    bench: Bench,
    nonce: u64,
    /// Where the data plane sends, and from which of our uplinks.
    endpoint: SocketAddr,
    uplink: Option<IpAddr>,
    /// Where somebody answers, from where.
    works: fn(SocketAddr, Option<IpAddr>) -> bool,
    /// What it has heard something from last, other than answers.
    roams_to: Option<SocketAddr>,
    rx: u64,
    tx: u64,
    echoes: u32,
    changes: Vec<Change>,
    requests: usize,
    events: Vec<Event>,
}

impl Scene {
    fn with(config: Config, record: &Record) -> Self {
        let mut scene = Self {
            bench: Bench::with(config),
            nonce: 1,
            endpoint: at(1),
            uplink: None,
            works: |_, _| true,
            roams_to: None,
            rx: 92,
            tx: 148,
            echoes: 0,
            changes: Vec::new(),
            requests: 0,
            events: Vec::new(),
        };
        scene.bench.connect(1, record, 92);
        scene.flow(40);
        scene
    }

    /// The agent has ended, and another one goes on with what it knew; the data plane has stayed.
    fn restart(&mut self) {
        let snapshot = self.bench.agent.snapshot(self.bench.now);
        let now = self.bench.now;
        self.bench = Bench::new();
        self.bench.now = now;
        let mut actions = Actions::default();
        let (age, adopted) = (Duration::ZERO, [SMALLER]);
        let agent = &mut self.bench.agent;
        agent.restore(now, &snapshot, age, &adopted, &mut actions);
        self.follow(actions.drain().collect());
        self.flow(40);
    }

    fn new(locators: &[(u8, u8)]) -> Self {
        Self::with(Bench::config(), &reached_at(locators))
    }

    fn told(&mut self, locators: &[(u8, u8)]) {
        self.nonce += 1;
        let actions = self.bench.notify(self.nonce, &reached_at(locators));
        self.follow(actions);
    }

    fn follow(&mut self, actions: Vec<Action>) {
        let mut actions = std::collections::VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let more = match action {
                Action::Apply { id, change } => {
                    if let Change::SetPeer(spec) = &change {
                        self.endpoint = spec.endpoint.unwrap_or(self.endpoint);
                    }
                    self.changes.push(change);
                    self.bench.input(Input::Applied { id, ok: true })
                }
                Action::LeaveFrom { to, from } if to == self.endpoint.ip() || from.is_some() => {
                    self.uplink = from;
                    Vec::new()
                }
                Action::ReadPeerStats(_) | Action::ReadPeerStatsAnew(_) => self.read(),
                Action::Echo { to, number } => self.echo(to, number),
                Action::Send { bytes, .. } => {
                    let is_request = matches!(decode(&bytes), Ok(Message::MapRequest(_)));
                    self.requests += usize::from(is_request);
                    Vec::new()
                }
                Action::Event(event) => {
                    self.events.push(event);
                    Vec::new()
                }
                _ => Vec::new(),
            };
            actions.extend(more);
        }
    }

    fn read(&mut self) -> Vec<Action> {
        let stats = [PeerStats {
            key: SMALLER,
            endpoint: Some(self.roams_to.unwrap_or(self.endpoint)),
            handshake_seen: true,
            rx_bytes: self.rx,
            tx_bytes: self.tx,
            read_at: self.bench.now,
        }];
        self.bench.input(Input::PeerStats(&stats))
    }

    fn echo(&mut self, to: IpAddr, number: u16) -> Vec<Action> {
        assert_eq!(to, addr(FAR));
        self.echoes += 1;
        self.tx += 96;
        if !(self.works)(self.endpoint, self.uplink) {
            return Vec::new();
        }
        self.rx += 96;
        self.bench.input(Input::EchoAnswered { from: to, number })
    }

    /// So many times the time between two looks passes, with packets to the far end.
    fn flow(&mut self, times: u32) {
        for _ in 0..times {
            self.tx += 1_000;
            self.idle(1);
        }
    }

    fn idle(&mut self, times: u32) {
        for _ in 0..times {
            let actions = self.bench.after(PROBE_EVERY);
            self.follow(actions);
        }
    }

    fn moves(&self) -> Vec<SocketAddr> {
        let moves = self.events.iter().filter_map(|event| match event {
            Event::LocatorMoved { to, .. } => Some(*to),
            _ => None,
        });
        moves.collect()
    }

    fn says(&self) -> SocketAddr {
        let status = self.bench.agent.status(self.bench.now);
        status.mappings[0].endpoint.unwrap()
    }
}

#[test]
fn the_endpoint_moves_to_the_next_locator_and_nothing_else_changes() {
    let mut scene = Scene::new(&[(1, 1), (2, 2)]);
    assert_eq!(scene.endpoint, at(1));
    scene.changes.clear();
    scene.works = |to, _| to == at(2);
    scene.flow(7);
    assert_eq!(scene.endpoint, at(2), "within half a second");
    scene.flow(1_000);
    assert_eq!(scene.moves(), [at(2)], "and there it stays");
    let [Change::SetPeer(spec)] = scene.changes.as_slice() else {
        panic!("{:?}", scene.changes);
    };
    assert_eq!(spec.allowed_ips, [net("10.0.0.2/32")]);
    assert_eq!(scene.says(), at(2));
    assert_eq!(scene.requests, 0, "nobody is asked");
    assert!(scene.events.contains(&Event::LocatorAnswers {
        key: SMALLER,
        at: at(2)
    }));
}

#[test]
fn it_goes_back_when_told_and_not_because_the_first_one_works_again() {
    let mut scene = Scene::new(&[(1, 1), (2, 2)]);
    scene.works = |to, _| to == at(2);
    scene.flow(20);
    scene.works = |_, _| true;
    scene.told(&[(1, 1), (2, 2)]);
    scene.flow(200);
    assert_eq!(scene.endpoint, at(2));
    // The first uplink of the far end is gone, and comes back.
    scene.told(&[(2, 2)]);
    scene.told(&[(1, 1), (2, 2)]);
    scene.flow(20);
    assert_eq!(scene.endpoint, at(2));
    scene.told(&[(1, 1), (2, 3)]);
    scene.flow(20);
    assert_eq!(scene.endpoint, at(1), "that is new");
    assert_eq!(scene.says(), at(1));
}

#[test]
fn what_is_known_of_locators_outlives_the_agent() {
    let mut scene = Scene::new(&[(1, 1), (2, 2), (3, 3)]);
    scene.works = |to, _| to == at(2);
    scene.flow(20);
    scene.told(&[(1, 1), (2, 2)]);
    scene.restart();
    scene.works = |_, _| true;
    scene.told(&[(1, 1), (2, 2), (3, 3)]);
    assert_eq!(scene.endpoint, at(2), "nothing of that is new");
    scene.restart();
    scene.works = |to, _| to == at(3);
    scene.flow(40);
    assert_eq!(scene.endpoint, at(3), "nobody has told");
    scene.restart();
    scene.works = |_, _| true;
    scene.told(&[(1, 1), (2, 2), (3, 4)]);
    assert_eq!(scene.endpoint, at(1), "that is new");
}

#[test]
fn a_locator_that_is_gone_is_left_at_once() {
    let mut scene = Scene::new(&[(1, 1), (2, 2)]);
    scene.told(&[(2, 2)]);
    assert_eq!(scene.endpoint, at(2));
    scene.told(&[(1, 1), (2, 2)]);
    assert_eq!(scene.endpoint, at(2), "it works as well as the other one");
}

#[test]
fn where_nothing_works_each_is_tried_once_and_then_there_is_a_pause() {
    let mut scene = Scene::new(&[(1, 1), (2, 2), (3, 3)]);
    scene.works = |_, _| false;
    let verdicts = u32::try_from(VERDICTS.as_millis() / PROBE_EVERY.as_millis()).unwrap();
    scene.flow(verdicts / 2);
    assert_eq!(scene.moves(), [at(2), at(3)]);
    scene.flow(verdicts * 2);
    assert_eq!(scene.moves()[2..4], [at(1), at(2)]);
    scene.works = |to, _| to == at(3);
    scene.flow(verdicts * 2);
    assert_eq!(scene.endpoint, at(3));
    let moves = scene.moves().len();
    scene.flow(verdicts * 4);
    assert_eq!(scene.moves().len(), moves);
}

#[test]
fn where_the_far_end_is_heard_from_counts() {
    let mut scene = Scene::new(&[(1, 1), (2, 2)]);
    scene.roams_to = Some(at(2));
    scene.flow(5);
    assert_eq!(scene.says(), at(2));
    assert_eq!(scene.moves(), []);
    scene.told(&[(1, 1), (2, 2)]);
    assert_eq!(scene.says(), at(2), "it has chosen");
}

#[test]
fn a_far_end_that_is_heard_but_not_reached_is_told_until_it_hears() {
    let mut scene = Scene::new(&[(1, 1), (2, 2)]);
    // What it sends the old way comes in between.
    scene.works = |_, _| false;
    scene.roams_to = Some(at(1));
    scene.changes.clear();
    scene.flow(8);
    assert!(scene.changes.len() > 1, "{:?}", scene.changes);
    scene.works = |to, _| to == at(2);
    scene.roams_to = None;
    scene.flow(10);
    assert_eq!((scene.endpoint, scene.says()), (at(2), at(2)));
}

#[test]
fn without_packets_there_are_no_echoes_and_with_a_single_locator_none_ever() {
    let mut scene = Scene::new(&[(1, 1), (2, 2)]);
    scene.idle(100);
    scene.echoes = 0;
    scene.works = |_, _| false;
    scene.idle(1_000);
    assert_eq!((scene.echoes, scene.moves()), (0, vec![]));
    let mut single = Scene::new(&[(1, 1)]);
    single.flow(1_000);
    assert_eq!(single.echoes, 0);
}

/// A host that answers no pings any more works all the same, whichever way it is reached.
#[test]
fn a_far_end_that_sends_and_answers_along_no_way_is_reached_as_before() {
    let mut scene = Scene::new(&[(1, 1), (2, 2)]);
    scene.works = |_, _| false;
    for _ in 0..5_000 {
        scene.rx += 500;
        scene.flow(1);
    }
    assert_eq!(scene.endpoint, at(1));
    assert_eq!(scene.says(), at(1));
    let moves = scene.moves();
    assert_eq!(moves[..2], [at(2), at(1)]);
    // Five minutes; without a pause that grows there would be 58 rounds.
    assert!(moves.len() <= 20, "{}", moves.len());
}

#[test]
fn a_host_behind_a_far_end_that_is_off_does_not_move_it() {
    let mut record = reached_at(&[(1, 1), (2, 2)]);
    record.eid = EidPrefix::new(record.eid.iid(), net("10.0.0.2/31"));
    let config = Config {
        witnesses: vec![addr(FAR)],
        ..Bench::config()
    };
    let mut scene = Scene::with(config, &record);
    assert!(scene.echoes > 0);
    scene.works = |_, _| false;
    for _ in 0..1_000 {
        scene.rx += 300;
        scene.flow(1);
    }
    assert_eq!(scene.moves(), []);
    scene.works = |to, _| to == at(2);
    scene.flow(60);
    assert_eq!(scene.endpoint, at(2), "nothing at all comes");
}

/// Two uplinks, the second one behind the first.
fn multihomed() -> Config {
    let uplink = |number, priority| Uplink {
        address: [198, 51, 100, number].into(),
        priority,
        weight: 100,
        steers: true,
    };
    Config {
        rlocs: vec![uplink(1, 1), uplink(2, 2)],
        ..Bench::config()
    }
}

#[test]
fn a_host_with_several_uplinks_registers_each_with_its_priority_and_weight() {
    let mut config = multihomed();
    config.rlocs[1].weight = 30;
    let mut bench = Bench::with(config);
    let actions = bench.input(Input::Start);
    let Message::MapRegister(register) = decode(sent(&actions)[0]).unwrap() else {
        panic!("no registration");
    };
    let record = register.records().next().unwrap().to_record(0).unwrap();
    let told = record.locators.iter().map(|it| (it.priority, it.weight));
    assert_eq!(told.collect::<Vec<_>>(), [(1, 100), (2, 30)]);
}

#[test]
fn another_way_to_the_map_servers_is_tried_by_a_registration_unless_we_are_leaving() {
    let mut bench = Bench::with(multihomed());
    bench.input(Input::Start);
    let tried = bench.input(Input::OtherWay);
    assert!(matches!(
        decode(sent(&tried)[0]).unwrap(),
        Message::MapRegister(_)
    ));
    bench.input(Input::Shutdown);
    assert!(sent(&bench.input(Input::OtherWay)).is_empty());
}

#[test]
fn packets_leave_by_the_next_uplink_when_the_far_end_has_no_other_locator() {
    let mut scene = Scene::with(multihomed(), &reached_at(&[(1, 1)]));
    let second = Some(addr("198.51.100.2"));
    scene.works = |_, from| from == Some(addr("198.51.100.2"));
    scene.changes.clear();
    scene.flow(7);
    assert_eq!(scene.uplink, second);
    assert_eq!(
        scene.changes.len(),
        1,
        "the source that it had is forgotten"
    );
    scene.works = |_, _| true;
    scene.flow(500);
    assert_eq!(scene.moves().len(), 1);
    assert_eq!(scene.uplink, None, "the far end has the choice again");
    let peers = scene.bench.agent.status(scene.bench.now).peers;
    assert_eq!(peers[0].uplink, second);
    let mut swapped = multihomed().rlocs;
    (swapped[0].priority, swapped[1].priority) = (3, 2);
    let actions = scene.bench.input(Input::LocalRlocs(&swapped));
    scene.follow(actions);
    assert_eq!(scene.uplink, second, "the operator has said so");
    scene.flow(100);
    assert_eq!(scene.uplink, None);
}

#[test]
fn an_uplink_that_is_gone_is_left_and_far_ends_that_packets_flow_to_are_greeted() {
    let mut scene = Scene::with(multihomed(), &reached_at(&[(1, 1)]));
    scene.works = |_, from| from == Some(addr("198.51.100.2"));
    scene.flow(8);
    assert!(scene.uplink.is_some());
    scene.works = |_, _| true;
    scene.echoes = 0;
    let left = multihomed().rlocs;
    let actions = scene.bench.input(Input::LocalRlocs(&left[..1]));
    scene.follow(actions);
    assert_eq!((scene.uplink, scene.echoes), (None, 1));
}
