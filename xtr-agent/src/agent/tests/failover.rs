//! A proxy that leads nowhere is left for another one.

use lisp_proto::Gap;

use super::*;
use crate::agent::limits::{EVIDENCE, GUARDED, LOOK_IDLE, PROBE_EVERY, VERDICTS};

mod gaps;
mod next;
mod witnesses;

const SERVED: &str = "10.200.0.0/16";
const FAR: &str = "10.200.0.10";

/// Another one that may serve, if a record names it.
const THIRD: PublicKey = PublicKey([8; 32]);

/// What is served by both, first of all by the first.
fn served_by(first: PublicKey, second: PublicKey) -> Record {
    served_by_all(SERVED, &[first, second])
}

/// What is served by all of these, first of all by the first.
fn served_by_all(prefix: &str, keys: &[PublicKey]) -> Record {
    let mut record = record(prefix, keys[0], Ttl::from_minutes(15));
    let mut template = record.locators.remove(0);
    for key in keys {
        let endpoint = SocketAddr::new([192, 0, 2, key.0[0]].into(), 51820);
        template.rloc = Rloc::WireGuard {
            endpoint,
            key: *key,
        };
        record.locators.push(template);
        template.priority = 129;
    }
    record
}

/// An agent on a bench, and what its data plane counts.
struct Client {
    bench: Bench,
    counts: BTreeMap<PublicKey, (u64, u64)>,
    /// Who answers echoes, through whom.
    answers: Vec<(IpAddr, PublicKey)>,
    /// Where its packets go.
    far: IpAddr,
    /// Whether echoes can be sent.
    sends: bool,
    /// What is heard when it listens, and how often it does.
    heard: Vec<IpAddr>,
    listens: u32,
    /// Echoes that were sent, and Map-Requests.
    echoes: Vec<IpAddr>,
    requests: Vec<Bytes>,
    events: Vec<Event>,
}

impl Client {
    /// One that knows nothing yet.
    fn unconnected(config: Config) -> Self {
        Self {
            bench: Bench::with(config),
            counts: BTreeMap::new(),
            answers: Vec::new(),
            far: addr(FAR),
            sends: true,
            heard: Vec::new(),
            listens: 0,
            echoes: Vec::new(),
            requests: Vec::new(),
            events: Vec::new(),
        }
    }

    /// One that uses `SMALLER` and could use `BIGGER`, and has asked for `FAR`.
    fn new(witnesses: &[&str]) -> Self {
        Self::far_away(witnesses, Duration::ZERO)
    }

    /// The same, where the answer has taken so long.
    fn far_away(witnesses: &[&str], took: Duration) -> Self {
        let mut client = Self::unconnected(Config {
            witnesses: witnesses.iter().map(|text| addr(text)).collect(),
            ..Bench::config()
        });
        client.asks(took);
        client.connected();
        client
    }

    /// Has a packet for `FAR`, and is answered.
    fn asks(&mut self, took: Duration) {
        let wanted = packet("10.0.0.1", FAR, b"x");
        let asked = self.bench.input(Input::TunPacket(&wanted));
        let nonce = requests(&asked)[0].nonce;
        self.bench.now = self.bench.now + took;
        let answer = self.bench.reply(nonce, &served_by(SMALLER, BIGGER));
        self.follow(answer);
    }

    /// Shakes hands with `SMALLER`.
    fn connected(&mut self) {
        let shaken = self.bench.handshake(SMALLER, 92);
        self.counts.insert(SMALLER, (92, 148));
        self.follow(shaken);
    }

    /// The same, with a witness beyond both proxies that answers through the first one.
    fn proven() -> Self {
        Self::new(&[FAR]).proves()
    }

    fn proves(mut self) -> Self {
        self.answers.push((self.far, SMALLER));
        self.flow(40);
        assert!(!self.echoes.is_empty());
        self.requests.clear();
        self
    }

    /// `SMALLER` is found lost; the map server answers that these serve.
    fn loses(&mut self, keys: &[PublicKey]) {
        self.answers.clear();
        self.flow(10);
        assert_eq!(self.unreachable(), [SMALLER]);
        self.answered(&served_by_all(SERVED, keys));
    }

