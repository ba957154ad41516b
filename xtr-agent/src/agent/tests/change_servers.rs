//! Other map servers take the place of those that there were.

use lisp_proto::verify;

use super::reconfigure::registered;
use super::*;

const OTHER: &str = "[fd4c:2::1]:4342";

fn other_key() -> AuthKey {
    AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"another secret")
}

impl Bench {
    /// The map server at `address`, which has this key, takes the place of the one before.
    fn join(&mut self, address: &str, key: AuthKey) -> Vec<Action> {
        let servers = vec![MapServer {
            address: address.parse().unwrap(),
            key,
            outer: None,
        }];
        let (mut actions, control) = (Actions::default(), addr("fd4c:2::a"));
        self.agent.join(self.now, servers, control, &mut actions);
        actions.drain().collect()
    }

    fn leave(&mut self) -> Vec<Action> {
        let mut actions = Actions::default();
        self.agent.leave(self.now, &mut actions);
        actions.drain().collect()
    }

    /// A Map-Notify from `address` that is signed with `key`.
    fn told(
        &mut self,
        (address, key): (&str, &AuthKey),
        nonce: u64,
        records: &[Record],
    ) -> Vec<Action> {
        let mut bytes = Vec::new();
        let nonce = Nonce(nonce);
        encode_map_notify(
            &NotifyParams {
                nonce,
                records,
                handoff: None,
            },
            key,
            &mut bytes,
        )
        .unwrap();
        self.input(Input::Datagram {
            src: address.parse().unwrap(),
            bytes: &bytes,
        })
    }
}

fn receivers(actions: &[Action]) -> Vec<SocketAddr> {
    let receivers = actions.iter().filter_map(|action| match action {
        Action::Send { dst, .. } => Some(*dst),
        _ => None,
    });
    receivers.collect()
}

fn own(ttl: Ttl) -> [Record; 2] {
    ["10.0.0.1/32", "fd00:1::1/128"].map(|eid| record(eid, OWN, ttl))
}

/// The nonce of the last Map-Register in `actions`.
fn register_nonce(actions: &[Action]) -> u64 {
    let messages = sent(actions).into_iter().map(|it| decode(it).unwrap());
    let nonces = messages.filter_map(|message| match message {
        Message::MapRegister(register) => Some(register.nonce.0),
        _ => None,
    });
    nonces.last().unwrap()
}

/// An agent that is registered, and subscribed to `10.0.0.7/32`, by an answer with that nonce.
fn subscribed() -> (Bench, u64) {
    let mut bench = Bench::with(Config {
        subscriptions: vec![net("10.0.0.7/32")],
        ..Bench::config()
    });
    bench.input(Input::Start);
    let asked = bench.notify_all(1000, &own(Ttl::from_minutes(15)));
    let nonce = requests(&asked)[0].nonce.0;
    let there = record("10.0.0.7/32", SMALLER, Ttl::from_minutes(15));
    let installing = bench.notify(nonce, &there);
    bench.done(&installing);
    (bench, nonce)
}

#[test]
fn a_map_server_that_is_left_is_told_until_it_acknowledges_and_nobody_is_asked_meanwhile() {
    let (mut bench, _) = subscribed();
    let told = bench.leave();
    assert_eq!(story(&told), ["request", "register"], "tunnels stay");
    let withdrawn = ["10.0.0.1/32", "fd00:1::1/128"].map(|eid| (eid.to_owned(), Ttl::WITHDRAW));
    assert_eq!(registered(&told), withdrawn);
    assert_eq!(requests(&told)[0].itr_rlocs().next().unwrap().ip(), None);
    let caught = bench.input(Input::TunPacket(&packet("10.0.0.1", "10.0.0.9", &[1])));
    assert_eq!(story(&caught), [""; 0]);

    let again = bench.after(limits::FAREWELL_RETRY);
    assert_eq!(registered(&again), withdrawn);
    let unsubscribing = requests(&again)[0].nonce.0;
    assert_eq!(requests(&again).len(), 1, "only the subscription ends");
    assert!(!bench.agent.has_left());
    bench.notify_all(register_nonce(&again), &own(Ttl::WITHDRAW));
    assert!(!bench.agent.has_left());
    let there = record("10.0.0.7/32", SMALLER, Ttl::from_minutes(15));
    bench.notify(unsubscribing, &there);
    assert!(bench.agent.has_left());
    let later = bench.after(limits::FAREWELL_RETRY * 2);
    assert_eq!(registered(&later), []);
}

