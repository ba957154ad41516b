//! LISP Map-Server and Map-Resolver (RFC 9301) that is a directory of WireGuard keys.
//!
//! | question | file |
//! | --- | --- |
//! | What comes in, what goes out? | `server/actions.rs` |
//! | In which order is a datagram decoded, authenticated and acted upon? | `server/mod.rs` |
//! | Who is enrolled, and may register what? | `config.rs`, `server/sites.rs` |
//! | May this registration follow the last one? | `server/register.rs`, `server/replay.rs` |
//! | Which mapping answers for an EID? | `server/mappings.rs` and `mappings/`, `server/prefix_table.rs` and `prefix_table/` |
//! | Who may ask, and what is the answer? | `server/request.rs`, `server/resolve.rs` |
//! | What can many threads answer at a time? | `server/answer.rs` |
//! | Which of several owners does an agent use? | `server/assignments.rs`, `server/preference.rs`, `server/rehome.rs`, `server/failover.rs`, `server/dismissals.rs` |
//! | How does a client move to another owner? | `server/operator.rs`, `server/plan.rs`, `server/migrate.rs`, `server/moves.rs` |
//! | Who is told what, and in which order? | `server/pairing.rs`, `server/subscribers.rs` |
//! | How does it reach them, and who waits for that? | `server/delivery.rs`, `server/notify.rs`, `server/held.rs` |
//! | Who carries the packets of two that NATs keep apart? | `server/relay.rs` |
//! | Where is an agent behind a NAT seen? | `server/nat.rs`, `server/sightings.rs`, `lookout.rs` |
//! | How much is too much? | `server/limits.rs`, `server/rate.rs` |
//! | Why was it dropped? | `server/counters.rs` |
//! | What survives a restart? | `store_event.rs`, `server/restore.rs` |
//!
//! The state machine is pure; everything that does IO is in `shell`, behind the feature of the
//! same name: the loop (`shell/mod.rs`), the control tunnel, the sockets, the clock, the
//! configuration file (`shell/settings`), the commands of operators (`shell/admin.rs`, `shell/operate.rs`) and the log that survives a
//! crash (`shell/store`).

pub mod config;
mod lookout;
mod server;
#[cfg(feature = "shell")]
pub mod shell;
mod store_event;

pub use config::Config;
pub use lookout::{Lookout, Sight};
pub use server::{
    Action, Actions, Answered, Clients, Command, Counters, Desk, DropReason, Event, Input,
    MapServer, Migration, MigrationState, PrefixTable, Question, Refused, Sizes, SnapshotMark,
    Step, Via, Why,
};
pub use store_event::{StoreEvent, XtrIds};
