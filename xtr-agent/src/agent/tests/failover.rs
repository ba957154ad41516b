//! A proxy that leads nowhere is left for another one.

use lisp_proto::Gap;

use super::*;
use crate::agent::limits::{EVIDENCE, LOOK_IDLE, LOST_FOR, PROBE_EVERY, VERDICTS};

mod gaps;

const SERVED: &str = "10.200.0.0/16";
const FAR: &str = "10.200.0.10";

/// What is served by both, first of all by the first.
fn served_by(first: PublicKey, second: PublicKey) -> Record {
    let mut record = record(SERVED, first, Ttl::from_minutes(15));
    for (key, priority) in [(first, 1), (second, 129)] {
        let endpoint = SocketAddr::new([192, 0, 2, key.0[0]].into(), 51820);
        let mut locator = record.locators[0];
        locator.priority = priority;
        locator.rloc = Rloc::WireGuard { endpoint, key };
        record.locators.push(locator);
    }
    record.locators.remove(0);
    record
}

/// An agent on a bench, and what its data plane counts.
struct Client {
    bench: Bench,
    counts: BTreeMap<PublicKey, (u64, u64)>,
    /// Who answers echoes, through whom.
    answers: Vec<(IpAddr, PublicKey)>,
    /// Echoes that were sent, and Map-Requests.
    echoes: Vec<IpAddr>,
    requests: Vec<Bytes>,
    events: Vec<Event>,
}

impl Client {
    /// One that uses `SMALLER` and could use `BIGGER`, and has asked for `FAR`.
    fn new(witnesses: &[&str]) -> Self {
        let bench = Bench::with(Config {
            witnesses: witnesses.iter().map(|text| addr(text)).collect(),
            ..Bench::config()
        });
        let mut client = Self {
            bench,
            counts: BTreeMap::new(),
            answers: Vec::new(),
            echoes: Vec::new(),
            requests: Vec::new(),
            events: Vec::new(),
        };
        let wanted = packet("10.0.0.1", FAR, b"x");
        let asked = client.bench.input(Input::TunPacket(&wanted));
        let nonce = requests(&asked)[0].nonce;
        let answer = client.bench.reply(nonce, &served_by(SMALLER, BIGGER));
        client.follow(answer);
        let shaken = client.bench.handshake(SMALLER, 92);
        client.counts.insert(SMALLER, (92, 148));
        client.follow(shaken);
        client
    }

    /// The same, with a witness beyond both proxies that answers through the first one.
    fn proven() -> Self {
        let mut client = Self::new(&[FAR]);
        client.answers.push((addr(FAR), SMALLER));
        client.flow(40);
        assert!(!client.echoes.is_empty());
        client.requests.clear();
        client
    }

