//! What `status` and `trace` are told.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use lisp_proto::{PublicKey, Timestamp};
use serde_json::{Value, json};
use tracing::{debug, info, warn};
use wg_device::{Counters, PeerStats};

use super::Shell;
use super::admin::Question;
use super::clock::Clock;
use super::echoes::{BlackHoles, Echoes};
use super::heard::{EVIDENCE, Echo, SharedHeard};
use super::overlay::Overlay;
use super::uplinks::OwnUplinks;
use crate::agent::{Input, PeerStatus, Status};

/// Peers whose round trip is measured for one report.
const MEASURED: usize = 64;
/// Why clients cannot be drained.
const NOTHING_SHARED: &str = "no prefix is shared, so nobody can take clients over: `shared = true` lets \
    several xTRs register the same prefixes";

/// Logs the peers that the data plane has, once it has told, beside what is `wanted`.
pub(super) async fn log_peers(
    counters: Counters,
    wanted: HashMap<PublicKey, Vec<IpNet>>,
    drops: String,
) {
    match counters.all().await {
        Ok(stats) => {
            let peers = describe_peers(&stats, wanted);
            info!(event = "peers", count = stats.len(), peers, drops);
        }
        Err(error) => warn!(%error, "counters not read"),
    }
}

impl Shell {
    /// Answers `status`: what is known at once, and counters and round trips once they are read and
    /// measured, beside the loop.
    pub(super) fn status(&mut self, question: Question) {
        let now = self.shared.clock.now();
        let mut warnings = Vec::new();
        let mut asked = Vec::new();
        for overlay in &mut self.overlays {
            overlay.look_at_paths();
            warnings.extend(overlay.complaints());
            asked.push(overlay.asked(now));
        }
        let clock = self.shared.clock;
        let uplinks = self.shared.uplinks.as_ref();
        let uplinks = uplinks.map_or_else(Vec::new, OwnUplinks::report);
        let backend = self
            .overlays
            .first()
            .map(|overlay| overlay.backend().to_string());
        tokio::spawn(async move {
            let mut instances = Vec::new();
            for one in asked {
                let (report, complaints) = one.report(clock).await;
                instances.push(report);
                warnings.extend(complaints);
            }
            question.answer(json!({
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "uptime_ms": milliseconds(now - Timestamp::ZERO),
                "backend": backend,
                "uplinks": uplinks,
                "warnings": warnings,
                "instances": instances,
            }));
        });
    }

    /// Answers `drain`: tells the map servers whether our clients are to go, and says how far that is.
    pub(super) async fn drain(&mut self, draining: bool, question: Question) -> Result<()> {
        let mut instances = Vec::new();
        for overlay in &mut self.overlays {
            if overlay.instance.shared {
                let input = Input::Drain(draining);
                overlay.step(&mut self.shared, input).await?;
                instances.push(overlay.drained(self.shared.clock.now()));
            }
        }
        match instances.is_empty() {
            true => question.refuse(NOTHING_SHARED),
            false => question.answer(json!({ "instances": instances })),
        }
        Ok(())
    }

    /// Answers `trace`: one way for each instance that knows one.
    pub(super) fn trace(&self, eid: IpAddr, question: Question) {
        let now = self.shared.clock.now();
        let ways = self.overlays.iter();
        let ways: Vec<_> = ways.filter_map(|overlay| overlay.trace(now, eid)).collect();
        question.answer(json!(ways));
    }
}

impl Overlay {
    /// How far others have taken our clients over.
    fn drained(&self, now: Timestamp) -> Value {
        let servers = self.agent.server_status(now);
        let silent = servers.iter().filter(|it| it.unacknowledged);
        json!({
            "iid": self.iid,
            "map_servers": servers.len(),
            "unacknowledged": silent.count(),
            "peers": self.agent.sizes().peers,
        })
    }

    /// What the instance says of itself at `now`, and what is needed to tell the rest.
    fn asked(&self, now: Timestamp) -> Asked {
        Asked {
            status: self.agent.status(now),
            own: [
                ("iid", json!(self.iid.0)),
                ("interface", json!(self.interface())),
                ("listen_port", json!(self.instance.listen_port)),
                ("mtu", json!(self.instance.mtu)),
                ("drops", json!(self.drops.counters())),
                ("connections", self.carrier.report(&self.instance)),
            ],
            netns: self.instance.netns.clone(),
            interface: self.interface(),
            counters: self.plane.data.counters(),
            heard: self.heard.clone(),
            mtu: self.instance.mtu,
            holes: self.holes.clone(),
        }
    }

    /// Name of the data interface.
    fn interface(&self) -> String {
        self.instance.interfaces.data.clone()
    }

    fn complaints(&self) -> Vec<String> {
        self.paths.complaints(self.instance.mtu).collect()
    }
}

