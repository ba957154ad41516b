//! Every bound and every tunable default of the agent, with its unit.

use std::time::Duration;

use lisp_proto::Ttl;

/// Packets held for one destination before the oldest is dropped.
pub const HELD_PER_DESTINATION: usize = 256;
/// Packets held for one mapping of many destinations before the oldest is dropped.
pub const HELD_PER_MAPPING: usize = 4_096;
/// Packets held in all before new destinations are refused.
pub const HELD_IN_ALL: usize = 16_384;
/// Destinations with an outstanding Map-Request.
pub const OUTSTANDING_REQUESTS: usize = 1_024;
/// Map-cache entries, negative ones included.
pub const MAP_CACHE_ENTRIES: usize = 65_536;
/// Negative map-cache entries: a scan of the overlay leaves room for mappings.
pub const NEGATIVE_ENTRIES: usize = MAP_CACHE_ENTRIES / 4;
/// Records read from one Map-Reply or Map-Notify.
pub const RECORDS_PER_MESSAGE: usize = 64;
/// Parts that a mapping is cut into when others have registered parts of it.
pub const PARTS: usize = 64;
/// Destinations whose way is remembered for `trace`.
pub const TRACES: usize = 256;
/// Changes handed to the data plane and not yet reported back.
pub const CHANGES_IN_FLIGHT: usize = 8_192;

/// First retransmission of an unanswered Map-Request; doubles from there.
pub const REQUEST_RETRY: Duration = Duration::from_millis(300);
/// The same without a control tunnel, where the map server may be anybody's: least time between two
/// Map-Requests for one EID-prefix (RFC 9301 5.3).
pub const PLAIN_REQUEST_RETRY: Duration = Duration::from_secs(1);
/// Map-Requests per second for packets to new destinations. This, the next three, and what
/// answers earned before make no more than 100 in any second.
pub const ASKED_PER_SECOND: u32 = 40;
/// The same, that are saved up.
pub const ASKED_AT_ONCE: u32 = 24;
/// Their retransmissions per second.
pub const ASKED_AGAIN_PER_SECOND: u32 = 20;
/// The same, that are saved up.
pub const ASKED_AGAIN_AT_ONCE: u32 = 10;
/// More of them that answers have earned, two by each, and that nobody waited for at once: what a busy
/// gateway has saved up is not for a scan.
pub const EARNED: u32 = 6;
/// How long after the last such answer they may be used.
pub const EARNED_FOR: Duration = Duration::from_secs(1);
/// Groups of source addresses that take turns in asking.
pub const SOURCES: usize = 16;
/// Lanes for the flows of each group.
pub const LANES: usize = 32;
/// Destinations that wait in all lanes together.
pub const WAITING: usize = OUTSTANDING_REQUESTS / 2;
/// Destinations that wait before all lanes, because they are wanted once more.
pub const IN_FRONT: usize = WAITING / 4;
/// How long it is known at least that somebody wanted a destination: pings and TCP try again after
/// a second.
pub const SIGHTING_SPAN: Duration = Duration::from_millis(1_100);
/// Bits in which that is kept, twice: 1 MiB in all, only in a storm. With 50,000 sightings per
/// second one of 5,000 is a mistake.
pub const SIGHTING_BITS: usize = 1 << 22;
/// How long a retransmission waits that may not be sent yet.
pub const ASK_LATER: Duration = Duration::from_millis(100);
/// How long an answer is still taken in after packets have waited long enough.
pub const LATE_ANSWER: Duration = Duration::from_secs(10);
/// Requests whose late answers are taken in.
pub const LATE_ANSWERS: usize = 1_024;
/// How long a destination that nobody answered for stays refused.
pub const NO_ANSWER_HOLD_DOWN: Duration = Duration::from_secs(1);
/// The same without a control tunnel: three questions and this pause are no more than the ten
/// questions in a row and 30 s of silence that are usual there.
pub const PLAIN_NO_ANSWER_HOLD_DOWN: Duration = Duration::from_secs(10);
/// Longest time a negative answer is believed, whatever its TTL says.
pub const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(900);
/// How long nobody is looked for again in what we serve ourselves: no map server tells us of those
/// who appear there.
pub const NOBODY_BEHIND: Ttl = Ttl::from_minutes(1);
/// How long a negative answer is believed although packets go there; doubles with every one like it.
pub const REFUSED_RETRY: Duration = Duration::from_secs(10);
/// It is believed for no more than one so manieth of its TTL, or for [`REFUSED_RETRY`].
pub const REFUSED_RETRY_SHARE: u32 = 3;
/// Destinations per second that are asked for again because they were refused, or did not answer.
pub const SECOND_QUESTIONS_PER_SECOND: u32 = 100;
/// Time to live of a mapping whose TTL is left to the receiver (RFC 9301 5.4).
pub const UNSPECIFIED_TTL: Duration = Duration::from_secs(900);

