//! Mappings that change, or fail, while they are on their way into the data plane.

use super::*;

#[test]
fn a_key_that_changes_while_the_handshake_is_awaited_is_awaited_anew() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    bench.input(Input::TunPacket(&to_far_end(&[1])));
    let replaced = bench.notify(2, &far_end(BIGGER));
    assert_eq!(story(&replaced), ["peer [10.0.0.2/32]", "no peer"]);
    assert_eq!(story(&bench.done(&replaced)), ["ack"]);
    assert_eq!(
        story(&bench.after(limits::PASSIVE_WAIT)),
        ["kick", "sent on 1"]
    );
}

#[test]
fn a_change_that_fails_after_it_was_superseded_costs_nothing() {
    let mut bench = Bench::new();
    let first = bench.notify(1, &far_end(SMALLER));
    let second = bench.notify(2, &far_end(BIGGER));
    assert_eq!(story(&bench.failed(&first)), ["ack"]);
    assert_eq!(story(&bench.done(&second)), ["ack"]);
    let peers: Vec<_> = bench.agent.peers().map(|peer| peer.key).collect();
    assert_eq!(peers, [BIGGER]);
}

#[test]
fn a_mapping_that_comes_back_waits_for_its_own_installation() {
    let mut bench = Bench::new();
    let first = bench.notify(1, &far_end(SMALLER));
    let gone = bench.notify(2, &record("10.0.0.2/32", SMALLER, Ttl::WITHDRAW));
    let again = bench.notify(3, &far_end(SMALLER));
    bench.input(Input::TunPacket(&to_far_end(&[1])));
    bench.done(&first);
    bench.done(&gone);
    assert_eq!(
        story(&bench.after(limits::PASSIVE_WAIT)),
        [""; 0],
        "the peer is not there yet"
    );
    bench.done(&again);
    assert_eq!(
        story(&bench.after(limits::PASSIVE_WAIT)),
        ["kick", "sent on 1"]
    );
}

#[test]
fn a_refused_push_is_tried_again_when_it_is_repeated() {
    let mut bench = Bench::new();
    bench.notify(1, &record("10.0.0.9/32", SMALLER, Ttl::WITHDRAW));
    let refused = bench.notify(2, &far_end(SMALLER));
    assert_eq!(story(&bench.failed(&refused)), ["no peer"]);
    let repeated = bench.notify(2, &far_end(SMALLER));
    assert_eq!(story(&repeated), ["peer [10.0.0.2/32]"]);
    assert_eq!(story(&bench.done(&repeated)), ["ack"]);
    assert_eq!(
        story(&bench.notify(1, &far_end(BIGGER))),
        ["ack"],
        "what was seen before it stays seen"
    );
}

#[test]
fn a_push_that_was_refused_is_asked_for_later_and_later_because_the_far_end_relies_on_it() {
    let mut bench = Bench::new();
    let pushed = bench.notify(1, &far_end(SMALLER));
    bench.failed(&pushed);
    assert_eq!(story(&bench.after(Duration::from_millis(900))), [""; 0]);
    let asked = bench.after(Duration::from_millis(100));
    assert_eq!(story(&asked), ["request"]);
    let again = bench.reply(requests(&asked)[0].nonce, &far_end(SMALLER));
    bench.failed(&again);
    assert_eq!(story(&bench.after(limits::REPAIR_RETRY)), [""; 0], "later");
    let asked = bench.after(limits::REPAIR_RETRY);
    let again = bench.reply(requests(&asked)[0].nonce, &far_end(SMALLER));
    bench.done(&again);
    for _ in 0..60 {
        assert_eq!(requests(&bench.after(Duration::from_secs(1))).len(), 0);
    }
}

#[test]
fn a_shorter_ttl_ends_a_mapping_sooner() {
    let mut bench = Bench::new();
    bench.connect(1, &far_end(SMALLER), 0);
    bench.notify(2, &record("10.0.0.2/32", SMALLER, Ttl::from_minutes(1)));
    assert_eq!(
        story(&bench.after(Duration::from_secs(61))),
        ["kick", "no route 10.0.0.2/32", "no peer"]
    );
}

