//! What a captured message is for.

use lisp_proto::{MapNotify, Message, RecordView, decode};

/// Kinds of messages that a Lispwire network sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A question about an IPv4 EID.
    MapRequestV4,
    /// A question about an IPv6 EID.
    MapRequestV6,
    /// A question in an Encapsulated Control Message.
    EncapsulatedRequest,
    /// An answer with locators.
    MapReply,
    /// An answer without.
    NegativeMapReply,
    /// A registration.
    MapRegister,
    /// The end of one.
    Withdrawal,
    /// An acknowledged registration, a push or a publication: what a mapping is now.
    MapNotify,
    /// A mapping is no more.
    MapNotifyOfWithdrawal,
    /// The receipt of a push or a publication.
    MapNotifyAck,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 10] = [
        Self::MapRequestV4,
        Self::MapRequestV6,
        Self::EncapsulatedRequest,
        Self::MapReply,
        Self::NegativeMapReply,
        Self::MapRegister,
        Self::Withdrawal,
        Self::MapNotify,
        Self::MapNotifyOfWithdrawal,
        Self::MapNotifyAck,
    ];
}

/// The kind of a message.
pub(crate) fn kind_of(payload: &[u8]) -> Kind {
    match decode(payload).unwrap() {
        Message::MapRequest(request) => {
            if request.eids().next().unwrap().eid.net().addr().is_ipv4() {
                Kind::MapRequestV4
            } else {
                Kind::MapRequestV6
            }
        }
        Message::MapReply(reply) => {
            if reply
                .records()
                .all(|record| record.locators().next().is_none())
            {
                Kind::NegativeMapReply
            } else {
                Kind::MapReply
            }
        }
        Message::MapRegister(register) if register.records().all(is_withdrawal) => Kind::Withdrawal,
        Message::MapRegister(_) => Kind::MapRegister,
        Message::MapNotify(notify) if withdraws(&notify) => Kind::MapNotifyOfWithdrawal,
        Message::MapNotify(_) => Kind::MapNotify,
        Message::MapNotifyAck(_) => Kind::MapNotifyAck,
        Message::Ecm(_) => Kind::EncapsulatedRequest,
        Message::MapReferral(_) | Message::InfoRequest(_) => panic!("nobody here sends that"),
    }
}

fn withdraws(notify: &MapNotify<'_>) -> bool {
    notify.records().all(is_withdrawal)
}

fn is_withdrawal(record: RecordView<'_>) -> bool {
    record.ttl().is_withdrawal()
}
