//! What must hold for any bytes at all. Shared by the tests and the fuzz targets.

#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::net::IpAddr;

use lisp_proto::{
    Action, Algorithm, AuthKey, Ecm, Info, MapNotify, MapRegister, MapReply, MapRequest, Message,
    NotifyParams, Record, RecordView, RegisterParams, ReplyParams, RequestParams, RequestedEid,
    decode, encode_ecm, encode_info_reply, encode_info_request, encode_map_notify,
    encode_map_notify_ack, encode_map_register, encode_map_reply, encode_map_request, verify,
};

/// Reads all there is to read, whatever the bytes are.
pub(crate) fn read_everything(bytes: &[u8]) {
    assert!(verify(&key(), bytes).is_err(), "nobody signs with this key");
    match decode(bytes) {
        Ok(Message::MapRequest(request)) => {
            assert!(request.itr_rlocs().count() > 0);
            assert!(request.eids().count() <= request.eid_addresses().count());
            show(&request.source_address());
            read_records(request.source_record().into_iter());
        }
        Ok(Message::MapReply(reply)) => read_records(reply.records()),
        Ok(Message::MapRegister(register)) => read_records(register.records()),
        Ok(Message::MapNotify(notify) | Message::MapNotifyAck(notify)) => {
            read_records(notify.records());
        }
        Ok(Message::MapReferral(referral)) => read_records(referral.records()),
        Ok(Message::Ecm(ecm)) => read_everything(ecm.message),
        Ok(Message::InfoRequest(info)) => {
            show(&(info.eid_address(), info.info_address(), info.seen()));
        }
        Err(error) => show(&error),
    }
}

fn read_records<'a>(records: impl Iterator<Item = RecordView<'a>>) {
    for record in records {
        assert_eq!(
            record.locators().count(),
            usize::from(record.locator_count())
        );
        let usable = record.to_record(DEFAULT_PORT);
        assert_eq!(usable.map(|record| record.eid), record.eid());
        for locator in record.locators() {
            show(&locator.address());
        }
    }
}

fn show(value: &impl std::fmt::Debug) {
    assert!(!format!("{value:?}").is_empty());
}

/// What can be read and stored is written so that it is read again just so; and what is written
/// once is written the same again.
pub(crate) fn round_trip(bytes: &[u8]) {
    let Ok(message) = decode(bytes) else {
        return;
    };
    let Some(written) = rewrite(&message) else {
        return;
    };
    let Ok(read) = decode(&written) else {
        panic!("{message:?} was written as {written:02x?}");
    };
    assert_same(&message, &read);
    assert_eq!(rewrite(&read).as_ref(), Some(&written), "{message:?}");
}

/// Writes what this crate makes of a message; `None` for one that it does not write.
fn rewrite(message: &Message<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let result = match message {
        Message::MapRequest(request) => write_request(request, &mut out),
        Message::MapReply(reply) => {
            let params = ReplyParams {
                probe: reply.probe,
                echo_nonce: reply.echo_nonce,
                nonce: reply.nonce,
                records: &owned(reply.records()),
            };
            encode_map_reply(&params, &mut out)
        }
        Message::MapRegister(register) => {
            let params = RegisterParams {
                flags: register.flags,
                nonce: register.nonce,
                records: &owned(register.records()),
                ids: register.ids,
            };
            encode_map_register(&params, &key(), &mut out)
        }
        Message::MapNotify(notify) => {
            let records = owned(notify.records());
            let nonce = notify.nonce;
            let records = &records;
            encode_map_notify(
                &NotifyParams {
                    nonce,
                    records,
                    handoff: None,
                },
                &key(),
                &mut out,
            )
        }
        Message::MapNotifyAck(notify) => {
            let records = owned(notify.records());
            let nonce = notify.nonce;
            let records = &records;
            encode_map_notify_ack(
                &NotifyParams {
                    nonce,
                    records,
                    handoff: None,
                },
                &key(),
                &mut out,
            )
        }
        Message::Ecm(ecm) => encode_ecm(ecm.source, ecm.destination, ecm.message, &mut out),
        Message::InfoRequest(info) => {
            let (nonce, eid) = (info.nonce, info.eid()?);
            match info.seen() {
                Some(seen) if info.reply => {
                    encode_info_reply(nonce, eid, seen, &key(), &mut out);
                }
                None if !info.reply => encode_info_request(nonce, eid, &key(), &mut out),
                Some(_) | None => return None,
            }
            Ok(())
        }
        Message::MapReferral(_) => return None,
    };
    assert_eq!(result, Ok(()), "what was read fits a message");
    Some(out)
}

