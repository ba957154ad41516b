//! What if the next proxy does not answer either?

use super::*;
use crate::agent::limits::{HANDOVER_DOUBT, HANDOVER_TRIPS};

#[test]
fn one_of_three_that_does_not_answer_either_is_named_as_well_and_soon() {
    let mut client = Client::proven();
    client.loses(&[BIGGER, SMALLER, THIRD]);
    client.flow(15);
    assert_eq!(client.lost(), [SMALLER, BIGGER]);
    assert_eq!(client.unreachable(), [SMALLER, BIGGER]);
    assert_eq!(client.serves(addr(FAR)), SMALLER);
    client.answered(&served_by_all(SERVED, &[THIRD, SMALLER, BIGGER]));
    client.counts.insert(THIRD, (92, 148));
    client.flow(2);
    assert_eq!(client.serves(addr(FAR)), THIRD);
}

#[test]
fn the_last_one_that_may_serve_is_waited_for_and_not_left_alone() {
    // The lost one is dead, or its tunnel is up.
    for received in [0, 50] {
        let mut client = Client::proven();
        client.loses(&[BIGGER, SMALLER]);
        client.pass(130, 1_000, received);
        assert!(!client.lost().contains(&BIGGER), "{:?}", client.lost());
        assert_eq!(client.serves(addr(FAR)), SMALLER);
        client.counts.insert(BIGGER, (92, 148));
        client.pass(1, 1_000, received);
        assert_eq!(client.serves(addr(FAR)), BIGGER, "as soon as it answers");
    }
}

#[test]
fn one_that_is_far_away_has_the_time_for_a_second_handshake() {
    let took = Duration::from_millis(400);
    let mut client = Client::far_away(&[FAR], took).proves();
    client.loses(&[BIGGER, SMALLER, THIRD]);
    let before = HANDOVER_DOUBT + took * HANDOVER_TRIPS - PROBE_EVERY;
    client.flow(u32::try_from(before.as_millis() / PROBE_EVERY.as_millis()).unwrap());
    assert!(!client.lost().contains(&BIGGER));
    client.flow(3);
    assert!(client.lost().contains(&BIGGER));
}

#[test]
fn a_new_proxy_that_was_left_alone_is_tried_again_when_the_old_one_is_lost() {
    let mut client = Client::proven();
    let told = client.bench.notify(1, &served_by(BIGGER, SMALLER));
    client.follow(told);
    client.flow(60);
    let failed = |event: &Event| matches!(event, Event::HandoverFailed { .. });
    assert!(client.events.iter().any(failed), "it does not answer");
    client.loses(&[BIGGER, SMALLER]);
    client.counts.insert(BIGGER, (92, 148));
    client.flow(2);
    assert_eq!(client.serves(addr(FAR)), BIGGER);
}

#[test]
fn a_proxy_that_answers_again_while_the_next_one_does_not_gets_its_client_back() {
    let mut client = Client::proven();
    client.loses(&[BIGGER, SMALLER]);
    client.flow(5);
    client.answers.push((addr(FAR), SMALLER));
    client.flow(60);
    assert_eq!(
        client.unreachable(),
        [BIGGER],
        "the map server believes that it has gone there"
    );
    client.answered(&served_by(SMALLER, BIGGER));
    assert_eq!(client.serves(addr(FAR)), SMALLER);
    client.requests.clear();
    client.flow(200);
    assert_eq!(client.requests.len(), 0);
}

#[test]
fn a_first_proxy_with_which_there_is_no_session_is_lost() {
    let mut client = Client::unconnected(Bench::config());
    client.asks(Duration::ZERO);
    client.idle(60);
    assert_eq!(client.lost(), [SMALLER]);
    assert_eq!(client.unreachable(), [SMALLER]);
    client.answered(&served_by(BIGGER, SMALLER));
    client.counts.insert(BIGGER, (92, 148));
    client.idle(2);
    assert_eq!(client.serves(addr(FAR)), BIGGER);
}

#[test]
fn one_that_is_drained_is_the_last_resort() {
    let mut client = Client::proven();
    client.answers.clear();
    client.flow(10);
    let mut record = served_by_all(SERVED, &[BIGGER, SMALLER, THIRD]);
    record.locators[2].priority = 255;
    client.answered(&record);
    client.flow(15);
    assert_eq!(client.unreachable(), [SMALLER, BIGGER]);
    client.answered(&served_by_all(SERVED, &[THIRD, SMALLER, BIGGER]));
    client.counts.insert(THIRD, (92, 148));
    client.flow(2);
    assert_eq!(client.serves(addr(FAR)), THIRD);
}

/// The one that was lost first may be back, but what it knew of us may be gone: it must shake hands anew.
#[test]
fn of_two_that_are_lost_one_after_the_other_the_first_is_tried_again_at_once() {
    let mut client = Client::proven();
    // It is left as a proxy, but stays as a peer.
    let own = record("10.0.0.9/32", SMALLER, Ttl::from_minutes(15));
    let told = client.bench.notify(1, &own);
    client.follow(told);
    client.loses(&[BIGGER, SMALLER]);
    client.counts.insert(BIGGER, (92, 148));
    client.flow(2);
    assert_eq!(client.serves(addr(FAR)), BIGGER);
    client.answers.push((addr(FAR), BIGGER));
    client.flow(30);
    client.requests.clear();
    client.answers.clear();
    client.flow(15);
    assert_eq!(client.unreachable(), [BIGGER]);
    client.answered(&served_by(SMALLER, BIGGER));
    client.flow(2);
    assert_eq!(client.serves(addr(FAR)), BIGGER, "no session is trusted");
    let (received, sent) = client.counts[&SMALLER];
    client.counts.insert(SMALLER, (received + 92, sent));
    client.flow(2);
    assert_eq!(client.serves(addr(FAR)), SMALLER);
}

#[test]
fn a_proxy_that_has_many_locators_is_left_before_all_were_tried() {
    let mut client = Client::proven();
    let mut record = served_by(SMALLER, BIGGER);
    let template = record.locators[0];
    record.locators.extend((2..7).map(|number| Locator {
        priority: number,
        rloc: Rloc::WireGuard {
            endpoint: SocketAddr::new([198, 51, 100, number].into(), 51820),
            key: SMALLER,
        },
        ..template
    }));
    let told = client.bench.notify(1, &record);
    client.follow(told);
    client.flow(10);
    client.answers.clear();
    client.events.clear();
    client.flow(40);
    assert_eq!(client.lost().first(), Some(&SMALLER));
    let mut events = client.events.iter();
    let lost = events.position(|event| matches!(event, Event::ProxyLost { .. }));
    let before = client.events.iter().take(lost.unwrap());
    let moves = before.filter(|event| matches!(event, Event::LocatorMoved { .. }));
    assert_eq!(moves.count(), 2);
}

/// It stays with a proxy that answers, but the map server believes that it has left that.
#[test]
fn a_new_proxy_that_does_not_answer_is_named_when_the_map_server_does_not_give_up() {
    let mut client = Client::proven();
    let told = |client: &mut Client, nonce| {
        let told = client.bench.notify(nonce, &served_by(BIGGER, SMALLER));
        client.follow(told);
        client.flow(60);
    };
    told(&mut client, 1);
    assert_eq!(client.lost(), [], "it may be a mistake");
    client.flow(120);
    client.requests.clear();
    told(&mut client, 2);
    assert_eq!(client.lost(), [BIGGER]);
    assert_eq!(client.unreachable(), [BIGGER]);
    client.answered(&served_by(SMALLER, BIGGER));
    assert_eq!(client.serves(addr(FAR)), SMALLER);
}
