//! The bugs on purpose that only hosts behind NATs, and relays, have.

use bytes::Bytes;
use lisp_proto::{
    Action, Locator, Message, PublicKey, Record, RequestParams, Rloc, Ttl, decode,
    encode_map_request,
};

use super::addresses;
use super::sabotage::Sabotage;
use super::world::World;

impl World {
    /// Whether an agent behind a NAT does not say hello to a far end.
    pub(super) fn sabotage_hello(&self, number: u32, key: &PublicKey) -> bool {
        self.sabotaged(Sabotage::NoHello)
            && self.scenario.is_hidden(number)
            && self.keys.contains_key(key)
    }

    /// What becomes of a message of an agent behind a NAT: it says of everybody whom it asks for that it cannot reach him.
    pub(super) fn sabotage_question(&self, number: u32, bytes: Bytes) -> Bytes {
        if !self.sabotaged(Sabotage::Distrust) || !self.scenario.is_hidden(number) {
            return bytes;
        }
        self.complaint(&bytes).unwrap_or(bytes)
    }

    fn complaint(&self, bytes: &[u8]) -> Option<Bytes> {
        let Ok(Message::MapRequest(request)) = decode(bytes) else {
            return None;
        };
        let eids: Vec<_> = request.eids().collect();
        let eid = eids.first().filter(|asked| !asked.subscribe)?.eid;
        let owner = addresses::owner(eid.net().addr(), self.scenario.agents)?;
        let host = self.agents.get(owner as usize)?;
        let key = host.running.as_deref()?.key;
        let endpoint = addresses::control(owner);
        let lost = Locator {
            priority: u8::MAX,
            weight: 0,
            local: false,
            probed: false,
            reachable: false,
            rloc: Rloc::WireGuard { endpoint, key },
        };
        let record = Record {
            eid,
            ttl: Ttl::from_minutes(1),
            action: Action::NoAction,
            authoritative: false,
            locators: vec![lost],
        };
        let itr_rlocs: Vec<_> = request.itr_rlocs().filter_map(|it| it.ip()).collect();
        let params = RequestParams {
            flags: request.flags,
            nonce: request.nonce,
            source_eid: request.source_eid(),
            itr_rlocs: &itr_rlocs,
            eids: &eids,
            source_record: Some(&record),
            gap: None,
            ids: None,
        };
        let mut out = Vec::new();
        encode_map_request(&params, &mut out).ok()?;
        Some(out.into())
    }
}
