//! Which subscriptions are not accepted, and which nonces.

use super::*;
use crate::config::Config;
use crate::server::bench::xtrs;

const STRANGER: &str = "198.51.100.66:1234";

#[test]
fn nonces_of_subscriptions_only_grow_whatever_the_prefix() {
    let mut bench = registered();
    let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 500);
    bench.ack("a", &answer);
    let before = bench.server.fingerprint();
    for nonce in [500, 499, 0] {
        assert_eq!(subscribe(&mut bench, &["10.0.0.3"], nonce), []);
        assert_eq!(unsubscribe(&mut bench, &["10.0.0.2"], nonce), []);
    }
    assert_eq!(bench.count(DropReason::ReplayedSubscription), 6);
    assert_eq!(bench.server.fingerprint(), before);
    assert_eq!(unsubscribe(&mut bench, &["10.0.0.2"], 501).len(), 1);
    assert_eq!(
        subscribe(&mut bench, &["10.0.0.2"], 501),
        [],
        "kept when all is over"
    );
}

#[test]
fn nonces_of_subscriptions_are_known_after_a_restart() {
    let mut bench = registered();
    let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 1 << 40);
    bench.ack("a", &answer);
    let snapshot: Vec<_> = bench.server.snapshot(bench.now).collect();
    for stored in [bench.stored.clone(), snapshot] {
        bench.stored = stored;
        let mut bench = bench.restart();
        assert_eq!(subscribe(&mut bench, &["10.0.0.2"], 1 << 40), []);
        assert_eq!(bench.count(DropReason::ReplayedSubscription), 1);
        let push = subscribe(&mut bench, &["10.0.0.2"], (1 << 40) + 1);
        let answer = bench.ack("b", &push[0]);
        bench.ack("a", &answer[0]);
        let sent = bench.register("b", &[record("10.0.0.2", "198.51.100.1:1")]);
        assert!(sent[1].notify("a").0 > Nonce((1 << 40) + 1));
    }
}

#[test]
fn a_nonce_that_leaves_no_room_for_publications_is_dropped() {
    let mut bench = registered();
    let before = bench.server.fingerprint();
    assert_eq!(subscribe(&mut bench, &["10.0.0.2"], u64::MAX), []);
    assert_eq!(bench.count(DropReason::SubscribeNonceTooHigh), 1);
    assert_eq!(bench.server.fingerprint(), before);
    assert_eq!(
        subscribe(&mut bench, &["10.0.0.2"], u64::MAX - (1 << 32)).len(),
        1
    );
}

#[test]
fn who_has_registered_nothing_is_refused_by_policy() {
    let mut bench = Bench::new();
    bench.register("b", &own_records("b"));
    let sent = subscribe(&mut bench, &["10.0.0.2"], 500);
    denied(&sent, NegativeAction::PolicyDenied);
    assert_eq!(bench.count(DropReason::SubscriptionRefused), 1);
    bench.register("a", &own_records("a"));
    assert_eq!(
        subscribe(&mut bench, &["10.0.0.2"], 500).len(),
        1,
        "the nonce was not used"
    );
}

#[test]
fn too_many_subscriptions_are_refused_by_policy() {
    let mut bench = registered();
    let xtr = bench.server.sites.by_name(&"a".into()).unwrap();
    for number in 0..limits::PREFIXES_SUBSCRIBED {
        let asked = eid(&format!("fd00:2::{number:x}"));
        let subscribers = &mut bench.server.state.subscribers;
        subscribers.ask(asked, asked, xtr, Timestamp(u64::MAX));
    }
    denied(
        &subscribe(&mut bench, &["10.0.0.2"], 500),
        NegativeAction::PolicyDenied,
    );
    let renewal = subscribe(&mut bench, &["fd00:2::7"], 501);
    assert!(renewal[0].is_notify(), "what there is may be renewed");
}