#[test]
fn what_was_asked_and_subscribed_to_starts_anew_at_another_map_server_and_tunnels_stay() {
    let (mut bench, latest) = subscribed();
    bench.connect(latest + 1, &far_end(SMALLER), 92);
    let asked = bench.input(Input::TunPacket(&packet("10.0.0.1", "10.0.0.9", &[1])));
    let nonce = requests(&asked)[0].nonce;
    bench.leave();
    let joined = bench.join(OTHER, other_key());
    assert_eq!(story(&joined), ["register"], "no peer and no route changes");
    assert_eq!(receivers(&joined), [OTHER.parse().unwrap()]);
    verify(&other_key(), sent(&joined)[0]).unwrap();
    assert!(
        registered(&joined)
            .iter()
            .all(|(_, ttl)| *ttl != Ttl::WITHDRAW)
    );

    let tick = bench.after(Duration::ZERO);
    assert_eq!(story(&tick), ["request"]);
    assert_eq!(receivers(&tick), [OTHER.parse().unwrap()]);
    let again = &requests(&tick)[0];
    assert_eq!(again.nonce, nonce);
    let answer_to: Vec<_> = again.itr_rlocs().filter_map(|rloc| rloc.ip()).collect();
    assert_eq!(answer_to, [addr("fd4c:2::a")]);
    let more = record("10.0.0.3/32", BIGGER, Ttl::from_minutes(15));
    assert_eq!(story(&bench.notify(5, &more)), ["NotAMapServer"]);

    let own = own(Ttl::from_minutes(15));
    let nonce = register_nonce(&joined);
    let subscribes = bench.told((OTHER, &other_key()), nonce, &own);
    let eids: Vec<_> = requests(&subscribes)
        .iter()
        .map(|it| it.eids().next())
        .collect();
    assert!(eids[0].is_some_and(|eid| eid.subscribe));
    assert_eq!(receivers(&subscribes), [OTHER.parse().unwrap()]);
    // It counts from the beginning, and that is not too old.
    let pushed = bench.told((OTHER, &other_key()), 1, std::slice::from_ref(&more));
    assert_eq!(story(&pushed), ["peer [10.0.0.3/32]"]);
    let through = bench.input(Input::TunPacket(&to_far_end(&[3])));
    assert_eq!(story(&through), ["sent on 3"]);
}

#[test]
fn a_map_server_that_is_reached_in_another_way_is_the_one_that_was_known() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    bench.notify_all(1000, &own(Ttl::from_minutes(15)));
    bench.connect(500, &far_end(SMALLER), 92);
    bench.join(OTHER, key());
    let replayed = bench.told((OTHER, &key()), 1, &[far_end(BIGGER)]);
    assert_eq!(story(&replayed), ["StaleNotify"]);
    let again = bench.told((OTHER, &key()), 500, &[far_end(SMALLER)]);
    assert_eq!(story(&again), ["ack"], "it has heard no acknowledgement");
    assert!(bench.agent.acknowledged(0).is_some());
}

#[test]
fn what_a_map_server_refused_is_asked_of_the_next_one_at_once() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let to = packet("10.0.0.1", "10.0.0.9", &[1]);
    let asked = bench.input(Input::TunPacket(&to));
    let nobody = Record {
        locators: Vec::new(),
        ..record("10.0.0.9/32", OWN, Ttl::from_minutes(15))
    };
    bench.reply(requests(&asked)[0].nonce, &nobody);
    bench.now = bench.now + Duration::from_secs(1);
    let refused = bench.input(Input::TunPacket(&to));
    assert!(requests(&refused).is_empty());
    bench.now = bench.now + Duration::from_secs(1);
    bench.join(OTHER, other_key());
    let asked = bench.input(Input::TunPacket(&to));
    assert_eq!(requests(&asked).len(), 1);
    assert_eq!(receivers(&asked), [OTHER.parse().unwrap()]);
}

#[test]
fn an_agent_that_stops_joins_nobody() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    bench.input(Input::Shutdown);
    assert_eq!(bench.leave(), []);
    assert_eq!(bench.join(OTHER, other_key()), []);
}
