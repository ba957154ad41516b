//! A client comes to a proxy, or leaves it: whose connections are asked for, offered and ended, and what
//! the map server hears of it.

use super::*;
use crate::agent::carry::Recent;

const SOURCE: [u8; 4] = [10, 0, 1, 9];

/// A proxy that translates addresses.
fn proxy(translates: Translates) -> Bench {
    Bench::with(Config {
        serves: vec![net("0.0.0.0/0")],
        translates,
        ..Bench::config()
    })
}

fn client() -> IpNet {
    net("10.0.0.2/32")
}

fn carries(actions: &[Action]) -> Vec<Carry> {
    let carries = actions.iter().filter_map(|action| match action {
        Action::Carry(carry) => Some(*carry),
        _ => None,
    });
    carries.collect()
}

/// What the acknowledgements among `actions` say.
fn acks(actions: &[Action]) -> Vec<Option<Handoff>> {
    let said = sent(actions).into_iter();
    let said = said.filter_map(|bytes| match decode(bytes).unwrap() {
        Message::MapNotifyAck(ack) => Some(ack.handoff()),
        _ => None,
    });
    said.collect()
}

fn comes(bench: &mut Bench, nonce: u64, from: [u8; 4]) -> Vec<Action> {
    let handoff = Some(Handoff::From(from.into()));
    bench.notify_of(nonce, &[far_end(SMALLER)], handoff)
}

fn goes(bench: &mut Bench, nonce: u64) -> Vec<Action> {
    bench.notify(nonce, &record("10.0.0.2/32", SMALLER, Ttl::WITHDRAW))
}

#[test]
fn a_client_that_comes_is_acknowledged_when_its_connections_are_here() {
    let mut bench = proxy(Translates::ToShared);
    let told = comes(&mut bench, 1, SOURCE);
    let fetch = Carry::Fetch {
        client: client(),
        from: SOURCE.into(),
    };
    assert_eq!(carries(&told), [fetch]);
    assert_eq!(acks(&bench.done(&told)), []);
    // The map server says it again meanwhile: it is asked for once.
    let again = comes(&mut bench, 2, SOURCE);
    assert_eq!((carries(&again), acks(&again)), (vec![], vec![]));
    assert_eq!(acks(&bench.input(Input::Fetched(client()))), [None, None]);
    assert_eq!(acks(&bench.input(Input::Fetched(client()))), []);
}

#[test]
fn nobody_waits_for_connections_for_long() {
    let mut bench = proxy(Translates::ToShared);
    let told = comes(&mut bench, 1, SOURCE);
    bench.done(&told);
    assert_eq!(acks(&bench.after(limits::FETCHING)), [None]);
    assert_eq!(acks(&bench.input(Input::Fetched(client()))), []);
}

#[test]
fn who_shares_no_address_asks_for_nothing_and_offers_nothing() {
    for translates in [Translates::Nothing, Translates::ToOwn] {
        let mut bench = proxy(translates);
        let told = comes(&mut bench, 1, SOURCE);
        assert_eq!(carries(&told), []);
        assert_eq!(acks(&bench.done(&told)), [None]);
        let handoff = Some(Handoff::To(SOURCE.into()));
        let told = bench.notify_of(2, &[far_end(SMALLER)], handoff);
        assert_eq!((carries(&told), acks(&told)), (vec![], vec![None]));
    }
}

#[test]
fn connections_go_through_the_overlay_or_nowhere() {
    let mut bench = proxy(Translates::ToShared);
    // Outside of the overlay, and what lives here.
    for (nonce, from) in [(1, [192, 0, 2, 7]), (2, [10, 0, 0, 1])] {
        assert_eq!(carries(&comes(&mut bench, nonce, from)), []);
    }
}

#[test]
fn nothing_is_asked_for_or_offered_without_the_secret() {
    let mut bench = proxy(Translates::ToShared);
    for handoff in [Handoff::From(SOURCE.into()), Handoff::To(SOURCE.into())] {
        let params = NotifyParams {
            nonce: Nonce(1),
            records: &[far_end(SMALLER)],
            handoff: Some(handoff),
        };
        let forged = AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"another");
        let mut bytes = Vec::new();
        encode_map_notify(&params, &forged, &mut bytes).unwrap();
        let before = bench.fingerprint();
        assert_eq!(story(&bench.heard(&bytes)), ["BadAuthentication"]);
        assert_eq!(bench.fingerprint(), before);
    }
}

