//! What can be asked of a running map server over its admin socket.

use std::collections::BTreeSet;

use command_line::admin;
use serde::{Deserialize, Serialize};

/// The socket.
pub(super) type Admin = admin::Admin<Request>;
/// A request, and where its answer goes.
pub(super) type Question = admin::Question<Request>;

/// Longest request, in bytes: it may name many clients.
pub(super) const REQUEST_BYTES: u64 = 1 << 20;

/// What can be asked of a running map server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// To move clients from one xTR to another.
    Migrate {
        /// Whom they use now.
        from: String,
        /// Whom they shall use.
        to: String,
        /// Their names; all clients if absent.
        clients: Option<BTreeSet<String>>,
        /// Whether to say only what would be done.
        dry_run: bool,
    },
    /// To move all clients of an xTR to others, and to give it no new ones.
    Drain {
        /// Whom they use now.
        from: String,
        /// Whether to say only what would be done.
        dry_run: bool,
    },
    /// To let an xTR have clients again.
    Undrain {
        /// Which xTR.
        from: String,
    },
    /// How far migrations have come.
    Migrations {
        /// Those of one command; all that are remembered if absent.
        run: Option<u64>,
        /// Whether to count them only.
        counts: bool,
    },
}
