//! What may an operator ask for, and what comes of it?
//!
//! Planning only: [`MapServer::plan`] changes nothing, and says of every client where it would go or
//! why it cannot. `migrate.rs` carries a plan out.

use std::collections::{BTreeMap, BTreeSet};

use lisp_proto::{EidPrefix, Timestamp};
use thiserror::Error;

use super::MapServer;
use super::sites::XtrIndex;
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

/// What is to become of one client.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// Its name, also if there is no such xTR.
    pub(super) name: XtrName,
    pub(super) from: XtrIndex,
    pub(super) eids: Vec<EidPrefix>,
    /// Who it is and whom it shall use.
    pub(super) way: Result<(XtrIndex, XtrIndex), Why>,
}

impl MapServer {
    /// Says what `command` would do, client by client: those that can move are queued, the others
    /// have failed.
    ///
    /// # Errors
    /// It names no such xTRs, or they have nothing in common.
    pub fn plan(&self, command: &Command) -> Result<Vec<Migration>, Refused> {
        let planned = self.planned(command)?;
        Ok(planned.iter().map(|it| self.migration(0, it)).collect())
    }

    /// Writes down what is planned.
    pub(super) fn migration(&self, run: u64, planned: &Planned) -> Migration {
        let name = |xtr: XtrIndex| self.sites.site(xtr).name.clone();
        let (to, state) = match &planned.way {
            Ok((_, to)) => (Some(name(*to)), MigrationState::Queued),
            Err(why) => {
                let (step, why) = (Step::Plan, why.clone());
                (None, MigrationState::Failed { step, why })
            }
        };
        Migration {
            run,
            client: planned.name.clone(),
            eids: planned.eids.clone(),
            from: name(planned.from),
            to,
            state,
            started: None,
            ended: None,
        }
    }

    /// The same as [`Self::plan`], for those who carry it out.
    pub(super) fn planned(&self, command: &Command) -> Result<Vec<Planned>, Refused> {
        match command {
            Command::Undrain { from } => self.named(from).map(|_| Vec::new()),
            Command::Drain { from, .. } => Ok(self.plan_drain(self.named(from)?)),
            Command::Migrate {
                from, to, clients, ..
            } => {
                let (source, destination) = (self.named(from)?, self.named(to)?);
                if source == destination {
                    return Err(Refused::Same { name: from.clone() });
                }
                if self.state.assignments.is_draining(destination) {
                    return Err(Refused::Drained { name: to.clone() });
                }
                let mappings = &self.state.mappings;
                let mut shared = self.shares(source);
                let both = |eid: &EidPrefix| {
                    let mapping = mappings.exact(eid);
                    mapping.is_some_and(|mapping| mapping.is_registered_by(destination))
                };
                shared.retain(both);
                if shared.is_empty() {
                    return Err(Refused::NothingShared {
                        from: from.clone(),
                        from_has: mappings.all_registered_by(source).collect(),
                        to: to.clone(),
                        to_has: mappings.all_registered_by(destination).collect(),
                    });
                }
                Ok(self.plan_migration(source, destination, clients, &shared))
            }
        }
    }

    fn named(&self, name: &XtrName) -> Result<XtrIndex, Refused> {
        self.sites.by_name(name).ok_or_else(|| {
            let registrations = self.state.mappings.registrations();
            let sharing = registrations.filter(|(_, _, registration)| registration.merge);
            let known: BTreeSet<_> = sharing.map(|(_, registrant, _)| registrant.xtr).collect();
            let known = known
                .into_iter()
                .map(|xtr| self.sites.site(xtr).name.clone());
            Refused::Unknown {
                name: name.clone(),
                known: known.collect(),
            }
        })
    }

    /// Lists what `xtr` has registered in a way that lets others register it as well.
    fn shares(&self, xtr: XtrIndex) -> Vec<EidPrefix> {
        let mappings = &self.state.mappings;
        let eids = mappings.all_registered_by(xtr);
        let shared = eids.filter(|eid| {
            let mapping = mappings.exact(eid);
            mapping.is_some_and(|mapping| self.is_shared(mapping))
        });
        shared.collect()
    }

    fn plan_migration(
        &self,
        from: XtrIndex,
        to: XtrIndex,
        clients: &Clients,
        shared: &[EidPrefix],
    ) -> Vec<Planned> {
        let mut using: BTreeMap<_, Vec<EidPrefix>> = BTreeMap::new();
        for eid in shared {
            for (client, owner) in self.state.assignments.clients(eid) {
                if owner == from {
                    using.entry(client).or_default().push(*eid);
                }
            }
        }
        let planned = |client: XtrIndex, eids: Vec<EidPrefix>| {
            let obstacle = self.obstacle(client, &eids);
            Planned {
                name: self.sites.site(client).name.clone(),
                from,
                eids,
                way: obstacle.map_or(Ok((client, to)), Err),
            }
        };
        let names = match clients {
            Clients::All => {
                let all = using.into_iter();
                return all.map(|(client, eids)| planned(client, eids)).collect();
            }
            Clients::Set(names) => names,
        };
        let named = names.iter().map(|name| {
            let client = self.sites.by_name(name);
            let found = client.and_then(|client| Some((client, using.remove(&client)?)));
            let why = match (found, client) {
                (Some((client, eids)), _) => return planned(client, eids),
                (None, Some(client)) => self.elsewhere(client, shared),
                (None, None) => Why::Unknown,
            };
            Planned {
                name: name.clone(),
                from,
                eids: Vec::new(),
                way: Err(why),
            }
        });
        named.collect()
    }

    /// Says where `client` is instead.
    fn elsewhere(&self, client: XtrIndex, eids: &[EidPrefix]) -> Why {
        let mut registered = self.state.mappings.all_registered_by(client);
        if registered.next().is_none() {
            return Why::NothingRegistered;
        }
        let assignments = &self.state.assignments;
        let mut at = eids.iter().filter_map(|eid| assignments.get(eid, client));
        let at = at.next();
        Why::Elsewhere {
            at: at.map(|at| self.sites.site(at.owner).name.clone()),
        }
    }

    fn plan_drain(&self, from: XtrIndex) -> Vec<Planned> {
        let assignments = &self.state.assignments;
        let mut ways: BTreeMap<_, Vec<EidPrefix>> = BTreeMap::new();
        for eid in self.shares(from) {
            let Some(mapping) = self.state.mappings.exact(&eid) else {
                continue;
            };
            let clients = assignments.clients(&eid);
            for (client, _) in clients.filter(|(_, owner)| *owner == from) {
                let to = self.best_owner(mapping, client, Some(from));
                let to = to.filter(|to| !assignments.is_draining(*to));
                ways.entry((client, to)).or_default().push(eid);
            }
        }
        let planned = ways.into_iter().map(|((client, to), eids)| {
            let obstacle = self.obstacle(client, &eids);
            let way = to.map(|to| (client, to)).ok_or(Why::NobodyElse);
            Planned {
                name: self.sites.site(client).name.clone(),
                from,
                eids,
                way: obstacle.map_or(way, Err),
            }
        });
        planned.collect()
    }

    /// Says what is in the way of moving `client`, if anything.
    fn obstacle(&self, client: XtrIndex, eids: &[EidPrefix]) -> Option<Why> {
        let mappings = &self.state.mappings;
        if self.state.moves.is_moving(client) {
            return Some(Why::Moving);
        }
        let here = |eid: &EidPrefix| mappings.has_registered(client, eid.iid());
        (!eids.iter().all(here)).then_some(Why::NothingRegistered)
    }
}

#[cfg(test)]
mod tests;
