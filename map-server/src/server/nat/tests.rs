//! Who is told where he is seen, and whom WireGuard is to look out for.

use lisp_proto::{Algorithm, AuthKey, Message, Nonce, Record, decode, encode_info_request, verify};

use super::*;
use crate::server::Input;
use crate::server::bench::{
    Bench, Sent, control, control_key, eid, empty, key, own_records, record, socket,
};
use std::time::Duration;

/// Where the tunnel of a comes from.
const NAT: &str = "198.51.100.1:7000";
/// Where its data interface does.
const HOLE: &str = "198.51.100.1:7001";

/// What the agent called `name` registers, as its own.
fn own(name: &str) -> [Record; 2] {
    own_records(name).map(|mut record| {
        record.locators.iter_mut().for_each(|it| it.local = true);
        record
    })
}

fn data_key(record: &Record) -> PublicKey {
    match record.locators[0].rloc {
        Rloc::WireGuard { key, .. } => key,
        Rloc::Plain(_) => panic!("no key"),
    }
}

impl Bench {
    /// A look at the peers finds this one somewhere else.
    fn see(&mut self, key: PublicKey, at: &str) -> Vec<Sent> {
        let (began, peers) = (self.now, &[(key, socket(at))]);
        self.input(Input::Seen { began, peers })
    }

    /// A look at the peers finds them where they were.
    fn look(&mut self, began: Timestamp) -> Vec<Sent> {
        let peers = &[];
        self.input(Input::Seen { began, peers })
    }

    fn ask_where(&mut self, name: &str, about: &str, nonce: u64) -> Vec<Sent> {
        let mut bytes = Vec::new();
        encode_info_request(Nonce(nonce), eid(about), &key(name), &mut bytes);
        self.datagram(control(name), Via::Tunnel, &bytes)
    }
}

/// The nonce and the place in what should be one Info-Reply to a.
fn told(sent: &[Sent]) -> (u64, SocketAddr) {
    let [one] = sent else {
        panic!("{sent:?}");
    };
    assert_eq!((one.dst, one.via), (control("a"), Via::Tunnel));
    assert!(verify(&key("a"), &one.bytes).is_ok());
    match decode(&one.bytes) {
        Ok(Message::InfoRequest(info)) if info.reply => (info.nonce.0, info.seen().unwrap()),
        other => panic!("{other:?}"),
    }
}

/// A server that a, behind a NAT, has asked where it is.
fn asked() -> (Bench, PublicKey) {
    let mut bench = Bench::new();
    let own = own("a");
    bench.register("a", &own);
    bench.see(control_key("a"), NAT);
    assert_eq!(bench.ask_where("a", "10.0.0.1", 7), [], "who knows");
    let sent = bench.look(bench.now);
    assert_eq!(told(&sent), (7, socket("198.51.100.1:0")));
    (bench, data_key(&own[0]))
}

#[test]
fn who_is_not_behind_a_nat_is_told_so_and_not_looked_out_for() {
    let mut bench = Bench::new();
    bench.register("a", &own("a"));
    bench.see(control_key("a"), "192.0.2.1:7000");
    let sent = bench.ask_where("a", "10.0.0.1", 7);
    assert_eq!(told(&sent), (7, socket("192.0.2.1:0")));
    assert!(bench.watched.is_empty());
}

#[test]
fn who_calls_nothing_of_the_family_of_the_tunnel_its_own_is_not_looked_out_for() {
    let watched = |own_addresses: &[&str]| {
        let mut bench = Bench::new();
        let mut own = own("a");
        for record in &mut own {
            let before = record.locators[0];
            let Rloc::WireGuard { key, .. } = before.rloc else {
                panic!("no key");
            };
            let locators = own_addresses.iter().map(|address| {
                let endpoint = socket(address);
                let rloc = Rloc::WireGuard { endpoint, key };
                Locator { rloc, ..before }
            });
            record.locators = locators.collect();
        }
        bench.register("a", &own);
        bench.ask_where("a", "10.0.0.1", 7);
        bench.see(control_key("a"), NAT);
        bench.watched.len()
    };
    assert_eq!(watched(&["[2001:db8::1]:51820"]), 0);
    assert_eq!(watched(&["[2001:db8::1]:51820", "192.168.1.2:51820"]), 1);
}

#[test]
fn a_refresh_gives_no_reason_to_look_again() {
    let (mut bench, _) = asked();
    bench.see(control_key("a"), "198.51.100.9:1");
    let looks = bench.looks;
    bench.register("a", &own("a"));
    assert_eq!(bench.looks, looks);
    bench.register("a", &with_key("a", PublicKey([0x55; 32])));
    assert!(bench.looks > looks);
}