    /// Carries out what the agent wants, and all that follows.
    fn follow(&mut self, actions: Vec<Action>) {
        let mut actions = std::collections::VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let more = match action {
                Action::Apply { id, .. } => self.bench.input(Input::Applied { id, ok: true }),
                Action::ReadPeerStats(keys) | Action::ReadPeerStatsAnew(keys) => self.read(&keys),
                Action::Echo { to, number } => self.echo(to, number),
                Action::Listen => {
                    self.listens += 1;
                    Vec::new()
                }
                Action::Hear => self.bench.input(Input::Heard(&self.heard)),
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
                endpoint: None,
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
        if !self.sends {
            return self.bench.input(Input::EchoNotSent(number));
        }
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

    /// The same without packets.
    fn idle(&mut self, times: u32) {
        for _ in 0..times {
            let actions = self.bench.after(PROBE_EVERY);
            self.follow(actions);
        }
    }

    fn pass(&mut self, times: u32, sent: u64, received: u64) {
        for _ in 0..times {
            let used = self.serves(self.far);
            let count = self.counts.entry(used).or_default();
            count.0 += received;
            count.1 += sent;
            let actions = self.bench.after(PROBE_EVERY);
            self.follow(actions);
        }
    }

    fn asked(&self) -> impl DoubleEndedIterator<Item = MapRequest<'_>> {
        self.requests.iter().map(|bytes| match decode(bytes) {
            Ok(Message::MapRequest(request)) => request,
            other => panic!("{other:?}"),
        })
    }

    /// The keys that the latest Map-Request says cannot be reached, but for those that tell of a gap.
    fn unreachable(&self) -> Vec<PublicKey> {
        let mut asked = self.asked().filter(|request| request.gap().is_none());
        let request = asked.next_back().unwrap();
        let record = request.source_record().unwrap().to_record(0).unwrap();
        let keys = record
            .locators
            .into_iter()
            .map(|locator| match locator.rloc {
                Rloc::WireGuard { key, .. } if !locator.reachable => key,
                other => panic!("{other:?}"),
            });
        let mut keys: Vec<_> = keys.collect();
        keys.sort();
        keys
    }

    /// Answers all Map-Requests.
    fn answered(&mut self, record: &Record) {
        let nonces: BTreeSet<_> = self.asked().map(|request| request.nonce).collect();
        for nonce in nonces {
            let actions = self.bench.reply(nonce, record);
            self.follow(actions);
        }
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
fn a_client_without_addresses_of_a_family_asks_for_the_other_one() {
    let far = "fd00:1:0:200::10";
    let mut client = Client::unconnected(Config {
        eid_prefixes: vec![net("fd00:1::1/128")],
        witnesses: vec![addr(far)],
        ..Bench::config()
    });
    client.far = addr(far);
    let keys = [SMALLER, BIGGER];
    let both = [SERVED, "fd00:1:0:200::/64"].map(|prefix| served_by_all(prefix, &keys));
    let told = client.bench.notify_all(1, &both);
    client.follow(told);
    client.connected();
    let mut client = client.proves();
    client.answers.clear();
    client.flow(10);
    assert_eq!(client.lost(), [SMALLER]);
    assert_eq!(client.unreachable(), [SMALLER]);
}

#[test]
fn an_echo_that_cannot_be_sent_says_nothing() {
    let mut client = Client::proven();
    client.sends = false;
    client.flow(100);
    assert_eq!(client.lost(), []);
    client.sends = true;
    client.answers.clear();
    client.flow(10);
    assert_eq!(client.lost(), [SMALLER]);
}

#[test]
fn a_mapping_is_watched_on_when_there_is_no_room_for_more() {
    let mut client = Client::new(&[]);
    let agent = &mut client.bench.agent;
    let now = client.bench.now;
    for number in 0..GUARDED {
        let prefix = net(&format!("10.{}.{}.0/24", number / 256, number % 256));
        agent.note_alternatives(now, prefix, &served_by(SMALLER, BIGGER));
    }
    let last = net("10.3.255.0/24");
    assert!(!agent.failover.has_alternatives(&last));
    for _ in 0..2 {
        agent.note_alternatives(now, net(SERVED), &served_by(SMALLER, BIGGER));
        assert!(agent.failover.has_alternatives(&net(SERVED)));
    }
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
