//! How does a client move from one owner of a shared prefix to another, without losing a packet?
//!
//! The destination is told of the client and acknowledges that: armed. The client is told the record
//! with the destination first, and acknowledges when it has moved: switched. After what is on its way
//! has passed, the source is told to forget the client and acknowledges: confirmed. What fails before
//! the client has moved leaves it where it was. All of this is ordinary Map-Notifies. The two ends are told
//! of each other in them, because one that translates addresses has connections that the other needs;
//! else the receiver knows nothing of migrations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use lisp_proto::{EidPrefix, Handoff, InstanceId, Record, Timestamp};

use super::actions::{Actions, Event};
use super::moves::{Move, MoveId, Stage};
use super::operator::{Command, Migration, MigrationState, Step, Why};
use super::plan::Planned;
use super::publish::parcels_beside;
use super::rehome::Ties;
use super::sites::XtrIndex;
use super::{MapServer, limits};
use crate::config::XtrName;
use crate::store_event::StoreEvent;

mod failing;

impl MapServer {
    /// Lists the migrations that are remembered, the oldest first, then those that go on.
    pub fn migrations(&self) -> impl Iterator<Item = &Migration> {
        self.state.moves.iter()
    }

    /// Returns the number of the last command that was carried out, 0 if none was.
    #[must_use]
    pub const fn last_run(&self) -> u64 {
        self.state.moves.last_run()
    }

    /// Lists the xTRs that get no new clients, with the number of pairs whose packets each still relays.
    pub fn drained(&self) -> impl Iterator<Item = (&XtrName, usize)> {
        let drained = self.state.assignments.draining();
        drained.map(|xtr| (&self.sites.site(xtr).name, self.relayed_over(xtr)))
    }

    /// Carries out what an operator asks for; nothing happens if [`Self::plan`] refuses it.
    pub(super) fn operate(&mut self, now: Timestamp, command: &Command, actions: &mut Actions) {
        let Ok(planned) = self.planned(command) else {
            return;
        };
        if command.is_dry_run() {
            return;
        }
        let drained = match command {
            Command::Migrate { .. } => None,
            Command::Drain { from, .. } => Some((from, true)),
            Command::Undrain { from } => Some((from, false)),
        };
        if let Some((name, draining)) = drained {
            self.drain(now, name, draining, actions);
        }
        self.carry_out(now, planned, actions);
    }

    /// Queues what is planned; what cannot be done is remembered as failed.
    fn carry_out(&mut self, now: Timestamp, planned: Vec<Planned>, actions: &mut Actions) {
        let run = self.state.moves.next_run();
        for mut one in planned {
            if one.way.is_ok() && self.state.moves.len() >= limits::MIGRATIONS {
                one.way = Err(Why::TooMany);
            }
            let report = self.migration(run, &one);
            tell_operator(&report, actions);
            match one.way {
                Ok((client, to)) => self.state.moves.queue([client, one.from, to], report),
                Err(_) => self.state.moves.remember(now, report),
            }
        }
    }

    /// An owner says by the priority of its locators that its clients are to go (RFC 9301 §5.4).
    pub(super) fn drain_itself(&mut self, now: Timestamp, owner: XtrIndex, actions: &mut Actions) {
        let planned = self.plan_drain(owner);
        self.carry_out(now, planned, actions);
    }

    fn drain(&mut self, now: Timestamp, name: &XtrName, draining: bool, actions: &mut Actions) {
        let Some(owner) = self.sites.by_name(name) else {
            return;
        };
        let is_news = self.state.assignments.drain(owner, draining);
        if draining {
            self.relieve(now, owner, actions);
        }
        if is_news {
            let xtr = name.clone();
            actions.persist(StoreEvent::Draining { xtr, draining });
            let (xtr, relaying) = (name.clone(), self.relayed_over(owner));
            actions.event(Event::Draining {
                xtr,
                draining,
                relaying,
            });
        }
    }