/// ICMP errors per second to senders whose packets are not delivered: twice what Linux sends. A scan
/// costs a quarter more at five times that.
pub const ICMP_ERRORS_PER_SECOND: u32 = 2_000;
/// RLOC-probes and solicited refreshes per second that are heeded.
pub const QUESTIONS_PER_SECOND: u32 = 100;

/// First retransmission of an unacknowledged Map-Register; doubles from there.
pub const REGISTER_RETRY: Duration = Duration::from_secs(1);
/// Longest pause between Map-Register retransmissions (RFC 9301 5.6).
pub const REGISTER_RETRY_MAX: Duration = Duration::from_secs(60);

/// Retransmission of the messages of an agent that stops, or leaves its map servers.
pub const FAREWELL_RETRY: Duration = Duration::from_millis(200);

/// First repetition of an unanswered question where we are seen, which the map server may have to look for; doubles
/// from there.
pub const INFO_RETRY: Duration = Duration::from_secs(2);
/// Longest pause between two such questions.
pub const INFO_RETRY_MAX: Duration = Duration::from_secs(60);
/// How often that is asked after a registration; while it is not known which port a NAT gives us, on and on.
pub const INFO_TRIES: u32 = 4;
/// How long a map server that is a peer of the data interface may not see it, before that peer is set anew.
pub const LOOKOUT_PATIENCE: Duration = Duration::from_secs(5);
/// Locators in a record of ours when one of them is where a NAT lets us appear, and those of a far end
/// that are tried.
pub const LOCATORS: usize = 8;
/// Locators of a far end whose priorities are remembered, those that are gone included.
pub const LOCATORS_REMEMBERED: usize = 16;
/// How many other ways to a silent proxy are tried while another proxy could take its place.
pub const WAYS_TO_PROXY: usize = 2;
/// How long packets are made to leave by another uplink after a far end has answered there: it answers
/// to where it has heard us, and from then on it has the choice again.
pub const UPLINK_HELD: Duration = Duration::from_secs(2);
/// The same if it has not answered: no live far end is silent for longer.
pub const UPLINK_HELD_UNANSWERED: Duration = SILENCE;
/// How long a far end that was moved, and answers nothing, is told again where it is, and is not believed to
/// have moved itself.
pub const MOVE_WATCHED: Duration = Duration::from_secs(5);
/// How often the data plane is told in all that a far end was moved, while it is heard from where it was.
pub const TOLD_AGAIN: u32 = 10;
/// How long a handshake may take before the map server hears that NATs may be in its way; half of `hold_ms` at most.
pub const APART: Duration = Duration::from_secs(1);
/// The priority number of the locators of a relay: the last that may be used (RFC 9301 5.4).
pub const RELAY_PRIORITY: u8 = 254;
/// How often WireGuard keeps the way through a NAT of ours open, in seconds.
pub const KEEPALIVE_S: u16 = 25;

/// Requests of one subscription that may still be answered.
pub const SUBSCRIBE_OUTSTANDING: usize = 8;
/// First retransmission of an unanswered subscription; doubles from there. An
/// answer takes as long as the far end needs to be told of us.
pub const SUBSCRIBE_RETRY: Duration = Duration::from_secs(1);
/// Longest pause between two tries to subscribe, refused ones included.
pub const SUBSCRIBE_RETRY_MAX: Duration = Duration::from_secs(60);
/// Longest time between two renewals of a subscription.
pub const SUBSCRIPTION_RENEWAL: Duration = Duration::from_secs(600);

