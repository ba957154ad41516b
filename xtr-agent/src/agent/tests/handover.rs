//! A mapping in use moves to another key: nothing is lost, nobody is left behind.

use super::*;
use crate::agent::limits::{HANDOVER_RETRY, HANDOVERS, SESSION, SILENCE};

const THIRD: PublicKey = PublicKey([12; 32]);
const PREFIX: &str = "10.0.0.2/32";

fn hold() -> Duration {
    Bench::config().hold
}

/// `PREFIX` is served by `key`, at a place of its own.
fn served_by(key: PublicKey) -> Record {
    at(key, key.0[0])
}

fn at(key: PublicKey, host: u8) -> Record {
    let mut record = far_end(key);
    for locator in &mut record.locators {
        let endpoint = SocketAddr::new([192, 0, 2, host].into(), 51820);
        locator.rloc = Rloc::WireGuard { endpoint, key };
    }
    record
}

/// An agent whose packets to `PREFIX` go to `SMALLER`, past the agent.
fn in_use() -> Bench {
    let mut bench = Bench::new();
    bench.connect(1, &served_by(SMALLER), 100);
    bench.after(Duration::from_secs(1));
    bench
}

/// The same, told by Map-Notify 2 that `BIGGER` serves it now, and with that one armed.
fn armed() -> Bench {
    let mut bench = in_use();
    let told = bench.notify(2, &served_by(BIGGER));
    assert_eq!(story(&told), ["peer []"]);
    assert_eq!(story(&bench.done(&told)), ["kick"]);
    bench
}

/// What the data plane counts of a peer that has shaken hands: bytes received and sent.
fn counted(bench: &mut Bench, key: PublicKey, rx_bytes: u64, tx_bytes: u64) -> Vec<Action> {
    bench.input(Input::PeerStats(&[PeerStats {
        key,
        endpoint: None,
        handshake_seen: true,
        rx_bytes,
        tx_bytes,
        read_at: bench.now,
    }]))
}

/// Lets `time` pass with a data plane that does everything; what else a second brings is left out.
fn later(bench: &mut Bench, time: Duration) -> Vec<String> {
    let actions = bench.after(time);
    let more = bench.done(&actions);
    let mut told = story(&actions);
    told.extend(story(&more));
    told.retain(|word| !["register", "request", "new control tunnel"].contains(&word.as_str()));
    told
}

/// Who is installed, with which prefixes.
fn peers(bench: &Bench) -> Vec<(PublicKey, Vec<IpNet>)> {
    let peers = bench.agent.peers();
    peers.map(|peer| (peer.key, peer.allowed_ips)).collect()
}

fn only(key: PublicKey) -> Vec<(PublicKey, Vec<IpNet>)> {
    vec![(key, vec![net(PREFIX)])]
}

/// Nothing of a handover is left.
fn assert_over(bench: &Bench) {
    let sizes = bench.agent.sizes();
    assert_eq!((sizes.handovers, sizes.acks, sizes.changes), (0, 0, 0));
}

fn said(actions: &[Action], wanted: &Event) -> bool {
    let mut events = actions.iter();
    events.any(|action| matches!(action, Action::Event(event) if event == wanted))
}

fn failed() -> Event {
    Event::HandoverFailed {
        eid: PREFIX.parse().unwrap(),
        from: SMALLER,
        to: BIGGER,
    }
}

#[test]
fn the_new_peer_shakes_hands_before_the_prefix_moves_to_it_in_one_change() {
    let mut bench = in_use();
    let told = bench.notify(2, &served_by(BIGGER));
    assert_eq!(story(&told), ["peer []"]);
    let (eid, from, to) = (PREFIX.parse().unwrap(), SMALLER, BIGGER);
    assert!(said(&told, &Event::HandoverArmed { eid, from, to }));
    assert_eq!(story(&bench.done(&told)), ["kick"]);
    assert_eq!(peers(&bench)[0], only(SMALLER)[0], "it carries the traffic");
    let mapping = bench.agent.status(bench.now).mappings[0];
    assert_eq!((mapping.key, mapping.moves_to), (Some(from), Some(to)));
    let sent = bench.input(Input::TunPacket(&to_far_end(&[1])));
    assert_eq!(story(&sent), ["sent on 1"]);
    let moved = bench.handshake(BIGGER, 92);
    assert_eq!(story(&moved), ["peer [10.0.0.2/32]", "no peer"]);
    assert!(said(&moved, &Event::HandoverSwitched { eid, from, to }));
    bench.done(&moved);
    assert_eq!(peers(&bench), only(BIGGER));
    assert_over(&bench);
    assert_eq!(later(&mut bench, hold() * 2), [""; 0]);
}

