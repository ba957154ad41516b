//! Agents that serve several instance-ids, with an xTR-ID for each.

use std::time::Duration;

use lisp_proto::{
    EidPrefix, InstanceId, Nonce, Record, RequestFlags, RequestParams, RequestedEid, SiteId, XtrId,
    encode_map_request,
};

use super::bench::{Bench, Sent, control, own_records, record, xtrs};
use super::{DropReason, Input, Via};
use crate::config::Options;
use crate::store_event::XtrIds;

const OTHER: InstanceId = InstanceId(7);
const BOTH: [InstanceId; 2] = [InstanceId(0), OTHER];

/// A server whose agents may register the same addresses in both instances; c in one only.
fn bench() -> Bench {
    let mut xtrs = xtrs();
    for xtr in xtrs
        .iter_mut()
        .filter(|xtr| ["a", "b"].contains(&&*xtr.name))
    {
        let more: Vec<_> = xtr
            .eid_prefixes
            .iter()
            .map(|eid| within(*eid, OTHER))
            .collect();
        xtr.eid_prefixes.extend(more);
    }
    Bench::of(Options::default(), xtrs)
}

fn within(eid: EidPrefix, iid: InstanceId) -> EidPrefix {
    EidPrefix::new(iid, eid.net())
}

fn ids(iid: InstanceId) -> XtrIds {
    (XtrId([u8::try_from(iid.0).unwrap(); 16]), SiteId([0; 8]))
}

/// What `name` registers in an instance.
fn records(name: &str, iid: InstanceId) -> Vec<Record> {
    let mut records = own_records(name).to_vec();
    for record in &mut records {
        record.eid = within(record.eid, iid);
    }
    records
}

fn register(bench: &mut Bench, name: &str, iid: InstanceId, records: &[Record]) -> Vec<Sent> {
    let mut register = bench.register_of(name, records);
    register.ids = Some(ids(iid));
    bench.datagram(control(name), Via::Tunnel, &register.bytes())
}

fn register_both(bench: &mut Bench) {
    for name in ["a", "b"] {
        for iid in BOTH {
            register(bench, name, iid, &records(name, iid));
        }
    }
}

/// A question of a about `eid`, on behalf of its own address in `source`.
fn ask(bench: &mut Bench, source: InstanceId, eid: EidPrefix, subscribe: Option<u64>) -> Vec<Sent> {
    let nonce = subscribe.unwrap_or_else(|| bench.nonce());
    let params = RequestParams {
        flags: RequestFlags::default(),
        nonce: Nonce(nonce),
        source_eid: Some((source, own_records("a")[0].eid.net().addr())),
        itr_rlocs: &[control("a").ip()],
        eids: &[RequestedEid {
            subscribe: subscribe.is_some(),
            eid,
        }],
        source_record: None,
        gap: None,
        ids: subscribe.map(|_| ids(source)),
    };
    let mut bytes = Vec::new();
    encode_map_request(&params, &mut bytes).unwrap();
    bench.datagram(control("a"), Via::Tunnel, &bytes)
}

/// Lets a and b know each other in both instances.
fn pair_in_both(bench: &mut Bench) {
    for iid in BOTH {
        let pushed = ask(bench, iid, records("b", iid)[0].eid, None);
        let answer = bench.ack("b", &pushed[0]);
        bench.ack("a", &answer[1]);
    }
}

/// What `name` is told: the prefixes of each Map-Notify.
fn told(name: &str, sent: &[Sent]) -> Vec<Vec<EidPrefix>> {
    let to = sent
        .iter()
        .filter(|sent| sent.dst == control(name) && sent.is_notify());
    let records = to.map(|sent| sent.notify(name).1);
    let eids = records.map(|records| records.iter().map(|record| record.eid).collect());
    eids.collect()
}

#[test]
fn the_same_addresses_are_registered_in_two_instances_with_nonces_of_their_own() {
    let mut bench = bench();
    for iid in BOTH {
        let mut register = bench.register_of("a", &records("a", iid));
        register.ids = Some(ids(iid));
        register.nonce = 500 - u64::from(iid.0);
        let sent = bench.datagram(control("a"), Via::Tunnel, &register.bytes());
        assert_eq!(sent[0].notify("a").1.len(), 2);
    }
    assert_eq!(
        bench.server.sizes().mappings,
        11,
        "those configured, and nothing else"
    );
    assert_eq!(bench.count(DropReason::ReplayedNonce), 0);
}

