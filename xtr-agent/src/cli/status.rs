//! `xtr-agent status`: where a running agent stands.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use command_line::say;
use serde::Deserialize;
use xtr_agent::shell::Request;

use super::connections::{self, Connections};
use super::table::{Table, bytes, milliseconds, span};
use super::{Target, ask_running};

/// What an agent answers.
#[derive(Deserialize)]
struct Report {
    version: String,
    uptime_ms: u64,
    backend: String,
    instances: Vec<Instance>,
    warnings: Vec<String>,
    uplinks: Vec<Uplink>,
}

#[derive(Deserialize)]
struct Uplink {
    address: String,
    interface: Option<String>,
    gateway: Option<String>,
    priority: u8,
    weight: u8,
    up: bool,
    why_down: Option<String>,
    map_server: bool,
}

#[derive(Deserialize)]
struct Locator {
    endpoint: String,
    priority: u8,
    used: bool,
}

#[derive(Deserialize)]
struct Instance {
    iid: u32,
    interface: String,
    listen_port: u16,
    mtu: u16,
    eid_prefixes: Vec<String>,
    rlocs: Vec<String>,
    public_key: String,
    nat: Nat,
    servers: Vec<Server>,
    mappings: Vec<Mapping>,
    peers: Vec<Peer>,
    drops: BTreeMap<String, u64>,
    connections: Connections,
}

