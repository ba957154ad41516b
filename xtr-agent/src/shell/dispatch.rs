//! Which instance is a control datagram about? All share one socket.

use lisp_proto::{InstanceId, Message, RecordView, decode};

/// The instance-id of the first EID that `datagram` names.
///
/// The map server answers each agent about its own instance-id, and puts records of one
/// instance-id only into a Map-Notify: so the agent that gets it acknowledges it, once, when all of
/// it is installed. `None` for what names no EID or cannot be read.
pub(super) fn instance_of(datagram: &[u8]) -> Option<InstanceId> {
    let of_record = |record: Option<RecordView<'_>>| Some(record?.eid()?.iid());
    match decode(datagram).ok()? {
        Message::MapReply(reply) => of_record(reply.records().next()),
        Message::MapNotify(notify) | Message::MapNotifyAck(notify) => {
            of_record(notify.records().next())
        }
        Message::MapRegister(register) => of_record(register.records().next()),
        Message::MapRequest(request) => Some(request.eids().next()?.eid.iid()),
        Message::InfoRequest(info) => Some(info.eid()?.iid()),
        Message::MapReferral(_) | Message::Ecm(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use lisp_proto::{
        Algorithm, AuthKey, EidPrefix, Nonce, NotifyParams, Record, ReplyParams, RequestFlags,
        RequestParams, RequestedEid, Ttl, encode_map_notify, encode_map_reply, encode_map_request,
    };

    use super::*;

    fn eid(text: &str) -> EidPrefix {
        text.parse().unwrap()
    }

    fn record(text: &str) -> Record {
        Record {
            eid: eid(text),
            ttl: Ttl::from_minutes(15),
            action: lisp_proto::Action::NoAction,
            authoritative: false,
            locators: Vec::new(),
        }
    }

    #[test]
    fn replies_and_notifications_go_where_their_records_belong() {
        let key = AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"secret");
        for (text, iid) in [("[7]10.0.0.1", 7), ("10.0.0.1", 0), ("[9]fd00::/8", 9)] {
            let records = [record(text)];
            let mut notify = Vec::new();
            let params = NotifyParams {
                nonce: Nonce(1),
                records: &records,
                handoff: None,
            };
            encode_map_notify(&params, &key, &mut notify).unwrap();
            assert_eq!(instance_of(&notify), Some(InstanceId(iid)));
            let mut reply = Vec::new();
            let params = ReplyParams {
                probe: false,
                echo_nonce: false,
                nonce: Nonce(1),
                records: &records,
            };
            encode_map_reply(&params, &mut reply).unwrap();
            assert_eq!(instance_of(&reply), Some(InstanceId(iid)));
        }
    }

    #[test]
    fn questions_go_to_whom_they_ask() {
        let mut request = Vec::new();
        let params = RequestParams {
            flags: RequestFlags::default(),
            nonce: Nonce(1),
            source_eid: Some((InstanceId(3), "10.0.0.1".parse().unwrap())),
            itr_rlocs: &["192.0.2.1".parse().unwrap()],
            eids: &[RequestedEid {
                subscribe: false,
                eid: eid("[7]10.0.0.1"),
            }],
            source_record: None,
            gap: None,
            ids: None,
        };
        encode_map_request(&params, &mut request).unwrap();
        assert_eq!(instance_of(&request), Some(InstanceId(7)));
    }

    #[test]
    fn what_names_no_eid_is_for_no_instance() {
        let mut reply = Vec::new();
        let params = ReplyParams {
            probe: false,
            echo_nonce: false,
            nonce: Nonce(1),
            records: &[],
        };
        encode_map_reply(&params, &mut reply).unwrap();
        assert_eq!(instance_of(&reply), None);
        assert_eq!(instance_of(b"junk"), None);
    }
}
