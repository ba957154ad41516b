//! Whatever is sent is read back; whatever is broken is refused, and never with a panic.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checks;
mod strategies;

use std::net::SocketAddr;

use checks::{as_sent, read_everything, round_trip};
use lisp_proto::{
    Message, NotifyParams, Record, RecordView, RegisterParams, ReplyParams, decode, encode_ecm,
    encode_info_reply, encode_info_request, encode_map_notify, encode_map_notify_ack,
    encode_map_register, encode_map_reply, encode_map_request, verify,
};
use proptest::prelude::*;
use strategies::{
    any_message, auth_key, ids, info, info_parts, nonce, records, register, register_flags, request,
};

/// No message written here has a locator without a port.
const NO_PORT: u16 = 0;

proptest! {
    #[test]
    fn requests(request in request()) {
        let params = request.params();
        let mut out = Vec::new();
        encode_map_request(&params, &mut out).unwrap();
        let Ok(Message::MapRequest(read)) = decode(&out) else {
            panic!("{:?}", decode(&out));
        };
        prop_assert_eq!(read.flags, params.flags);
        prop_assert_eq!(read.nonce, params.nonce);
        prop_assert_eq!(read.source_eid(), params.source_eid);
        let itr_rlocs: Vec<_> = read.itr_rlocs().filter_map(|address| address.ip()).collect();
        prop_assert_eq!(itr_rlocs, params.itr_rlocs);
        prop_assert_eq!(read.eids().collect::<Vec<_>>(), params.eids);
        let record = read.source_record().and_then(|record| record.to_record(NO_PORT));
        prop_assert_eq!(record, params.source_record.cloned().map(as_sent));
        prop_assert_eq!(read.ids, params.ids);
    }

    #[test]
    fn replies(
        (probe, echo_nonce, nonce) in (any::<bool>(), any::<bool>(), nonce()),
        records in records(),
    ) {
        let params = ReplyParams { probe, echo_nonce, nonce, records: &records };
        let mut out = Vec::new();
        encode_map_reply(&params, &mut out).unwrap();
        let Ok(Message::MapReply(read)) = decode(&out) else {
            panic!("{:?}", decode(&out));
        };
        prop_assert_eq!((read.probe, read.echo_nonce), (probe, echo_nonce));
        prop_assert!(!read.security);
        prop_assert_eq!(read.nonce, nonce);
        prop_assert_eq!(owned(read.records()), sorted_all(records));
    }

    #[test]
    fn registers(
        (flags, nonce, ids) in (register_flags(), nonce(), ids()),
        records in records(),
        key in auth_key(),
    ) {
        let params = RegisterParams { flags, nonce, records: &records, ids };
        let mut out = Vec::new();
        encode_map_register(&params, &key, &mut out).unwrap();
        verify(&key, &out).unwrap();
        let Ok(Message::MapRegister(read)) = decode(&out) else {
            panic!("{:?}", decode(&out));
        };
        prop_assert_eq!(read.flags, flags);
        prop_assert_eq!(read.nonce, nonce);
        prop_assert_eq!(read.ids, ids);
        prop_assert_eq!(read.auth.key_id, key.key_id());
        prop_assert_eq!(read.auth.algorithm_id, key.algorithm().id());
        prop_assert_eq!(owned(read.records()), sorted_all(records));
    }

    #[test]
    fn notifies_and_their_acknowledgements(
        nonce in nonce(),
        records in records(),
        key in auth_key(),
    ) {
        let params = NotifyParams { nonce, records: &records, handoff: None };
        let (mut notify, mut ack) = (Vec::new(), Vec::new());
        encode_map_notify(&params, &key, &mut notify).unwrap();
        encode_map_notify_ack(&params, &key, &mut ack).unwrap();
        verify(&key, &notify).unwrap();
        verify(&key, &ack).unwrap();
        let (Ok(Message::MapNotify(read)), Ok(Message::MapNotifyAck(read_ack))) =
            (decode(&notify), decode(&ack))
        else {
            panic!("{:?} {:?}", decode(&notify), decode(&ack));
        };
        let records = sorted_all(records);
        for read in [read, read_ack] {
            prop_assert_eq!(read.nonce, nonce);
            prop_assert_eq!(read.ids, None);
            prop_assert_eq!(read.auth.key_id, key.key_id());
            prop_assert_eq!(owned(read.records()), &records[..]);
        }
    }

    #[test]
    fn infos((nonce, eid, seen) in info_parts(), key in auth_key()) {
        let mut out = Vec::new();
        match seen {
            Some(seen) => encode_info_reply(nonce, eid, seen, &key, &mut out),
            None => encode_info_request(nonce, eid, &key, &mut out),
        }
        verify(&key, &out).unwrap();
        let Ok(Message::InfoRequest(read)) = decode(&out) else {
            panic!("{:?}", decode(&out));
        };
        prop_assert_eq!(read.reply, seen.is_some());
        prop_assert_eq!((read.nonce, read.eid(), read.seen()), (nonce, Some(eid), seen));
        prop_assert_eq!(read.auth.key_id, key.key_id());
    }

    #[test]
    fn encapsulated_messages(
        (source, destination) in prop_oneof![
            (any::<[u8; 4]>(), any::<[u8; 4]>()).prop_map(|(a, b)| (a.into(), b.into())),
            (any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(a, b)| (a.into(), b.into())),
        ],
        ports in any::<(u16, u16)>().prop_filter("data", |(a, b)| *a != 4341 && *b != 4341),
        inner in any_message(),
    ) {
        let source = SocketAddr::new(source, ports.0);
        let destination = SocketAddr::new(destination, ports.1);
        let mut out = Vec::new();
        encode_ecm(source, destination, &inner, &mut out).unwrap();
        let Ok(Message::Ecm(read)) = decode(&out) else {
            panic!("{:?}", decode(&out));
        };
        prop_assert_eq!((read.source, read.destination), (source, destination));
        prop_assert_eq!(read.message, inner);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        read_everything(&bytes);
    }

    #[test]
    fn broken_messages_do_not_panic(
        mut bytes in any_message(),
        breaks in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        for (index, value) in breaks {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_everything(&bytes);
        round_trip(&bytes);
    }

    #[test]
    fn any_changed_byte_of_what_is_signed_is_refused(
        (bytes, key) in prop_oneof![register(), info()],
        change in 1..=255_u8,
    ) {
        verify(&key, &bytes).unwrap();
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= change;
            prop_assert!(verify(&key, &changed).is_err(), "byte {}", index);
        }
        for end in 0..bytes.len() {
            prop_assert!(verify(&key, &bytes[..end]).is_err(), "cut at {}", end);
        }
        prop_assert!(verify(&key, &[&bytes[..], &[0]].concat()).is_err());
    }
}

fn owned<'a>(records: impl Iterator<Item = RecordView<'a>>) -> Vec<Record> {
    records
        .filter_map(|record| record.to_record(NO_PORT))
        .collect()
}

fn sorted_all(records: Vec<Record>) -> Vec<Record> {
    records.into_iter().map(as_sent).collect()
}
