//! What can be asked of a running agent over its admin socket.

use std::net::IpAddr;

use command_line::admin;
use serde::{Deserialize, Serialize};

/// The socket.
pub(super) type Admin = admin::Admin<Request>;
/// A request, and where its answer goes.
pub(super) type Question = admin::Question<Request>;

/// Longest request, in bytes.
pub(super) const REQUEST_BYTES: u64 = 4_096;

/// What can be asked of a running agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Where the agent stands.
    Status,
    /// How far the first packet to a destination has come.
    Trace {
        /// The destination.
        eid: IpAddr,
    },
    /// To let those who share our prefixes take our clients over.
    Drain {
        /// Whether clients may come again instead.
        undo: bool,
    },
    /// To end; answered when that is done but for the process itself.
    Stop {
        /// Whether interfaces and routes go and registrations are withdrawn.
        purge: bool,
    },
}
