//! What does an operator get to read about migrations?

use std::collections::BTreeMap;
use std::time::Duration;

use lisp_proto::{Connections, Timestamp};
use serde_json::{Value, json};

use super::admin::Request;
use super::clock::Clock;
use crate::server::{Clients, Command, MapServer, Migration, MigrationState};

/// Returns what `request` asks the state machine to do, if anything.
pub(super) fn command(request: &Request) -> Option<Command> {
    match request {
        Request::Migrate {
            from,
            to,
            clients,
            dry_run,
        } => Some(Command::Migrate {
            from: from.as_str().into(),
            to: to.as_str().into(),
            clients: clients.as_ref().map_or(Clients::All, |names| {
                Clients::Set(names.iter().map(|name| name.as_str().into()).collect())
            }),
            dry_run: *dry_run,
        }),
        Request::Drain { from, dry_run } => Some(Command::Drain {
            from: from.as_str().into(),
            dry_run: *dry_run,
        }),
        Request::Undrain { from } => Some(Command::Undrain {
            from: from.as_str().into(),
        }),
        Request::Migrations { .. } => None,
    }
}

/// Returns what would be done, or why nothing can be.
pub(super) fn plan(clock: Clock, server: &MapServer, command: &Command) -> Result<Value, Value> {
    match server.plan(command) {
        Ok(planned) => Ok(report(clock, planned.iter(), true)),
        Err(refused) => Err(json!({ "error": refused.to_string() })),
    }
}

/// Returns the migrations of one command, or all that are remembered.
pub(super) fn migrations(
    clock: Clock,
    server: &MapServer,
    run: Option<u64>,
    counts: bool,
) -> Value {
    let all = server.migrations();
    let wanted = all.filter(|it| run.is_none_or(|run| it.run == run));
    let mut report = report(clock, wanted, !counts);
    let drained: Vec<_> = server.drained().collect();
    let names: Vec<_> = drained.iter().map(|(name, _)| &***name).collect();
    let relaying = drained.iter().filter(|(_, pairs)| *pairs > 0);
    let relaying: BTreeMap<_, _> = relaying.map(|(name, pairs)| (&***name, *pairs)).collect();
    if let Some(fields) = report.as_object_mut() {
        fields.insert("drained".into(), json!(names));
        fields.insert("relaying".into(), json!(relaying));
    }
    report
}

/// The states in which the migration of a client can be.
const STATES: [&str; 5] = ["queued", "armed", "switched", "confirmed", "failed"];

fn report<'a>(
    clock: Clock,
    migrations: impl Iterator<Item = &'a Migration>,
    with_clients: bool,
) -> Value {
    let mut counts = STATES.map(|state| (state, 0_u64));
    let mut clients = Vec::new();
    for migration in migrations {
        for (state, count) in &mut counts {
            *count += u64::from(*state == migration.state.name());
        }
        if with_clients {
            clients.push(entry(clock, migration));
        }
    }
    let counts: serde_json::Map<_, _> = counts
        .into_iter()
        .map(|(state, count)| (state.to_owned(), count.into()))
        .collect();
    match with_clients {
        true => json!({ "counts": counts, "clients": clients }),
        false => json!({ "counts": counts }),
    }
}

/// Writes down how far one client has come.
fn entry(clock: Clock, migration: &Migration) -> Value {
    let prefixes = migration.eids.iter().map(ToString::to_string);
    let between = |from: Option<Timestamp>, to: Option<Timestamp>| {
        let both = from.zip(to);
        both.map(|(from, to)| milliseconds(to - from))
    };
    let mut entry = json!({
        "run": migration.run,
        "client": &*migration.client,
        "prefixes": prefixes.collect::<Vec<_>>(),
        "from": &*migration.from,
        "to": migration.to.as_deref(),
        "state": migration.state.name(),
        "started_ms": migration.started.map(|at| since_1970(clock, at)),
        "ended_ms": migration.ended.map(|at| since_1970(clock, at)),
        "took_ms": between(migration.started, migration.ended),
        "move_ms": between(migration.told, migration.moved),
        "gap_ms": migration.gap.map(milliseconds),
        "connections": migration.connections.map(|Connections { moved, reset }| {
            json!({ "moved": moved, "reset": reset })
        }),
    });
    if let (MigrationState::Failed { step, why }, Some(fields)) =
        (&migration.state, entry.as_object_mut())
    {
        fields.insert("step".into(), step.name().into());
        fields.insert("why".into(), why.to_string().into());
        fields.insert("remedy".into(), why.remedy().into());
    }
    entry
}

/// Returns milliseconds since 1970.
fn since_1970(clock: Clock, at: Timestamp) -> u64 {
    let ago = clock.now() - at;
    milliseconds(Clock::since_1970().saturating_sub(ago))
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
