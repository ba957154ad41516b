//! Has this Map-Register, or this subscription, been seen before?
//!
//! Nonces of one registrant under one key only grow (RFC 9301 §5.6), and so do those with which an
//! xTR subscribes and unsubscribes (RFC 9437 §5): one row of numbers for all prefixes of an xTR-ID.

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
    /// Kept when the subscriptions are over.
    subscribed: BTreeMap<Registrant, Nonce>,
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

    /// Whether `xtr`, which calls itself `ids`, may subscribe or unsubscribe with `nonce`.
    ///
    /// # Errors
    /// It is not greater than the one before, or leaves too few above it; or nothing can be
    /// remembered about this xTR-ID.
    pub(crate) fn check_subscription(
        &self,
        xtr: XtrIndex,
        ids: XtrIds,
        nonce: Nonce,
    ) -> Result<(), DropReason> {
        if nonce > limits::SUBSCRIBE_NONCE_MAX {
            return Err(DropReason::SubscribeNonceTooHigh);
        }
        // Earlier versions remembered one row for all xTR-IDs.
        let any = self.subscribed.get(&Registrant::any(xtr));
        let own = self.subscribed.get(&Registrant {
            xtr,
            ids: Some(ids),
        });
        if own.max(any).is_some_and(|last| nonce <= *last) {
            return Err(DropReason::ReplayedSubscription);
        }
        let known = self.subscribed.range(Registrant::any(xtr)..);
        let known = known.take_while(|(registrant, _)| registrant.xtr == xtr);
        if own.is_none() && known.count() >= limits::XTR_IDS_PER_XTR {
            return Err(DropReason::TooManyXtrIds);
        }
        Ok(())
    }

    /// Remembers that an xTR has subscribed or unsubscribed with `nonce`.
    pub(crate) fn advance_subscription(&mut self, registrant: Registrant, nonce: Nonce) {
        let last = self.subscribed.entry(registrant).or_default();
        *last = nonce.max(*last);
    }

    /// Lists the last nonces of subscriptions.
    pub(crate) fn subscriptions(&self) -> impl Iterator<Item = (Registrant, Nonce)> {
        let all = self.subscribed.iter();
        all.map(|(registrant, nonce)| (*registrant, *nonce))
    }

    /// Lists the last nonces of Map-Registers.
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