#[test]
fn a_client_that_goes_is_offered_and_the_map_server_hears_what_became_of_its_connections() {
    let mut bench = proxy(Translates::ToShared);
    bench.connect(1, &far_end(SMALLER), 0);
    let handoff = Some(Handoff::To(SOURCE.into()));
    let offer = Carry::Offer {
        client: client(),
        to: SOURCE.into(),
    };
    let told = bench.notify_of(2, &[far_end(SMALLER)], handoff);
    assert_eq!((carries(&told), acks(&told)), (vec![offer], vec![None]));
    // Whoever is told of it later may have forgotten it.
    let again = bench.notify_of(3, &[far_end(SMALLER)], handoff);
    assert_eq!(carries(&again), [offer]);
    let gone = goes(&mut bench, 4);
    let release = Carry::Release { client: client() };
    assert_eq!(carries(&gone), [release]);
    assert_eq!(acks(&bench.done(&gone)), []);
    let connections = Connections { moved: 3, reset: 1 };
    let told = bench.input(Input::Released {
        client: client(),
        connections: Some(connections),
    });
    let left = Some(Handoff::Left(connections));
    assert_eq!(acks(&told), [left]);
    // The acknowledgement was lost.
    let again = goes(&mut bench, 5);
    assert_eq!((carries(&again), acks(&again)), (vec![], vec![left]));
    // The client is back, and what was said of it is over.
    bench.connect(6, &far_end(SMALLER), 0);
    bench.notify_of(7, &[far_end(SMALLER)], handoff);
    let gone = goes(&mut bench, 8);
    assert_eq!(carries(&gone), [release]);
    bench.done(&gone);
    assert_eq!(acks(&bench.after(limits::RELEASING)), [None]);
}

#[test]
fn who_translates_to_its_own_address_says_how_many_connections_end() {
    let mut bench = proxy(Translates::ToOwn);
    bench.connect(1, &far_end(SMALLER), 0);
    let handoff = Some(Handoff::To(std::net::Ipv4Addr::UNSPECIFIED.into()));
    let told = bench.notify_of(4, &[far_end(SMALLER)], handoff);
    assert_eq!((carries(&told), acks(&told)), (vec![], vec![None]));
    let gone = goes(&mut bench, 5);
    assert_eq!(carries(&gone), [Carry::Release { client: client() }]);
    bench.done(&gone);
    let told = bench.input(Input::Released {
        client: client(),
        connections: None,
    });
    assert_eq!(acks(&told), [None], "nobody knows");
    // Nobody was a client.
    let unknown = bench.notify(6, &record("10.0.0.77/32", SMALLER, Ttl::WITHDRAW));
    assert_eq!((carries(&unknown), acks(&unknown)), (vec![], vec![None]));
}

#[test]
fn a_client_that_goes_while_it_is_idle_is_told_of_too() {
    let mut bench = proxy(Translates::ToShared);
    // Its mapping is gone here; the map server still knows whose client it is.
    let handoff = Some(Handoff::To(SOURCE.into()));
    let told = bench.notify_of(1, &[far_end(SMALLER)], handoff);
    let installed = bench.done(&told);
    assert_eq!(acks(&installed), [None]);
    let gone = goes(&mut bench, 2);
    assert_eq!(carries(&gone), [Carry::Release { client: client() }]);
}

#[test]
fn a_client_that_goes_without_a_move_keeps_its_connections() {
    for translates in [Translates::ToOwn, Translates::ToShared] {
        let mut bench = proxy(translates);
        bench.connect(1, &far_end(SMALLER), 0);
        assert_eq!(carries(&goes(&mut bench, 2)), []);
        // A move that was begun, and of which nothing came.
        bench.connect(3, &far_end(SMALLER), 0);
        let handoff = Some(Handoff::To(SOURCE.into()));
        bench.notify_of(4, &[far_end(SMALLER)], handoff);
        bench.after(limits::MOVING);
        assert_eq!(carries(&goes(&mut bench, 5)), []);
    }
}

#[test]
fn what_a_client_has_brought_is_ended_when_its_move_has_failed() {
    let mut bench = proxy(Translates::ToShared);
    let told = comes(&mut bench, 1, SOURCE);
    bench.done(&told);
    bench.input(Input::Fetched(client()));
    let gone = goes(&mut bench, 2);
    assert_eq!(carries(&gone), [Carry::Release { client: client() }]);
    // It is a client like any other when it has been here for a while.
    let told = comes(&mut bench, 3, SOURCE);
    bench.done(&told);
    bench.input(Input::Fetched(client()));
    bench.after(limits::MOVING);
    assert_eq!(carries(&goes(&mut bench, 4)), []);
}

#[test]
fn the_oldest_of_those_that_move_give_way() {
    let mut recent = Recent::default();
    let host = |number: u32| IpNet::from(IpAddr::V4(number.into()));
    let now = |number: u32| Timestamp::ZERO + Duration::from_micros(number.into());
    let last = u32::try_from(limits::CARRIED).unwrap();
    for number in 0..=last {
        recent.note(now(number), host(number));
    }
    assert!(!recent.take(now(last), &host(0)) && recent.take(now(last), &host(1)));
    assert!(recent.take(now(last), &host(last)) && !recent.take(now(last), &host(last)));
}