#[test]
fn the_move_is_acknowledged_when_it_is_done_and_not_before() {
    let mut bench = armed();
    assert_eq!(story(&bench.notify(2, &served_by(BIGGER))), ["StaleNotify"]);
    assert_eq!(story(&bench.notify(3, &served_by(BIGGER))), [""; 0]);
    let moved = bench.handshake(BIGGER, 92);
    assert_eq!(story(&moved), ["peer [10.0.0.2/32]", "no peer"]);
    assert_eq!(story(&bench.done(&moved)), ["ack", "ack"], "one for each");
    assert_eq!(story(&bench.notify(3, &served_by(BIGGER))), ["ack"]);
    assert_over(&bench);
}

#[test]
fn counters_that_were_read_before_the_data_plane_had_the_peer_say_nothing() {
    let mut bench = in_use();
    let told = bench.notify(2, &served_by(BIGGER));
    assert_eq!(story(&bench.handshake(BIGGER, 92)), [""; 0]);
    bench.done(&told);
    let moved = bench.handshake(BIGGER, 92);
    assert_eq!(story(&moved), ["peer [10.0.0.2/32]", "no peer"]);
}

#[test]
fn a_handshake_that_was_lost_is_started_anew() {
    let mut bench = armed();
    bench.after(limits::REKINDLE * 2);
    let anew = bench.input(Input::PeerStats(&[PeerStats {
        key: BIGGER,
        endpoint: None,
        handshake_seen: false,
        rx_bytes: 0,
        tx_bytes: 148,
        read_at: bench.now,
    }]));
    assert_eq!(story(&anew), ["no peer", "peer []"]);
    assert_eq!(
        story(&bench.handshake(BIGGER, 92)),
        [""; 0],
        "that session is about to go"
    );
}

#[test]
fn a_new_peer_that_may_not_know_us_is_asked_for_while_the_old_one_serves() {
    let mut bench = armed();
    let asked = bench.after(limits::HANDOVER_DOUBT);
    let asked = requests(&asked);
    assert_eq!(asked.len(), 1);
    let nonce = asked[0].nonce;
    assert_eq!(story(&bench.reply(nonce, &served_by(BIGGER))), [""; 0]);
    assert_eq!(peers(&bench)[0], only(SMALLER)[0]);
    let moved = bench.handshake(BIGGER, 92);
    assert_eq!(story(&bench.done(&moved)), ["ack"]);
    assert_over(&bench);
}

#[test]
fn a_mapping_stays_where_it_was_when_the_new_peer_does_not_answer() {
    for (received, sent) in [(200, 5_000), (100, 0)] {
        let mut bench = armed();
        counted(&mut bench, SMALLER, 100, 0);
        bench.after(hold() / 2);
        counted(&mut bench, SMALLER, received, sent);
        let over = bench.after(hold());
        assert!(said(&over, &failed()), "{over:?}");
        let gone = bench.done(&over);
        assert!(!story(&gone).contains(&"ack".to_owned()));
        assert_eq!(peers(&bench), only(SMALLER));
        assert_eq!(bench.agent.sizes().acks, 0);
    }
}

