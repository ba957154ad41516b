//! What is made of it that a far end is not heard?

use super::*;

/// Both ends ask for each other, and set each other up anew. That is no answer.
#[test]
fn who_was_asked_for_in_vain_is_named_also_when_it_was_set_up_anew_meanwhile() {
    let (mut bench, _) = behind();
    fire(&mut bench);
    let fired = bench.handshake(BIGGER, 92);
    bench.done(&fired);
    let mut tx_bytes = 1_000;
    let mut questions = Vec::new();
    for look in 0..14 {
        if look == 6 {
            let mut anew = Actions::default();
            bench.agent.set_up_anew(bench.now, &BIGGER, &mut anew);
            bench.done(&anew.drain().collect::<Vec<_>>());
        }
        tx_bytes += 1_000;
        let mut told = bench.after(limits::LIVENESS_POLL);
        told.extend(bench.input(Input::PeerStats(&[PeerStats {
            key: BIGGER,
            endpoint: None,
            handshake_seen: true,
            rx_bytes: if look < 6 { 92 } else { 0 },
            tx_bytes,
            read_at: bench.now,
        }])));
        told.extend(bench.done(&told));
        questions.extend(requests(&told).iter().map(|it| (look, lost(it))));
    }
    let first = questions.iter().find(|(look, _)| *look >= 6);
    assert_eq!(questions[0].1, [], "{questions:?}");
    assert_eq!(first.unwrap().1, [BIGGER], "{questions:?}");
}

/// A far end behind a NAT of its own dozes; keepalives come from it, but for the last time, `silent`. What happens
/// when a packet goes there so long after it was last used?
fn sent_to_dozing(silent: Duration, after: Duration) -> Vec<String> {
    let mut bench = Bench::with(Config {
        idle: limits::IDLE_MIN * 2,
        ..Bench::config()
    });
    let installing = bench.notify(1, &also_at("192.168.1.2:51820", true));
    bench.done(&installing);
    let fired = bench.handshake(BIGGER, 92);
    bench.done(&fired);
    let looks = after.as_secs() / limits::LIVENESS_POLL.as_secs();
    let heard = after.saturating_sub(silent).as_secs() / limits::LIVENESS_POLL.as_secs();
    let mut rx_bytes = 92;
    for look in 1..=looks {
        if look <= heard && look % 7 == 0 {
            rx_bytes += limits::KEEPALIVE;
        }
        let passed = bench.after(limits::LIVENESS_POLL);
        bench.done(&passed);
        let looked = bench.handshake(BIGGER, rx_bytes);
        bench.done(&looked);
    }
    bench.input(Input::TunPacket(&to_far_end(&[1])));
    story(&bench.handshake(BIGGER, rx_bytes))
}

#[test]
fn who_could_not_be_reached_in_a_new_session_is_sent_to_in_the_present_one() {
    let soon = limits::DOZE + limits::SILENCE;
    let mut told = sent_to_dozing(Duration::ZERO, soon);
    told.sort();
    assert_eq!(told, ["request", "route 10.0.0.2/32", "sent on 1"]);
    let anew = ["no peer", "request"];
    let missing = Duration::from_secs(100);
    for silent in [soon, missing] {
        assert_eq!(sent_to_dozing(silent, soon), anew, "there may be none");
    }
    let late = limits::IDLE_MIN;
    let forgotten = sent_to_dozing(Duration::ZERO, late);
    assert_eq!(forgotten, anew, "it has forgotten us");
}
