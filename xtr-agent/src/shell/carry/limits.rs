//! Every bound of what is carried from proxy to proxy, with its unit.

use std::time::Duration;

/// TCP port, at the EIDs of a proxy, where others ask for connections.
pub(super) const PORT: u16 = 4342;

/// Connections of one client that are carried over.
pub(super) const FLOWS_PER_CLIENT: usize = 16_384;
/// Connections of all clients that are looked at.
pub(super) const FLOWS: usize = 1 << 20;
/// Longest time that a connection lasts without a packet, seconds: what Linux gives those of TCP.
pub(super) const TIMEOUT_MAX_S: u32 = 432_000;

/// Clients whose connections others may ask for.
pub(super) const OFFERS: usize = 4_096;
/// For how long they may; a migration takes half of that at most.
pub(super) const OFFERED_FOR: Duration = Duration::from_secs(60);
/// Those who ask at a time, at each EID: a session lasts until its client has gone.
pub(super) const SESSIONS: usize = OFFERS;

/// How long the other proxy may take for one message.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How long it may take to enter what it was told, and to say so.
pub(super) const ENTERING: Duration = Duration::from_secs(5);
/// Pause between two looks at what has changed.
pub(super) const PACE: Duration = Duration::from_millis(200);
/// Reading all entries takes no more than one so manieth of the time.
pub(super) const READING_SHARE: u32 = 4;
/// Longest pause that this makes.
pub(super) const READING_PAUSE: Duration = Duration::from_secs(1);
/// How old a reading may be that a conversation begins with: what has changed since follows.
pub(super) const READING_AGE: Duration = Duration::from_secs(2);
/// How often it is looked whether there is anything to listen for.
pub(super) const LISTENING: Duration = Duration::from_secs(2);

/// How long it is tried to get the connections of a client.
pub(super) const TAKING: Duration = Duration::from_millis(1_200);
/// For how long nobody may listen at the other end, which may not have heard of the move yet.
pub(super) const REFUSED: Duration = Duration::from_millis(500);
/// First pause between two tries; doubles from there.
pub(super) const AGAIN: Duration = Duration::from_millis(30);
/// How long nothing may come from a proxy that has connections.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
/// How long connections that were taken to the end need not be asked for again.
pub(super) const JUST_TAKEN: Duration = Duration::from_secs(5);
/// How long a proxy is not asked again that has not answered, and never has.
pub(super) const UNANSWERED: Duration = Duration::from_secs(10);
/// Proxies of which it is known whether they answer.
pub(super) const SOURCES: usize = 256;