#[test]
fn a_new_peer_that_did_not_answer_gets_another_chance_ever_later() {
    let mut bench = armed();
    later(&mut bench, hold());
    let mut nonce = 3;
    for pause in [HANDOVER_RETRY, HANDOVER_RETRY * 2, HANDOVER_RETRY * 4] {
        let early = bench.notify(nonce, &served_by(BIGGER));
        assert_eq!(story(&early), [""; 0], "neither tried nor acknowledged");
        later(&mut bench, pause);
        let again = bench.notify(nonce, &served_by(BIGGER));
        assert_eq!(story(&again), ["peer []"], "its nonce is new once more");
        bench.done(&again);
        later(&mut bench, hold());
        nonce += 1;
    }
    later(&mut bench, HANDOVER_RETRY * 8);
    let again = bench.notify(nonce, &served_by(BIGGER));
    bench.done(&again);
    let moved = bench.handshake(BIGGER, 92);
    assert_eq!(story(&bench.done(&moved)), ["ack"]);
    assert_eq!(peers(&bench), only(BIGGER));
    assert_over(&bench);
}

#[test]
fn a_new_peer_that_did_not_answer_is_tried_at_once_when_the_old_one_falls_silent() {
    let mut bench = armed();
    later(&mut bench, hold());
    for nonce in 3..6 {
        later(&mut bench, HANDOVER_RETRY * 4);
        let again = bench.notify(nonce, &served_by(BIGGER));
        bench.done(&again);
        later(&mut bench, hold());
    }
    counted(&mut bench, SMALLER, 100, 5_000);
    bench.after(SILENCE);
    let asked = counted(&mut bench, SMALLER, 100, 9_000);
    let nonce = requests(&asked)[0].nonce;
    let answered = bench.reply(nonce, &served_by(BIGGER));
    assert_eq!(story(&answered), ["peer []"]);
}

#[test]
fn a_dead_peer_is_left_although_the_new_one_does_not_answer() {
    let mut bench = armed();
    counted(&mut bench, SMALLER, 100, 0);
    counted(&mut bench, SMALLER, 100, 5_000);
    assert_eq!(peers(&bench)[0], only(SMALLER)[0]);
    let told = later(&mut bench, hold());
    assert!(
        !told.contains(&"no peer".to_owned()),
        "who has nothing to say is silent for ten seconds: {told:?}"
    );
    let told = later(&mut bench, SILENCE);
    let moved = told.iter().filter(|word| word.starts_with("peer ["));
    assert_eq!(moved.collect::<Vec<_>>(), ["peer [10.0.0.2/32]"]);
    assert!(told.contains(&"ack".to_owned()), "{told:?}");
    assert_eq!(peers(&bench), only(BIGGER));
    assert_over(&bench);
}

#[test]
fn a_peer_that_is_heard_in_the_end_is_not_left() {
    let mut bench = armed();
    counted(&mut bench, SMALLER, 100, 0);
    counted(&mut bench, SMALLER, 100, 5_000);
    later(&mut bench, hold());
    bench.after(hold());
    counted(&mut bench, SMALLER, 132, 50_000);
    later(&mut bench, SILENCE);
    assert_eq!(peers(&bench), only(SMALLER));
}

#[test]
fn the_word_that_the_old_peer_serves_it_after_all_ends_the_handover() {
    let mut bench = armed();
    let back = bench.notify(3, &served_by(SMALLER));
    assert_eq!(story(&back), ["no peer"]);
    assert!(said(&back, &failed()));
    assert_eq!(
        story(&bench.done(&back)),
        ["ack"],
        "of the latest word only"
    );
    assert_eq!(peers(&bench), only(SMALLER));
    assert_over(&bench);
    assert_eq!(story(&bench.handshake(BIGGER, 92)), [""; 0]);
    assert!(!later(&mut bench, hold()).contains(&"ack".to_owned()));
}

#[test]
fn an_old_peer_that_has_moved_itself_is_found_where_it_is() {
    let mut bench = armed();
    let back = bench.notify(3, &at(SMALLER, 77));
    assert_eq!(story(&back), ["no peer", "peer [10.0.0.2/32]"]);
    assert_eq!(story(&bench.done(&back)), ["ack"]);
    assert_eq!(peers(&bench), only(SMALLER));
    assert_over(&bench);
}

