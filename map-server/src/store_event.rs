//! What must survive a restart?
//!
//! The state machine emits these facts as it learns them; the shell keeps them and gives them
//! back, in the same order, before anything else happens.

use std::net::SocketAddr;
use std::time::Duration;

use lisp_proto::{EidPrefix, InstanceId, Nonce, Record, SiteId, XtrId};
use serde::{Deserialize, Serialize};

use crate::config::XtrName;
use crate::server::limits;

/// The xTR-ID and Site-ID of a Map-Register with the I bit (RFC 9301 §5.6).
pub type XtrIds = (XtrId, SiteId);

/// One fact worth keeping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StoreEvent {
    /// An xTR registered a prefix, or something other than the expiry of its registration changed.
    Registered {
        /// Who registered.
        #[serde(with = "xtr_name")]
        xtr: XtrName,
        /// Which of several that share the configured entry.
        ids: Option<XtrIds>,
        /// What was registered.
        record: Record,
        /// Whether it merges with the registrations of others (the `a` bit).
        merge: bool,
        /// Whether the xTR wants to be told how it was understood (the M bit).
        #[serde(default)]
        want_notify: bool,
        /// Lifetime without a refresh; when given back, what is left of it.
        lifetime: Duration,
        /// Where the Map-Register came from.
        source: SocketAddr,
        /// Whether the authentication data was not truncated.
        full_tag: bool,
    },
    /// A registration was withdrawn or has expired.
    Withdrawn {
        /// Who had registered.
        #[serde(with = "xtr_name")]
        xtr: XtrName,
        /// Which of several that share the configured entry.
        ids: Option<XtrIds>,
        /// The prefix that had been registered.
        eid: EidPrefix,
    },
    /// Map-Registers up to this nonce were accepted.
    Nonce {
        /// Who registered.
        #[serde(with = "xtr_name")]
        xtr: XtrName,
        /// Which of several that share the configured entry.
        ids: Option<XtrIds>,
        /// The key it was authenticated with.
        key_id: u8,
        /// The last nonce.
        nonce: Nonce,
    },
    /// Unsolicited Map-Notifies may have used nonces below this one.
    NotifyFloor {
        /// Who they were sent to.
        #[serde(with = "xtr_name")]
        xtr: XtrName,
        /// The first nonce that is certainly unused.
        nonce: Nonce,
    },
    /// Of those who share a prefix by the merge bit, an agent uses this one.
    Assigned {
        /// The prefix.
        eid: EidPrefix,
        /// Who uses it.
        #[serde(with = "xtr_name")]
        client: XtrName,
        /// Whose locators come first in what the client is told.
        #[serde(with = "xtr_name")]
        owner: XtrName,
        /// Parts of the prefix that the client was told of.
        parts: Vec<EidPrefix>,
    },
    /// An agent does not use a shared prefix any more.
    Unassigned {
        /// The prefix.
        eid: EidPrefix,
        /// Who used it.
        #[serde(with = "xtr_name")]
        client: XtrName,
    },
    /// An xTR is to forget these prefixes of clients that have left it, and has not acknowledged that.
    Dismissed {
        /// Which xTR.
        #[serde(with = "xtr_name")]
        xtr: XtrName,
        /// The prefixes.
        eids: Vec<EidPrefix>,
        /// For how many seconds it is still to be told of each, in the same order; of those that are missing here, as
        /// all are at first and in files of earlier versions, for as long as of any.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        left_s: Vec<u32>,
    },
    /// An xTR has forgotten these prefixes, or is to know them again.
    Forgotten {
        /// Which xTR.
        #[serde(with = "xtr_name")]
        xtr: XtrName,
        /// The prefixes.
        eids: Vec<EidPrefix>,
    },
    /// A client is to leave an owner, which is told to forget it when it has.
    Leaving {
        /// Which client.
        #[serde(with = "xtr_name")]
        client: XtrName,
        /// Which owner.
        #[serde(with = "xtr_name")]
        owner: XtrName,
        /// In which instance.
        iid: InstanceId,
    },
    /// That is over: the owner is being told.
    Left {
        /// Which client.
        #[serde(with = "xtr_name")]
        client: XtrName,
        /// Which owner.
        #[serde(with = "xtr_name")]
        owner: XtrName,
        /// In which instance.
        iid: InstanceId,
    },
    /// An xTR is to get no new clients, or may get them again.
    Draining {
        /// Which xTR.
        #[serde(with = "xtr_name")]
        xtr: XtrName,
        /// Whether it is to get none.
        draining: bool,
    },
    /// Subscriptions up to this nonce were accepted (RFC 9437 §5).
    SubscribeNonce {
        /// Who subscribed.
        #[serde(with = "xtr_name")]
        xtr: XtrName,
        /// What it calls itself; absent in files of earlier versions.
        #[serde(default)]
        ids: Option<XtrIds>,
        /// The last nonce.
        nonce: Nonce,
    },
}

impl StoreEvent {
    /// Takes off what has passed: since the fact was kept, and since the server that kept it was last alive. Refreshes
    /// are not kept: every registration counts as refreshed then.
    pub fn age(&mut self, since_kept: Duration, since_alive: Duration) {
        if let Self::Registered { lifetime, .. } = self {
            *lifetime = lifetime.saturating_sub(since_alive);
        } else if let Self::Dismissed { eids, left_s, .. } = self {
            let passed = u32::try_from(since_kept.as_secs()).unwrap_or(u32::MAX);
            left_s.resize(eids.len(), whole_seconds(limits::DISMISSAL_LIFETIME));
            for left in left_s {
                *left = left.saturating_sub(passed);
            }
        }
    }
}

/// The seconds of a span of time, the last one counted as a whole one.
pub(crate) fn whole_seconds(span: Duration) -> u32 {
    let seconds = span.as_nanos().div_ceil(1_000_000_000);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// A name as a string: `serde` has shared strings only behind a feature.
mod xtr_name {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::config::XtrName;

    pub(super) fn serialize<S: Serializer>(
        name: &XtrName,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(name)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<XtrName, D::Error> {
        Ok(String::deserialize(deserializer)?.into())
    }
}
