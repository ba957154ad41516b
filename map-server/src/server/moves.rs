//! Which clients are being moved, how far have they come, and which were?
//!
//! The books of `migrate.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lisp_proto::{Connections, Deadlines, EidPrefix, Gap, Timestamp};

use super::limits;
use super::operator::{Migration, MigrationState, Step, Why};
use super::sites::XtrIndex;

/// Names a migration of one client.
pub(crate) type MoveId = u64;

/// What is being waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its turn.
    Queued,
    /// The destination's acknowledgement of the client.
    Arming,
    /// The client's acknowledgement of the destination.
    Switching,
    /// That what is on its way through the source has passed.
    Lingering,
    /// The source's acknowledgement that it has forgotten the client.
    Confirming,
    /// The client's acknowledgement that it is where it was.
    Reverting(Why),
}

impl Stage {
    /// Returns the step that it belongs to.
    pub(crate) const fn step(&self) -> Step {
        match self {
            Self::Queued => Step::Plan,
            Self::Arming => Step::Arm,
            Self::Switching | Self::Reverting(_) => Step::Switch,
            Self::Lingering | Self::Confirming => Step::Confirm,
        }
    }
}

/// One client on its way.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) client: XtrIndex,
    pub(crate) from: XtrIndex,
    pub(crate) to: XtrIndex,
    pub(crate) stage: Stage,
    pub(crate) report: Migration,
    /// What is still to be acknowledged, and by whom.
    awaited: BTreeSet<(XtrIndex, EidPrefix)>,
}

/// All clients on their way, and the latest that were.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moves {
    moves: BTreeMap<MoveId, Move>,
    queue: VecDeque<MoveId>,
    /// Those that take up one of the places that there are.
    busy: BTreeSet<MoveId>,
    by_client: BTreeMap<XtrIndex, BTreeSet<MoveId>>,
    awaited: BTreeSet<(XtrIndex, EidPrefix, MoveId)>,
    timers: Deadlines<MoveId>,
    finished: VecDeque<(Option<XtrIndex>, Migration)>,
    /// How many of those have given way to later ones.
    given_way: u64,
    /// Of each client the latest that is over: which it is of all that ever were.
    latest: BTreeMap<XtrIndex, u64>,
    next: MoveId,
    last_run: u64,
}

impl Moves {
    /// Returns the number of the next command.
    pub(crate) const fn next_run(&mut self) -> u64 {
        self.last_run += 1;
        self.last_run
    }

    /// Returns the number of the last command.
    pub(crate) const fn last_run(&self) -> u64 {
        self.last_run
    }

    /// Returns how many clients are on their way or wait for it.
    pub(crate) fn len(&self) -> usize {
        self.moves.len()
    }

    /// Whether `client` is on its way, or waits for it.
    pub(crate) fn is_moving(&self, client: XtrIndex) -> bool {
        self.by_client.contains_key(&client)
    }

    /// Adds a client to those that wait.
    pub(crate) fn queue(&mut self, ends: [XtrIndex; 3], report: Migration) {
        let [client, from, to] = ends;
        let id = self.next;
        self.next += 1;
        let queued = Move {
            client,
            from,
            to,
            stage: Stage::Queued,
            report,
            awaited: BTreeSet::new(),
        };
        self.moves.insert(id, queued);
        self.queue.push_back(id);
        self.by_client.entry(client).or_default().insert(id);
    }

    /// Returns whose turn it is, if there is a place.
    pub(crate) fn begin(&mut self, now: Timestamp) -> Option<MoveId> {
        if self.busy.len() >= limits::MIGRATIONS_AT_ONCE {
            return None;
        }
        let id = self.queue.pop_front()?;
        self.busy.insert(id);
        let begun = self.moves.get_mut(&id)?;
        begun.report.started = Some(now);
        begun.stage = Stage::Arming;
        Some(id)
    }

    pub(crate) fn get(&self, id: MoveId) -> Option<&Move> {
        self.moves.get(&id)
    }

    /// Lists those whose turn has come.
    pub(crate) fn begun(&self) -> Vec<MoveId> {
        let begun = self.moves.iter();
        let begun = begun.filter(|(_, it)| it.stage != Stage::Queued);
        begun.map(|(id, _)| *id).collect()
    }

    /// Enters a stage that lasts until `until`, or until all that is `awaited` is acknowledged.
    pub(crate) fn enter(
        &mut self,
        id: MoveId,
        stage: Stage,
        until: Timestamp,
        awaited: impl IntoIterator<Item = (XtrIndex, EidPrefix)>,
    ) {
        self.wait_for_nothing(id);
        let Some(it) = self.moves.get_mut(&id) else {
            return;
        };
        if stage == Stage::Lingering {
            self.busy.remove(&id);
        }
        it.stage = stage;
        it.awaited = awaited.into_iter().collect();
        let keys = it.awaited.iter();
        self.awaited
            .extend(keys.map(|(receiver, eid)| (*receiver, *eid, id)));
        self.timers.set(id, until);
    }

    /// Takes note of how far a client has come.
    pub(crate) fn note(&mut self, id: MoveId, state: MigrationState) {
        if let Some(it) = self.moves.get_mut(&id) {
            it.report.state = state;
        }
    }

    /// Takes note of when a client is told to move.
    pub(crate) fn told(&mut self, now: Timestamp, id: MoveId) {
        if let Some(it) = self.moves.get_mut(&id) {
            it.report.told = Some(now);
        }
    }

    /// Takes note of when a client has moved.
    pub(crate) fn moved(&mut self, now: Timestamp, id: MoveId) {
        if let Some(it) = self.moves.get_mut(&id) {
            it.report.moved = Some(now);
        }
    }

