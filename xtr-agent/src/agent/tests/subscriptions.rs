//! Destinations that are kept ready: subscribe, follow, renew, unsubscribe (RFC 9437).

use super::*;

pub(super) const SUBSCRIBED: &str = "10.0.0.7/32";

pub(super) fn ttl() -> Ttl {
    Ttl::from_minutes(15)
}

/// An agent that wants `SUBSCRIBED` ready and has not started.
fn bench() -> Bench {
    let mut config = Bench::config();
    config.subscriptions = vec![net(SUBSCRIBED)];
    Bench::with(config)
}

/// The answer to the registration of a bench.
pub(super) fn register(bench: &mut Bench) -> Vec<Action> {
    bench.input(Input::Start);
    bench.notify(1000, &record("10.0.0.1/32", OWN, ttl()))
}

/// An agent that has registered and subscribed, and the nonce of its request.
pub(super) fn asked() -> (Bench, u64) {
    let mut bench = bench();
    let actions = register(&mut bench);
    let nonce = requests(&actions)[0].nonce.0;
    (bench, nonce)
}

/// An agent that is subscribed, with the mapping in its data plane.
pub(super) fn ready() -> (Bench, u64) {
    let (mut bench, nonce) = asked();
    let answered = bench.notify(nonce, &record(SUBSCRIBED, SMALLER, ttl()));
    let installed = bench.done(&answered);
    bench.done(&installed);
    (bench, nonce)
}

/// When the agent asks next, and what.
pub(super) fn next_request(bench: &mut Bench) -> (Duration, Vec<Action>) {
    let start = bench.now;
    for _ in 0..10_000 {
        let next = bench.agent.next_deadline().unwrap();
        let actions = bench.after(next - bench.now);
        if !requests(&actions).is_empty() {
            return (bench.now - start, actions);
        }
        let nonces: Vec<_> = registers(&actions);
        for nonce in nonces {
            bench.notify(nonce.0, &record("10.0.0.1/32", OWN, ttl()));
        }
    }
    panic!("it never asks");
}

fn registers(actions: &[Action]) -> Vec<Nonce> {
    let messages = sent(actions)
        .into_iter()
        .map(|bytes| decode(bytes).unwrap());
    let registers = messages.filter_map(|message| match message {
        Message::MapRegister(register) => Some(register.nonce),
        _ => None,
    });
    registers.collect()
}

pub(super) fn events(actions: &[Action]) -> Vec<&Event> {
    let events = actions.iter().filter_map(|action| match action {
        Action::Event(event) => Some(event),
        _ => None,
    });
    events.collect()
}

fn negative_reply(bench: &mut Bench, nonce: u64, action: MapAction) -> Vec<Action> {
    let mut none = record(SUBSCRIBED, OWN, Ttl::from_minutes(1));
    none.locators.clear();
    none.action = action;
    bench.reply(Nonce(nonce), &none)
}

#[test]
fn an_owner_hears_from_whoever_renews_a_subscription_to_it() {
    let (mut bench, _) = ready();
    let (_, asked) = next_request(&mut bench);
    let nonce = requests(&asked)[0].nonce.0;
    let renewed = bench.notify(nonce, &record(SUBSCRIBED, SMALLER, ttl()));
    assert_eq!(story(&renewed), ["ack"]);
    assert_eq!(story(&bench.after(limits::PASSIVE_WAIT)), ["kick"]);
}

#[test]
fn a_subscription_is_a_map_request_with_identity_and_the_n_bit() {
    let mut bench = bench();
    assert_eq!(
        story(&bench.input(Input::Start)),
        ["register"],
        "not before it is registered"
    );
    let asked = bench.notify(1000, &record("10.0.0.1/32", OWN, ttl()));
    let request = &requests(&asked)[0];
    assert_eq!(request.ids, Some((XtrId([7; 16]), SiteId([0; 8]))));
    let eids: Vec<_> = request.eids().collect();
    assert!(eids.len() == 1 && eids[0].subscribe);
    assert_eq!(eids[0].eid.to_string(), SUBSCRIBED);
    let to: Vec<_> = request.itr_rlocs().map(|rloc| rloc.ip()).collect();
    assert_eq!(to, [Some(addr("fd4c:1::a"))]);
    assert_eq!(
        request.source_eid(),
        Some((InstanceId(0), addr("10.0.0.1")))
    );
    let again = bench.after(Duration::from_secs(80));
    assert_eq!(registers(&again).len(), 1);
    let confirmed = bench.notify(1001, &record("10.0.0.1/32", OWN, ttl()));
    assert!(
        requests(&confirmed).is_empty(),
        "once, not at every registration"
    );
}

