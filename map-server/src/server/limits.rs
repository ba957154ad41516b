//! How much of anything is too much?
//!
//! Every bound and every interval of the state machine, with its unit.

use std::time::Duration;

use lisp_proto::{Nonce, Ttl};

use crate::config::Rate;

/// A registration lives this long without a refresh (RFC 9301 §8.2).
pub(crate) const REGISTRATION_LIFETIME: Duration = Duration::from_secs(180);
/// A registration with the T bit lives no longer than this, whatever its TTL says.
pub(crate) const REGISTRATION_LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// A subscription that was asked for, or to a record whose TTL leaves the choice to us, lasts this
/// long unless it is renewed.
pub(crate) const SUBSCRIPTION_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// TTL of a negative Map-Reply for an EID outside all configured prefixes (RFC 9301 §8.3).
pub(crate) const TTL_UNKNOWN: Ttl = Ttl::from_minutes(15);
/// TTL of a negative Map-Reply for a configured prefix nobody has registered (RFC 9301 §8.3).
pub(crate) const TTL_UNREGISTERED: Ttl = Ttl::from_minutes(1);

/// Within this time every xTR that is up refreshes its registrations: a minute, and some jitter.
#[cfg(feature = "shell")]
pub(crate) const REFRESH_INTERVAL: Duration = Duration::from_secs(75);

/// UDP port that unsolicited Map-Notifies go to when the receiver never registered (RFC 9301 §4).
pub(crate) const CONTROL_PORT: u16 = 4342;
/// UDP port of a WireGuard locator that names none.
pub(crate) const WIREGUARD_PORT: u16 = 51820;

/// First wait for a Map-Notify-Ack through the control tunnel; doubles with every retransmission. Who
/// waits for an answer waits for this, and with the 3 s of RFC 9301 §5.7 he would give up.
pub(crate) const NOTIFY_INTERVAL: Duration = Duration::from_millis(200);
/// Longest wait between two retransmissions.
pub(crate) const NOTIFY_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// Waits after each transmission of an unsolicited Map-Notify to gear without a control tunnel: three
/// times the same, then doubling (RFC 9301 §5.7). After the last one it is given up.
pub(crate) const PLAIN_NOTIFY_WAITS: [Duration; 6] = [
    Duration::from_secs(3),
    Duration::from_secs(3),
    Duration::from_secs(3),
    Duration::from_secs(6),
    Duration::from_secs(12),
    Duration::from_secs(24),
];
/// Transmissions of one unsolicited Map-Notify that may still be acknowledged, the latest ones.
pub(crate) const NONCES_PER_NOTIFY: usize = 16;
/// Unsolicited Map-Notifies awaiting acknowledgement; the oldest gives way.
pub(crate) const OUTSTANDING_NOTIFIES: usize = 65_536;
/// Largest unsolicited Map-Notify in bytes: it passes every path without being cut in pieces.
pub(crate) const NOTIFY_LEN: usize = 1_200;
/// What of a Map-Notify is no record, in bytes (RFC 9301 §5.7), with the longest authentication
/// data.
pub(crate) const NOTIFY_HEADER_LEN: usize = 16 + 32;
/// Bytes of the name that says where the connections of a client are, with its locator.
pub(crate) const HANDOFF_LEN: usize = 72;
/// Length of a Map-Reply without records in bytes (RFC 9301 §5.4).
pub(crate) const REPLY_HEADER_LEN: usize = 12;
/// Records per unsolicited Map-Notify, however short they are.
pub(crate) const RECORDS_PER_NOTIFY: usize = 32;
/// Prefixes of one xTR that the other end of a pair is told of.
pub(crate) const RECORDS_PER_XTR: usize = 64;
/// Records that a requester is told of besides those it asked for.
pub(crate) const RECORDS_PER_ANSWER: usize = 128;
/// Subscribers that an xTR is told of when it registers what they wait for.
pub(crate) const INTRODUCTIONS: usize = 1_024;
/// Map-Notifies sent at once when a mapping changes; those to further subscribers follow.
pub(crate) const NOTIFIES_AT_ONCE: u32 = 256;
/// Time between Map-Notifies beyond those sent at once.
pub(crate) const NOTIFY_SPACING: Duration = Duration::from_micros(100);
/// Notify nonces reserved in the store at a time.
pub(crate) const NOTIFY_RESERVE: u64 = 1_024;

/// Longest time a Map-Reply waits for the owner's acknowledgement, unless configured.
pub(crate) const REPLY_HOLD: Duration = Duration::from_secs(1);
/// Map-Replies on hold; beyond it replies leave at once.
pub(crate) const HELD_REPLIES: usize = 8_192;

/// EIDs answered per Map-Request.
pub(crate) const EIDS_PER_REQUEST: usize = 8;
/// Records per Map-Reply: with two IPv6 WireGuard locators each it still fits a UDP datagram
/// of 3 KiB.
pub(crate) const RECORDS_PER_REPLY: usize = 8;
/// Locators per record after merging (RFC 9301 §5.4 has room for 255).
pub(crate) const LOCATORS_PER_RECORD: usize = 8;
/// Registrations merged into one mapping (the `a` bit, RFC 9301 §5.6).
pub(crate) const REGISTRATIONS_PER_MAPPING: usize = 8;
/// Mappings in the database.
pub(crate) const MAPPINGS: usize = 16_777_216;
/// xTR-IDs remembered per configured xTR for the replay check.
pub(crate) const XTR_IDS_PER_XTR: usize = 256;