fn write_request(
    request: &MapRequest<'_>,
    out: &mut Vec<u8>,
) -> Result<(), lisp_proto::EncodeError> {
    let own_record = own_record(request);
    let params = RequestParams {
        flags: request.flags,
        nonce: request.nonce,
        source_eid: request.source_eid(),
        itr_rlocs: &itr_rlocs(request),
        eids: &request.eids().collect::<Vec<RequestedEid>>(),
        source_record: own_record.as_ref(),
        gap: request.gap(),
        ids: request.ids,
    };
    encode_map_request(&params, out)
}

fn assert_same(one: &Message<'_>, other: &Message<'_>) {
    match (one, other) {
        (Message::MapRequest(one), Message::MapRequest(other)) => {
            assert_eq!(request_parts(one), request_parts(other));
            assert_eq!(own_record(one), own_record(other));
        }
        (Message::MapReply(one), Message::MapReply(other)) => {
            assert_eq!(reply_parts(one), reply_parts(other));
        }
        (Message::MapRegister(one), Message::MapRegister(other)) => {
            assert_eq!(register_parts(one), register_parts(other));
        }
        (Message::MapNotify(one), Message::MapNotify(other))
        | (Message::MapNotifyAck(one), Message::MapNotifyAck(other)) => {
            assert_eq!(notify_parts(one), notify_parts(other));
        }
        (Message::InfoRequest(one), Message::InfoRequest(other)) => {
            assert_eq!(info_parts(one), info_parts(other));
        }
        (Message::Ecm(one), Message::Ecm(other)) => assert_eq!(ecm_parts(one), ecm_parts(other)),
        _ => panic!("{one:?} became {other:?}"),
    }
}

fn request_parts(request: &MapRequest<'_>) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        request.flags,
        request.nonce,
        request.ids,
        request.source_eid(),
        itr_rlocs(request),
        request.eids().collect::<Vec<RequestedEid>>(),
    )
}

fn reply_parts(reply: &MapReply<'_>) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        reply.probe,
        reply.echo_nonce,
        reply.nonce,
        owned(reply.records()),
    )
}

fn register_parts(register: &MapRegister<'_>) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        register.flags,
        register.nonce,
        register.ids,
        owned(register.records()),
    )
}

fn notify_parts(notify: &MapNotify<'_>) -> impl PartialEq + std::fmt::Debug + use<> {
    (notify.nonce, owned(notify.records()))
}

fn info_parts(info: &Info<'_>) -> impl PartialEq + std::fmt::Debug + use<> {
    (info.reply, info.nonce, info.eid(), info.seen())
}

fn ecm_parts<'a>(ecm: &Ecm<'a>) -> impl PartialEq + std::fmt::Debug + use<'a> {
    (ecm.source, ecm.destination, ecm.message)
}

fn itr_rlocs(request: &MapRequest<'_>) -> Vec<IpAddr> {
    request
        .itr_rlocs()
        .filter_map(|address| address.ip())
        .collect()
}

fn own_record(request: &MapRequest<'_>) -> Option<Record> {
    owned(request.source_record().into_iter()).pop()
}

/// The records that are of use, as they would be sent.
fn owned<'a>(records: impl Iterator<Item = RecordView<'a>>) -> Vec<Record> {
    let records = records.filter_map(|record| record.to_record(DEFAULT_PORT));
    records.map(as_sent).collect()
}

/// The record as it is sent: locators in the order of the wire, and an action only without them.
pub(crate) fn as_sent(mut record: Record) -> Record {
    record.locators.sort_by_key(|locator| locator.rloc);
    if !record.locators.is_empty() {
        record.action = Action::NoAction;
    }
    record
}

fn key() -> AuthKey {
    AuthKey::new(0, Algorithm::Sha256_128, b"known to the tests only")
}

const DEFAULT_PORT: u16 = 51820;