#[test]
fn what_is_subscribed_to_is_ready_before_the_first_packet() {
    let (mut bench, nonce) = asked();
    let answered = bench.notify(nonce, &record(SUBSCRIBED, SMALLER, ttl()));
    assert_eq!(story(&answered), ["peer [10.0.0.7/32]"]);
    assert!(matches!(events(&answered)[0], Event::Subscribed { .. }));
    let installed = bench.done(&answered);
    assert_eq!(
        story(&installed),
        ["route 10.0.0.7/32", "ack"],
        "acknowledged when the data plane has it"
    );
    assert_eq!(
        story(&bench.notify(nonce, &record(SUBSCRIBED, SMALLER, ttl()))),
        ["ack"],
        "a lost acknowledgement is repeated"
    );
}

#[test]
fn packets_that_wait_go_with_the_answer_to_a_subscription() {
    let (mut bench, nonce) = asked();
    let to = packet("10.0.0.1", "10.0.0.7", &[1]);
    bench.input(Input::TunPacket(&to));
    let answered = bench.notify(nonce, &record(SUBSCRIBED, SMALLER, ttl()));
    let installed = bench.done(&answered);
    assert_eq!(story(&installed), ["sent on 1", "ack"]);
    let shaken = bench.handshake(SMALLER, 92);
    assert_eq!(story(&shaken), ["route 10.0.0.7/32"]);
}

#[test]
fn an_unanswered_subscription_is_repeated_with_growing_nonces_and_pauses() {
    let (mut bench, first) = asked();
    let (mut before, mut last, mut pauses) = (first, first, Vec::new());
    for _ in 0..9 {
        let (pause, actions) = next_request(&mut bench);
        let nonce = requests(&actions)[0].nonce.0;
        assert!(nonce > last, "the map server drops others");
        before = last;
        last = nonce;
        pauses.push(pause.as_secs_f64());
    }
    assert!((0.75..1.25).contains(&pauses[0]), "{pauses:?}");
    assert!((1.5..2.5).contains(&pauses[1]), "{pauses:?}");
    assert!((45.0..75.0).contains(&pauses[8]), "{pauses:?}");
    // Any of the last ones may be answered.
    let answered = bench.notify(before, &record(SUBSCRIBED, SMALLER, ttl()));
    assert!(matches!(events(&answered)[0], Event::Subscribed { .. }));
    let late = bench.notify(last, &record(SUBSCRIBED, SMALLER, ttl()));
    assert!(!matches!(events(&late)[0], Event::Subscribed { .. }));
    let (pause, _) = next_request(&mut bench);
    assert!(
        pause > Duration::from_secs(100),
        "it is subscribed: {pause:?}"
    );
}

#[test]
fn news_that_happen_to_have_the_nonce_of_a_request_are_no_answer_to_it() {
    let (mut bench, nonce) = asked();
    let other = record("10.0.0.3/32", SMALLER, ttl());
    for records in [
        vec![other.clone()],
        vec![record(SUBSCRIBED, SMALLER, ttl()), other],
    ] {
        let told = bench.notify_all(nonce, &records);
        assert!(
            !events(&told)
                .iter()
                .any(|event| matches!(event, Event::Subscribed { .. }))
        );
    }
    let answered = bench.notify(nonce, &record(SUBSCRIBED, SMALLER, ttl()));
    assert!(
        events(&answered)
            .iter()
            .any(|event| matches!(event, Event::Subscribed { .. }))
    );
}

#[test]
fn a_subscription_is_renewed_at_half_its_time_or_ten_minutes() {
    for (minutes, most) in [(2, 60.0), (15, 450.0), (1440, 600.0)] {
        let (mut bench, nonce) = asked();
        let ttl = Ttl::from_minutes(minutes);
        let answered = bench.notify(nonce, &record(SUBSCRIBED, SMALLER, ttl));
        let installed = bench.done(&answered);
        bench.done(&installed);
        let (pause, actions) = next_request(&mut bench);
        let pause = pause.as_secs_f64();
        assert!((most * 0.4..=most).contains(&pause), "{minutes}: {pause}");
        assert!(requests(&actions)[0].eids().all(|asked| asked.subscribe));
    }
}

#[test]
fn what_is_subscribed_to_stays_ready_without_traffic_and_without_map_servers() {
    let (mut bench, _) = ready();
    for _ in 0..200 {
        bench.after(Duration::from_secs(60));
    }
    assert_eq!(bench.agent.peers().count(), 1, "three hours later");
}

#[test]
fn a_subscription_to_what_nobody_serves_refuses_packets_until_somebody_does() {
    let (mut bench, nonce) = asked();
    let mut hole = record("10.0.0.6/31", OWN, Ttl::from_minutes(1));
    hole.locators.clear();
    hole.action = MapAction::Drop;
    assert_eq!(story(&bench.notify(nonce, &hole)), ["ack"]);
    let to = packet("10.0.0.1", "10.0.0.7", &[1]);
    assert_eq!(
        story(&bench.input(Input::TunPacket(&to))),
        ["NegativeMapping", "icmp"]
    );
    let told = bench.notify(nonce + 1, &record(SUBSCRIBED, SMALLER, ttl()));
    assert_eq!(story(&told), ["peer [10.0.0.7/32]"]);
    bench.done(&told);
    bench.after(limits::PASSIVE_WAIT);
    assert_eq!(story(&bench.input(Input::TunPacket(&to))), ["sent on 1"]);
}

