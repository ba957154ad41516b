//! First handshakes that take their time, or are lost.

use super::*;

/// An agent that has fired at `key` with packet 1.
fn fired(key: PublicKey) -> Bench {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.reply(nonce, &far_end(key));
    assert_eq!(story(&bench.done(&installing)), ["sent on 1"]);
    bench
}

/// The data plane has sent an initiation to `key`, and seen no handshake.
fn not_seen(bench: &mut Bench, key: PublicKey) -> Vec<Action> {
    let read_at = bench.now;
    not_seen_at(bench, key, read_at)
}

/// The same, by counters that were read then.
fn not_seen_at(bench: &mut Bench, key: PublicKey, read_at: Timestamp) -> Vec<Action> {
    bench.input(Input::PeerStats(&[PeerStats {
        key,
        endpoint: None,
        handshake_seen: false,
        rx_bytes: 0,
        tx_bytes: 148,
        read_at,
    }]))
}

/// Lets `time` pass, with a data plane that does everything and has seen no handshake with `key`.
fn no_handshake(bench: &mut Bench, key: PublicKey, time: Duration) -> Vec<String> {
    let mut told = story(&unanswered(bench, key, time));
    // What else a second brings is no matter here.
    told.retain(|word| word != "register" && word != "new control tunnel");
    told
}

/// The same, with all there is to it.
fn unanswered(bench: &mut Bench, key: PublicKey, time: Duration) -> Vec<Action> {
    let until = bench.now + time;
    let mut told = Vec::new();
    while bench.now < until {
        let step = bench
            .agent
            .next_deadline()
            .map_or(time, |next| next - bench.now);
        let mut actions = bench.after(step.min(until - bench.now));
        while !actions.is_empty() {
            let mut next = bench.done(&actions);
            if actions.iter().any(looks) {
                next.extend(not_seen(bench, key));
            }
            told.extend(actions);
            actions = next;
        }
    }
    told
}

fn looks(action: &Action) -> bool {
    matches!(
        action,
        Action::ReadPeerStats(_) | Action::ReadPeerStatsAnew(_)
    )
}

fn burst(bench: &mut Bench, numbers: std::ops::Range<u8>) -> Vec<String> {
    let packets = numbers.flat_map(|n| bench.input(Input::TunPacket(&to_far_end(&[n]))));
    story(&packets.collect::<Vec<_>>())
}

fn sent_on(numbers: std::ops::Range<u8>) -> Vec<String> {
    numbers.map(|n| format!("sent on {n}")).collect()
}

#[test]
fn the_data_plane_gets_no_more_packets_than_it_keeps_and_the_rest_in_order() {
    let mut bench = fired(BIGGER);
    let staged = u8::try_from(limits::STAGED).unwrap();
    assert_eq!(burst(&mut bench, 2..200), sent_on(2..staged + 1));
    let shaken = bench.handshake(BIGGER, 92);
    let mut expected = sent_on(staged + 1..200);
    expected.push("route 10.0.0.2/32".to_owned());
    assert_eq!(story(&shaken), expected);
    assert_eq!(bench.agent.sizes().held, 0);
    assert_eq!(burst(&mut bench, 200..201), sent_on(200..201));
}

#[test]
fn a_handshake_that_was_lost_is_started_anew_in_well_under_a_second() {
    for key in [SMALLER, BIGGER] {
        let mut bench = fired(key);
        burst(&mut bench, 2..4);
        let told = no_handshake(&mut bench, key, Duration::from_millis(900));
        let anew = [
            "no peer",
            "peer [10.0.0.2/32]",
            "sent on 1",
            "sent on 2",
            "sent on 3",
        ];
        assert_eq!(told, anew, "what the old peer kept is gone with it");
        assert_eq!(story(&bench.handshake(key, 92)), ["route 10.0.0.2/32"]);
        assert_eq!(bench.agent.sizes().held, 0);
    }
}

