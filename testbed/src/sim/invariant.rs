//! What must be true, whatever happens?

use std::fmt;

use lisp_proto::Timestamp;
use serde::Serialize;

use super::trace::Clock;

macro_rules! invariants {
    ($($(#[$doc:meta])+ $variant:ident => $name:literal,)+) => {
        /// Something that is always true.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Invariant {
            $($(#[$doc])+ $variant,)+
        }

        impl Invariant {
            /// Every invariant.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns the name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

invariants! {
    /// No AllowedIPs entry points to a key that the owner of the prefix never registered for it.
    Authority => "authority",
    /// A packet comes out of the tunnel only at the owner of its destination, and only if the
    /// owner of its source sent it.
    Delivery => "delivery",
    /// Nobody takes a relay to somebody whom he can reach without.
    Direct => "direct",
    /// Nothing is left of a relay that nobody uses.
    Resting => "resting",
    /// Bytes that nobody authenticated change no state.
    Silence => "silence",
    /// Nobody gets more bytes than he sent unless he is authenticated.
    Amplification => "amplification",
    /// No table or queue is larger than its limit.
    Limits => "limits",
    /// A held packet is sent at most once, and never both sent and refused.
    Once => "once",
    /// Packets of a flow enter the data interface in the order in which they were sent.
    Order => "order",
    /// A held packet is sent or refused in the end.
    Accounted => "accounted",
    /// Packets that take the route past the agent find a peer.
    BlackHole => "black-hole",
    /// Some time after the last fault every packet between two hosts that are up arrives.
    Convergence => "convergence",
    /// Whoever sends to a host whose agent is replaced loses no packet.
    Handover => "handover",
    /// Without loss, the first packet to a new destination is answered within a second.
    ColdStart => "cold-start",
    /// Some time after the last fault every agent is registered with every map server.
    Registered => "registered",
    /// Some time after an EID-prefix was withdrawn, or got another key, nobody uses the old one.
    Freshness => "freshness",
    /// Some time after the last fault every subscriber has every mapping that it subscribed to.
    Subscribed => "subscribed",
    /// Where a proxy is up, no client is without one for long.
    Proxied => "proxied",
    /// No client uses two proxies.
    OneProxy => "one-proxy",
    /// Nobody reaches a proxy that he has left.
    Dismissed => "dismissed",
    /// The same scenario gives the same trace.
    Determinism => "determinism",
    /// Nothing panics.
    NoPanic => "no-panic",
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An invariant that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// When.
    pub at: Timestamp,
    /// How.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = Clock(self.at).to_string();
        write!(
            f,
            "{} at {} s: {}",
            self.invariant,
            at.trim_start(),
            self.detail
        )
    }
}
