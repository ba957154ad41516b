//! Why was a datagram dropped, and how often?

use std::fmt;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])+ $variant:ident => $name:literal,)+) => {
        /// Why a datagram, or a part of it, was not acted upon.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[$doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns the name of the reason in logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// Not a LISP control message that can be read (RFC 9301 §5).
    Malformed => "malformed",
    /// A message that no Map-Server receives, or a message inside an ECM that is no Map-Request.
    UnexpectedMessage => "unexpected_message",
    /// An ECM that asks for LISP-SEC, which is not offered (RFC 9303).
    SecurityUnsupported => "security_unsupported",
    /// The source is no enrolled agent, or the message came outside its control tunnel.
    UnknownSource => "unknown_source",
    /// An agent asks about an instance-id of which no prefix is configured for it.
    ForeignInstance => "foreign_instance",
    /// The source exceeds its rate.
    RateLimited => "rate_limited",
    /// What may change something came faster than it could be handled.
    Overloaded => "overloaded",
    /// Key id or algorithm are not those configured for the xTR.
    WrongKey => "wrong_key",
    /// The authentication data does not verify.
    BadAuthentication => "bad_authentication",
    /// The nonce of a Map-Register is not greater than the last one (RFC 9301 §5.6).
    ReplayedNonce => "replayed_nonce",
    /// Too many xTR-IDs share one configured xTR.
    TooManyXtrIds => "too_many_xtr_ids",
    /// A record for a prefix that the xTR may not register.
    ForeignPrefix => "foreign_prefix",
    /// A record with the key of somebody in the control tunnel: nobody is reached by that.
    ForeignKey => "foreign_key",
    /// A record with more locators than kept, or with an EID that is no IP prefix.
    UnusableRecord => "unusable_record",
    /// No room for another mapping, or for another registration of one mapping.
    TableFull => "table_full",
    /// An RLOC-probe: not for a Map-Server (RFC 9301 §5.2).
    Probe => "probe",
    /// A solicit-map-request: not for a Map-Server (RFC 9301 §6.1).
    Smr => "smr",
    /// A Map-Request that asks for no EID that is served.
    NoEid => "no_eid",
    /// EIDs of a Map-Request beyond those answered.
    TooManyEids => "too_many_eids",
    /// None of the ITR-RLOCs is the address the Map-Request came from.
    ForeignItrRloc => "foreign_itr_rloc",
    /// An answer larger than the question to a source that is not known.
    WouldAmplify => "would_amplify",
    /// A Map-Request for what nobody has registered yet, soon after the start.
    TooEarly => "too_early",
    /// A Map-Notify-Ack for nothing outstanding.
    UnexpectedAck => "unexpected_ack",
    /// An unsolicited Map-Notify was not acknowledged before its receiver was gone.
    NotifyGivenUp => "notify_given_up",
    /// An unsolicited Map-Notify gave way to newer ones.
    NotifyOverflow => "notify_overflow",
    /// A reply left before its push was acknowledged, because too many are waiting.
    HoldOverflow => "hold_overflow",
    /// A reply left before its push was acknowledged, because the hold time was over.
    HoldExpired => "hold_expired",
    /// An xTR-ID or Site-ID that is not that of the xTR.
    WrongXtrId => "wrong_xtr_id",
    /// A subscription from a source that nobody vouches for.
    SubscriberUnknown => "subscriber_unknown",
    /// A subscription without xTR-ID, which is answered like any Map-Request (RFC 9437 §4).
    SubscriberUnnamed => "subscriber_unnamed",
    /// The nonce of a subscription is not greater than the last one (RFC 9437 §5).
    ReplayedSubscription => "replayed_subscription",
    /// The nonce of a subscription leaves no room for those of publications.
    SubscribeNonceTooHigh => "subscribe_nonce_too_high",
    /// A subscription to too much, or of an xTR that has registered nothing.
    SubscriptionRefused => "subscription_refused",
    /// A subscription gave way to newer ones.
    SubscriptionOverflow => "subscription_overflow",
    /// An agent was told of a shared prefix, and there is no room to remember whom it uses.
    AssignmentOverflow => "assignment_overflow",
    /// A client has left an owner that has to be told so later, and there is no room to remember that.
    DismissalOverflow => "dismissal_overflow",
    /// An owner asks for a client that has left it, and has not acknowledged yet that it is to forget it.
    Dismissed => "dismissed",
    /// A client says too often that it cannot use its owner: it stays with the one that it has.
    FailoverLimited => "failover_limited",
    /// A stored fact that the configuration no longer allows.
    StaleStore => "stale_store",
    /// A message that exceeds what the format can carry.
    TooLarge => "too_large",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One counter per [`DropReason`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters([u64; DropReason::ALL.len()]);

impl Counters {
    /// Adds one to the counter of `reason`.
    pub const fn count(&mut self, reason: DropReason) {
        #[expect(clippy::indexing_slicing, reason = "there is one counter per variant")]
        let counter = &mut self.0[reason as usize];
        *counter = counter.saturating_add(1);
    }

    /// Adds what `others` have counted.
    pub fn add(&mut self, others: &Self) {
        for (counter, other) in self.0.iter_mut().zip(others.0) {
            *counter = counter.saturating_add(other);
        }
    }

    /// Returns how often `reason` was counted.
    #[must_use]
    pub const fn total(&self, reason: DropReason) -> u64 {
        #[expect(clippy::indexing_slicing, reason = "there is one counter per variant")]
        self.0[reason as usize]
    }

    /// Lists the reasons that were counted at least once.
    pub fn nonzero(&self) -> impl Iterator<Item = (DropReason, u64)> {
        let all = DropReason::ALL.iter().copied();
        all.zip(self.0).filter(|(_, total)| *total > 0)
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let mut counters = Counters::default();
        for (times, reason) in (1..).zip(DropReason::ALL) {
            (0..times).for_each(|_| counters.count(*reason));
        }
        for (times, reason) in (1..).zip(DropReason::ALL) {
            assert_eq!(counters.total(*reason), times, "{reason}");
        }
        assert_eq!(counters.nonzero().count(), DropReason::ALL.len());
    }
}
