//! Tells in sentences what the daemons log.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::stage::ms;
use crate::clock::{nanos, sleep, wall_ns};
use crate::daemon::{EventLog, LogEvent, LogPosition};
use crate::network::Network;

/// How long a line waits for earlier ones that take a longer way: each daemon has its own pipe.
const SETTLE: Duration = Duration::from_millis(30);
/// How long the story goes on after its end for handshakes that are not reported yet.
const AFTERMATH: Duration = Duration::from_millis(400);
/// Time between looks at the log.
const POLL: Duration = Duration::from_millis(5);
/// Characters of a key that logs show.
const SHORT_KEY: usize = 8;
/// The events that the demo itself adds.
const REQUEST: &str = "echo_request";
const REPLY: &str = "echo_reply";

/// Who has which key and which address.
pub(super) struct Cast {
    by_key: BTreeMap<String, String>,
    by_eid: BTreeMap<IpAddr, String>,
}

/// What happens from a first packet to its reply.
pub(super) struct Story<'a> {
    log: &'a EventLog,
    from: LogPosition,
    cast: &'a Cast,
    hero: &'a str,
    destination: IpAddr,
    /// When the first packet was sent, by the wall clock; 0 until then.
    zero: AtomicU64,
    ended: AtomicBool,
}

impl Cast {
    pub(super) fn of(network: &Network) -> Self {
        let short = |key: &str| key.chars().take(SHORT_KEY).collect::<String>();
        let endpoints = network.endpoints.iter();
        let by_key = endpoints
            .clone()
            .map(|e| (short(&e.data_key), e.name().to_owned()))
            .collect();
        let by_eid = endpoints
            .flat_map(|e| e.eids.map(|eid| (eid, e.name().to_owned())))
            .collect();
        Self { by_key, by_eid }
    }

    /// The name of the endpoint with this key, in full or its first characters.
    pub(super) fn name_of_key(&self, key: &str) -> &str {
        let short = key.get(..SHORT_KEY).unwrap_or(key);
        self.by_key.get(short).map_or("a stranger", String::as_str)
    }

    /// The name of the endpoint that an EID or a host prefix belongs to.
    fn name_of_eid(&self, eid: &str) -> &str {
        let address = eid
            .split('/')
            .next()
            .and_then(|address| address.parse().ok());
        let name = address.and_then(|address: IpAddr| self.by_eid.get(&address));
        name.map_or("nobody", String::as_str)
    }
}

impl<'a> Story<'a> {
    /// A story that begins now: `hero` is about to send to `destination`.
    pub(super) fn begin(
        log: &'a EventLog,
        cast: &'a Cast,
        hero: &'a str,
        destination: IpAddr,
    ) -> Self {
        Self {
            log,
            from: log.position(),
            cast,
            hero,
            destination,
            zero: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// Says when the first packet is sent.
    pub(super) fn start_clock(&self, now: u64) {
        self.zero.store(now, Ordering::Release);
        let words = format!("sends its first packet to {}", self.destination);
        self.log
            .push(LogEvent::told(self.hero, now, REQUEST, words));
    }

    /// Adds the reply to the story, in its place.
    pub(super) fn reply(&self, after: Duration, path: Duration) {
        let at = self
            .zero
            .load(Ordering::Acquire)
            .saturating_add(nanos(after));
        let words = format!(
            "first echo reply: {:.1} ms, {:.1} times the path there and back",
            ms(after),
            after.as_secs_f64() / path.as_secs_f64().max(f64::EPSILON)
        );
        self.log.push(LogEvent::told(self.hero, at, REPLY, words));
    }

    /// Ends the story once what is still under way has been told.
    pub(super) fn end(&self) {
        let handshakes = |event: &LogEvent| event.event == "handshake";
        let known = self
            .log
            .since(self.from)
            .iter()
            .filter(|e| handshakes(e))
            .count();
        if known == 1 {
            let position = self.log.position();
            // The other side may have nothing to report.
            drop(self.log.wait(position, AFTERMATH, handshakes));
        }
        sleep(SETTLE);
        self.ended.store(true, Ordering::Release);
    }

    /// Writes line by line until the story has ended.
    pub(super) fn tell(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "         ms  who       what")?;
        let mut told = 0;
        loop {
            let ended = self.ended.load(Ordering::Acquire);
            let zero = self.zero.load(Ordering::Acquire);
            let mut events = self.log.since(self.from);
            events.sort_by_key(|event| event.timestamp);
            let settled = wall_ns().saturating_sub(nanos(SETTLE));
            let due = events
                .iter()
                .skip(told)
                .take_while(|e| ended || e.timestamp < settled);
            for event in due {
                told += 1;
                if let Some(words) = self.words(event) {
                    let after = Duration::from_nanos(event.timestamp.saturating_sub(zero));
                    writeln!(out, "{:>11.3}  {:<10}{words}", ms(after), event.daemon)?;
                }
            }
            out.flush()?;
            if ended {
                return Ok(());
            }
            sleep(POLL);
        }
    }

    /// The sentence for an event; `None` for events that are no part of the story.
    fn words(&self, event: &LogEvent) -> Option<String> {
        let text = |field| event.text(field);
        let owner = self.cast.name_of_eid(text("eid"));
        let holder = self.cast.name_of_key(text("key"));
        Some(match event.event.as_str() {
            "caught" => format!(
                "catches and holds the packet to {}: nothing known",
                text("dst")
            ),
            "map_request" => format!("asks the server who has {} (Map-Request)", text("eid")),
            "request" => format!("gets the Map-Request of {}", text("xtr")),
            "push" if event.daemon == "server" => {
                format!(
                    "pushes key and endpoint of {owner} to {} (Map-Notify)",
                    text("to")
                )
            }
            "push" => format!(
                "is told of {owner}: key {}... at {}",
                text("key"),
                text("endpoint")
            ),
            "push_acked" => format!("hears that {} is ready (Map-Notify-Ack)", text("from")),
            "reply" => format!("answers {} (Map-Reply)", text("xtr")),
            "map_reply" => {
                format!(
                    "learns that {} is {owner}: key {}... at {}",
                    text("eid"),
                    text("key"),
                    text("endpoint")
                )
            }
            "peer_installed" => format!("has {holder} as a WireGuard peer, for {}", text("eid")),
            "reinjected" => {
                format!(
                    "sends {} held packet into the tunnel",
                    event.number("packets").unwrap_or(0)
                )
            }
            "route_installed" => format!("routes {} into the tunnel from now on", text("eid")),
            "handshake" => format!("has a handshake with {holder}"),
            "negative" | "negative_reply" => format!("no mapping for {}", text("eid")),
            REQUEST | REPLY => text("message").to_owned(),
            _ => return None,
        })
    }
}
