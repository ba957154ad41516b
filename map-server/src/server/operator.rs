//! What may an operator ask for, and what is said about it?

use std::collections::BTreeSet;
use std::time::Duration;

use lisp_proto::{Connections, EidPrefix, Timestamp};
use thiserror::Error;

use crate::config::XtrName;

/// What an operator wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Moves clients from one xTR to another that shares prefixes with it.
    Migrate {
        /// Whom they use now.
        from: XtrName,
        /// Whom they shall use.
        to: XtrName,
        /// Which of them.
        clients: Clients,
        /// Whether to say only what would be done.
        dry_run: bool,
    },
    /// Moves all clients of an xTR to others, and gives it no new ones.
    Drain {
        /// Whom they use now.
        from: XtrName,
        /// Whether to say only what would be done.
        dry_run: bool,
    },
    /// Lets an xTR have clients again.
    Undrain {
        /// Which xTR.
        from: XtrName,
    },
}

impl Command {
    /// Whether nothing is to be done.
    #[must_use]
    pub const fn is_dry_run(&self) -> bool {
        match self {
            Self::Migrate { dry_run, .. } | Self::Drain { dry_run, .. } => *dry_run,
            Self::Undrain { .. } => false,
        }
    }
}

/// Some of the clients of an xTR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// All of them.
    All,
    /// Those with these names.
    Set(BTreeSet<XtrName>),
}

/// How far the migration of a client has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationState {
    /// Its turn has not come, or the destination has not acknowledged the client's keys.
    Queued,
    /// The destination knows the client, which is told to move.
    Armed,
    /// The client has moved. The source still forwards what is on its way.
    Switched,
    /// The source has forgotten the client.
    Confirmed,
    /// It has ended early.
    Failed {
        /// How far it had come.
        step: Step,
        /// What was in the way.
        why: Why,
    },
}

impl MigrationState {
    /// Returns the name of the state in logs and reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Armed => "armed",
            Self::Switched => "switched",
            Self::Confirmed => "confirmed",
            Self::Failed { .. } => "failed",
        }
    }
}

/// A step of the migration of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing was done yet.
    Plan,
    /// The destination learns the client's keys.
    Arm,
    /// The client moves.
    Switch,
    /// The source forgets the client.
    Confirm,
}

impl Step {
    /// Returns the name of the step in logs and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Arm => "arm",
            Self::Switch => "switch",
            Self::Confirm => "confirm",
        }
    }
}

/// Why the migration of a client has failed, or cannot begin.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Why {
    /// No xTR has this name.
    #[error("no xTR has this name")]
    Unknown,
    /// The client has no registration.
    #[error("it has registered nothing")]
    NothingRegistered,
    /// The client uses somebody else.
    #[error("it uses {}", at.as_deref().unwrap_or("neither of the two"))]
    Elsewhere {
        /// Whom.
        at: Option<XtrName>,
    },
    /// The client is being moved.
    #[error("it is being moved already")]
    Moving,
    /// Nobody else registers what the client uses.
    #[error("nobody else shares what it uses")]
    NobodyElse,
    /// More wait than are remembered.
    #[error("too many clients are being moved")]
    TooMany,
    /// Somebody has not acknowledged in time what it was told.
    #[error("{by} has not acknowledged")]
    Silent {
        /// Who.
        by: XtrName,
    },
    /// Somebody's registration has ended in the meantime.
    #[error("{who} is registered no longer")]
    Gone {
        /// Whose.
        who: XtrName,
    },
}

impl Why {
    /// Returns what to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Unknown => "look at the names of the [[xtr]] sections",
            Self::NothingRegistered => "start its agent; when it asks again it gets a new owner",
            Self::Elsewhere { .. } => {
                "look at `map-server migrations`, and name that one with --from"
            }
            Self::Moving => "wait until that is over: `map-server migrations` says when",
            Self::NobodyElse => "start another xTR that shares the prefix",
            Self::TooMany => "repeat the command when those are done",
            Self::Silent { .. } => {
                "look at its log and its way to the map server, then repeat the command"
            }
            Self::Gone { .. } => "look at its log; repeat the command when it has registered again",
        }
    }
}

/// The migration of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Which command it belongs to, counted from 1 at the start of the server; 0 if only planned.
    pub run: u64,
    /// Who moves.
    pub client: XtrName,
    /// The prefixes that it uses the two for.
    pub eids: Vec<EidPrefix>,
    /// Whom it used.
    pub from: XtrName,
    /// Whom it shall use, if there is somebody.
    pub to: Option<XtrName>,
    /// How far it has come.
    pub state: MigrationState,
    /// When its turn came.
    pub started: Option<Timestamp>,
    /// When it was told to move, the destination being ready.
    pub told: Option<Timestamp>,
    /// When it had acknowledged that it has moved. Until then it used the source.
    pub moved: Option<Timestamp>,
    /// The longest time in which nothing came to it meanwhile, as far as it can tell.
    pub gap: Option<Duration>,
    /// What became of its connections, as far as the source has translated their addresses and says so.
    pub connections: Option<Connections>,
    /// When it was confirmed, or had failed.
    pub ended: Option<Timestamp>,
}

/// Why a command is not carried out at all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// There is no such xTR.
    #[error("no xTR is called {name}; {}", those_that_share(known))]
    Unknown {
        /// The name.
        name: XtrName,
        /// Those that share prefixes.
        known: Vec<XtrName>,
    },
    /// Source and destination are one.
    #[error("{name} is both source and destination; name two xTRs")]
    Same {
        /// The name.
        name: XtrName,
    },
    /// The two have no prefix in common.
    #[error(
        "{from} and {to} share no prefix: {from} registers {}, {to} registers {}; both must register \
         the same one with the merge bit",
        listed(from_has),
        listed(to_has)
    )]
    NothingShared {
        /// The source.
        from: XtrName,
        /// What it registers.
        from_has: Vec<EidPrefix>,
        /// The destination.
        to: XtrName,
        /// What it registers.
        to_has: Vec<EidPrefix>,
    },
    /// The destination is to get no clients.
    #[error("{name} is drained; `map-server drain --undo {name}` lets it have clients again")]
    Drained {
        /// The destination.
        name: XtrName,
    },
}

/// Names and prefixes in an error message.
const LISTED: usize = 8;

fn those_that_share(known: &[XtrName]) -> String {
    match known {
        [] => "nobody shares a prefix with others at the moment".to_owned(),
        known => format!("these share prefixes: {}", listed(known)),
    }
}

fn listed<T: ToString>(all: &[T]) -> String {
    if all.is_empty() {
        return "nothing".to_owned();
    }
    let shown: Vec<_> = all.iter().take(LISTED).map(ToString::to_string).collect();
    let rest = all.len() - shown.len();
    match rest {
        0 => shown.join(", "),
        rest => format!("{} and {rest} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests;