#[test]
fn the_answer_follows_when_wireguard_has_told() {
    let mut bench = Bench::new();
    bench.register("a", &own("a"));
    assert_eq!(bench.ask_where("a", "10.0.0.1", 7), []);
    assert_eq!(bench.looks, 1);
    let sent = bench.see(control_key("a"), "[::ffff:192.0.2.1]:7000");
    assert_eq!(told(&sent), (7, socket("192.0.2.1:0")));
    assert_eq!(bench.see(control_key("a"), "192.0.2.1:7000"), [], "known");
}

#[test]
fn behind_a_nat_the_data_interface_is_looked_out_for_and_every_change_is_told() {
    let (mut bench, data) = asked();
    assert_eq!(bench.watched, [data].into());
    assert_eq!(told(&bench.see(data, HOLE)), (7, socket(HOLE)));
    assert_eq!(
        told(&bench.ask_where("a", "10.0.0.1", 8)),
        (8, socket(HOLE))
    );
    assert_eq!(bench.see(data, HOLE), []);
    let other = "198.51.100.1:7002";
    assert_eq!(told(&bench.see(data, other)), (8, socket(other)));
}

#[test]
fn that_the_nat_is_registered_as_well_changes_nothing() {
    let (mut bench, data) = asked();
    bench.see(data, HOLE);
    let with_hole = own("a").map(|mut own| {
        let mut seen = own.locators[0];
        seen.local = false;
        seen.rloc = Rloc::WireGuard {
            endpoint: socket(HOLE),
            key: data,
        };
        own.locators.push(seen);
        own
    });
    bench.register("a", &with_hole);
    assert_eq!(bench.watched, [data].into());
    let mut next = bench.restart();
    assert!(next.watched.is_empty());
    next.ask_where("a", "10.0.0.1", 9);
    next.see(control_key("a"), NAT);
    assert_eq!(next.watched, [data].into());
}

#[test]
fn nobody_is_looked_out_for_longer_than_there_is_a_reason() {
    // The registration ends.
    let (mut bench, _) = asked();
    bench.register("a", &[empty("10.0.0.1", 0)]);
    assert!(bench.watched.is_empty());
    // The key changes.
    let (mut bench, before) = asked();
    let mut changed = record("10.0.0.1", "192.0.2.9:1");
    changed.locators[0].local = true;
    bench.register("a", &[changed.clone()]);
    bench.look(bench.now);
    assert_eq!(bench.watched, [data_key(&changed)].into());
    assert_ne!(data_key(&changed), before);
    // There is no NAT any more.
    let (mut bench, _) = asked();
    let sent = bench.see(control_key("a"), "192.0.2.1:7000");
    assert_eq!(told(&sent), (7, socket("192.0.2.1:0")));
    assert!(bench.watched.is_empty());
    // It does not ask again.
    let (mut bench, data) = asked();
    for _ in 0..4 {
        bench.wait(limits::SIGHTING_LIFETIME / 2);
        bench.register("a", &own("a"));
        bench.ask_where("a", "10.0.0.1", 8);
        assert_eq!(bench.watched, [data].into());
    }
    bench.wait(limits::SIGHTING_LIFETIME + Duration::from_secs(1));
    assert!(bench.watched.is_empty());
    assert_eq!(bench.server.sizes().sightings, 0);
}

/// The same with this data key.
fn with_key(name: &str, key: PublicKey) -> [Record; 2] {
    own(name).map(|mut own| {
        let Rloc::WireGuard { endpoint, .. } = own.locators[0].rloc else {
            panic!("no key");
        };
        own.locators[0].rloc = Rloc::WireGuard { endpoint, key };
        own
    })
}

#[test]
fn keys_of_the_tunnel_are_not_looked_out_for() {
    for taken in [control_key("a"), control_key("b"), PublicKey([0xee; 32])] {
        let mut bench = Bench::new();
        bench.register("a", &with_key("a", taken));
        bench.ask_where("a", "10.0.0.1", 7);
        let sent = bench.see(control_key("a"), NAT);
        assert_eq!(told(&sent).1, socket("198.51.100.1:0"));
        assert!(bench.watched.is_empty());
    }
}

#[test]
fn who_claims_the_key_of_another_keeps_it_from_nobody_and_learns_nothing() {
    let mut bench = Bench::new();
    let data = data_key(&own("a")[0]);
    bench.register("b", &with_key("b", data));
    bench.ask_where("b", "10.0.0.2", 1);
    bench.see(control_key("b"), "198.51.100.9:1");
    bench.register("a", &own("a"));
    bench.ask_where("a", "10.0.0.1", 7);
    bench.see(control_key("a"), NAT);
    assert_eq!(bench.watched, [data].into());
    let sent = bench.see(data, HOLE);
    assert_eq!(told(&sent).1, socket(HOLE), "only a hears of it");
    bench.register("b", &[empty("10.0.0.2", 0), empty("fd00:1::2", 0)]);
    assert_eq!(bench.watched, [data].into());
}

