//! What is true of the answers.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use lisp_proto::{InstanceId, Nonce};
use proptest::prelude::*;

use super::*;
use crate::config::{Config, Options, XtrConfig};
use crate::server::bench::{
    Bench, eid, empty, key, own_records, plain_record, record, request, socket,
};
use crate::server::contacts::Contact;
use crate::server::mappings::Registration;
use crate::server::{Actions, Via, limits::REGISTRATION_LIFETIME};

#[test]
fn outside_all_configured_prefixes_the_answer_is_the_whole_hole() {
    let mut bench = Bench::new();
    assert_eq!(answers(&mut bench, "11.0.0.1"), ["11.0.0.0/8 drop 15"]);
    assert_eq!(answers(&mut bench, "10.0.0.5"), ["10.0.0.4/30 drop 15"]);
    assert_eq!(answers(&mut bench, "2001:db8::1"), ["::/1 drop 15"]);
    assert_eq!(answers(&mut bench, "[5]10.0.0.1"), ["[5]0.0.0.0/0 drop 15"]);
}

#[test]
fn a_configured_prefix_nobody_registered_is_denied_for_a_minute() {
    let mut bench = Bench::new();
    assert_eq!(answers(&mut bench, "10.0.0.1"), ["10.0.0.1/32 drop 1"]);
    assert_eq!(
        answers(&mut bench, "192.168.7.7"),
        ["192.168.0.0/16 drop 1"]
    );
    register_gear(&mut bench, &["192.168.0.0/24"]);
    assert_eq!(
        answers(&mut bench, "192.168.7.7"),
        ["192.168.4.0/22 drop 1"]
    );
}

#[test]
fn a_server_that_has_just_started_knows_too_little_to_deny_what_is_configured() {
    let mut bench = Bench::with(Options {
        quiet_period: Duration::from_secs(75),
        ..Options::default()
    });
    bench.register("a", &own_records("a"));
    assert_eq!(bench.ask("a", "10.0.0.2"), [], "it may be registered soon");
    assert_eq!(bench.count(DropReason::TooEarly), 1);
    let denied = bench.ask("a", "172.16.0.1");
    assert_eq!(denied[0].reply_records().len(), 1, "nobody ever will");
    bench.register("b", &[empty("10.0.0.2", 5)]);
    assert_eq!(bench.ask("a", "10.0.0.2").len(), 1, "its owner says so");
    bench.wait(Duration::from_secs(75));
    assert_eq!(bench.ask("a", "10.0.0.3").len(), 1);
}

#[test]
fn the_negative_action_is_configurable() {
    let mut bench = Bench::with(Options {
        negative_action: NegativeAction::NativelyForward,
        ..Options::default()
    });
    assert_eq!(
        answers(&mut bench, "11.0.0.1"),
        ["11.0.0.0/8 natively-forward 15"]
    );
}

#[test]
fn more_specific_prefixes_come_with_the_match_and_its_shortest_ttl() {
    let mut bench = Bench::new();
    register_gear(
        &mut bench,
        &["192.168.0.0/16", "192.168.1.0/24", "192.168.1.128/25"],
    );
    assert_eq!(
        answers(&mut bench, "192.168.7.7"),
        [
            "192.168.0.0/16 at 1 1440",
            "192.168.1.0/24 at 2 1440",
            "192.168.1.128/25 at 3 1440"
        ]
    );
    assert_eq!(
        answers(&mut bench, "192.168.1.1"),
        ["192.168.1.0/24 at 2 1440", "192.168.1.128/25 at 3 1440"]
    );
    assert_eq!(
        answers(&mut bench, "192.168.1.129"),
        ["192.168.1.128/25 at 3 1440"]
    );
}

#[test]
fn a_match_with_more_inside_than_fits_is_cut_to_a_part_with_less() {
    let mut bench = Bench::new();
    let inside: Vec<_> = (0..32).map(|n| format!("192.168.{}.0/24", n * 8)).collect();
    let mut prefixes = vec!["192.168.0.0/16"];
    prefixes.extend(inside.iter().map(String::as_str));
    register_gear(&mut bench, &prefixes);
    let answers = answers(&mut bench, "192.168.1.1");
    assert_eq!(answers.len(), 5, "{answers:?}");
    assert_eq!(answers[0], "192.168.0.0/19 at 1 1440");
}

