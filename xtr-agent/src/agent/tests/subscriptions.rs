//! Destinations that are kept ready: subscribe, follow, renew, unsubscribe (RFC 9437).

use super::*;

const SUBSCRIBED: &str = "10.0.0.7/32";
/// Where the nonces of subscriptions begin.
const NONCES: u64 = 1 << 62;

fn ttl() -> Ttl {
    Ttl::from_minutes(15)
}

/// An agent that wants `SUBSCRIBED` ready and has not started.
fn bench() -> Bench {
    let mut config = Bench::config();
    config.subscriptions = vec![net(SUBSCRIBED)];
    Bench::with(config)
}

/// The answer to the registration of a bench.
fn register(bench: &mut Bench) -> Vec<Action> {
    bench.input(Input::Start);
    bench.notify(1000, &record("10.0.0.1/32", OWN, ttl()))
}

/// An agent that has registered and subscribed, and the nonce of its request.
fn asked() -> (Bench, u64) {
    let mut bench = bench();
    let actions = register(&mut bench);
    let nonce = requests(&actions)[0].nonce.0;
    (bench, nonce)
}

/// An agent that is subscribed, with the mapping in its data plane.
fn ready() -> (Bench, u64) {
    let (mut bench, nonce) = asked();
    let answered = bench.notify(nonce, &record(SUBSCRIBED, SMALLER, ttl()));
    let installed = bench.done(&answered);
    bench.done(&installed);
    (bench, nonce)
}