#[test]
fn a_data_interface_counts_only_where_the_tunnel_is_seen_as_well() {
    let (mut bench, data) = asked();
    assert_eq!(bench.see(data, "203.0.113.9:7001"), []);
    assert_eq!(told(&bench.see(data, HOLE)), (7, socket(HOLE)));
    // It is where the NAT is, or nowhere.
    let sent = bench.see(data, "203.0.113.9:7001");
    assert_eq!(told(&sent), (7, socket("198.51.100.1:0")));
}

#[test]
fn a_look_that_began_before_the_question_answers_only_what_the_xtr_goes_by_already() {
    let (mut bench, data) = asked();
    bench.see(data, HOLE);
    let before = bench.now;
    bench.wait(Duration::from_secs(1));
    assert_eq!(
        told(&bench.ask_where("a", "10.0.0.1", 8)),
        (8, socket(HOLE))
    );
    // It has moved: what was seen before says nothing.
    let mut moved = own("a");
    for record in &mut moved {
        record.locators[0].rloc = Rloc::WireGuard {
            endpoint: socket("192.168.7.7:1"),
            key: data,
        };
    }
    bench.see(control_key("a"), "192.0.2.1:7000");
    bench.wait(Duration::from_secs(1));
    let looks = bench.looks;
    bench.register("a", &moved);
    assert!(bench.looks > looks);
    assert_eq!(bench.ask_where("a", "10.0.0.1", 9), []);
    assert_eq!(bench.look(before), []);
    let sent = bench.see(control_key("a"), "203.0.113.1:7");
    assert_eq!(told(&sent), (9, socket("203.0.113.1:0")));
}

#[test]
fn two_questions_about_one_key_are_one_peer() {
    let (mut bench, data) = asked();
    bench.register("a", &{
        let [one, mut other] = own("a");
        other.locators.clone_from(&one.locators);
        [one, other]
    });
    bench.ask_where("a", "fd00:1::1", 8);
    bench.look(bench.now);
    assert_eq!(bench.watched, [data].into());
    bench.register("a", &[empty("10.0.0.1", 0)]);
    assert_eq!(bench.watched, [data].into());
    bench.register("a", &[empty("fd00:1::1", 0)]);
    assert!(bench.watched.is_empty());
}

#[test]
fn what_is_not_authentic_changes_nothing_and_is_not_answered() {
    let (mut bench, _) = asked();
    let request = |secret: &AuthKey, about: &str| {
        let mut bytes = Vec::new();
        encode_info_request(Nonce(9), eid(about), secret, &mut bytes);
        bytes
    };
    let good = key("a");
    let bad = AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"not the key of a");
    let (from_a, from_b) = (control("a"), control("b"));
    let nobody = socket("[fd4c:1::99]:4342");
    let mut reply = Vec::new();
    encode_info_reply(Nonce(9), eid("10.0.0.1"), socket(HOLE), &good, &mut reply);
    let before = bench.server.fingerprint();
    for (src, via, bytes, reason) in [
        (
            from_a,
            Via::Tunnel,
            request(&bad, "10.0.0.1"),
            DropReason::BadAuthentication,
        ),
        (
            from_b,
            Via::Tunnel,
            request(&good, "10.0.0.1"),
            DropReason::BadAuthentication,
        ),
        (
            from_a,
            Via::Plain,
            request(&good, "10.0.0.1"),
            DropReason::UnknownSource,
        ),
        (
            nobody,
            Via::Tunnel,
            request(&good, "10.0.0.1"),
            DropReason::UnknownSource,
        ),
        (
            from_a,
            Via::Tunnel,
            request(&good, "10.0.0.2"),
            DropReason::ForeignPrefix,
        ),
        (from_a, Via::Tunnel, reply, DropReason::UnexpectedMessage),
    ] {
        let counted = bench.count(reason);
        assert_eq!(bench.datagram(src, via, &bytes), []);
        assert_eq!(bench.count(reason), counted + 1);
        assert_eq!(bench.server.fingerprint(), before, "{reason}");
    }
    assert_eq!(bench.see(PublicKey([0x77; 32]), HOLE), [], "nobody's key");
    assert_eq!(bench.server.fingerprint(), before);
}

#[test]
fn nobody_registers_a_key_of_the_control_tunnel_as_that_of_a_far_end() {
    let stolen = [PublicKey([0xee; 32]), control_key("b"), control_key("c")];
    for key in stolen {
        let mut bench = Bench::new();
        let mut own = own("c");
        for locator in &mut own[0].locators {
            let Rloc::WireGuard { endpoint, .. } = locator.rloc else {
                panic!("no key");
            };
            locator.rloc = Rloc::WireGuard { endpoint, key };
        }
        bench.register("c", &own);
        assert_eq!(bench.counters.total(DropReason::ForeignKey), 1);
        let known = |eid| bench.server.state.mappings.exact(&eid).is_some();
        assert_eq!(own.each_ref().map(|it| known(it.eid)), [false, true]);
    }
}