fn failures(actions: &[Action]) -> usize {
    let failed = |action: &&Action| matches!(action, Action::Event(Event::ChangeFailed { .. }));
    actions.iter().filter(failed).count()
}

#[test]
fn a_removal_that_is_refused_is_tried_again_until_it_is_done() {
    let mut bench = Bench::new();
    bench.connect(1, &far_end(SMALLER), 0);
    let gone = bench.notify(2, &record("10.0.0.2/32", SMALLER, Ttl::WITHDRAW));
    assert_eq!(failures(&bench.failed(&gone)), 2);
    let again = bench.after(limits::REPAIR_RETRY);
    assert_eq!(story(&again), ["no peer", "no route 10.0.0.2/32"]);
    bench.failed(&again);
    assert_eq!(story(&bench.after(limits::REPAIR_RETRY)), [""; 0], "later");
    let again = bench.after(limits::REPAIR_RETRY);
    assert_eq!(story(&again), ["no peer", "no route 10.0.0.2/32"]);
    bench.done(&again);
    assert_eq!(story(&bench.after(Duration::from_secs(600))), [""; 0]);
}

#[test]
fn a_refused_removal_is_not_repeated_when_the_mapping_has_come_back() {
    let mut bench = Bench::new();
    bench.connect(1, &far_end(SMALLER), 0);
    let gone = bench.notify(2, &record("10.0.0.2/32", SMALLER, Ttl::WITHDRAW));
    bench.failed(&gone);
    let again = bench.notify(3, &far_end(SMALLER));
    bench.done(&again);
    let fired = bench.handshake(SMALLER, 0);
    bench.done(&fired);
    assert_eq!(
        story(&bench.after(limits::REPAIR_RETRY)),
        ["peer [10.0.0.2/32]"],
        "it is made what it should be"
    );
}

#[test]
fn a_peer_is_said_to_be_gone_when_it_is() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    let gone = bench.notify(2, &record("10.0.0.2/32", SMALLER, Ttl::WITHDRAW));
    let said = |actions: &[Action]| {
        let said = Action::Event(Event::PeerRemoved { key: SMALLER });
        actions.contains(&said)
    };
    assert!(!said(&gone));
    assert!(said(&bench.done(&gone)));
}

#[test]
fn a_route_that_is_refused_is_tried_again_until_it_is_set() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    let fired = bench.handshake(SMALLER, 0);
    assert_eq!(failures(&bench.failed(&fired)), 1);
    let packet = bench.input(Input::TunPacket(&to_far_end(&[1])));
    assert_eq!(story(&packet), ["sent on 1"], "through the agent meanwhile");
    let again = bench.after(limits::REPAIR_RETRY);
    assert_eq!(story(&again), ["route 10.0.0.2/32"]);
    assert_eq!(failures(&bench.failed(&again)), 1);
    let again = bench.after(limits::REPAIR_RETRY * 2);
    assert_eq!(story(&again), ["route 10.0.0.2/32"]);
    bench.done(&again);
    assert_eq!(story(&bench.after(Duration::from_secs(30))), [""; 0]);
}

#[test]
fn a_refused_route_of_a_mapping_that_is_gone_is_taken_out() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    let fired = bench.handshake(SMALLER, 0);
    bench.failed(&fired);
    let gone = bench.notify(2, &record("10.0.0.2/32", SMALLER, Ttl::WITHDRAW));
    bench.done(&gone);
    assert_eq!(story(&bench.after(Duration::from_secs(30))), [""; 0]);
}

#[test]
fn a_push_that_repeats_a_mapping_in_use_has_a_handshake_started_where_there_is_no_session() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    bench.handshake(SMALLER, 100);
    assert_eq!(story(&bench.notify(2, &far_end(SMALLER))), ["ack"]);
    let later = bench.after(limits::PASSIVE_WAIT);
    assert_eq!(story(&later), ["kick"]);
}