/// When the agent asks next, and what.
fn next_request(bench: &mut Bench) -> (Duration, Vec<Action>) {
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

fn events(actions: &[Action]) -> Vec<&Event> {
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
fn a_map_server_that_has_forgotten_how_far_it_counted_is_told_by_a_subscription() {
    let (mut bench, nonce) = ready();
    let news = record(SUBSCRIBED, BIGGER, ttl());
    bench.notify(nonce + 1_000, &record(SUBSCRIBED, SMALLER, ttl()));
    let late = bench.notify(nonce + 5, &news);
    assert_eq!(story(&late), ["StaleNotify"], "it may just be late");
    bench.after(limits::NONCES_BEHIND);
    let asked = bench.notify(nonce + 6, &news);
    assert_eq!(story(&asked), ["StaleNotify", "request"]);
    let renewed = requests(&asked)[0].nonce.0;
    assert!(renewed > nonce);
    bench.notify(renewed, &news);
    let moved = bench.notify(renewed + 1, &record(SUBSCRIBED, SMALLER, ttl()));
    assert!(story(&moved).contains(&"peer [10.0.0.7/32]".to_owned()));
    bench.notify(7, &news);
    bench.after(limits::NONCES_BEHIND);
    let soon = bench.notify(8, &news);
    assert!(requests(&soon).is_empty(), "it was told just now");
}

#[test]
fn a_map_server_that_counts_below_all_subscriptions_is_told_at_once() {
    let (mut bench, nonce) = ready();
    let asked = bench.notify(5, &record(SUBSCRIBED, BIGGER, ttl()));
    assert_eq!(story(&asked), ["StaleNotify", "request"]);
    assert!(requests(&asked)[0].nonce.0 > nonce);
}

#[test]
fn news_that_happens_to_have_the_nonce_of_a_subscription_is_no_answer() {
    let (mut bench, nonce) = asked();
    let news = bench.notify(nonce, &record("10.0.0.9/32", BIGGER, ttl()));
    assert_eq!(story(&news), ["peer [10.0.0.9/32]"]);
    assert_eq!(story(&bench.done(&news)), ["ack"]);
    let answer = bench.notify(nonce, &record(SUBSCRIBED, SMALLER, ttl()));
    let eid = SUBSCRIBED.parse().unwrap();
    assert!(events(&answer).contains(&&Event::Subscribed { eid }));
    assert_eq!(story(&answer), ["peer [10.0.0.7/32]"]);
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
fn nonces_of_subscriptions_are_above_what_the_map_server_has_counted_to() {
    let (mut bench, nonce) = ready();
    assert!(nonce > NONCES);
    bench.notify(nonce + 100, &far_end(BIGGER));
    let (_, renewal) = next_request(&mut bench);
    let renewed = requests(&renewal)[0].nonce.0;
    assert!(renewed > nonce + 100);
    let persisted = bench.agent.register_nonce().0;
    assert!(persisted + NONCES > renewed, "also after a restart");
}

#[test]
fn publications_never_have_the_nonce_of_a_registration() {
    let (mut bench, nonce) = ready();
    // The map server goes on counting from the request.
    for n in 1..50 {
        let far = record(&format!("10.0.1.{n}/32"), BIGGER, ttl());
        let told = bench.notify(nonce + n, &far);
        assert_eq!(story(&told).len(), 1, "{:?}", story(&told));
        bench.done(&told);
    }
    let own = (1000..bench.agent.register_nonce().0).contains(&(nonce + 1));
    assert!(!own);
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
fn publications_are_followed_with_more_specifics_and_withdrawals() {
    let mut config = Bench::config();
    config.subscriptions = vec![net("10.0.2.0/24")];
    let mut bench = Bench::with(config);
    let actions = register(&mut bench);
    let nonce = requests(&actions)[0].nonce.0;
    let answered = bench.notify(nonce, &record("10.0.2.0/24", SMALLER, ttl()));
    let installed = bench.done(&answered);
    bench.done(&installed);
    let inner = record("10.0.2.128/25", BIGGER, ttl());
    let more = bench.notify(nonce + 1, &inner);
    assert_eq!(story(&more), ["peer [10.0.2.128/25]"]);
    assert_eq!(story(&bench.done(&more)), ["ack"]);
    let fired = bench.after(limits::PASSIVE_WAIT);
    assert_eq!(story(&fired), ["kick", "route 10.0.2.128/25"]);
    let moved = bench.notify(nonce + 2, &record("10.0.2.0/24", PublicKey([3; 32]), ttl()));
    assert_eq!(story(&moved), ["peer [10.0.2.0/24]", "no peer"]);
    let gone = Record {
        ttl: Ttl::WITHDRAW,
        ..inner
    };
    let gone = bench.notify(nonce + 3, &gone);
    assert_eq!(story(&gone), ["no route 10.0.2.128/25", "no peer"]);
}

#[test]
fn lost_and_overtaken_publications_leave_the_latest_word() {
    let (mut bench, nonce) = ready();
    let newest = bench.notify(nonce + 5, &record(SUBSCRIBED, BIGGER, ttl()));
    bench.done(&newest);
    for late in [3, 1] {
        let late = bench.notify(nonce + late, &record(SUBSCRIBED, SMALLER, Ttl::WITHDRAW));
        assert_eq!(story(&late), ["StaleNotify", "ack"]);
    }
    let again = bench.notify(nonce + 5, &record(SUBSCRIBED, BIGGER, ttl()));
    assert_eq!(story(&again), ["ack"]);
    let keys: Vec<_> = bench.agent.peers().map(|peer| peer.key).collect();
    assert_eq!(keys, [BIGGER]);
}

#[test]
fn an_answer_overtaken_by_publications_is_accepted_once_and_undoes_nothing() {
    let (mut bench, nonce) = asked();
    let newer = bench.notify(nonce + 1_000, &record(SUBSCRIBED, BIGGER, ttl()));
    bench.done(&newer);
    let answer = bench.notify(nonce, &record("10.0.0.0/29", SMALLER, ttl()));
    assert!(matches!(events(&answer)[0], Event::Subscribed { .. }));
    let again = bench.notify(nonce, &record("10.0.0.0/29", SMALLER, ttl()));
    assert_eq!(story(&again), ["StaleNotify"], "once");
    let entry = bench.agent.cache.get(&net(SUBSCRIBED)).unwrap();
    assert_eq!(entry.chosen.unwrap().key, BIGGER);
}

#[test]
fn a_withdrawal_of_what_is_subscribed_to_asks_soon_who_serves_it_now() {
    let (mut bench, nonce) = ready();
    let gone = bench.notify(nonce + 1, &record(SUBSCRIBED, SMALLER, Ttl::WITHDRAW));
    assert_eq!(story(&gone), ["no route 10.0.0.7/32", "no peer"]);
    bench.done(&gone);
    let (pause, actions) = next_request(&mut bench);
    assert!(pause <= Duration::from_secs(1));
    let nonce = requests(&actions)[0].nonce.0;
    let answered = bench.notify(nonce, &record("10.0.0.0/24", BIGGER, ttl()));
    assert_eq!(story(&answered), ["peer [10.0.0.0/24]"]);
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
fn an_answer_with_more_specifics_gives_each_its_peer() {
    let mut config = Bench::config();
    config.subscriptions = vec![net("10.0.2.0/24")];
    let mut bench = Bench::with(config);
    let actions = register(&mut bench);
    let nonce = requests(&actions)[0].nonce;
    let records = [
        record("10.0.0.0/16", SMALLER, ttl()),
        record("10.0.2.128/25", BIGGER, ttl()),
        record("10.0.9.0/24", PublicKey([3; 32]), ttl()),
    ];
    let mut bytes = Vec::new();
    let params = NotifyParams {
        nonce,
        records: &records,
    };
    encode_map_notify(&params, &key(), &mut bytes).unwrap();
    let answered = bench.heard(&bytes);
    assert_eq!(
        story(&answered),
        ["peer [10.0.2.0/24]", "peer [10.0.2.128/25]"],
        "and nothing of what was not asked for"
    );
}

#[test]
fn a_part_that_nobody_serves_takes_nothing_from_the_rest_of_an_answer() {
    let mut config = Bench::config();
    config.subscriptions = vec![net("10.0.2.0/24")];
    let mut bench = Bench::with(config);
    let actions = register(&mut bench);
    let nonce = requests(&actions)[0].nonce;
    let mut none = record("10.0.2.128/25", OWN, Ttl::from_minutes(1));
    none.locators.clear();
    none.action = MapAction::Drop;
    let records = [record("10.0.2.0/24", SMALLER, ttl()), none];
    let mut bytes = Vec::new();
    let params = NotifyParams {
        nonce,
        records: &records,
    };
    encode_map_notify(&params, &key(), &mut bytes).unwrap();
    assert_eq!(story(&bench.heard(&bytes)), ["peer [10.0.2.0/24]"]);
    let to = packet("10.0.0.1", "10.0.2.200", &[1]);
    assert_eq!(
        story(&bench.input(Input::TunPacket(&to))),
        ["NegativeMapping", "icmp"]
    );
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
fn a_push_to_a_stopping_agent_is_acknowledged_and_not_installed() {
    let (mut bench, nonce) = ready();
    bench.input(Input::Shutdown);
    let told = bench.notify(nonce + 1, &far_end(BIGGER));
    assert_eq!(story(&told), ["ack"]);
    assert_eq!(bench.agent.peers().count(), 0);
}

#[test]
fn every_map_server_is_subscribed_at() {
    let mut config = Bench::config();
    config.subscriptions = vec![net(SUBSCRIBED)];
    let other = "[fd4c:1::2]:4342".parse().unwrap();
    config.map_servers.push(MapServer {
        address: other,
        key: key(),
    });
    let mut bench = Bench::with(config);
    bench.input(Input::Start);
    let own = record("10.0.0.1/32", OWN, ttl());
    let first = bench.notify(1000, &own);
    let mut bytes = Vec::new();
    let params = NotifyParams {
        nonce: Nonce(1001),
        records: &[own],
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