#[derive(Deserialize)]
struct Nat {
    behind: Option<bool>,
    address: Option<String>,
    seen_at: Option<String>,
    since_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Server {
    address: String,
    acknowledged_ms: Option<u64>,
    rtt_us: Option<u64>,
    unacknowledged: bool,
}

#[derive(Deserialize)]
struct Mapping {
    eid: String,
    state: String,
    cause: String,
    key: Option<String>,
    endpoint: Option<String>,
    relayed: bool,
    moves_to: Option<String>,
    ttl_left_ms: u64,
    age_ms: u64,
    stale: bool,
}

#[derive(Deserialize)]
struct Peer {
    key: String,
    eids: Vec<String>,
    path: Option<String>,
    locators: Vec<Locator>,
    uplink: Option<String>,
    since_handshake_ms: Option<u64>,
    since_received_ms: Option<u64>,
    rx_bytes: u64,
    tx_bytes: u64,
    connected: bool,
    rtt_us: Option<u64>,
    echo: String,
}

/// Runs the command.
///
/// # Errors
/// No agent runs, or it does not answer.
pub(crate) fn run(target: &Target, json: bool) -> Result<()> {
    let answer = ask_running(target, &Request::Status)?;
    if json {
        say(&answer.to_string());
        return Ok(());
    }
    let report: Report =
        serde_json::from_value(answer).context("the agent is of another version; see --json")?;
    lines(&report).iter().for_each(|line| say(line));
    Ok(())
}

fn lines(report: &Report) -> Vec<String> {
    let mut lines = vec![format!(
        "xtr-agent {}, running for {}, {} data plane",
        report.version,
        span(report.uptime_ms),
        report.backend
    )];
    lines.extend(
        report
            .warnings
            .iter()
            .map(|text| format!("WARNING: {text}")),
    );
    if !report.uplinks.is_empty() {
        lines.push("uplinks (those that were chosen for peers are below these)".to_owned());
        lines.extend(uplinks(&report.uplinks));
    }
    for instance in &report.instances {
        lines.push(String::new());
        lines.extend(instance_lines(instance));
    }
    lines
}

fn instance_lines(instance: &Instance) -> Vec<String> {
    let mut lines = vec![
        format!(
            "instance {}: {}, UDP port {}, MTU {}",
            instance.iid, instance.interface, instance.listen_port, instance.mtu
        ),
        format!("  EIDs   {}", instance.eid_prefixes.join(" ")),
        format!("  RLOCs  {}", instance.rlocs.join(" ")),
        format!("  key    {}", instance.public_key),
        format!("  NAT    {}", nat(&instance.nat)),
    ];
    let drops = instance.drops.iter();
    let drops: Vec<_> = drops.map(|(why, count)| format!("{why} {count}")).collect();
    if !drops.is_empty() {
        lines.push(format!("  drops  {}", drops.join(", ")));
    }
    lines.push("map servers (RTT: from the last Map-Register to its acknowledgement)".into());
    lines.extend(servers(&instance.servers));
    lines.push(format!(
        "peers: {} (connected: handshake or bytes within 180 s; RTT: ICMP echo through the tunnel)",
        instance.peers.len()
    ));
    if !instance.peers.is_empty() {
        lines.extend(peers(&instance.peers));
        lines.extend(ways(&instance.peers));
        lines.extend(unmeasured(&instance.peers));
    }
    lines.extend(connections::lines(&instance.connections));
    lines.push(format!("map-cache: {}", instance.mappings.len()));
    if !instance.mappings.is_empty() {
        lines.extend(mappings(&instance.mappings));
    }
    lines
}

/// Whether there is a NAT, what it makes of us, and since when.
fn nat(nat: &Nat) -> String {
    let since = nat
        .since_ms
        .map_or_else(String::new, |since| format!(", for {}", span(since)));
    let address = nat.address.as_deref().unwrap_or("-");
    match (nat.behind, &nat.seen_at) {
        (None, _) => "no map server has told".to_owned(),
        (Some(false), _) => format!("none{since}"),
        (Some(true), None) => format!("behind {address}, port not known yet{since}"),
        (Some(true), Some(at)) => format!("seen as {at}{since}"),
    }
}

fn servers(servers: &[Server]) -> Vec<String> {
    let mut table = Table::new(&["ADDRESS", "RTT", "LAST ACK", "STATE"], 0);
    for server in servers {
        let state = match (server.acknowledged_ms, server.unacknowledged) {
            (_, false) => "registered",
            (Some(_), true) => "waiting for an acknowledgement",
            (None, true) => "never acknowledged",
        };
        table.row(vec![
            server.address.clone(),
            or_dash(server.rtt_us, milliseconds),
            or_dash(server.acknowledged_ms, ago),
            state.to_owned(),
        ]);
    }
    table.lines()
}

fn peers(peers: &[Peer]) -> Vec<String> {
    let heading = [
        "PEER",
        "EIDS",
        "PATH",
        "STATE",
        "HANDSHAKE",
        "HEARD",
        "IN",
        "OUT",
        "RTT",
    ];
    let mut table = Table::new(&heading, 1);
    for peer in peers {
        let state = match (peer.connected, peer.since_handshake_ms) {
            (true, _) => "connected",
            (false, Some(_)) => "quiet",
            (false, None) => "no session",
        };
        table.row(vec![
            short(&peer.key),
            peer.eids.join(" "),
            peer.path.clone().unwrap_or_else(dash),
            state.to_owned(),
            or_dash(peer.since_handshake_ms, span),
            or_dash(peer.since_received_ms, span),
            bytes(peer.rx_bytes),
            bytes(peer.tx_bytes),
            or_dash(peer.rtt_us, milliseconds),
        ]);
    }
    table.lines()
}

fn uplinks(uplinks: &[Uplink]) -> Vec<String> {
    let heading = [
        "ADDRESS",
        "INTERFACE",
        "GATEWAY",
        "PRIORITY",
        "WEIGHT",
        "STATE",
    ];
    let mut table = Table::new(&heading, 0);
    for uplink in uplinks {
        let state = match (uplink.up, uplink.map_server) {
            (false, _) => match &uplink.why_down {
                Some(why) => format!("down: {why}"),
                None => "down".to_owned(),
            },
            (true, false) => "up".to_owned(),
            (true, true) => "up, leads to the map server".to_owned(),
        };
        table.row(vec![
            uplink.address.clone(),
            uplink.interface.clone().unwrap_or_else(dash),
            uplink.gateway.clone().unwrap_or_else(dash),
            uplink.priority.to_string(),
            uplink.weight.to_string(),
            state,
        ]);
    }
    table.lines()
}

/// The locators of peers that have several, and the uplinks that were chosen, a line for each peer.
fn ways(peers: &[Peer]) -> Vec<String> {
    let several = peers
        .iter()
        .filter(|peer| peer.locators.len() > 1 || peer.uplink.is_some());
    let lines = several.map(|peer| {
        let locators = peer.locators.iter().map(|it| {
            let used = if it.used { ", used" } else { "" };
            format!("{} (priority {}{used})", it.endpoint, it.priority)
        });
        let locators: Vec<_> = locators.collect();
        let from = peer
            .uplink
            .as_ref()
            .map(|from| format!(", sent to from {from}"));
        let (key, from) = (short(&peer.key), from.unwrap_or_default());
        format!("  {key} is at {}{from}", locators.join(" "))
    });
    lines.collect()
}

/// Why connected peers have no RTT, a line for each reason.
fn unmeasured(peers: &[Peer]) -> Vec<String> {
    let reasons = [
        (
            "no_host_prefix",
            "have no host prefix, so no address is known to answer",
        ),
        ("not_its_turn", "get their turn in the next reports"),
        ("not_used", "are not used: an echo would keep them"),
        ("sent", "did not answer"),
    ];
    let count = |echo: &str| {
        let without = peers.iter().filter(|peer| peer.rtt_us.is_none());
        without.filter(|peer| peer.echo == echo).count()
    };
    let counts = reasons.map(|(echo, reason)| (count(echo), reason));
    let counts = counts.into_iter().filter(|(count, _)| *count > 0);
    counts
        .map(|(count, reason)| format!("  no RTT: {count} {reason}"))
        .collect()
}

fn mappings(mappings: &[Mapping]) -> Vec<String> {
    let heading = ["EID", "STATE", "BY", "TTL LEFT", "AGE", "PEER", "WAY"];
    let mut table = Table::new(&heading, 0);
    for mapping in mappings {
        let state = if mapping.stale {
            "stale"
        } else if mapping.moves_to.is_some() {
            "moving"
        } else {
            &mapping.state
        };
        table.row(vec![
            mapping.eid.clone(),
            state.to_owned(),
            mapping.cause.clone(),
            span(mapping.ttl_left_ms),
            span(mapping.age_ms),
            mapping.key.as_deref().map_or_else(dash, short),
            way(mapping),
        ]);
    }
    table.lines()
}

/// How packets get to the far end.
fn way(mapping: &Mapping) -> String {
    match &mapping.endpoint {
        Some(endpoint) if mapping.relayed => format!("relayed via {endpoint}"),
        Some(_) => "direct".to_owned(),
        None => dash(),
    }
}

/// As logs show keys.
fn short(key: &str) -> String {
    key.chars().take(8).collect()
}

fn ago(milliseconds: u64) -> String {
    format!("{} ago", span(milliseconds))
}

fn or_dash(value: Option<u64>, text: impl Fn(u64) -> String) -> String {
    value.map_or_else(dash, text)
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_without_a_round_trip_are_told_why() {
        let peer = |echo: &str, rtt_us| Peer {
            key: "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=".into(),
            eids: vec!["10.9.0.0/16".into()],
            path: None,
            locators: Vec::new(),
            uplink: None,
            since_handshake_ms: Some(1),
            since_received_ms: Some(1),
            rx_bytes: 1,
            tx_bytes: 1,
            connected: true,
            rtt_us,
            echo: echo.into(),
        };
        let peers = [
            peer("no_host_prefix", None),
            peer("no_host_prefix", None),
            peer("sent", Some(5)),
            peer("sent", None),
            peer("not_connected", None),
        ];
        assert_eq!(
            unmeasured(&peers),
            [
                "  no RTT: 2 have no host prefix, so no address is known to answer",
                "  no RTT: 1 did not answer",
            ]
        );
    }
}