    /// Carries out what the agent wants, and all that follows.
    fn follow(&mut self, actions: Vec<Action>) {
        let mut actions = std::collections::VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let more = match action {
                Action::Apply { id, .. } => self.bench.input(Input::Applied { id, ok: true }),
                Action::ReadPeerStats(keys) | Action::ReadPeerStatsAnew(keys) => self.read(&keys),
                Action::Echo { to, number } => self.echo(to, number),
                Action::Send { bytes, .. } => {
                    if matches!(decode(&bytes), Ok(Message::MapRequest(_))) {
                        self.requests.push(bytes);
                    }
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

    fn read(&mut self, keys: &[PublicKey]) -> Vec<Action> {
        let stats = keys.iter().filter_map(|key| {
            let (rx_bytes, tx_bytes) = *self.counts.get(key)?;
            Some(PeerStats {
                key: *key,
                handshake_seen: true,
                rx_bytes,
                tx_bytes,
                read_at: self.bench.now,
            })
        });
        let stats: Vec<_> = stats.collect();
        self.bench.input(Input::PeerStats(&stats))
    }

    fn echo(&mut self, to: IpAddr, number: u16) -> Vec<Action> {
        self.echoes.push(to);
        let through = self.serves(to);
        let count = self.counts.entry(through).or_default();
        count.1 += 96;
        if !self.answers.contains(&(to, through)) {
            return Vec::new();
        }
        count.0 += 96;
        self.bench.input(Input::EchoAnswered { from: to, number })
    }

    /// Who gets packets to `to`.
    fn serves(&self, to: IpAddr) -> PublicKey {
        let peers = self.bench.agent.peers();
        let holds = |net: &IpNet| net.contains(&to);
        let peers = peers.filter_map(|peer| {
            let held = peer.allowed_ips.into_iter().filter(holds);
            Some((held.map(|net| net.prefix_len()).max()?, peer.key))
        });
        peers.max().unwrap().1
    }

    /// So many times the time between two looks passes, with packets to `FAR`.
    fn flow(&mut self, times: u32) {
        self.pass(times, 1_000, 0);
    }

    fn pass(&mut self, times: u32, sent: u64, received: u64) {
        for _ in 0..times {
            let used = self.serves(addr(FAR));
            let count = self.counts.entry(used).or_default();
            count.0 += received;
            count.1 += sent;
            let actions = self.bench.after(PROBE_EVERY);
            self.follow(actions);
        }
    }

    /// The keys that the latest Map-Request says cannot be reached.
    fn unreachable(&self) -> Vec<PublicKey> {
        let Ok(Message::MapRequest(request)) = decode(self.requests.last().unwrap()) else {
            panic!("a Map-Request");
        };
        let record = request.source_record().unwrap().to_record(0).unwrap();
        let keys = record
            .locators
            .into_iter()
            .map(|locator| match locator.rloc {
                Rloc::WireGuard { key, .. } if !locator.reachable => key,
                other => panic!("{other:?}"),
            });
        keys.collect()
    }

    /// Answers the latest Map-Request.
    fn answered(&mut self, record: &Record) {
        let Ok(Message::MapRequest(request)) = decode(self.requests.last().unwrap()) else {
            panic!("a Map-Request");
        };
        let nonce = request.nonce;
        let actions = self.bench.reply(nonce, record);
        self.follow(actions);
    }

    fn lost(&self) -> Vec<PublicKey> {
        let lost = self.events.iter().filter_map(|event| match event {
            Event::ProxyLost { key } => Some(*key),
            _ => None,
        });
        lost.collect()
    }
}

#[test]
fn a_proxy_that_leads_nowhere_is_named_to_the_map_server_and_the_next_one_takes_over() {
    let mut client = Client::proven();
    client.answers.clear();
    client.flow(7);
    assert_eq!(client.lost(), [SMALLER]);
    assert_eq!(client.requests.len(), 1, "all is said once");
    assert_eq!(client.unreachable(), [SMALLER]);
    client.answered(&served_by(BIGGER, SMALLER));
    assert_eq!(
        client.serves(addr(FAR)),
        SMALLER,
        "until it has shaken hands"
    );
    client.counts.insert(BIGGER, (92, 148));
    client.answers.push((addr(FAR), BIGGER));
    client.flow(1);
    assert_eq!(client.serves(addr(FAR)), BIGGER);
    client.flow(200);
    assert_eq!(client.lost(), [SMALLER]);
    assert_eq!(client.serves(addr(FAR)), BIGGER, "and there it stays");
}

#[test]
fn a_question_that_nobody_answers_is_repeated_with_what_it_said() {
    let mut client = Client::proven();
    client.answers.clear();
    client.flow(20);
    assert!(client.requests.len() > 1);
    assert_eq!(client.unreachable(), [SMALLER]);
}

#[test]
fn a_proxy_that_answers_is_used_on() {
    let mut client = Client::proven();
    client.flow(1_000);
    assert_eq!((client.lost(), client.requests.len()), (vec![], 0));
}

#[test]
fn a_proxy_that_answers_others_is_used_on_though_the_witness_is_silent_and_hardly_asked() {
    let mut client = Client::proven();
    client.answers.clear();
    client.echoes.clear();
    client.pass(200, 1_000, EVIDENCE * 2);
    assert_eq!((client.lost(), client.requests.len()), (vec![], 0));
    assert!(client.echoes.len() < 30, "{}", client.echoes.len());
}

#[test]
fn nobody_is_asked_while_no_packets_flow() {
    let mut client = Client::proven();
    client.pass(100, 0, 0);
    client.echoes.clear();
    client.answers.clear();
    client.pass(1_000, 0, 0);
    assert!(client.echoes.is_empty(), "{:?}", client.echoes);
    assert_eq!(client.lost(), []);
    client.flow(30);
    assert_eq!(
        client.lost(),
        [SMALLER],
        "it is noticed when they flow again"
    );
}

#[test]
fn a_prefix_that_nobody_else_serves_is_not_watched() {
    let mut client = Client::new(&[FAR]);
    client.answers.push((addr(FAR), SMALLER));
    let alone = record(SERVED, SMALLER, Ttl::from_minutes(15));
    let told = client.bench.notify(1, &alone);
    client.follow(told);
    client.flow(100);
    assert!(client.echoes.is_empty(), "{:?}", client.echoes);
}

#[test]
fn what_packets_wanted_becomes_a_witness_if_it_answers() {
    let mut client = Client::new(&[]);
    client.flow(100);
    let seeking = client.echoes.len();
    assert!((3..10).contains(&seeking), "once in a second: {seeking}");
    assert_eq!(client.lost(), [], "it has never answered");
    client.answers.push((addr(FAR), SMALLER));
    client.flow(60);
    client.answers.clear();
    client.flow(10);
    assert_eq!(client.lost(), [SMALLER]);
}

#[test]
fn where_nobody_beyond_answers_the_proxy_itself_is_asked() {
    let mut client = Client::new(&[]);
    let own = record("10.0.1.1/32", SMALLER, Ttl::from_minutes(15));
    let told = client.bench.notify(1, &own);
    client.follow(told);
    client.answers.push((addr("10.0.1.1"), SMALLER));
    client.flow(200);
    assert_eq!(client.lost(), []);
    client.answers.clear();
    client.flow(10);
    assert_eq!(client.lost(), [SMALLER]);
}

#[test]
fn a_witness_that_goes_takes_a_client_to_the_next_proxy_at_most() {
    let mut client = Client::proven();
    client.answers.clear();
    client.flow(10);
    client.answered(&served_by(BIGGER, SMALLER));
    client.counts.insert(BIGGER, (92, 148));
    client.flow(30);
    assert_eq!(client.lost(), [SMALLER, BIGGER]);
    assert_eq!(client.unreachable(), [SMALLER, BIGGER]);
    client.answered(&served_by(BIGGER, SMALLER));
    client.requests.clear();
    let looks = LOST_FOR.as_millis() * 3 / PROBE_EVERY.as_millis();
    client.flow(u32::try_from(looks).unwrap());
    assert_eq!(
        client.lost(),
        [SMALLER, BIGGER],
        "nothing can be said any more"
    );
    assert_eq!(client.serves(addr(FAR)), BIGGER);
}

#[test]
fn a_proxy_that_does_not_answer_either_is_named_as_well_and_soon() {
    let mut client = Client::proven();
    client.answers.clear();
    client.flow(10);
    client.answered(&served_by(BIGGER, SMALLER));
    let before = client.requests.len();
    client.flow(15);
    assert_eq!(client.lost(), [SMALLER, BIGGER]);
    assert!(client.requests.len() > before);
    assert_eq!(client.unreachable(), [SMALLER, BIGGER]);
    assert_eq!(client.serves(addr(FAR)), SMALLER);
}

#[test]
fn a_proxy_that_answers_again_is_not_named_any_more() {
    let mut client = Client::proven();
    client.answers.clear();
    client.flow(10);
    client.answered(&served_by(SMALLER, BIGGER));
    client.answers.push((addr(FAR), SMALLER));
    client.flow(2);
    assert!(client.events.contains(&Event::ProxyFound { key: SMALLER }));
    let later = VERDICTS.as_millis() * 2 / PROBE_EVERY.as_millis();
    client.flow(u32::try_from(later).unwrap());
    assert_eq!(client.lost(), [SMALLER]);
}

#[test]
fn an_answer_that_nobody_asked_for_says_nothing() {
    let mut client = Client::proven();
    client.answers.clear();
    for number in 0..2_000 {
        let from = addr("10.200.0.11");
        let told = client.bench.input(Input::EchoAnswered { from, number });
        assert_eq!(story(&told), [""; 0]);
    }
    client.flow(10);
    assert_eq!(client.lost(), [SMALLER]);
}

#[test]
fn the_watch_ends_with_the_mapping() {
    let mut client = Client::proven();
    let gone = Record {
        ttl: Ttl::WITHDRAW,
        locators: Vec::new(),
        ..served_by(SMALLER, BIGGER)
    };
    let told = client.bench.notify(1, &gone);
    client.follow(told);
    client.echoes.clear();
    for _ in 0..20 {
        let actions = client.bench.after(LOOK_IDLE);
        client.follow(actions);
    }
    assert!(client.echoes.is_empty(), "{:?}", client.echoes);
    assert!(client.bench.agent.failover.is_over());
}