#[test]
fn a_subscription_that_the_map_server_has_ended_is_renewed_and_its_mapping_asked_for() {
    for nonce_of_before in [true, false] {
        let (mut bench, nonce) = ready();
        let mut over = record(SUBSCRIBED, OWN, Ttl::from_minutes(1));
        over.locators.clear();
        over.action = MapAction::AuthFailure;
        let nonce = if nonce_of_before { nonce } else { nonce + 1 };
        assert_eq!(
            story(&bench.notify(nonce, &over)),
            ["request", "ack"],
            "what we have missed"
        );
        assert_eq!(bench.agent.peers().count(), 1);
        let soon: Vec<_> = (0..10)
            .flat_map(|_| bench.after(Duration::from_millis(100)))
            .collect();
        let subscribes = |request: &MapRequest<'_>| request.eids().all(|asked| asked.subscribe);
        assert!(requests(&soon).iter().any(subscribes));
    }
}

#[test]
fn a_refused_subscription_is_tried_again_later_and_refuses_no_packets() {
    let (mut bench, nonce) = asked();
    let refused = negative_reply(&mut bench, nonce, MapAction::PolicyDenied);
    let expected = Event::SubscriptionRefused {
        eid: SUBSCRIBED.parse().unwrap(),
        action: MapAction::PolicyDenied,
    };
    assert_eq!(events(&refused), [&expected]);
    let to = packet("10.0.0.1", "10.0.0.7", &[1]);
    assert_eq!(story(&bench.input(Input::TunPacket(&to))), ["request"]);
    bench.after(Duration::from_secs(3));
    let (pause, actions) = next_request(&mut bench);
    assert!(pause > Duration::from_secs(20), "{pause:?}");
    assert!(requests(&actions)[0].nonce.0 > nonce);
}

#[test]
fn a_map_server_without_pubsub_still_tells_the_mapping() {
    let (mut bench, nonce) = asked();
    let answered = bench.reply(Nonce(nonce), &record(SUBSCRIBED, SMALLER, ttl()));
    assert_eq!(story(&answered), ["peer [10.0.0.7/32]"]);
    let (pause, _) = next_request(&mut bench);
    assert!(pause > Duration::from_secs(20), "{pause:?}");
}

#[test]
fn a_stopping_agent_unsubscribes_until_it_is_heard() {
    let (mut bench, _) = ready();
    let goodbye = bench.input(Input::Shutdown);
    assert_eq!(
        story(&goodbye),
        ["request", "register", "no route 10.0.0.7/32", "no peer"]
    );
    let request = &requests(&goodbye)[0];
    let to: Vec<_> = request.itr_rlocs().collect();
    assert_eq!(to, [lisp_proto::Address::None], "nowhere to publish to");
    assert!(request.eids().all(|asked| asked.subscribe));
    bench.notify(registers(&goodbye)[0].0, &record("10.0.0.1/32", OWN, ttl()));
    let again = bench.after(limits::FAREWELL_RETRY);
    assert_eq!(story(&again), ["request"]);
    let nonce = requests(&again)[0].nonce;
    assert!(nonce > request.nonce && !bench.agent.has_left());
    let mut none = record(SUBSCRIBED, OWN, Ttl::WITHDRAW);
    none.locators.clear();
    assert_eq!(story(&bench.notify(nonce.0, &none)), ["ack"]);
    assert!(bench.agent.has_left());
    assert_eq!(story(&bench.after(Duration::from_secs(300))), [""; 0]);
}

#[test]
fn every_map_server_is_subscribed_at() {
    let mut config = Bench::config();
    config.subscriptions = vec![net(SUBSCRIBED)];
    let other = "[fd4c:1::2]:4342".parse().unwrap();
    config.map_servers.push(MapServer {
        address: other,
        key: key(),
        outer: None,
    });
    let mut bench = Bench::with(config);
    bench.input(Input::Start);
    let own = record("10.0.0.1/32", OWN, ttl());
    let first = bench.notify(1000, &own);
    let mut bytes = Vec::new();
    let params = NotifyParams {
        nonce: Nonce(1001),
        records: &[own],
        handoff: None,
    };
    encode_map_notify(&params, &key(), &mut bytes).unwrap();
    let second = bench.input(Input::Datagram {
        src: other,
        bytes: &bytes,
    });
    let to = |actions: &[Action]| {
        let to = actions.iter().find_map(|action| match action {
            Action::Send { dst, .. } => Some(*dst),
            _ => None,
        });
        to.unwrap()
    };
    assert_eq!([to(&first), to(&second)], [SERVER.parse().unwrap(), other]);
    assert!(requests(&second)[0].nonce > requests(&first)[0].nonce);
}
