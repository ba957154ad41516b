//! What `status` and `trace` are told.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use lisp_proto::{PublicKey, Timestamp};
use serde_json::{Value, json};
use tracing::debug;
use wg_device::{Counters, DeviceError, NetNs, PeerStats, round_trips};

use super::Shell;
use super::admin::Question;
use super::clock::Clock;
use super::heard::{EVIDENCE, SharedHeard};
use super::overlay::Overlay;
use crate::agent::{Input, Status};

/// Peers whose round trip is measured for one report.
const MEASURED: usize = 64;
/// Why clients cannot be drained.
const NOTHING_SHARED: &str = "no prefix is shared, so nobody can take clients over: `shared = true` lets \
    several xTRs register the same prefixes";
/// How long they may take to answer.
const ECHO_WAIT: Duration = Duration::from_millis(1_000);

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
        let backend = self
            .overlays
            .first()
            .map(|overlay| overlay.backend().to_string());
        tokio::spawn(async move {
            let mut instances = Vec::new();
            for one in asked {
                instances.push(one.report(clock).await);
            }
            question.answer(json!({
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "uptime_ms": milliseconds(now - Timestamp::ZERO),
                "backend": backend,
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
            ],
            netns: self.instance.netns.clone(),
            interface: self.interface(),
            counters: self.plane.data.counters(),
            heard: self.heard.clone(),
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
    own: [(&'static str, Value); 5],
    netns: Option<String>,
    interface: String,
    counters: Counters,
    heard: SharedHeard,
}

impl Asked {
    /// Reads counters, measures round trips, and tells all of it.
    async fn report(self, clock: Clock) -> Value {
        let mut stats: BTreeMap<PublicKey, PeerStats> = BTreeMap::new();
        match self.counters.all().await {
            Ok(all) => stats.extend(all.into_iter().map(|peer| (peer.key, peer))),
            Err(error) => debug!(%error, "counters not read"),
        }
        let (peers, targets) = self.peers(clock.now(), &stats);
        let mut report = json!(self.status);
        if let Some(report) = report.as_object_mut() {
            let own = self.own.into_iter().chain([("peers", json!(peers))]);
            report.extend(own.map(|(name, value)| (name.to_owned(), value)));
        }
        match measure(self.netns.as_deref(), &self.interface, &targets).await {
            Ok(measured) => add_round_trips(&mut report, &measured),
            Err(error) => debug!(%error, "round trips not measured"),
        }
        report
    }

    /// What is known of the peers, and whom to ask for round trips.
    fn peers(
        &self,
        now: Timestamp,
        stats: &BTreeMap<PublicKey, PeerStats>,
    ) -> (Vec<Value>, BTreeMap<PublicKey, IpAddr>) {
        let mut targets = BTreeMap::new();
        let mut peers = Vec::new();
        let known = self
            .status
            .peers
            .iter()
            .map(|peer| (peer.key, peer.eids.clone()));
        let mut known: BTreeMap<PublicKey, Vec<_>> = known.collect();
        // Those that an earlier run left are peers too until they are gone.
        for key in stats.keys() {
            known.entry(*key).or_default();
        }
        for (key, eids) in known {
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
            if connected
                && targets.len() < MEASURED
                && let Some(net) = host.next()
                && heard.deserves_echo(now, key, rx_bytes)
            {
                targets.insert(key, net.addr());
            }
            peers.push(json!({
                "key": key,
                "eids": eids,
                "path": seen.and_then(|peer| peer.endpoint),
                "connected": connected,
                "since_handshake_ms": since_handshake.map(milliseconds),
                "since_received_ms": since_received.map(milliseconds),
                "rx_bytes": rx_bytes,
                "tx_bytes": seen.map_or(0, |peer| peer.tx_bytes),
                "rtt_us": null,
            }));
        }
        (peers, targets)
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

/// The round trips of those of `targets` that answer, in microseconds, by key.
async fn measure(
    netns: Option<&str>,
    interface: &str,
    targets: &BTreeMap<PublicKey, IpAddr>,
) -> Result<BTreeMap<String, u64>, DeviceError> {
    let netns = netns.map(NetNs::open).transpose()?;
    let addresses: Vec<IpAddr> = targets.values().copied().collect();
    let measured = round_trips(netns.as_ref(), interface, &addresses, ECHO_WAIT).await?;
    let measured = targets.iter().filter_map(|(key, address)| {
        let rtt = measured.get(address)?;
        Some((key.to_string(), microseconds(*rtt)))
    });
    Ok(measured.collect())
}

/// Adds round trips by key to what is told of the peers.
fn add_round_trips(report: &mut Value, by_key: &BTreeMap<String, u64>) {
    let peers = report.get_mut("peers").and_then(Value::as_array_mut);
    for peer in peers.into_iter().flatten() {
        let key = peer.get("key").and_then(Value::as_str);
        let rtt = key.and_then(|key| by_key.get(key)).copied();
        if let (Some(rtt), Some(peer)) = (rtt, peer.as_object_mut()) {
            peer.insert("rtt_us".into(), json!(rtt));
        }
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn microseconds(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