/// One instance that was asked where it stands.
struct Asked {
    status: Status,
    own: [(&'static str, Value); 6],
    netns: Option<String>,
    interface: String,
    counters: Counters,
    heard: SharedHeard,
    mtu: u16,
    holes: BlackHoles,
}

impl Asked {
    /// Reads counters, measures round trips, and tells all of it, and what is wrong with paths.
    async fn report(self, clock: Clock) -> (Value, Vec<String>) {
        let mut stats: BTreeMap<PublicKey, PeerStats> = BTreeMap::new();
        match self.counters.all().await {
            Ok(all) => {
                // The map server is one only to see where we are.
                let others = all.into_iter();
                let others = others.filter(|peer| self.status.nat.lookout != Some(peer.key));
                stats.extend(others.map(|peer| (peer.key, peer)));
            }
            Err(error) => debug!(%error, "counters not read"),
        }
        let (peers, echoes) = self.peers(clock.now(), &stats);
        let mut report = json!(self.status);
        if let Some(report) = report.as_object_mut() {
            let own = self.own.into_iter().chain([("peers", json!(peers))]);
            report.extend(own.map(|(name, value)| (name.to_owned(), value)));
        }
        match echoes.measure().await {
            Ok(measured) => add_round_trips(&mut report, &measured),
            Err(error) => debug!(%error, "round trips not measured"),
        }
        (report, self.holes.complaints(self.mtu))
    }

    /// What is known of the peers, and whom to ask for round trips.
    fn peers(
        &self,
        now: Timestamp,
        stats: &BTreeMap<PublicKey, PeerStats>,
    ) -> (Vec<Value>, Echoes) {
        let mut candidates = BTreeMap::new();
        let mut peers = BTreeMap::new();
        let known = self.status.peers.iter().map(|peer| (peer.key, Some(peer)));
        let mut known: BTreeMap<PublicKey, Option<&PeerStatus>> = known.collect();
        // Those that an earlier run left are peers too until they are gone.
        for key in stats.keys() {
            known.entry(*key).or_default();
        }
        for (key, told) in known {
            let eids = told.map_or(&[][..], |told| &told.eids);
            let seen = stats.get(&key);
            let since_handshake = seen.and_then(|peer| peer.since_handshake);
            let mut heard = self.heard.lock();
            if let Some(peer) = seen {
                heard.note(now, key, peer.rx_bytes);
            }
            let since_received = heard.since(now, &key);
            let last = since_handshake.into_iter().chain(since_received).min();
            let connected = last.is_some_and(|last| last < EVIDENCE);
            let host = eids.iter().map(lisp_proto::EidPrefix::net);
            let mut host = host.filter(|net| net.prefix_len() == net.max_prefix_len());
            let rx_bytes = seen.map_or(0, |peer| peer.rx_bytes);
            if connected {
                candidates.insert(key, (host.next().map(|net| net.addr()), rx_bytes));
            }
            let peer = json!({
                "key": key,
                "eids": eids,
                "path": seen.and_then(|peer| peer.endpoint),
                "locators": told.map_or(&[][..], |told| &told.locators),
                "uplink": told.and_then(|told| told.uplink),
                "connected": connected,
                "since_handshake_ms": since_handshake.map(milliseconds),
                "since_received_ms": since_received.map(milliseconds),
                "rx_bytes": rx_bytes,
                "tx_bytes": seen.map_or(0, |peer| peer.tx_bytes),
                "rtt_us": null,
            });
            peers.insert(key, peer);
        }
        let echoes = self.choose_echoes(now, candidates, &mut peers);
        (peers.into_values().collect(), echoes)
    }

    /// Chooses who gets echoes, of peers with an address that answers, if they have one, and their
    /// counter; and notes in what is told of each `peer` whether it does.
    fn choose_echoes(
        &self,
        now: Timestamp,
        mut candidates: BTreeMap<PublicKey, (Option<IpAddr>, u64)>,
        peers: &mut BTreeMap<PublicKey, Value>,
    ) -> Echoes {
        let echoes = self.heard.lock().echoes(now, &candidates, MEASURED);
        for (key, peer) in peers.iter_mut() {
            let echo = echoes.get(key).copied().unwrap_or(Echo::NotConnected);
            if let Some(peer) = peer.as_object_mut() {
                peer.insert("echo".to_owned(), json!(echo));
            }
        }
        let sent = |key: &PublicKey| echoes.get(key) == Some(&Echo::Sent);
        candidates.retain(|key, _| sent(key));
        let targets = candidates.into_iter();
        let targets = targets.filter_map(|(key, (address, _))| Some((key, address?)));
        let targets: BTreeMap<_, _> = targets.collect();
        let large = self.holes.due(now, &targets, |key| peers.contains_key(key));
        Echoes {
            netns: self.netns.clone(),
            interface: self.interface.clone(),
            mtu: self.mtu,
            targets,
            large,
            holes: self.holes.clone(),
        }
    }
}

/// What the data plane measured of each peer, as JSON; `wanted` are those that it shall have.
pub(super) fn describe_peers(
    stats: &[PeerStats],
    mut wanted: HashMap<PublicKey, Vec<IpNet>>,
) -> String {
    let peers = stats.iter().map(|peer| {
        json!({
            "key": peer.key.to_string(),
            "eids": wanted.remove(&peer.key).unwrap_or_default(),
            "endpoint": peer.endpoint,
            "since_handshake_ms": peer.since_handshake.map(|since| since.as_millis()),
            "rx_bytes": peer.rx_bytes,
            "tx_bytes": peer.tx_bytes,
        })
    });
    json!(peers.collect::<Vec<_>>()).to_string()
}

/// Adds round trips by key to what is told of the peers.
fn add_round_trips(report: &mut Value, by_key: &BTreeMap<PublicKey, Duration>) {
    let peers = report.get_mut("peers").and_then(Value::as_array_mut);
    for peer in peers.into_iter().flatten() {
        let key = peer.get("key").and_then(Value::as_str);
        let key = key.and_then(|key| key.parse().ok());
        let rtt = key.and_then(|key| by_key.get(&key)).copied();
        if let (Some(rtt), Some(peer)) = (rtt, peer.as_object_mut()) {
            peer.insert("rtt_us".into(), json!(microseconds(rtt)));
        }
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn microseconds(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
