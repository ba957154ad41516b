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