#[test]
fn one_lost_handshake_is_no_reason_for_another_locator_and_two_are() {
    let mut record = far_end(BIGGER);
    let at = |last| SocketAddr::new([192, 0, 2, last].into(), 51820);
    record.locators.push(Locator {
        priority: 2,
        rloc: Rloc::WireGuard {
            endpoint: at(3),
            key: BIGGER,
        },
        ..record.locators[0]
    });
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let installing = bench.reply(requests(&asked)[0].nonce, &record);
    bench.done(&installing);
    let told = unanswered(&mut bench, BIGGER, Duration::from_millis(1_500));
    let placed = told.iter().filter_map(|action| match action {
        Action::Apply {
            change: Change::SetPeer(spec),
            ..
        } => spec.endpoint,
        _ => None,
    });
    assert_eq!(placed.collect::<Vec<_>>(), [at(2), at(3)]);
}

#[test]
fn a_far_end_that_answers_within_the_time_of_the_answer_is_not_disturbed() {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    bench.after(Duration::from_millis(290));
    let installing = bench.reply(nonce, &far_end(BIGGER));
    bench.done(&installing);
    let told = no_handshake(&mut bench, BIGGER, Duration::from_millis(390));
    assert_eq!(told, [""; 0]);
    assert_eq!(story(&bench.handshake(BIGGER, 92)), ["route 10.0.0.2/32"]);
    let told = no_handshake(&mut bench, BIGGER, Duration::from_secs(5));
    assert_eq!(told, [""; 0], "it is over");
}

#[test]
fn packets_that_no_handshake_comes_for_are_refused_and_the_data_plane_goes_on() {
    let mut bench = fired(BIGGER);
    burst(&mut bench, 2..67);
    let told = no_handshake(&mut bench, BIGGER, Duration::from_millis(3_100));
    let refused = told.iter().filter(|word| *word == "NoHandshake").count();
    assert_eq!(refused, 66 - limits::STAGED);
    assert_eq!(
        told[told.len() - 2..],
        ["route 10.0.0.2/32", "request"],
        "the far end may have to start it: the map server tells it of us once more"
    );
    let anew = told.iter().filter(|word| *word == "no peer").count();
    assert!((1..=3).contains(&anew), "{anew} times, less and less often");
    let trace = bench.agent.trace(bench.now, addr("10.0.0.2")).unwrap();
    let failed = trace.failed.unwrap();
    assert_eq!(
        (failed.stage, failed.reason),
        (Stage::Handshake, DropReason::NoHandshake)
    );
    assert_eq!(bench.agent.sizes().held, 0);
}

#[test]
fn a_far_end_without_packets_of_its_own_looks_a_moment_and_changes_nothing() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    let told = no_handshake(&mut bench, SMALLER, Duration::from_secs(3));
    assert_eq!(told, ["kick"]);
    assert_eq!(burst(&mut bench, 1..2), ["sent on 1"]);
    let told = no_handshake(&mut bench, SMALLER, Duration::from_millis(900));
    assert_eq!(told, ["no peer", "peer [10.0.0.2/32]", "sent on 1"]);
}

#[test]
fn both_ends_that_start_at_once_never_start_anew_at_the_same_instant() {
    // The one that waits for the other starts by itself after that; both then wait anew.
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    bench.reply(nonce, &far_end(SMALLER));
    let told = no_handshake(&mut bench, SMALLER, Duration::from_millis(260));
    assert_eq!(told, ["kick", "sent on 1"]);
    // The smaller key has started anew by then; this one leaves it the time to be answered.
    let told = no_handshake(&mut bench, SMALLER, limits::REKINDLE);
    assert_eq!(told, [""; 0]);
}

#[test]
fn what_a_peer_still_has_that_could_not_be_taken_out_is_not_sent_twice() {
    let mut bench = fired(BIGGER);
    bench.after(Duration::from_secs(1));
    let anew = not_seen(&mut bench, BIGGER);
    assert_eq!(story(&anew), ["no peer", "peer [10.0.0.2/32]"]);
    bench.failed(&anew[..2]);
    assert_eq!(story(&bench.done(&anew[2..])), ["kick"]);
}