#[test]
fn a_far_end_is_told_of_the_requester_in_the_instance_of_the_question_alone() {
    for iid in BOTH {
        let mut bench = bench();
        register_both(&mut bench);
        let pushed = ask(&mut bench, iid, records("b", iid)[0].eid, None);
        assert_eq!(pushed[0].notify("b").1, records("a", iid));
        let answer = bench.ack("b", &pushed[0]);
        assert_eq!(answer[0].reply_records(), records("b", iid)[..1]);
        assert_eq!(answer[1].notify("a").1, records("b", iid));
    }
}

#[test]
fn nobody_is_paired_across_instances() {
    let mut bench = bench();
    register_both(&mut bench);
    let answer = ask(&mut bench, OTHER, records("b", InstanceId(0))[0].eid, None);
    assert_eq!((answer.len(), answer[0].is_notify()), (1, false));
    let confirmed = |sent: &&Sent| sent.dst == control("b");
    assert_eq!(
        bench.sent.iter().filter(confirmed).count(),
        2,
        "nothing but those"
    );
}

#[test]
fn a_tenant_learns_nothing_about_another() {
    let mut bench = bench();
    register_both(&mut bench);
    let before = bench.server.fingerprint();
    let nonce = bench.nonce();
    let params = RequestParams {
        flags: RequestFlags::default(),
        nonce: Nonce(nonce),
        source_eid: None,
        itr_rlocs: &[control("c").ip()],
        eids: &[RequestedEid {
            subscribe: false,
            eid: records("a", OTHER)[0].eid,
        }],
        source_record: None,
        gap: None,
        ids: None,
    };
    let mut bytes = Vec::new();
    encode_map_request(&params, &mut bytes).unwrap();
    assert_eq!(bench.datagram(control("c"), Via::Tunnel, &bytes), []);
    assert_eq!(bench.count(DropReason::ForeignInstance), 1);
    assert_eq!(bench.server.fingerprint(), before);
}

#[test]
fn one_map_notify_is_about_one_instance() {
    let mut bench = bench();
    register_both(&mut bench);
    pair_in_both(&mut bench);
    bench.wait(Duration::from_secs(100));
    for iid in BOTH {
        register(&mut bench, "a", iid, &records("a", iid));
    }
    // All that b has registered ends at the same time.
    let sent = bench.wait(Duration::from_secs(85));
    let mut told = told("a", &sent);
    told.dedup();
    assert!(told.len() >= 2, "{told:?}");
    for eids in told {
        let one = eids.iter().all(|eid| eid.iid() == eids[0].iid());
        assert!(one, "{eids:?}");
    }
}

#[test]
fn who_leaves_one_instance_is_still_told_about_the_other() {
    let mut bench = bench();
    register_both(&mut bench);
    pair_in_both(&mut bench);
    let gone: Vec<_> = records("a", OTHER)
        .into_iter()
        .map(|record| super::bench::empty(&record.eid.to_string(), 0))
        .collect();
    register(&mut bench, "a", OTHER, &gone);
    for iid in BOTH {
        let eid = records("b", iid)[0].eid.to_string();
        let moved = [record(&eid, "198.51.100.9:51820")];
        let sent = register(&mut bench, "b", iid, &moved);
        assert_eq!(told("a", &sent).len(), usize::from(iid != OTHER), "{iid:?}");
    }
}

#[test]
fn each_instance_counts_the_nonces_of_its_own_subscriptions() {
    let mut bench = bench();
    register_both(&mut bench);
    for (iid, nonce) in BOTH.into_iter().zip([500, 400]) {
        let eid = records("b", iid)[0].eid;
        let pushed = ask(&mut bench, iid, eid, Some(nonce));
        let answer = bench.ack("b", &pushed[0]);
        assert_eq!(answer[0].notify("a").0, Nonce(nonce));
        assert_eq!(ask(&mut bench, iid, eid, Some(nonce)), [], "a replay");
    }
    let stored = std::mem::take(&mut bench.stored);
    let mut bench = self::bench();
    for event in stored {
        bench.input(Input::Restore(event));
    }
    let eid = records("b", OTHER)[0].eid;
    assert_eq!(
        ask(&mut bench, OTHER, eid, Some(400)),
        [],
        "also after a restart"
    );
    assert_eq!(bench.count(DropReason::ReplayedSubscription), 1);
}