    /// Begins with those for whom there is a place.
    pub(super) fn start_moves(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some(id) = self.state.moves.begin(now) {
            self.arm(now, id, actions);
        }
    }

    fn a_move(&self, id: MoveId) -> Option<Move> {
        self.state.moves.get(id).cloned()
    }

    /// Tells the destination of the client.
    fn arm(&mut self, now: Timestamp, id: MoveId, actions: &mut Actions) {
        let Some(it) = self.a_move(id) else {
            return;
        };
        if let Some(why) = self.why_not(&it) {
            return self.fail(now, id, Step::Arm, why, actions);
        }
        let eids = &it.report.eids;
        if eids
            .iter()
            .all(|eid| self.news_for(*eid, it.client).is_empty())
        {
            // It uses nothing of this, so the destination need not know it.
            return self.switch(now, id, actions);
        }
        let mut told = Vec::new();
        for iid in instances(eids) {
            let (to, from) = self.handoff(&it, iid);
            if let Some(to) = to {
                let records = self.records_of(it.client, it.from, iid);
                let records = self.as_told(records, it.client, it.from, actions);
                self.present_move(now, it.from, records, to, actions);
            }
            let records = self.records_of(it.client, it.from, iid);
            let records = self.as_told(records, it.client, it.to, actions);
            told.extend(records.iter().map(|record| (it.to, record.eid)));
            match from {
                Some(from) => self.present_move(now, it.to, records, from, actions),
                None => {
                    self.introduce(now, now, it.to, records, actions);
                }
            }
        }
        if told.is_empty() {
            return self.fail(now, id, Step::Arm, Why::NothingRegistered, actions);
        }
        let until = now + limits::MIGRATION_STEP;
        self.state.moves.enter(id, Stage::Arming, until, told);
    }

    /// Returns what source and destination are told about the connections of the client. They can talk to
    /// each other where both have an address of one family; where only one of them has an address, the
    /// source still hears of the move, so that it says what becomes of them. Whether they translate
    /// addresses at all is their business.
    fn handoff(&self, it: &Move, iid: InstanceId) -> (Option<Handoff>, Option<Handoff>) {
        let ends = [it.from, it.to];
        if !ends.iter().all(|end| self.is_agent(*end)) {
            return (None, None);
        }
        let [from, to] = ends.map(|end| self.hosts_of(end, iid));
        let mut common = from
            .into_iter()
            .zip(to)
            .filter_map(|(from, to)| from.zip(to));
        if let Some((from, to)) = common.next() {
            return (Some(Handoff::To(to)), Some(Handoff::From(from)));
        }
        let is_known = [from, to].iter().flatten().any(Option::is_some);
        let nowhere = Handoff::To(Ipv4Addr::UNSPECIFIED.into());
        (is_known.then_some(nowhere), None)
    }

    /// Returns an address of IPv4 and one of IPv6 that `xtr` has for itself.
    fn hosts_of(&self, xtr: XtrIndex, iid: InstanceId) -> [Option<IpAddr>; 2] {
        let mappings = &self.state.mappings;
        let mut hosts = [None; 2];
        for eid in mappings.registered_by(xtr, iid, limits::RECORDS_PER_XTR) {
            let net = eid.net();
            let alone = mappings.exact(&eid).is_some_and(|it| !self.is_shared(it));
            if alone && net.prefix_len() == net.max_prefix_len() {
                let [v4, v6] = &mut hosts;
                let host = if net.addr().is_ipv4() { v4 } else { v6 };
                host.get_or_insert(net.addr());
            }
        }
        hosts
    }

    /// Tells `receiver` of a client that moves, with what concerns its connections.
    fn present_move(
        &mut self,
        now: Timestamp,
        receiver: XtrIndex,
        records: Vec<Record>,
        handoff: Handoff,
        actions: &mut Actions,
    ) {
        for record in &records {
            self.subscribe_besides(now, record.eid, receiver, record.ttl, actions);
        }
        for parcel in parcels_beside(records, limits::HANDOFF_LEN) {
            self.tell_with(now, now, receiver, (parcel, Some(handoff)), actions);
        }
    }