/// Changes that the data plane refused and that are still to be repeated, before mappings of far
/// ends are left to the map server.
pub const REPAIRS: usize = 1_024;
/// How often such a mapping is asked for.
pub const REPAIR_QUESTIONS: u32 = 8;
/// First repetition of a change that the data plane refused; doubles from there.
pub const REPAIR_RETRY: Duration = Duration::from_secs(1);
/// Longest pause between two such repetitions.
pub const REPAIR_RETRY_MAX: Duration = Duration::from_secs(60);

/// How long the side that was told of a peer by a push waits for that peer's
/// handshake before it starts one itself.
pub const PASSIVE_WAIT: Duration = Duration::from_millis(250);
/// Shortest such wait of an end that has been answered itself; it is twice the
/// time that the answer took.
pub const PASSIVE_WAIT_MIN: Duration = Duration::from_millis(50);
/// How often the first handshake of a new peer is looked for.
pub const HANDSHAKE_POLL: Duration = Duration::from_millis(5);
/// How long it is looked for that often, and looked for at all if nothing waits.
pub const HANDSHAKE_LOOKS: Duration = Duration::from_millis(300);
/// How often it is looked for after that, while packets wait.
pub const HANDSHAKE_POLL_LATER: Duration = Duration::from_millis(50);
/// The same where the data plane tells of the handshakes that this end starts.
pub const LOOK_WHEN_TOLD: Duration = Duration::from_millis(200);
/// Shortest time between two such looks, for each peer that the data plane has.
pub const READING_WHEN_TOLD: Duration = Duration::from_micros(80);
/// Shortest time between two looks, for each peer that the data plane has.
pub const READING_A_PEER: Duration = Duration::from_micros(5);
/// Packets that the data plane gets for one peer before a handshake was seen:
/// half of what the kernel keeps.
pub const STAGED: usize = 64;
/// How long a handshake is given before it is started anew, when packets wait;
/// doubles from there. After [`PASSIVE_WAIT`], when the far end has tried.
pub const REKINDLE: Duration = Duration::from_millis(400);
/// How old the counters may be that say that there was none.
pub const REKINDLE_LOOK: Duration = Duration::from_millis(20);
/// The same, as a part of the time that they say it was awaited in vain: the longer that is, the
/// less likely it came just now. Among very many peers counters are never young.
pub const REKINDLE_LOOK_SHARE: u32 = 8;
/// The same as [`REKINDLE`], where round trips take long.
pub const REKINDLE_MAX: Duration = Duration::from_secs(2);
/// Mappings that move to another peer at a time; more move before there is a session. And so many
/// whose new peer did not answer are remembered.
pub const HANDOVERS: usize = 1_024;
/// How long the new peer of a mapping may be silent before the map server is asked, which tells it of
/// us; or half of the time that it has.
pub const HANDOVER_DOUBT: Duration = Duration::from_millis(750);
/// Round trips that it has besides, before somebody else is asked for in its place: where the old peer is
/// lost, nobody carries the traffic meanwhile.
pub const HANDOVER_TRIPS: u32 = 4;
/// How long a new peer that did not answer is left alone, while the old one lives; doubles with every
/// further time.
pub const HANDOVER_RETRY: Duration = Duration::from_secs(5);
/// Longest such pause.
pub const HANDOVER_RETRY_MAX: Duration = Duration::from_secs(60);
/// Share of a mapping's TTL after which a mapping in use is asked for again,
/// in per cent.
pub const REFRESH_AT_PERCENT: u32 = 80;
/// Time between two requests for mappings that were restored at the start.
pub const RESTORED_REFRESH: Duration = Duration::from_millis(20);
/// How long a peer is not used before its routes are taken out: no session
/// lasts longer, and the far end keeps us for more than a minute after that.
pub const DOZE: Duration = SESSION;
/// How long a first packet to such a peer waits for a look at its counters.
pub const DOZE_LOOK: Duration = Duration::from_millis(100);
/// Shortest time without use after which a peer may be removed: [`DOZE`], and
/// the time of a turn through all peers, of both ends.
pub const IDLE_MIN: Duration = Duration::from_secs(300);
/// How long a peer that shall be ready is not used before it is said hello to.
pub const WARM: Duration = Duration::from_secs(60);
/// Least recently used peers that make room at a time.
pub const EVICTED_AT_ONCE: usize = 64;
/// Peers make room when no more than this part of the limit is left.
pub const EVICTION_MARGIN: usize = 16;
/// Peers whose counters are looked at in one go.
pub const LOOK_SLICE: usize = 1_024;
/// How often the counters of the next peers are looked at.
pub const LIVENESS_POLL: Duration = Duration::from_secs(4);
/// How long bytes may go unanswered before the map server is asked again. A
/// live WireGuard peer answers data within 10 s, if only with a keepalive.
pub const SILENCE: Duration = Duration::from_secs(12);
/// So many questions of a far end for us say as much in half that time.
pub const INSISTENT: u32 = 3;
/// Length of a keepalive of WireGuard, in bytes: no packet is as short, and nobody answers it.
pub const KEEPALIVE: u64 = 32;
/// Lengths of what else WireGuard sends by itself, in bytes: an initiation, a response, and either with
/// a keepalive after it.
pub const HANDSHAKE_BYTES: [u64; 4] = [148, 92, 148 + KEEPALIVE, 92 + KEEPALIVE];
/// Longest time between two initiations while packets wait for a session.
pub const INITIATION_PAUSE: Duration = Duration::from_secs(6);
/// Bytes of an echo to a witness, or of its answer, in a tunnel: a packet of 56 bytes, filled up to a
/// multiple of 16, and 32 more.
pub const ECHO_BYTES: u64 = 96;
/// Mappings that more than one peer could serve, whose peers are watched.
pub const GUARDED: usize = 1_024;
/// How often the counters of proxies in use are looked at while packets flow to them, and an echo is
/// sent through each.
pub const PROBE_EVERY: Duration = Duration::from_millis(60);
/// The same while none do.
pub const LOOK_IDLE: Duration = Duration::from_millis(400);
/// Time between two echoes through a proxy while packets of others come back.
pub const PROBE_CALM: Duration = Duration::from_millis(500);
/// The same to a far end that can be reached in other ways: it is of no account what comes back, because
/// what has failed may be the way there only.
pub const PROBE_WAY: Duration = Duration::from_millis(100);
/// The same while nobody is known who answers.
pub const PROBE_SEEKING: Duration = Duration::from_secs(1);
/// How long packets count as flowing after the last one.
pub const QUIET: Duration = Duration::from_secs(2);
/// What comes back between two looks, besides answers to echoes, before it counts as packets of others,
/// in bytes: more than the errors of a proxy that cannot forward.
pub const EVIDENCE: u64 = 1_000;
/// So many witnesses that are silent count more than packets of others: they do not fail together, while
/// a proxy with a dead way out may still send a lot itself.
pub const SEVERAL_WITNESSES: usize = 2;
/// A proxy is lost when so many echoes in a row are not answered that chance, to the probability of
/// [`LOST_BY_CHANCE`], is no reason, as far as it is known how many a network loses: 4 of those of which 2 in
/// 100 are lost, which is at least assumed, 10 of those of which 19 are. More than this are never needed.
pub const PROBES_LOST_MAX: u32 = 15;
/// With that many echoes a second, it happens once in a week at most.
pub const LOST_BY_CHANCE: f64 = 2e-7;
/// The share of echoes that any network may lose.
pub const LOSS_LEAST: f64 = 0.02;
/// How much of what is known of that share each echo decides.
pub const LOSS_SHARE: f64 = 1.0 / 64.0;
/// How long they are unanswered at least, besides two round trips.
pub const PATIENCE: Duration = Duration::from_millis(200);
/// Longest such time.
pub const PATIENCE_MAX: Duration = Duration::from_secs(2);
/// How long after a proxy was found lost nothing more is said of it, answers aside.
pub const VERDICTS: Duration = Duration::from_secs(5);
/// Longest such time, of a far end that was asked in vain whichever way, and sends: it doubles each time.
pub const VERDICTS_MAX: Duration = Duration::from_secs(60);
/// How long a proxy counts as lost that is not in use any more: no client goes to and fro between two
/// of them more often.
pub const LOST_FOR: Duration = Duration::from_secs(10);
/// Lost proxies that a map server is told of.
pub const LOST_AT_ONCE: usize = 8;
/// Pause after listening for witnesses for the first time; it doubles while too few are found.
pub const LISTEN_EVERY: Duration = Duration::from_secs(5);
/// Longest such pause.
pub const LISTEN_EVERY_MAX: Duration = Duration::from_secs(60);
/// Destinations that are remembered as possible witnesses.
pub const LEARNT: usize = 4;
/// Addresses that are asked in turn, for each proxy.
pub const WITNESSES: usize = 8;
/// Addresses of which it is remembered that they have answered; beyond it only those are that may be asked
/// whatever proxies there are.
pub const WITNESSES_KNOWN: usize = 256;
/// Every so manieth echo goes to somebody who may become a witness.
pub const SEEKING: usize = 16;
/// Echoes whose answers are still welcome.
pub const ECHOES_OUT: usize = 256;
/// How often the counters of a mapping that moves are looked at: a gap is told that exactly.
pub const GAP_POLL: Duration = Duration::from_millis(5);
/// How long they are looked at that often; and how often after that.
pub const GAP_LOOKS: Duration = Duration::from_secs(2);
/// See [`GAP_LOOKS`].
pub const GAP_POLL_LATER: Duration = Duration::from_millis(50);
/// How long after the move they are looked at. The map server has what was seen by the time at which it
/// takes a client for settled, a second after the move.
pub const GAP_WATCHED: Duration = Duration::from_millis(750);
/// How often a map server is told of a gap that does not say that it has heard: it keeps a place for that
/// for some seconds.
pub const GAP_TELLINGS: u32 = 4;
/// How long after an answer a push may still be the rest of it.
pub const ANSWER_IN_PARTS: Duration = Duration::from_secs(2);
/// How long a session of WireGuard lasts at most.
pub const SESSION: Duration = Duration::from_secs(180);
/// Longest pause between such questions about one peer.
pub const SILENCE_BACKOFF_MAX: Duration = Duration::from_secs(120);
/// A map server not heard of for this long may have lost the control tunnel
/// when it does not answer at once.
pub const CONTROL_SILENCE: Duration = Duration::from_secs(1);
/// The same, when it has not answered twice.
pub const CONTROL_SILENCE_SHORT: Duration = Duration::from_millis(600);
/// How long a map server says nothing but what is too old, before it is taken to have forgotten how
/// far it had counted: longer than a datagram is late.
pub const NONCES_BEHIND: Duration = Duration::from_secs(1);
/// Shortest time between two renewals of a subscription because the map server has forgotten how
/// far it had counted.
pub const NONCE_CORRECTION: Duration = Duration::from_secs(10);
/// Shortest time between two renewals of the control tunnel.
pub const CONTROL_RENEWAL: Duration = Duration::from_secs(1);
/// Shortest time between two refreshes of a mapping that others ask for
/// (RFC 9301 6.1).
pub const SMR_INTERVAL: Duration = Duration::from_secs(3);
/// Longest pause between two requests for a mapping in use.
pub const REFRESH_RETRY_MAX: Duration = Duration::from_secs(10);
/// How long a mapping in use is kept at a time while no map server answers.
pub const STALE_STEP: Duration = Duration::from_secs(60);
/// How long a mapping in use is kept in all while no map server answers.
pub const STALE_MAX: Duration = Duration::from_secs(24 * 3600);

/// When a mapping in use that is good for `ttl` is asked for again.
#[must_use]
pub fn refresh_after(ttl: Duration) -> Duration {
    ttl.mul_f64(f64::from(REFRESH_AT_PERCENT) / 100.0)
}

/// How long the map server waits for the connections of a client that comes to us.
pub const FETCHING: Duration = Duration::from_millis(1_500);
/// How long it waits to hear what became of those of a client that has left us.
pub const RELEASING: Duration = Duration::from_secs(3);
/// For how long a client counts as one that moves; a migration takes half of that at most.
pub const MOVING: Duration = Duration::from_secs(60);
/// Clients whose connections come or go at a time.
pub const CARRIED: usize = 4_096;
