//! What a captured message is for.

use lisp_proto::{InstanceId, MapNotify, Message, RecordView, decode};

/// Kinds of messages that a Lispwire network sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A question about an IPv4 EID.
    MapRequestV4,
    /// A question about an IPv6 EID.
    MapRequestV6,
    /// A question in an Encapsulated Control Message.
    EncapsulatedRequest,
    /// A wish to be told about an EID-prefix (RFC 9437 4).
    Subscription,
    /// The end of one.
    Unsubscription,
    /// An answer with locators.
    MapReply,
    /// An answer without.
    NegativeMapReply,
    /// A registration.
    MapRegister,
    /// One in an instance of its own (RFC 8060 4.1).
    MapRegisterOfInstance,
    /// The end of one.
    Withdrawal,
    /// An acknowledged registration, a push or a publication: what a mapping is now.
    MapNotify,
    /// A mapping is no more.
    MapNotifyOfWithdrawal,
    /// The receipt of a push or a publication.
    MapNotifyAck,
    /// At which address and port is an agent seen?
    InfoRequest,
    /// The answer to that.
    InfoReply,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 15] = [
        Self::MapRequestV4,
        Self::MapRequestV6,
        Self::EncapsulatedRequest,
        Self::Subscription,
        Self::Unsubscription,
        Self::MapReply,
        Self::NegativeMapReply,
        Self::MapRegister,
        Self::MapRegisterOfInstance,
        Self::Withdrawal,
        Self::MapNotify,
        Self::MapNotifyOfWithdrawal,
        Self::MapNotifyAck,
        Self::InfoRequest,
        Self::InfoReply,
    ];

    /// Whether it takes a control tunnel, or several instances: without one nothing is pushed, so
    /// nothing is acknowledged, and nobody subscribes, or asks where he is seen.
    pub(crate) const fn is_private(self) -> bool {
        matches!(
            self,
            Self::Subscription
                | Self::Unsubscription
                | Self::MapRegisterOfInstance
                | Self::MapNotifyAck
                | Self::InfoRequest
                | Self::InfoReply
        )
    }
}

/// The kind of a message.
pub(crate) fn kind_of(payload: &[u8]) -> Kind {
    match decode(payload).unwrap() {
        Message::MapRequest(request) => {
            if request.eids().any(|asked| asked.subscribe) {
                let told = request.itr_rlocs().any(|rloc| rloc.ip().is_some());
                return if told {
                    Kind::Subscription
                } else {
                    Kind::Unsubscription
                };
            }
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
        Message::MapRegister(register) if register.records().all(is_of_instance) => {
            Kind::MapRegisterOfInstance
        }
        Message::MapRegister(_) => Kind::MapRegister,
        Message::MapNotify(notify) if withdraws(&notify) => Kind::MapNotifyOfWithdrawal,
        Message::MapNotify(_) => Kind::MapNotify,
        Message::MapNotifyAck(_) => Kind::MapNotifyAck,
        Message::Ecm(_) => Kind::EncapsulatedRequest,
        Message::InfoRequest(info) if info.reply => Kind::InfoReply,
        Message::InfoRequest(_) => Kind::InfoRequest,
        Message::MapReferral(_) => panic!("nobody here sends that"),
    }
}

fn withdraws(notify: &MapNotify<'_>) -> bool {
    notify.records().all(is_withdrawal)
}

fn is_withdrawal(record: RecordView<'_>) -> bool {
    record.ttl().is_withdrawal()
}

fn is_of_instance(record: RecordView<'_>) -> bool {
    record.eid().is_some_and(|eid| eid.iid() != InstanceId(0))
}