/// What follows when the data plane says after `late` that it took the peer out and put it back;
/// packet 2 comes meanwhile.
fn put_back(late: Duration) -> Vec<String> {
    let mut bench = fired(BIGGER);
    bench.after(Duration::from_secs(1));
    let anew = not_seen(&mut bench, BIGGER);
    assert_eq!(burst(&mut bench, 2..3), [""; 0], "it waits for the peer");
    bench.now = bench.now + late;
    story(&bench.done(&anew[1..]))
}

#[test]
fn what_a_peer_may_have_sent_before_it_was_taken_out_is_not_sent_twice() {
    assert_eq!(put_back(Duration::ZERO), ["sent on 1", "sent on 2"]);
    // It was awaited for a second when the counters were read.
    let late = Duration::from_millis(1_001) / limits::REKINDLE_LOOK_SHARE;
    assert_eq!(put_back(late), ["kick", "sent on 2"]);
}

#[test]
fn a_slow_data_plane_takes_a_peer_out_once_at_a_time() {
    let mut bench = fired(BIGGER);
    bench.after(Duration::from_secs(1));
    let anew = not_seen(&mut bench, BIGGER);
    bench.after(Duration::from_millis(1_500));
    assert_eq!(story(&not_seen(&mut bench, BIGGER)), [""; 0]);
    bench.done(&anew);
    bench.after(Duration::from_millis(10));
    let next = not_seen(&mut bench, BIGGER);
    assert_eq!(story(&next), ["no peer", "peer [10.0.0.2/32]"]);
}

#[test]
fn packets_wait_for_a_peer_that_is_taken_out_after_its_handshake_was_given_up() {
    let mut bench = fired(BIGGER);
    bench.after(Duration::from_secs(1));
    let anew = not_seen(&mut bench, BIGGER);
    assert_eq!(story(&anew), ["no peer", "peer [10.0.0.2/32]"]);
    bench.after(Bench::config().hold);
    let second = record("10.0.0.3/32", BIGGER, Ttl::from_minutes(15));
    let asked = bench.input(Input::TunPacket(&packet("10.0.0.1", "10.0.0.3", &[2])));
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.reply(nonce, &second);
    assert_eq!(story(&bench.done(&installing)), ["sent on 2"]);
    bench.done(&anew[1..2]);
    let packet = packet("10.0.0.1", "10.0.0.3", &[3]);
    let sent = bench.input(Input::TunPacket(&packet));
    assert_eq!(story(&sent), [""; 0], "there is no peer");
    let back = story(&bench.done(&anew[2..]));
    assert_eq!(back, ["kick", "sent on 3"], "2 may have been sent before");
}

#[test]
fn packets_wait_for_a_peer_that_could_not_be_put_back_and_keep_their_order() {
    let mut bench = fired(BIGGER);
    bench.after(Duration::from_secs(1));
    let anew = not_seen(&mut bench, BIGGER);
    bench.done(&anew[..2]);
    bench.failed(&anew[2..]);
    assert_eq!(burst(&mut bench, 2..3), [""; 0], "there is no peer");
    let repair = bench.after(limits::REPAIR_RETRY);
    assert!(story(&repair).contains(&"peer [10.0.0.2/32]".to_owned()));
    assert_eq!(story(&bench.done(&repair)), ["sent on 1", "sent on 2"]);
    assert_eq!(burst(&mut bench, 3..4), ["sent on 3"]);
}

#[test]
fn what_a_peer_had_that_is_never_put_back_is_refused() {
    let mut bench = fired(BIGGER);
    bench.after(Duration::from_secs(1));
    let anew = not_seen(&mut bench, BIGGER);
    bench.done(&anew[..2]);
    bench.failed(&anew[2..]);
    burst(&mut bench, 2..3);
    let over = bench.after(Bench::config().hold);
    let refused = story(&over);
    let refused = refused.iter().filter(|word| *word == "NoHandshake");
    assert_eq!(refused.count(), 2);
    assert_eq!(bench.agent.sizes().held, 0);
}

