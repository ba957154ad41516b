//! What map servers publish: in which order it counts, whose it is, and where nonces begin.

use super::subscriptions::{SUBSCRIBED, asked, events, next_request, ready, register, ttl};
use super::*;

/// Where the nonces of subscriptions begin.
const NONCES: u64 = 1 << 62;

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
        handoff: None,
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
        handoff: None,
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
fn a_push_to_a_stopping_agent_is_acknowledged_and_not_installed() {
    let (mut bench, nonce) = ready();
    bench.input(Input::Shutdown);
    let told = bench.notify(nonce + 1, &far_end(BIGGER));
    assert_eq!(story(&told), ["ack"]);
    assert_eq!(bench.agent.peers().count(), 0);
}
