//! What happens when something fails on the way, or somebody leaves?

use std::collections::BTreeSet;

use lisp_proto::{EidPrefix, InstanceId, Timestamp};

use super::instances;
use crate::server::actions::Actions;
use crate::server::moves::{Move, MoveId, Stage};
use crate::server::operator::{MigrationState, Step, Why};
use crate::server::rehome::Ties;
use crate::server::{MapServer, limits};

impl MapServer {
    /// Acts on those that have waited long enough.
    pub(in crate::server) fn move_on_overdue(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some(id) = self.state.moves.pop_due(now) {
            let Some(it) = self.a_move(id) else {
                continue;
            };
            match it.stage {
                Stage::Arming => self.fail(now, id, Step::Arm, self.silent(it.to), actions),
                Stage::Switching => self.revert(now, id, self.silent(it.client), actions),
                Stage::Lingering => self.release_source(now, id, actions),
                // The client has moved: bringing it back would help nobody.
                Stage::Confirming => {
                    let (step, why) = (Step::Confirm, self.silent(it.from));
                    let failed = MigrationState::Failed { step, why };
                    self.finish(now, id, failed, actions);
                }
                Stage::Reverting(why) => self.reverted(now, id, why, actions),
                Stage::Queued => {}
            }
        }
    }

    /// Ends what has not reached the client.
    pub(super) fn fail(
        &mut self,
        now: Timestamp,
        id: MoveId,
        step: Step,
        why: Why,
        actions: &mut Actions,
    ) {
        let Some(it) = self.a_move(id) else {
            return;
        };
        self.dismiss_all(now, &it, it.to, false, actions);
        self.finish(now, id, MigrationState::Failed { step, why }, actions);
    }

    /// Puts the client back where it was, as far as that is there, and tells it.
    fn revert(&mut self, now: Timestamp, id: MoveId, why: Why, actions: &mut Actions) {
        let Some(it) = self.a_move(id) else {
            return;
        };
        for eid in &it.report.eids {
            let at = self.state.assignments.get(eid, it.client);
            if at.is_some_and(|at| at.owner == it.to) && self.owns(it.from, eid) {
                self.place(*eid, it.client, it.from, None, actions);
            }
        }
        let told = self.tell_client(now, &it, it.from, actions);
        let until = now + limits::MIGRATION_STEP;
        let stage = Stage::Reverting(why.clone());
        self.state.moves.enter(id, stage, until, told);
        if !self.state.moves.is_waiting(id) {
            self.reverted(now, id, why, actions);
        }
    }

    /// The client is where it was, or has not said so in time: the destination forgets it. So does the
    /// source, if a third has got the client because the destination left.
    pub(super) fn reverted(&mut self, now: Timestamp, id: MoveId, why: Why, actions: &mut Actions) {
        let Some(it) = self.a_move(id) else {
            return;
        };
        self.dismiss_all(now, &it, it.to, true, actions);
        self.dismiss_unless_used(now, &it, actions);
        let step = Step::Switch;
        self.finish(now, id, MigrationState::Failed { step, why }, actions);
    }

    /// Lets the source forget the client, unless that is with it once more.
    fn dismiss_unless_used(&mut self, now: Timestamp, it: &Move, actions: &mut Actions) {
        let assignments = &self.state.assignments;
        let mut at = it.report.eids.iter();
        let is_back = at.any(|eid| {
            let at = assignments.get(eid, it.client);
            at.is_some_and(|at| at.owner == it.from)
        });
        if !is_back {
            self.dismiss_all(now, it, it.from, true, actions);
        }
    }

    /// Whether a client that was put on the destination uses somebody else.
    fn is_elsewhere(&self, it: &Move) -> bool {
        let assignments = &self.state.assignments;
        let mut at = it.report.eids.iter();
        at.any(|eid| {
            let at = assignments.get(eid, it.client);
            at.is_some_and(|at| at.owner != it.to)
        })
    }

    /// The client could not use the destination, and has got somebody else by itself: those whom it does
    /// not use forget it when it has moved there.
    fn went_elsewhere(&mut self, now: Timestamp, id: MoveId, it: &Move, actions: &mut Actions) {
        let assignments = &self.state.assignments;
        let eids = it.report.eids.iter().copied();
        let (mut at, mut moved) = (BTreeSet::new(), Vec::new());
        for eid in eids {
            let owner = assignments.get(&eid, it.client).map(|at| at.owner);
            at.extend(owner);
            if owner.is_some_and(|owner| owner != it.to) {
                moved.push(eid);
            }
        }
        for owner in [it.from, it.to] {
            if at.contains(&owner) {
                continue;
            }
            for iid in instances(&moved) {
                let client = it.client;
                let ties = Ties { owner, client, iid };
                self.leave_when_moved(now, ties, &moved, actions);
            }
        }
        let at = at.into_iter().find(|at| *at != it.to);
        let at = at.map(|at| self.sites.site(at).name.clone());
        let (step, why) = (it.stage.step(), Why::Elsewhere { at });
        self.finish(now, id, MigrationState::Failed { step, why }, actions);
    }

    /// Looks whether the two ends of every migration, and its client, are still there.
    pub(in crate::server) fn check_moves(&mut self, now: Timestamp, actions: &mut Actions) {
        for id in self.state.moves.begun() {
            let Some(it) = self.a_move(id) else {
                continue;
            };
            let eids = &it.report.eids;
            let here = |eid: &EidPrefix| self.state.mappings.has_registered(it.client, eid.iid());
            let is_here = eids.iter().all(here);
            let has_destination = eids.iter().all(|eid| self.owns(it.to, eid));
            match it.stage {
                _ if !is_here => {
                    let (step, why) = (it.stage.step(), self.gone(it.client));
                    let failed = MigrationState::Failed { step, why };
                    self.finish(now, id, failed, actions);
                }
                Stage::Arming => {
                    if let Some(why) = self.why_not(&it) {
                        self.fail(now, id, Step::Arm, why, actions);
                    }
                }
                Stage::Switching if !has_destination => {
                    self.revert(now, id, self.gone(it.to), actions);
                }
                Stage::Switching | Stage::Lingering | Stage::Confirming
                    if has_destination && self.is_elsewhere(&it) =>
                {
                    self.went_elsewhere(now, id, &it, actions);
                }
                Stage::Lingering | Stage::Confirming if !has_destination => {
                    self.dismiss_unless_used(now, &it, actions);
                    let (step, why) = (Step::Confirm, self.gone(it.to));
                    let failed = MigrationState::Failed { step, why };
                    self.finish(now, id, failed, actions);
                }
                Stage::Confirming => {
                    let mappings = &self.state.mappings;
                    let left = |iid: &InstanceId| !mappings.has_registered(it.from, *iid);
                    if instances(eids).iter().all(left) {
                        self.finish(now, id, MigrationState::Confirmed, actions);
                    }
                }
                Stage::Queued | Stage::Switching | Stage::Lingering | Stage::Reverting(_) => {}
            }
        }
    }
}