#[test]
fn who_asks_for_too_much_at_once_must_ask_for_less() {
    let mut bench = Bench::new();
    let inside: Vec<_> = (0..32).map(|n| format!("192.168.{}.0/24", n * 8)).collect();
    register_gear(
        &mut bench,
        &inside.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    assert_eq!(
        answers(&mut bench, "192.168.0.0/16"),
        ["192.168.0.0/16 send-map-request 1"]
    );
}

#[test]
fn a_registration_without_locators_is_a_negative_answer() {
    let mut bench = Bench::new();
    bench.register("a", &[empty("10.0.0.1", 7)]);
    assert_eq!(answers(&mut bench, "10.0.0.1"), ["10.0.0.1/32 drop 7"]);
}

#[test]
fn gear_that_registers_in_the_plain_gets_no_keys_and_no_new_actions() {
    let mut bench = Bench::with(Options {
        negative_action: NegativeAction::PolicyDenied,
        requests_from: vec!["192.0.2.0/24".parse().unwrap()],
        ..Options::default()
    });
    bench.register_all();
    let mut mixed = plain_record("192.168.1.0/24", "192.0.2.200");
    mixed
        .locators
        .extend(record("192.168.1.0/24", "192.0.2.9:1").locators);
    let plain = plain_record("192.168.1.0/24", "192.0.2.200");
    let register = bench.register_of("gear", &[mixed]);
    let (gear, lig) = (socket("192.0.2.200:4342"), socket("192.0.2.100:4342"));
    let confirmed = bench.datagram(gear, Via::Plain, &register.bytes());
    assert_eq!(confirmed[0].notify("gear").1, std::slice::from_ref(&plain));
    let mut ask = |from: std::net::SocketAddr, asked: &str| {
        let bytes = request(None, &[from.ip()], &[asked], 1);
        bench.datagram(from, Via::Plain, &bytes)[0].reply_records()
    };
    let denied = [negative(
        eid("10.0.0.1"),
        NegativeAction::Drop,
        limits::TTL_UNREGISTERED,
    )];
    assert_eq!(ask(gear, "10.0.0.1"), denied);
    assert_eq!(ask(gear, "172.16.0.1")[0].action, NegativeAction::Drop);
    assert_eq!(ask(gear, "192.168.1.1"), [plain]);
    assert_eq!(ask(lig, "10.0.0.1")[0].locators.len(), 1);
    assert_eq!(
        ask(lig, "172.16.0.1")[0].action,
        NegativeAction::PolicyDenied
    );
    assert_eq!(ask(lig, "192.168.1.1")[0].locators.len(), 2);
}

#[test]
fn a_reply_is_neither_authoritative_nor_local() {
    let mut bench = Bench::new();
    let mut record = plain_record("192.168.0.0/16", "192.0.2.1");
    record.authoritative = true;
    record.locators[0].local = true;
    let register = bench.register_of("gear", &[record]);
    bench.datagram(socket("192.0.2.200:4342"), Via::Plain, &register.bytes());
    let sent = bench.ask("a", "192.168.0.1");
    let record = &sent[0].reply_records()[0];
    assert!(!record.authoritative && !record.locators[0].local && record.locators[0].reachable);
}

proptest! {
    /// What an ITR does with an answer, by longest match, is for every address in it what the
    /// server would have answered to a question about that address.
    #[test]
    fn an_answer_is_true_for_every_address_it_speaks_of(
        registered in prop::collection::btree_set(small_prefix(), 0..24),
        asked in small_prefix(),
        most in 0usize..8,
    ) {
        let server = server_with(registered.into_iter().collect());
        let records = server.describe_around(&asked, most, None);
        prop_assert!(records.len() <= most + 1);
        prop_assert!(records[0].eid.covers(&asked));
        prop_assert!(records.iter().all(|record| record.ttl == records[0].ttl));
        for address in (0..64).map(|bits| Ipv4Addr::from(bits << 26)) {
            let host = EidPrefix::host(InstanceId(0), address.into());
            let matching = records.iter().filter(|record| record.eid.covers(&host));
            let Some(told) = matching.max_by_key(|record| record.eid.net().prefix_len()) else {
                continue;
            };
            if told.action == NegativeAction::SendMapRequest {
                continue;
            }
            prop_assert_eq!(&told.locators, &server.describe_around(&host, 0, None)[0].locators, "{} of {:?}", host, records);
        }
    }
}

/// A prefix of at most 6 bits.
fn small_prefix() -> impl Strategy<Value = EidPrefix> {
    (0u32..64, 0u8..=6).prop_map(|(bits, length)| {
        let net = Ipv4Net::new(Ipv4Addr::from(bits << 26), length).unwrap();
        EidPrefix::new(InstanceId(0), IpNet::V4(net))
    })
}

/// A server where `wide` owns the upper half of all addresses, except for a quarter of it that
/// `narrow` owns; what of `prefixes` they may register is registered.
fn server_with(prefixes: Vec<EidPrefix>) -> MapServer {
    let xtr = |name: &str, prefix: &str| XtrConfig {
        name: name.into(),
        control_address: None,
        auth: key("gear"),
        xtr_id: None,
        site_id: None,
        replay_check: true,
        eid_prefixes: vec![eid(prefix)],
        more_specifics: true,
    };
    let config = Config::new(
        Options::default(),
        vec![xtr("wide", "128.0.0.0/1"), xtr("narrow", "160.0.0.0/3")],
    );
    let mut server = MapServer::new(config.unwrap(), [0; 32]);
    for (number, prefix) in (1..).zip(prefixes) {
        let Ok(owner) = server.sites.plain_by_prefix(&prefix) else {
            continue;
        };
        let registrant = crate::server::sites::Registrant {
            xtr: owner,
            ids: None,
        };
        let registration = Registration {
            ttl: Ttl::from_minutes(10),
            locators: plain_record("0.0.0.0/0", &format!("192.0.2.{number}")).locators,
            merge: false,
            want_notify: false,
            contact: Contact {
                source: socket("192.0.2.200:4342"),
                full_tag: false,
            },
            lifetime: REGISTRATION_LIFETIME,
        };
        server
            .state
            .mappings
            .store(prefix, registrant, registration, Timestamp::ZERO)
            .unwrap();
    }
    server
}

/// Registers prefixes as `gear`, each at a locator of its own.
fn register_gear(bench: &mut Bench, prefixes: &[&str]) {
    let records: Vec<_> = (1..)
        .zip(prefixes)
        .map(|(n, prefix)| plain_record(prefix, &format!("192.0.2.{n}")))
        .collect();
    let register = bench.register_of("gear", &records);
    bench.datagram(socket("192.0.2.200:4342"), Via::Plain, &register.bytes());
}

/// Asks for `asked`; returns the records in short.
fn answers(bench: &mut Bench, asked: &str) -> Vec<String> {
    let reply = PendingReply {
        dst: socket("192.0.2.200:4342"),
        via: Via::Plain,
        nonce: Nonce(1),
        answer: Answer::Told,
        requester: None,
        eids: [eid(asked)].into_iter().collect(),
        owners: Vec::new(),
        keys: true,
        max_len: usize::MAX,
    };
    let mut actions = Actions::new();
    bench.server.send_reply(bench.now, &reply, &mut actions);
    let Some(crate::server::Action::Send { dst, via, bytes }) = actions.drain().next() else {
        panic!("no reply");
    };
    let bytes = bytes.to_vec();
    let records = crate::server::bench::Sent { dst, via, bytes }.reply_records();
    let short = |record: &Record| match record.locators.first() {
        Some(locator) => format!(
            "{} at {} {}",
            record.eid,
            last_byte(locator.rloc.ip()),
            record.ttl.minutes()
        ),
        None => format!("{} {} {}", record.eid, record.action, record.ttl.minutes()),
    };
    records.iter().map(short).collect()
}

fn last_byte(address: std::net::IpAddr) -> String {
    address.to_string().rsplit('.').next().unwrap().to_owned()
}