    /// Takes note of what a client says of the time in which it moved to another owner of `eids`. It may
    /// say so a moment after its migration is over.
    pub(crate) fn note_gap(
        &mut self,
        now: Timestamp,
        client: XtrIndex,
        eids: &[EidPrefix],
        gap: Gap,
    ) {
        let Gap::Longest(gap) = gap else {
            return;
        };
        let concerns = |report: &Migration| {
            let mut moved = report.eids.iter().filter(|_| report.moved.is_some());
            moved.any(|eid| eids.iter().any(|asked| eid.covers(asked)))
        };
        let ids = self.by_client.get(&client).into_iter().flatten();
        for id in ids {
            let report = self.moves.get_mut(id).map(|it| &mut it.report);
            if let Some(report) = report.filter(|report| concerns(report)) {
                report.gap = report.gap.max(Some(gap));
                return;
            }
        }
        let place = self.latest.get(&client).map(|nth| nth - self.given_way);
        let place = place.and_then(|place| usize::try_from(place).ok());
        let is_recent = |report: &Migration| {
            let ended = report.ended;
            ended.is_some_and(|ended| now - ended < limits::MIGRATION_STEP)
        };
        if let Some(place) = place
            && let Some((_, report)) = self.finished.get_mut(place)
            && is_recent(report)
            && concerns(report)
        {
            report.gap = report.gap.max(Some(gap));
        }
    }

    /// Takes note of what `source`, which has forgotten the clients with these `eids`, says about their
    /// connections.
    pub(crate) fn note_connections(
        &mut self,
        source: XtrIndex,
        eids: impl Iterator<Item = EidPrefix>,
        connections: Connections,
    ) {
        let mut concerned = BTreeSet::new();
        for eid in eids {
            let (first, last) = ((source, eid, 0), (source, eid, MoveId::MAX));
            let waiting = self.awaited.range(first..=last);
            concerned.extend(waiting.map(|(_, _, id)| *id));
        }
        for id in concerned {
            let it = self.moves.get_mut(&id);
            let confirming = it.filter(|it| it.from == source && it.stage == Stage::Confirming);
            if let Some(it) = confirming {
                let known = it.report.connections.get_or_insert_default();
                known.moved = known.moved.saturating_add(connections.moved);
                known.reset = known.reset.saturating_add(connections.reset);
            }
        }
    }

    /// Whether a stage waits for an acknowledgement still.
    pub(crate) fn is_waiting(&self, id: MoveId) -> bool {
        self.moves.get(&id).is_some_and(|it| !it.awaited.is_empty())
    }

    /// Takes in that `receiver` has acknowledged what it was told of `eid`; returns those for whom it
    /// was the last one missing.
    pub(crate) fn acknowledged(&mut self, receiver: XtrIndex, eid: EidPrefix) -> Vec<MoveId> {
        let first = (receiver, eid, 0);
        let last = (receiver, eid, MoveId::MAX);
        let waiting: Vec<_> = self.awaited.range(first..=last).copied().collect();
        let mut complete = Vec::new();
        for key in waiting {
            self.awaited.remove(&key);
            if let Some(it) = self.moves.get_mut(&key.2) {
                it.awaited.remove(&(receiver, eid));
                if it.awaited.is_empty() {
                    complete.push(key.2);
                }
            }
        }
        complete
    }

    fn wait_for_nothing(&mut self, id: MoveId) {
        self.timers.cancel(&id);
        if let Some(it) = self.moves.get_mut(&id) {
            for (receiver, eid) in std::mem::take(&mut it.awaited) {
                self.awaited.remove(&(receiver, eid, id));
            }
        }
    }

    /// Ends the migration of a client.
    pub(crate) fn finish(&mut self, now: Timestamp, id: MoveId, state: MigrationState) {
        self.wait_for_nothing(id);
        self.busy.remove(&id);
        let Some(mut done) = self.moves.remove(&id) else {
            return;
        };
        if let Some(others) = self.by_client.get_mut(&done.client) {
            others.remove(&id);
            if others.is_empty() {
                self.by_client.remove(&done.client);
            }
        }
        done.report.state = state;
        self.keep(now, Some(done.client), done.report);
    }

    /// Adds what never began to the history.
    pub(crate) fn remember(&mut self, now: Timestamp, failed: Migration) {
        self.keep(now, None, failed);
    }

    /// Adds something that is over to the history; the oldest gives way.
    fn keep(&mut self, now: Timestamp, client: Option<XtrIndex>, mut done: Migration) {
        done.started.get_or_insert(now);
        done.ended = Some(now);
        if let Some(client) = client {
            let nth = self.given_way + self.finished.len() as u64;
            self.latest.insert(client, nth);
        }
        self.finished.push_back((client, done));
        if self.finished.len() > limits::MIGRATIONS_KEPT
            && let Some((oldest, _)) = self.finished.pop_front()
        {
            if let Some(oldest) = oldest
                && self.latest.get(&oldest) == Some(&self.given_way)
            {
                self.latest.remove(&oldest);
            }
            self.given_way += 1;
        }
    }

    /// Lists what is remembered, the oldest first, then what goes on.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Migration> {
        let going_on = self.moves.values().map(|it| &it.report);
        let finished = self.finished.iter().map(|(_, report)| report);
        finished.chain(going_on)
    }

    /// Takes one out that has waited long enough.
    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<MoveId> {
        self.timers.pop_due(now)
    }

    /// Returns when the next one has waited long enough.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.timers.next()
    }
}
