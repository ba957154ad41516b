//! Has this Map-Register been seen before?
//!
//! Nonces of one registrant under one key only grow (RFC 9301 §5.6).

use std::collections::BTreeMap;

use lisp_proto::Nonce;

use super::counters::DropReason;
use super::limits;
use super::sites::{Registrant, XtrIndex};
use crate::store_event::XtrIds;

/// The last nonce per registrant and key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replay {
    last: BTreeMap<XtrIndex, BTreeMap<(Option<XtrIds>, u8), Nonce>>,
}

impl Replay {
    /// Whether `nonce` may follow what came before.
    ///
    /// # Errors
    /// It may not, or nothing can be remembered about this registrant.
    pub(crate) fn check(
        &self,
        registrant: &Registrant,
        key_id: u8,
        nonce: Nonce,
    ) -> Result<(), DropReason> {
        let Some(known) = self.last.get(&registrant.xtr) else {
            return Ok(());
        };
        match known.get(&(registrant.ids, key_id)) {
            Some(last) if nonce.0 <= last.0 => Err(DropReason::ReplayedNonce),
            None if known.len() >= limits::XTR_IDS_PER_XTR => Err(DropReason::TooManyXtrIds),
            Some(_) | None => Ok(()),
        }
    }

    /// Remembers that `nonce` was accepted.
    pub(crate) fn advance(&mut self, registrant: &Registrant, key_id: u8, nonce: Nonce) {
        let known = self.last.entry(registrant.xtr).or_default();
        let last = known.entry((registrant.ids, key_id)).or_default();
        *last = nonce.max(*last);
    }

    /// Lists the last nonces.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Registrant, u8, Nonce)> {
        self.last.iter().flat_map(|(xtr, known)| {
            let known = known.iter();
            known.map(|((ids, key_id), nonce)| {
                (
                    Registrant {
                        xtr: *xtr,
                        ids: *ids,
                    },
                    *key_id,
                    *nonce,
                )
            })
        })
    }
}