    /// Says why a client cannot move as planned any more.
    fn why_not(&self, it: &Move) -> Option<Why> {
        let mappings = &self.state.mappings;
        for eid in &it.report.eids {
            if !mappings.has_registered(it.client, eid.iid()) {
                return Some(Why::NothingRegistered);
            }
            for end in [it.from, it.to] {
                if !self.owns(end, eid) {
                    return Some(self.gone(end));
                }
            }
            let at = self.state.assignments.get(eid, it.client);
            let at = at.map(|at| at.owner);
            if at != Some(it.from) {
                let at = at.map(|at| self.sites.site(at).name.clone());
                return Some(Why::Elsewhere { at });
            }
        }
        None
    }

    /// Whether `xtr` is among those that share `eid`.
    fn owns(&self, xtr: XtrIndex, eid: &EidPrefix) -> bool {
        let mapping = self.state.mappings.exact(eid);
        mapping.is_some_and(|mapping| self.is_shared(mapping) && mapping.is_registered_by(xtr))
    }

    fn gone(&self, who: XtrIndex) -> Why {
        let who = self.sites.site(who).name.clone();
        Why::Gone { who }
    }

    fn silent(&self, by: XtrIndex) -> Why {
        let by = self.sites.site(by).name.clone();
        Why::Silent { by }
    }

    /// Returns what a far end of `client` must know of it: all its mappings, and the parts of them
    /// that `knowing` was told of because others have registered the rest.
    fn records_of(&self, client: XtrIndex, knowing: XtrIndex, iid: InstanceId) -> Vec<Record> {
        let mappings = &self.state.mappings;
        let whole = self.whole_records(client, iid).into_iter();
        let mut records: BTreeMap<_, _> = whole.map(|record| (record.eid, record)).collect();
        for eid in mappings.registered_by(client, iid, limits::RECORDS_PER_XTR) {
            let Some(mapping) = mappings.exact(&eid) else {
                continue;
            };
            for part in self.state.subscribers.parts(&eid, knowing) {
                if mappings.region(&part, part.net().prefix_len(), 0) == Some(part) {
                    let record = Record {
                        eid: part,
                        ..mapping.record()
                    };
                    records.entry(part).or_insert(record);
                }
            }
        }
        records.into_values().collect()
    }

    /// Puts the client on the destination, and tells it.
    fn switch(&mut self, now: Timestamp, id: MoveId, actions: &mut Actions) {
        let Some(it) = self.a_move(id) else {
            return;
        };
        self.reach(id, MigrationState::Armed, actions);
        self.state.moves.told(now, id);
        for eid in &it.report.eids {
            self.place(*eid, it.client, it.to, None, actions);
        }
        let told = self.tell_client(now, &it, it.to, actions);
        let until = now + limits::MIGRATION_STEP;
        self.state.moves.enter(id, Stage::Switching, until, told);
        if !self.state.moves.is_waiting(id) {
            self.switched(now, id, actions);
        }
    }

    /// Tells the client what it knows of the prefixes that it uses `owner` for now, as they are, and
    /// what else that owner has registered. Returns what it has to acknowledge.
    fn tell_client(
        &mut self,
        now: Timestamp,
        it: &Move,
        owner: XtrIndex,
        actions: &mut Actions,
    ) -> Vec<(XtrIndex, EidPrefix)> {
        let mut told = Vec::new();
        for iid in instances(&it.report.eids) {
            let mut records = Vec::new();
            for eid in it.report.eids.iter().filter(|eid| eid.iid() == iid) {
                let at = self.state.assignments.get(eid, it.client);
                if at.is_some_and(|at| at.owner == owner) {
                    records.extend(self.news_for(*eid, it.client));
                }
            }
            if records.is_empty() {
                continue;
            }
            told.extend(records.iter().map(|record| (it.client, record.eid)));
            let known: BTreeSet<_> = records.iter().map(|record| record.eid).collect();
            let besides = self.whole_records(owner, iid);
            let besides = self.as_told(besides, owner, it.client, actions);
            let besides = besides.into_iter();
            records.extend(besides.filter(|record| !known.contains(&record.eid)));
            self.introduce(now, now, it.client, records, actions);
        }
        told
    }