/// Prefixes that one xTR may ask to be told about (RFC 9437).
pub(crate) const PREFIXES_SUBSCRIBED: usize = 1_024;
/// Mappings and configured prefixes inside one of those.
pub(crate) const ENTRIES_PER_SUBSCRIPTION: usize = 1_024;
/// A subscription to what nobody has registered lasts this long (RFC 9437 §5).
pub(crate) const SUBSCRIPTION_TO_NOTHING: Duration = Duration::from_secs(15 * 60);
/// Greatest nonce of a subscription: what is published needs greater ones.
pub(crate) const SUBSCRIBE_NONCE_MAX: Nonce = Nonce(u64::MAX - (1 << 32));
/// Subscriptions in all; the one that would expire first gives way.
pub(crate) const SUBSCRIPTIONS: usize = 1_048_576;
/// Negative answers that an xTR with this many subscriptions gets lead to no more of them: whoever
/// scans the address plan must not drive the subscriptions of others out.
pub(crate) const SUBSCRIPTIONS_WHEN_DENIED: usize = 65_536;
/// Agents of which it is remembered whom of several owners of a prefix they use.
pub(crate) const ASSIGNMENTS: usize = 1_048_576;
/// Mappings of clients that have left an owner which has not acknowledged that yet.
pub(crate) const DISMISSALS: usize = 262_144;
/// The same of one owner: one that is never back leaves room for others.
pub(crate) const DISMISSALS_PER_OWNER: usize = DISMISSALS / 4;
/// How long an owner is to be told of them. An agent that finds no map server keeps mappings in use for a
/// day beyond their time, and then it has forgotten them by itself.
pub(crate) const DISMISSAL_LIFETIME: Duration = Duration::from_secs(48 * 3_600);
/// Of those in one fact for the store.
pub(crate) const DISMISSALS_PER_FACT: usize = 1_024;
/// What an owner that registers is told to forget at a time; the rest follows when it does so again.
pub(crate) const DISMISSED_AT_ONCE: usize = 4_096;
/// Parts of one shared prefix that an agent was told of, and is told of again after a restart.
pub(crate) const PARTS_PER_ASSIGNMENT: usize = 64;
/// What the priority number of a locator grows by where it is not that of the owner in use.
pub(crate) const PRIORITY_BEHIND: u8 = 128;
/// Clients that are being moved at a time; the others wait.
pub(crate) const MIGRATIONS_AT_ONCE: usize = 64;
/// Clients that are being moved or wait for it.
pub(crate) const MIGRATIONS: usize = 65_536;
/// Migrations of single clients that are remembered when they are over; the oldest gives way.
pub(crate) const MIGRATIONS_KEPT: usize = 65_536;
/// Longest time that each step of a migration may take until it is acknowledged.
pub(crate) const MIGRATION_STEP: Duration = Duration::from_secs(10);
/// How long the source still knows a client that has moved: packets that are on their way through it
/// have passed by then.
pub(crate) const MIGRATION_LINGER: Duration = Duration::from_secs(1);
/// How long an owner knows a client that could not use it, has got another one, and does not acknowledge
/// that: as long as a registration lasts.
pub(crate) const LEAVING: Duration = REGISTRATION_LIFETIME;
/// Clients of which it is awaited; beyond it the one that has had the most time counts as moved.
pub(crate) const LEAVINGS: usize = 65_536;
/// How often in a row a client may say that it cannot use its owner: all that share a prefix may fail
/// together.
pub(crate) const FAILOVERS: u32 = 4;
/// How often it may in the long run: once in this time.
pub(crate) const FAILOVER_PAUSE: Duration = Duration::from_secs(5);
/// How long it is watched where an xTR is seen that does not ask again.
pub(crate) const SIGHTING_LIFETIME: Duration = REGISTRATION_LIFETIME;
/// Data interfaces of one xTR of which that is watched: it has one for each instance-id.
pub(crate) const SIGHTINGS_PER_XTR: usize = 64;
/// Data keys that the control interface has as peers, so that it sees where they are.
pub(crate) const WATCHED_KEYS: usize = 65_536;
/// Pairs whose packets a relay carries.
pub(crate) const RELAYED_PAIRS: usize = 65_536;
/// Those that one xTR is part of.
pub(crate) const RELAYED_PAIRS_PER_XTR: usize = 1_024;
/// After this time two ends try without their first relay: what kept them apart may be a lost packet.
pub(crate) const RELAY_LIFETIME_FIRST: Duration = Duration::from_secs(120);
/// Each time that is in vain it doubles, up to this.
pub(crate) const RELAY_LIFETIME: Duration = Duration::from_secs(1_800);
/// How long it is remembered how long they had one, as a multiple of that: they ask anew in time.
pub(crate) const RELAY_REMEMBERED: u32 = 4;
/// The priority number of the locators of a relay: the last that may be used (RFC 9301 §5.4).
pub(crate) const PRIORITY_RELAY: u8 = 254;
/// Registrations, or assignments, that are read for a snapshot before others have their turn: whoever changes something waits
/// meanwhile for a thread that stands back.
pub(crate) const SNAPSHOT_PART: usize = 128;
/// Plain sources remembered as registered; the one that would expire first gives way.
pub(crate) const REGISTERED_SOURCES: usize = 65_536;

/// Map-Requests per source, unless configured.
pub(crate) const REQUEST_RATE: Rate = Rate {
    per_second: 1_000,
    burst: 2_000,
};
/// Map-Registers and Map-Notify-Acks per source, unless configured.
pub(crate) const REGISTER_RATE: Rate = Rate {
    per_second: 1_000,
    burst: 2_000,
};
/// Sources with a token bucket; the one that is nearest to full gives way.
pub(crate) const RATE_LIMITED_SOURCES: usize = 65_536;