#[test]
fn a_peer_that_has_to_find_us_is_never_taken_out_for_a_handshake() {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let mut behind_nat = far_end(BIGGER);
    for locator in &mut behind_nat.locators {
        if let Rloc::WireGuard { endpoint, .. } = &mut locator.rloc {
            endpoint.set_ip(addr("192.168.0.5"));
        }
    }
    let installing = bench.reply(nonce, &behind_nat);
    bench.done(&installing);
    let told = no_handshake(&mut bench, BIGGER, Duration::from_millis(900));
    assert_eq!(told, ["kick"]);
}

#[test]
fn counters_that_are_too_old_start_no_handshake_anew_and_young_ones_are_asked_for() {
    let mut bench = fired(BIGGER);
    bench.now = bench.now + (limits::REKINDLE - Duration::from_millis(10));
    let looked = bench.after(Duration::from_millis(10));
    let anew = |action: &Action| matches!(action, Action::ReadPeerStatsAnew(_));
    assert!(looked.iter().any(anew), "{looked:?}");
    let read_at = bench.now - Timestamp::ZERO - Duration::from_millis(100);
    let old = not_seen_at(&mut bench, BIGGER, Timestamp::ZERO + read_at);
    assert_eq!(story(&old), [""; 0]);
    let young = not_seen(&mut bench, BIGGER);
    assert_eq!(story(&young), ["no peer", "peer [10.0.0.2/32]"]);
}

/// The agent is told of `count` peers that want nothing of it.
fn strangers(bench: &mut Bench, count: u16) {
    for n in 0..count {
        let mut key = [7; 32];
        let [high, low] = n.to_be_bytes();
        key[..2].copy_from_slice(&[high, low]);
        let eid = format!("10.1.{high}.{low}/32");
        let far = record(&eid, PublicKey(key), Ttl::from_minutes(15));
        let pushed = bench.notify(u64::from(n) + 1, &far);
        bench.done(&pushed);
    }
}

/// A data plane with so many peers that it reads all of them for 60 ms and uses what it read for
/// twice that: when is a handshake that was lost started anew?
#[test]
fn among_very_many_peers_a_lost_handshake_is_started_anew_in_well_under_a_second() {
    let mut bench = Bench::new();
    strangers(&mut bench, 20_000);
    bench.after(Duration::from_secs(2));
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.reply(nonce, &far_end(BIGGER));
    bench.done(&installing);
    let fired = bench.now;
    let (cost, mut read_at) = (Duration::from_millis(60), bench.now);
    let anew = |bench: &Bench, actions: &[Action]| {
        let out = story(actions).contains(&"no peer".to_owned());
        out.then(|| bench.now - fired)
    };
    let restarted = (0..1_000).find_map(|_| {
        let actions = bench.after(Duration::from_millis(1));
        let urgent = |action: &Action| matches!(action, Action::ReadPeerStatsAnew(_));
        let rest = if actions.iter().any(urgent) { 2 } else { 5 };
        actions.iter().any(looks).then_some(())?;
        if bench.now - read_at >= cost * (rest + 1) {
            read_at = bench.now;
            bench.now = bench.now + cost;
        }
        // The newest peer is read last.
        let row = read_at + (cost - Duration::from_millis(2));
        let told = not_seen_at(&mut bench, BIGGER, row);
        anew(&bench, &told)
    });
    let restarted = restarted.expect("it is started anew");
    assert!(restarted <= Duration::from_millis(750), "{restarted:?}");
}

#[test]
fn a_peer_with_a_route_is_never_taken_out_for_a_handshake() {
    let mut bench = fired(BIGGER);
    let told = no_handshake(&mut bench, BIGGER, Duration::from_millis(3_100));
    assert!(told.contains(&"route 10.0.0.2/32".to_owned()), "{told:?}");
    bench.notify(1, &far_end(BIGGER));
    let told = no_handshake(&mut bench, BIGGER, Duration::from_secs(3));
    assert!(told.contains(&"kick".to_owned()), "{told:?}");
    assert!(!told.contains(&"no peer".to_owned()), "{told:?}");
}

#[test]
fn many_peers_are_looked_at_less_often() {
    let mut bench = Bench::new();
    strangers(&mut bench, 4_000);
    bench.after(Duration::from_millis(400));
    let looks = (0..100).filter(|_| {
        let actions = bench.after(Duration::from_millis(1));
        actions.iter().any(looks)
    });
    assert!(looks.count() <= 5);
}

