//! Who hears of what, and of whom.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use lisp_proto::{InstanceId, NotifyParams, encode_map_notify};

use super::*;
use crate::config::{Config, Options, XtrConfig};
use crate::server::bench::{
    Bench, Sent, control, eid, empty, key, own_records, plain_record, record, socket,
};
use crate::server::{Action, Input};

#[test]
fn who_was_denied_hears_of_the_registration_while_it_believes_the_answer() {
    for (pause, news) in [(59, 1), (60, 0)] {
        let mut bench = Bench::new();
        bench.register("a", &own_records("a"));
        let denied = bench.ask("a", "10.0.0.2");
        assert_eq!(denied[0].reply_records()[0].ttl.minutes(), 1);
        bench.wait(Duration::from_secs(pause));
        bench.register("b", &own_records("b"));
        bench.wait(Duration::from_millis(300));
        let told = bench.sent.iter().filter(|sent| sent.dst == control("a"));
        let told: Vec<_> = told.skip(2).collect();
        assert_eq!(told.len(), news, "{told:?}");
        if news > 0 {
            assert_eq!(told[0].notify("a").1, own_records("b"));
        }
    }
}

#[test]
fn an_agent_that_registers_nothing_is_not_told_of_registrations() {
    let mut bench = Bench::new();
    bench.ask("a", "10.0.0.2");
    assert_eq!(bench.register("b", &own_records("b")).len(), 1);
}

#[test]
fn who_asked_before_it_registered_and_its_answer_are_paired_when_it_registers() {
    let mut bench = Bench::new();
    bench.register("b", &own_records("b"));
    let answer = bench.ask("a", "10.0.0.2");
    assert_eq!(answer[0].reply_records()[0].eid, eid("10.0.0.2"));
    let sent = bench.register("a", &own_records("a"));
    let welcome = sent.last().unwrap();
    assert_eq!(welcome.notify("a").1, own_records("b"), "all of them");
    let news = bench.ack("a", welcome);
    assert_eq!(news[0].notify("b").1, own_records("a"));
}

#[test]
fn what_an_xtr_registers_later_is_told_to_all_its_partners() {
    let mut bench = Bench::new();
    bench.register("a", &own_records("a")[..1]);
    bench.register("b", &own_records("b"));
    let push = bench.ask("a", "10.0.0.2");
    let answer = bench.ack("b", &push[0]);
    bench.ack("a", &answer[1]);
    let sent = bench.register("a", &own_records("a"));
    let welcome = &sent[1];
    assert_eq!(welcome.notify("a").1, own_records("b"));
    let news = bench.ack("a", welcome);
    assert_eq!(news[0].notify("b").1, own_records("a"));
}

#[test]
fn a_long_list_of_prefixes_is_told_in_datagrams_of_modest_size() {
    let many: Vec<_> = (1..=250)
        .map(|n| record(&format!("fd00:1::{n:x}"), "[2001:db8::1]:51820"))
        .collect();
    let short: Vec<_> = (1..=250)
        .map(|n| empty(&format!("10.0.0.{n}"), 0))
        .collect();
    for records in [many, short] {
        let parcels = parcels(records.clone());
        assert_eq!(parcels.concat(), records, "nothing is lost");
        for parcel in &parcels {
            let mut bytes = Vec::new();
            let params = NotifyParams {
                nonce: Nonce(1),
                records: parcel,
                handoff: None,
            };
            encode_map_notify(&params, &key("a"), &mut bytes).unwrap();
            assert!(bytes.len() <= limits::NOTIFY_LEN);
            assert!(parcel.len() <= limits::RECORDS_PER_NOTIFY);
        }
        assert!(parcels.len() < 40, "{}", parcels.len());
    }
    assert_eq!(parcels(Vec::new()), Vec::<Vec<Record>>::new());
}

#[test]
fn who_registers_what_others_wait_for_hears_of_them_first() {
    for acknowledged in [true, false] {
        let mut bench = Bench::new();
        bench.register("a", &own_records("a"));
        bench.ask("a", "10.0.0.2");
        let sent = bench.register("b", &own_records("b"));
        assert_eq!(sent.len(), 2, "the confirmation and one push");
        assert_eq!(sent[1].notify("b").1, own_records("a"));
        let mut news = match acknowledged {
            true => bench.ack("b", &sent[1]),
            false => bench.wait(limits::NOTIFY_INTERVAL),
        };
        news.retain(|sent| sent.dst == control("a"));
        assert_eq!(news.len(), 1);
        assert_eq!(news[0].notify("a").1, own_records("b"));
    }
}

#[test]
fn both_ends_hear_when_the_other_is_gone() {
    let mut bench = registered();
    bench.pair("a", "b", "10.0.0.2");
    bench.wait(Duration::from_secs(100));
    bench.register("a", &own_records("a"));
    let sent = bench.wait(Duration::from_secs(80));
    let told: Vec<_> = sent
        .iter()
        .filter(|sent| sent.via == Via::Tunnel)
        .map(Sent::line)
        .collect();
    assert_eq!(
        told,
        [
            "Tunnel [fd4c:1::a]:4342 Map-Notify, 10.0.0.2/32 for 0 min no-action, \
             fd00:1::2/128 for 0 min no-action",
        ]
    );
}

#[test]
fn an_agent_that_is_gone_is_told_nothing_more() {
    let mut bench = registered();
    bench.pair("a", "b", "10.0.0.2");
    bench.register("b", &[empty("10.0.0.2", 0), empty("fd00:1::2", 0)]);
    let sent = bench.register("a", &[record("10.0.0.1", "198.51.100.1:51820")]);
    assert_eq!(sent.len(), 1, "the confirmation to a only");
}

