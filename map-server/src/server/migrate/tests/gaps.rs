//! A client says for how long nothing came to it when it moved.

use lisp_proto::{Gap, Nonce, RequestParams, RequestedEid, encode_map_request};

use super::*;
const GAP: Duration = Duration::from_millis(12);

#[test]
fn what_a_client_says_of_its_move_is_in_the_report_and_in_the_history() {
    for is_over in [false, true] {
        let mut bench = connected();
        migrate(&mut bench);
        acknowledge_all(&mut bench);
        if is_over {
            finish(&mut bench);
        }
        let sent = says(&mut bench, "a", Gap::Longest(GAP));
        assert_eq!(receivers(&sent), ["a"].into(), "nobody is told of it again");
        finish(&mut bench);
        assert_eq!(last(&bench).state, MigrationState::Confirmed);
        assert_eq!(last(&bench).gap, Some(GAP));
        says(&mut bench, "a", Gap::Longest(GAP / 2));
        assert_eq!(last(&bench).gap, Some(GAP), "the longest counts");
    }
}

#[test]
fn what_others_say_or_what_is_said_before_or_too_late_is_of_no_concern() {
    let mut bench = connected();
    migrate(&mut bench);
    says(&mut bench, "a", Gap::Longest(GAP));
    acknowledge_all(&mut bench);
    says(&mut bench, "b", Gap::Longest(GAP));
    says(&mut bench, "a", Gap::Unknown);
    finish(&mut bench);
    assert_eq!(last(&bench).state, MigrationState::Confirmed);
    bench.wait(limits::MIGRATION_STEP);
    says(&mut bench, "a", Gap::Longest(GAP));
    assert_eq!(last(&bench).gap, None);
}

/// Lets `client` ask for the default route, and say that of its move.
fn says(bench: &mut Bench, client: &str, gap: Gap) -> Vec<Sent> {
    let address = own_records(client)[0].eid.net().addr();
    let params = RequestParams {
        nonce: Nonce(30_000 + bench.sent.len() as u64),
        source_eid: Some((Default::default(), address)),
        itr_rlocs: &[control(client).ip()],
        eids: &[RequestedEid {
            subscribe: false,
            eid: eid(DEFAULT),
        }],
        source_record: Some(&empty(DEFAULT, 1)),
        gap: Some(gap),
        ..RequestParams::default()
    };
    let mut bytes = Vec::new();
    encode_map_request(&params, &mut bytes).unwrap();
    bench.datagram(control(client), Via::Tunnel, &bytes)
}