/// An agent that is told of handshakes, and has fired at `key` with packet 1.
fn fired_and_told(key: PublicKey) -> Bench {
    let mut bench = Bench::with(Config {
        tells_handshakes: true,
        ..Bench::config()
    });
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.reply(nonce, &far_end(key));
    let fired = bench.done(&installing);
    assert_eq!(story(&fired), ["wait for a session", "sent on 1"]);
    bench
}

#[test]
fn a_data_plane_that_tells_of_a_handshake_is_not_asked() {
    let mut bench = fired_and_told(BIGGER);
    let looked = bench.after(Duration::from_millis(5));
    assert!(looked.iter().any(looks), "the far end may have started one");
    let looked = bench.after(Duration::from_millis(100));
    assert!(!looked.iter().any(looks), "rarely");
    let shaken = bench.input(Input::Handshake(BIGGER));
    assert_eq!(story(&shaken), ["route 10.0.0.2/32"]);
    assert!(!bench.after(Duration::from_secs(1)).iter().any(looks));
}

#[test]
fn a_busy_gateway_that_is_told_of_handshakes_hardly_ever_looks_for_them() {
    let mut bench = Bench::with(Config {
        tells_handshakes: true,
        ..Bench::config()
    });
    strangers(&mut bench, 10_000);
    for _ in 0..50 {
        bench.after(Duration::from_millis(100));
    }
    let mut looked = 0;
    for n in 0..80 {
        let eid = format!("10.2.0.{n}");
        let asked = bench.input(Input::TunPacket(&packet("10.0.0.1", &eid, &[1])));
        let nonce = requests(&asked)[0].nonce;
        let far = PublicKey([n + 100; 32]);
        let answer = record(&format!("{eid}/32"), far, Ttl::from_minutes(15));
        let installing = bench.reply(nonce, &answer);
        bench.done(&installing);
        for _ in 0..5 {
            looked += usize::from(bench.after(Duration::from_millis(5)).iter().any(looks));
        }
        let shaken = bench.input(Input::Handshake(far));
        assert_eq!(story(&shaken), [format!("route {eid}/32")]);
        bench.done(&shaken);
    }
    assert!(looked <= 4, "{looked} looks in two seconds");
    // One that is lost is missed in time all the same.
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.reply(nonce, &far_end(BIGGER));
    bench.done(&installing);
    let anew = |action: &Action| matches!(action, Action::ReadPeerStatsAnew(_));
    let missed = (1..=80).find(|_| bench.after(Duration::from_millis(10)).iter().any(anew));
    assert!(missed.is_some_and(|after| after <= 41), "{missed:?}");
}

#[test]
fn a_handshake_that_was_lost_is_started_anew_and_waited_for_again() {
    let mut bench = fired_and_told(BIGGER);
    let told = no_handshake(&mut bench, BIGGER, Duration::from_millis(900));
    let anew = [
        "no peer",
        "peer [10.0.0.2/32]",
        "sent on 1",
        "wait for a session",
    ];
    assert_eq!(told, anew);
    let shaken = bench.input(Input::Handshake(BIGGER));
    assert_eq!(story(&shaken), ["route 10.0.0.2/32"]);
}

#[test]
fn what_is_told_of_a_peer_that_is_being_taken_out_is_of_a_session_that_is_gone() {
    let mut bench = fired_and_told(BIGGER);
    let mut leaving = Vec::new();
    while !story(&leaving).contains(&"no peer".to_owned()) {
        leaving = bench.after(Duration::from_millis(50));
        if leaving.iter().any(looks) {
            leaving.extend(not_seen(&mut bench, BIGGER));
        }
    }
    assert_eq!(story(&bench.input(Input::Handshake(BIGGER))), [""; 0]);
    let back = bench.done(&leaving);
    assert_eq!(story(&back), ["sent on 1", "wait for a session"]);
    let stranger = bench.input(Input::Handshake(SMALLER));
    assert_eq!(story(&stranger), [""; 0], "nobody's");
}