#[test]
fn a_third_peer_takes_the_place_of_the_second() {
    let mut bench = armed();
    let third = bench.notify(3, &served_by(THIRD));
    assert_eq!(story(&third), ["no peer", "peer []"]);
    assert_eq!(story(&bench.done(&third)), ["kick"]);
    assert_eq!(story(&bench.handshake(BIGGER, 92)), [""; 0]);
    let moved = bench.handshake(THIRD, 92);
    assert_eq!(story(&moved), ["peer [10.0.0.2/32]", "no peer"]);
    assert_eq!(story(&bench.done(&moved)), ["ack"]);
    assert_eq!(peers(&bench), only(THIRD));
    assert_over(&bench);
}

#[test]
fn a_new_peer_that_has_moved_before_it_answered_is_armed_where_it_is() {
    let mut bench = armed();
    let elsewhere = bench.notify(3, &at(BIGGER, 77));
    assert_eq!(story(&elsewhere), ["peer []"]);
    bench.done(&elsewhere);
    let moved = bench.handshake(BIGGER, 92);
    assert_eq!(story(&bench.done(&moved)), ["ack", "ack"]);
    let endpoint = bench.agent.peers().next().unwrap().endpoint;
    assert_eq!(endpoint, Some("192.0.2.77:51820".parse().unwrap()));
    assert_over(&bench);
}

#[test]
fn a_withdrawal_takes_both_peers_out() {
    let mut bench = armed();
    let mut gone = served_by(BIGGER);
    gone.ttl = Ttl::WITHDRAW;
    let removed = bench.notify(3, &gone);
    assert_eq!(
        story(&removed),
        ["no peer", "no route 10.0.0.2/32", "no peer"]
    );
    assert_eq!(story(&bench.done(&removed)), ["ack"]);
    assert_eq!(peers(&bench), []);
    assert_over(&bench);
}

#[test]
fn a_stopping_agent_leaves_no_peer_that_was_armed() {
    let mut bench = armed();
    let goodbye = bench.input(Input::Shutdown);
    bench.done(&goodbye);
    assert_eq!(peers(&bench), []);
    assert_over(&bench);
}

#[test]
fn a_new_peer_that_the_data_plane_refuses_leaves_the_mapping_where_it_was() {
    let mut bench = in_use();
    let told = bench.notify(2, &served_by(BIGGER));
    let refused = bench.failed(&told);
    assert_eq!(story(&refused), ["no peer"]);
    assert!(said(&refused, &failed()));
    assert_eq!(story(&bench.done(&refused)), [""; 0]);
    assert_eq!(peers(&bench), only(SMALLER));
}

#[test]
fn where_there_is_a_session_the_prefix_moves_at_once() {
    let mut bench = in_use();
    bench.notify(2, &record("10.0.0.3/32", BIGGER, Ttl::from_minutes(15)));
    bench.handshake(BIGGER, 92);
    let moved = bench.notify(3, &served_by(BIGGER));
    assert_eq!(
        story(&moved),
        ["peer [10.0.0.2/32, 10.0.0.3/32]", "no peer"]
    );
}

#[test]
fn a_session_that_is_over_is_made_anew_before_the_prefix_moves() {
    let mut bench = in_use();
    let other = bench.notify(2, &record("10.0.0.3/32", BIGGER, Ttl::from_minutes(15)));
    bench.done(&other);
    bench.handshake(BIGGER, 92);
    bench.after(SESSION);
    let told = bench.notify(3, &served_by(BIGGER));
    assert_eq!(story(&told), ["peer [10.0.0.3/32]"]);
    assert_eq!(story(&bench.done(&told)), ["kick"]);
    assert_eq!(story(&bench.handshake(BIGGER, 92)), [""; 0], "an old one");
    let moved = bench.handshake(BIGGER, 184);
    assert_eq!(
        story(&moved),
        ["peer [10.0.0.2/32, 10.0.0.3/32]", "no peer"]
    );
}

#[test]
fn an_answer_that_names_another_peer_moves_the_mapping_as_well() {
    let mut bench = Bench::new();
    let mut short = served_by(SMALLER);
    short.ttl = Ttl::from_minutes(1);
    bench.connect(1, &short, 100);
    bench.after(Duration::from_secs(48));
    let asked = bench.handshake(SMALLER, 1_000);
    let nonce = requests(&asked)[0].nonce;
    let answered = bench.reply(nonce, &served_by(BIGGER));
    assert_eq!(story(&answered), ["peer []"]);
    bench.done(&answered);
    let moved = bench.handshake(BIGGER, 92);
    bench.done(&moved);
    assert_eq!(peers(&bench), only(BIGGER));
    assert_eq!(later(&mut bench, Duration::from_secs(60)), [""; 0]);
    assert_eq!(peers(&bench), only(BIGGER), "for the time of the answer");
}

