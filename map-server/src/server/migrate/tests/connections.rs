//! Both ends of a move are told of each other, and the source says what became of connections.

use lisp_proto::{Connections, Handoff, Message, NotifyParams, decode, encode_map_notify_ack};

use super::*;
use crate::server::proxies::own_address_v6;

/// Clients a and b use d; all proxies have addresses of their own.
fn connected_with_addresses() -> Bench {
    let mut bench = connected();
    for (name, priority) in [("d", 1), ("e", 2), ("f", 3)] {
        let mut records = default_routes(name, priority, 100).to_vec();
        records.push(record(own_address(name), "192.0.2.9:51820"));
        share(&mut bench, name, &records);
    }
    acknowledge_all(&mut bench);
    bench.events.clear();
    bench
}

/// Who is told what about connections.
fn handoffs(sent: &[Sent]) -> Vec<(&'static str, Option<Handoff>)> {
    let said = sent.iter().filter_map(|sent| match decode(&sent.bytes) {
        Ok(Message::MapNotify(notify)) => Some((name_of(sent), notify.handoff())),
        Ok(_) | Err(_) => None,
    });
    said.collect()
}

/// The acknowledgement of `notify` by `name`, with what it says.
fn says(bench: &mut Bench, name: &str, notify: &Sent, moved: u32, reset: u32) -> Vec<Sent> {
    let (nonce, records) = notify.notify(name);
    let params = NotifyParams {
        nonce,
        records: &records,
        handoff: Some(Handoff::Left(Connections { moved, reset })),
    };
    let mut bytes = Vec::new();
    encode_map_notify_ack(&params, &key(name), &mut bytes).unwrap();
    bench.datagram(control(name), Via::Tunnel, &bytes)
}

fn address(name: &str) -> IpAddr {
    own_address(name).parse().unwrap()
}

#[test]
fn both_ends_are_told_of_each_other_and_the_report_has_what_the_source_says() {
    let mut bench = connected_with_addresses();
    let arm = migrate(&mut bench);
    let expected = [
        ("d", Some(Handoff::To(address("e")))),
        ("e", Some(Handoff::From(address("d")))),
    ];
    assert_eq!(handoffs(&arm), expected);
    // The source need not say anything for the move to go on.
    let switch = bench.ack("e", &arm[1]);
    assert_eq!(handoffs(&switch), [("a", None)]);
    bench.ack("a", &switch[0]);
    let confirm = bench.wait(limits::MIGRATION_LINGER);
    // What it has not acknowledged is repeated until then.
    let last_word = confirm.iter().rfind(|it| name_of(it) == "d").unwrap();
    says(&mut bench, "d", last_word, 3, 1);
    let report = last(&bench);
    assert_eq!(report.state, MigrationState::Confirmed);
    assert_eq!(report.connections, Some(Connections { moved: 3, reset: 1 }));
}

#[test]
fn what_others_say_of_connections_or_what_is_said_at_another_time_is_of_no_concern() {
    let mut bench = connected_with_addresses();
    let arm = migrate(&mut bench);
    says(&mut bench, "d", &arm[0], 7, 7);
    let switch = says(&mut bench, "e", &arm[1], 7, 7);
    says(&mut bench, "a", &switch[0], 7, 7);
    finish(&mut bench);
    assert_eq!(last(&bench).state, MigrationState::Confirmed);
    assert_eq!(last(&bench).connections, None);
}

#[test]
fn nothing_is_said_where_one_has_no_address_to_talk_to() {
    let mut bench = connected();
    let arm = migrate(&mut bench);
    assert_eq!(handoffs(&arm), [("e", None)]);
}

/// Registers addresses of its own, besides default routes, for a proxy of `connected`.
fn has(bench: &mut Bench, name: &str, priority: u8, addresses: &[&'static str]) {
    let mut records = default_routes(name, priority, 100).to_vec();
    let own = addresses.iter().map(|own| record(own, "192.0.2.9:51820"));
    records.extend(own);
    share(bench, name, &records);
    acknowledge_all(bench);
}

#[test]
fn both_are_told_addresses_of_a_family_that_both_have() {
    let mut bench = connected();
    has(&mut bench, "d", 1, &[own_address("d"), own_address_v6("d")]);
    has(&mut bench, "e", 2, &[own_address_v6("e")]);
    let arm = migrate(&mut bench);
    let expected = [
        ("d", Some(Handoff::To(own_address_v6("e").parse().unwrap()))),
        (
            "e",
            Some(Handoff::From(own_address_v6("d").parse().unwrap())),
        ),
    ];
    assert_eq!(handoffs(&arm), expected);
}

#[test]
fn a_source_whose_client_cannot_be_followed_counts_its_connections_all_the_same() {
    for (name, priority) in [("d", 1), ("e", 2)] {
        let mut bench = connected();
        has(&mut bench, name, priority, &[own_address(name)]);
        let arm = migrate(&mut bench);
        let nowhere = Ipv4Addr::UNSPECIFIED.into();
        let expected = [("d", Some(Handoff::To(nowhere))), ("e", None)];
        assert_eq!(handoffs(&arm), expected);
    }
}

#[test]
fn a_source_that_is_told_nothing_more_still_hears_that_its_client_has_gone() {
    let mut bench = connected_with_addresses();
    let arm = migrate(&mut bench);
    // It has not acknowledged the first word when it is told the last one.
    let switch = bench.ack("e", &arm[1]);
    bench.ack("a", &switch[0]);
    let confirm = bench.wait(limits::MIGRATION_LINGER);
    let last_word = confirm.iter().rfind(|it| name_of(it) == "d").unwrap();
    assert_eq!(handoffs(std::slice::from_ref(last_word)), [("d", None)]);
    let records = last_word.notify("d").1;
    assert!(records.iter().all(|record| record.ttl.is_withdrawal()));
    bench.ack("d", last_word);
    assert_eq!(last(&bench).state, MigrationState::Confirmed);
}