    /// The client has moved.
    fn switched(&mut self, now: Timestamp, id: MoveId, actions: &mut Actions) {
        self.state.moves.moved(now, id);
        self.reach(id, MigrationState::Switched, actions);
        let until = now + limits::MIGRATION_LINGER;
        self.state.moves.enter(id, Stage::Lingering, until, None);
    }

    /// Lets the source forget the client.
    fn release_source(&mut self, now: Timestamp, id: MoveId, actions: &mut Actions) {
        let Some(it) = self.a_move(id) else {
            return;
        };
        let forgotten = self.dismiss_all(now, &it, it.from, true, actions);
        let forgotten = forgotten.into_iter().map(|eid| (it.from, eid));
        let until = now + limits::MIGRATION_STEP;
        let moves = &mut self.state.moves;
        moves.enter(id, Stage::Confirming, until, forgotten);
        if !self.state.moves.is_waiting(id) {
            self.finish(now, id, MigrationState::Confirmed, actions);
        }
    }

    fn dismiss_all(
        &mut self,
        now: Timestamp,
        it: &Move,
        owner: XtrIndex,
        mutual: bool,
        actions: &mut Actions,
    ) -> Vec<EidPrefix> {
        let mut forgotten = Vec::new();
        for iid in instances(&it.report.eids) {
            let client = it.client;
            let ties = Ties { owner, client, iid };
            forgotten.extend(self.dismiss(now, ties, mutual, actions));
        }
        forgotten
    }

    /// Takes in that `receiver` has acknowledged what it was told about `eids`.
    pub(super) fn move_on(
        &mut self,
        now: Timestamp,
        receiver: XtrIndex,
        eids: impl Iterator<Item = EidPrefix>,
        actions: &mut Actions,
    ) {
        for eid in eids {
            for id in self.state.moves.acknowledged(receiver, eid) {
                let stage = self.state.moves.get(id).map(|it| it.stage.clone());
                match stage {
                    Some(Stage::Arming) => self.switch(now, id, actions),
                    Some(Stage::Switching) => self.switched(now, id, actions),
                    Some(Stage::Confirming) => {
                        self.finish(now, id, MigrationState::Confirmed, actions);
                    }
                    Some(Stage::Reverting(why)) => self.reverted(now, id, why, actions),
                    Some(Stage::Queued | Stage::Lingering) | None => {}
                }
            }
        }
    }

    fn reach(&mut self, id: MoveId, state: MigrationState, actions: &mut Actions) {
        self.state.moves.note(id, state);
        if let Some(it) = self.state.moves.get(id) {
            tell_operator(&it.report, actions);
        }
    }

    fn finish(&mut self, now: Timestamp, id: MoveId, state: MigrationState, actions: &mut Actions) {
        self.reach(id, state.clone(), actions);
        self.state.moves.finish(now, id, state);
    }
}

/// Tells the operator how far a migration has come.
fn tell_operator(report: &Migration, actions: &mut Actions) {
    let unplanned = report.eids.is_empty().then_some(None);
    let eids = report.eids.iter().map(|eid| Some(*eid));
    for eid in eids.chain(unplanned) {
        actions.event(Event::Migration {
            client: report.client.clone(),
            eid,
            from: report.from.clone(),
            to: report.to.clone(),
            state: report.state.clone(),
        });
    }
}

fn instances(eids: &[EidPrefix]) -> BTreeSet<InstanceId> {
    eids.iter().map(EidPrefix::iid).collect()
}

#[cfg(test)]
mod tests;
