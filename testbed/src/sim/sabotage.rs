//! Bugs on purpose: a simulation that does not notice them is not worth much.
//!
//! Each is put around the production code, never into it.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A bug to be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sabotage {
    /// The reply leaves with the push, and pushes take 200 ms longer.
    ReplyFirst,
    /// Acknowledgements of pushes never arrive.
    DropAcks,
    /// Pushes are never sent; the reply does not wait for them.
    DropPushes,
    /// Subscribers hear no more than the answers to their subscriptions.
    DropPublications,
    /// An attacker knows the secret of the Map-Notifies, and the way into a control tunnel.
    ForgedPush,
    /// An attacker may register the prefixes of others.
    StolenPrefix,
    /// Peers and routes that are to be removed stay.
    KeepRemoved,
    /// Held packets are sent on twice.
    SendTwice,
    /// Held packets are sent on in the wrong order.
    SendReversed,
    /// Now and then a held packet is lost.
    SendSometimes,
    /// An agent that restarts counts its Map-Registers from 1 again.
    NonceRestarts,
    /// The map server believes Map-Registers that come from outside the control tunnels.
    OpenDoor,
    /// The map server answers whatever it gets from outside the control tunnels.
    Chatty,
    /// Clients never say which proxy they cannot use.
    SufferInSilence,
    /// Proxies never hear that a client has left them.
    KeepClients,
    /// A client that moves stays where it is with IPv6.
    HalfMoves,
    /// Agents never hear where they are seen.
    BlindAgents,
    /// Agents behind NATs never say hello to a far end, nor do they keep the way to it open.
    NoHello,
    /// Agents behind NATs complain of everybody whom they ask for.
    Distrust,
    /// Two runs of the same seed differ.
    Dice,
}