#[test]
fn the_old_peer_serves_until_it_is_decided_also_beyond_its_time_and_no_longer() {
    for answers in [true, false] {
        let mut bench = Bench::new();
        let mut short = served_by(SMALLER);
        short.ttl = Ttl::from_minutes(1);
        bench.connect(1, &short, 100);
        bench.after(Duration::from_millis(59_900));
        let told = bench.notify(2, &served_by(BIGGER));
        bench.done(&told);
        let told = later(&mut bench, Duration::from_secs(1));
        assert!(!told.iter().any(|word| word.starts_with("no ")), "{told:?}");
        assert_eq!(peers(&bench)[0], only(SMALLER)[0]);
        if answers {
            let moved = bench.handshake(BIGGER, 92);
            bench.done(&moved);
        }
        later(&mut bench, hold());
        later(&mut bench, SILENCE);
        let left = if answers { only(BIGGER) } else { Vec::new() };
        assert_eq!(peers(&bench), left, "it is asked for anew");
        assert_over(&bench);
    }
}

#[test]
fn an_answer_in_which_the_peer_in_use_is_among_the_best_moves_nobody() {
    let mut bench = in_use();
    let mut both = served_by(BIGGER);
    both.locators.extend(served_by(SMALLER).locators);
    for _ in 0..2 {
        both.locators.rotate_left(1);
        assert_eq!(
            bench.agent.choose(&both, &net(PREFIX)).unwrap().key,
            SMALLER
        );
    }
    assert_eq!(story(&bench.notify(2, &both)), ["ack"]);
    for locator in &mut both.locators {
        let small = matches!(locator.rloc, Rloc::WireGuard { key, .. } if key == SMALLER);
        locator.priority = if small { 255 } else { 1 };
    }
    assert_eq!(story(&bench.notify(3, &both)), ["peer []"]);
}

#[test]
fn all_prefixes_of_a_peer_move_together() {
    let mut bench = in_use();
    let other = record("fd00:1::2/128", SMALLER, Ttl::from_minutes(15));
    let installing = bench.notify(2, &other);
    let routing = bench.done(&installing);
    bench.done(&routing);
    let mut moves = bench.notify(3, &served_by(BIGGER));
    let other = Record {
        eid: other.eid,
        ..served_by(BIGGER)
    };
    moves.extend(bench.notify(4, &other));
    bench.done(&moves);
    let moved = bench.handshake(BIGGER, 92);
    assert_eq!(
        story(&moved),
        [
            "peer [10.0.0.2/32]",
            "peer [fd00:1::2/128]",
            "peer [10.0.0.2/32, fd00:1::2/128]",
            "no peer"
        ]
    );
    assert_eq!(story(&bench.done(&moved)), ["ack", "ack"]);
    assert_over(&bench);
}

#[test]
fn more_than_so_many_handovers_at_a_time_do_not_wait_for_a_session() {
    let mut bench = Bench::new();
    let of = |n: usize, key| Record {
        eid: record(
            &format!("10.1.{}.{}/32", n / 250, n % 250),
            key,
            Ttl::WITHDRAW,
        )
        .eid,
        ..served_by(key)
    };
    let mut nonce = 0;
    let mut next = || {
        nonce += 1;
        nonce
    };
    for n in 0..=HANDOVERS {
        bench.connect(next(), &of(n, SMALLER), 100);
    }
    for n in 0..=HANDOVERS {
        let told = story(&bench.notify(next(), &of(n, BIGGER)));
        let moves = told.contains(&"peer [10.1.4.24/32]".to_owned());
        assert_eq!(moves, n == HANDOVERS, "{told:?}");
    }
    assert_eq!(bench.agent.sizes().handovers, HANDOVERS);
}