#[test]
fn who_has_left_and_comes_back_is_a_stranger() {
    let gone = [empty("10.0.0.2", 0), empty("fd00:1::2", 0)];
    for (left, known) in [(true, true), (true, false), (false, true)] {
        let mut bench = registered();
        bench.pair("a", "b", "10.0.0.2");
        let before = bench.server.state.subscribers.len();
        assert!(before > 0);
        let news = match left {
            true => bench.register("b", &gone).pop().unwrap(),
            false => {
                bench.wait(limits::REGISTRATION_LIFETIME / 2);
                bench.register("a", &own_records("a"));
                let mut sent = bench.wait(limits::REGISTRATION_LIFETIME / 2);
                sent.retain(|sent| sent.dst == control("a"));
                sent.remove(0)
            }
        };
        assert_eq!(news.notify("a").1, gone);
        if known {
            bench.ack("a", &news);
        }
        let mut sent = bench.register("b", &own_records("b"));
        sent.retain(|sent| sent.is_notify() && sent.dst == control("b"));
        // The first one is the confirmation.
        let met = sent.len() > 1;
        assert_eq!(met, !(left && known), "left: {left}, known: {known}");
    }
}

#[test]
fn who_asks_for_what_has_just_been_withdrawn_hears_when_it_is_back() {
    let mut bench = registered();
    bench.pair("a", "b", "10.0.0.2");
    let gone = [empty("10.0.0.2", 0), empty("fd00:1::2", 0)];
    let news = bench.register("b", &gone).pop().unwrap();
    bench.ask("a", "10.0.0.2");
    bench.ack("a", &news);
    let sent = bench.register("b", &own_records("b"));
    assert_eq!(sent[1].notify("b").1, own_records("a"));
}

#[test]
fn a_third_agent_is_told_nothing() {
    let mut bench = registered();
    bench.pair("a", "b", "10.0.0.2");
    bench.register("a", &[record("10.0.0.1", "198.51.100.1:51820")]);
    assert!(
        bench
            .sent
            .iter()
            .filter(|sent| sent.dst == control("c"))
            .count()
            == 1,
        "its own registration"
    );
}

#[test]
fn subscribers_hear_of_new_prefixes_inside_and_of_their_end() {
    let mut bench = registered();
    register_gear(&mut bench);
    bench.ask("a", "192.168.1.1");
    let register = bench.register_of("gear", &[plain_record("192.168.1.0/24", "192.0.2.7")]);
    let sent = bench.datagram(socket("192.0.2.200:4342"), Via::Plain, &register.bytes());
    assert_eq!(
        sent[1].notify("a").1,
        [plain_record("192.168.1.0/24", "192.0.2.7")]
    );
    bench.ack("a", &sent[1]);
    let register = bench.register_of("gear", &[empty("192.168.1.0/24", 0)]);
    let sent = bench.datagram(socket("192.0.2.200:4342"), Via::Plain, &register.bytes());
    assert_eq!(sent[1].notify("a").1, [empty("192.168.1.0/24", 0)]);
}

#[test]
fn an_unchanged_refresh_is_not_news() {
    let mut bench = registered();
    bench.pair("a", "b", "10.0.0.2");
    assert_eq!(bench.register("b", &own_records("b")).len(), 1);
    assert_eq!(bench.register("a", &own_records("a")).len(), 1);
}

#[test]
fn news_for_many_subscribers_leaves_in_portions() {
    let agents = 2 * limits::NOTIFIES_AT_ONCE;
    let xtr = |number: u32| XtrConfig {
        name: format!("agent-{number}").into(),
        control_address: Some(Ipv4Addr::from(0x0a00_0000 | number).into()),
        auth: key("any"),
        xtr_id: None,
        site_id: None,
        replay_check: true,
        eid_prefixes: vec![EidPrefix::host(
            InstanceId(0),
            Ipv6Addr::from(u128::from(number)).into(),
        )],
        more_specifics: false,
    };
    let config = Config::new(Options::default(), (0..agents).map(xtr).collect()).unwrap();
    let mut server = MapServer::new(config, [0; 32]);
    for subscriber in 1..agents {
        let subscriber = server
            .sites
            .by_name(&format!("agent-{subscriber}").into())
            .unwrap();
        server
            .state
            .subscribers
            .join(eid("::0"), subscriber, Timestamp(u64::MAX));
    }
    let mut actions = Actions::new();
    let gone = Changed {
        eid: eid("::0"),
        change: Change::Removed,
        newcomer: None,
    };
    server.publish(Timestamp::ZERO, None, &[gone], &mut actions);
    let sent = |actions: &Actions| {
        actions
            .iter()
            .filter(|action| matches!(action, Action::Send { .. }))
            .count()
    };
    assert_eq!(sent(&actions), limits::NOTIFIES_AT_ONCE as usize + 1);
    while let Some(at) = server
        .next_deadline()
        .filter(|at| *at < Timestamp::ZERO + limits::NOTIFY_INTERVAL / 2)
    {
        server.handle(at, Input::Tick, &mut actions);
    }
    assert_eq!(sent(&actions), agents as usize - 1);
}

fn registered() -> Bench {
    let mut bench = Bench::new();
    bench.register_all();
    bench
}

fn register_gear(bench: &mut Bench) {
    let register = bench.register_of("gear", &[plain_record("192.168.0.0/16", "192.0.2.200")]);
    bench.datagram(socket("192.0.2.200:4342"), Via::Plain, &register.bytes());
}