#[test]
fn an_xtr_that_is_not_what_it_says_is_refused() {
    let mut bench = registered();
    let mut register = bench.register_of("a", &own_records("a"));
    register.ids = Some(IDS);
    bench.register("a", &[empty("10.0.0.1", 0), empty("fd00:1::1", 0)]);
    register.nonce += 10;
    bench.datagram(control("a"), Via::Tunnel, &register.bytes());
    let other = Some((XtrId([8; 16]), SiteId([1; 8])));
    let ask = Ask {
        ids: other,
        ..asking(&["10.0.0.2"], 500)
    };
    let sent = bench.datagram(control("a"), Via::Tunnel, &ask.bytes("a"));
    denied(&sent, NegativeAction::AuthFailure);
    assert_eq!(bench.count(DropReason::WrongXtrId), 1);
    assert_eq!(subscribe(&mut bench, &["10.0.0.2"], 500).len(), 1);
}

#[test]
fn a_configured_xtr_id_holds_for_registrations_and_subscriptions() {
    let mut xtrs = xtrs();
    xtrs[0].xtr_id = Some(IDS.0);
    xtrs[0].site_id = Some(IDS.1);
    let mut bench = Bench::new();
    bench.server = MapServer::new(Config::new(Options::default(), xtrs).unwrap(), [7; 32]);
    let mut register = bench.register_of("a", &own_records("a"));
    for (ids, answers) in [
        ((XtrId([8; 16]), IDS.1), 0),
        ((IDS.0, SiteId([2; 8])), 0),
        (IDS, 1),
    ] {
        register.ids = Some(ids);
        let sent = bench.datagram(control("a"), Via::Tunnel, &register.bytes());
        assert_eq!(sent.len(), answers);
    }
    assert_eq!(bench.count(DropReason::WrongXtrId), 2);
    let ask = Ask {
        ids: Some((IDS.0, SiteId([2; 8]))),
        ..asking(&["10.0.0.2"], 500)
    };
    let sent = bench.datagram(control("a"), Via::Tunnel, &ask.bytes("a"));
    denied(&sent, NegativeAction::AuthFailure);
}

#[test]
fn outside_the_tunnel_nobody_subscribes_and_the_refusal_is_no_larger_than_the_request() {
    let mut bench = registered();
    let before = bench.server.fingerprint();
    let source = socket(STRANGER);
    let bytes = asking(&["10.0.0.2"], 500).bytes_from(source.ip());
    let sent = bench.datagram(source, Via::Plain, &bytes);
    assert!(sent.iter().all(|sent| sent.bytes.len() <= bytes.len()));
    assert_eq!(sent.len(), 1);
    assert_eq!(bench.count(DropReason::SubscriberUnknown), 1);
    let ends = Ask {
        ends: true,
        ..asking(&["10.0.0.2"], 501)
    };
    assert_eq!(
        bench.datagram(source, Via::Plain, &ends.bytes_from(source.ip())),
        []
    );
    assert_eq!(bench.count(DropReason::ForeignItrRloc), 1);
    assert_eq!(bench.server.fingerprint(), before);
}

#[test]
fn a_subscription_without_an_xtr_id_is_answered_by_a_map_reply() {
    let mut bench = registered();
    let ask = Ask {
        ids: None,
        ..asking(&["10.0.0.2"], 500)
    };
    let push = bench.datagram(control("a"), Via::Tunnel, &ask.bytes("a"));
    let answer = bench.ack("b", &push[0]);
    assert_eq!(answer[0].reply().nonce, Nonce(500));
    assert_eq!(bench.count(DropReason::SubscriberUnnamed), 1);
}

#[test]
fn right_after_the_start_a_subscription_to_what_may_be_registered_soon_is_not_answered() {
    let mut bench = Bench::with(Options {
        quiet_period: Duration::from_secs(75),
        ..Options::default()
    });
    bench.register("a", &own_records("a"));
    assert_eq!(subscribe(&mut bench, &["10.0.0.2"], 500), []);
    assert_eq!(bench.count(DropReason::TooEarly), 1);
    bench.register("b", &own_records("b"));
    assert_eq!(
        subscribe(&mut bench, &["10.0.0.2"], 500).len(),
        1,
        "the nonce was not used"
    );
}

#[track_caller]
fn denied(sent: &[Sent], action: NegativeAction) {
    assert_eq!(sent.len(), 1);
    let record = &sent[0].reply_records()[0];
    assert_eq!((record.action, record.ttl.minutes()), (action, 1));
    assert_eq!(sent[0].reply().nonce, Nonce(500));
}
