//! What must be true of clients and their proxies?

use std::collections::BTreeSet;
use std::time::Duration;

use lisp_proto::Timestamp;

use super::addresses;
use super::checks::TOLD_WITHIN;
use super::invariant::Invariant;
use super::net::Host;
use super::proxies::LEFT_WITHIN;
use super::scenario::{Disk, Fault, FaultKind, Flow, Target, millis};
use super::traffic::PATIENCE;
use super::world::World;

/// So long after the last fault, and the last move, everybody is where he stays, and whoever has lost
/// clients knows it.
const SETTLED: Duration = Duration::from_secs(45);

/// So long after a map server is back everybody has registered with it.
const REGISTERED_AGAIN: Duration = Duration::from_secs(90);

impl World {
    /// Takes in that packets of a client to the world were lost, the last one of which was sent at `sent`,
    /// although all that has gone wrong with proxies was long ago, and one of them is there.
    pub(super) fn judge_client(&mut self, number: u32, flow: &Flow, sent: Timestamp) {
        let Target::Outside(_) = flow.to else {
            return;
        };
        let since = Timestamp(sent.0.saturating_sub(nanos(LEFT_WITHIN)));
        let until = sent + PATIENCE;
        let is_calm = since > self.bounds.warm_from
            && self.is_up(flow.from)
            && !self.is_blind(flow.from, sent)
            && self.is_undisturbed(flow.from, since, until);
        let proxies = self.scenario.proxies.as_ref().map_or(0, |it| it.count);
        // What comes back the old way when a client moves is lost.
        let mut moves = self.scenario.moves().iter();
        let is_steady = !moves.any(|it| (since..=until).contains(&millis(it.at_ms)))
            && (0..proxies).all(|proxy| self.is_steady(proxy, since, until));
        let mut fit = (0..proxies)
            .filter(|proxy| self.is_up(*proxy) && self.is_undisturbed(*proxy, since, until));
        if is_calm
            && is_steady
            && let Some(proxy) = fit.next()
        {
            self.broken(Invariant::Proxied, || {
                let client = flow.from;
                format!(
                    "flow {number}: agent {client} reaches nothing, while proxy {proxy} is there"
                )
            });
        }
    }

    /// A packet to the world is lost in a run without faults: clients that move lose none on the way out.
    pub(super) fn lost_by_client(&mut self, number: u32, flow: &Flow) {
        let is_one_way = matches!(flow.to, Target::Outside(_)) && !flow.echo;
        if is_one_way && self.scenario.faults.is_empty() {
            self.broken(Invariant::Handover, || {
                format!(
                    "flow {number} from agent {} to the world has lost a packet",
                    flow.from
                )
            });
        }
    }

    /// Whether nothing went wrong with an agent, or with all, in a span of time.
    fn is_undisturbed(&self, agent: u32, since: Timestamp, until: Timestamp) -> bool {
        let mut faults = self.scenario.faults.iter();
        !faults.any(|fault| {
            let (begins, ends) = (millis(fault.at_ms), is_over(fault));
            begins <= until && ends >= since && self.concerns(&fault.kind, agent)
        })
    }

    /// Whether nothing began or ceased to go wrong with an agent, or with all, in a span of time.
    fn is_steady(&self, agent: u32, since: Timestamp, until: Timestamp) -> bool {
        let mut faults = self.scenario.faults.iter();
        let within = |at: Timestamp| (since..=until).contains(&at);
        !faults.any(|fault| {
            let changes = within(millis(fault.at_ms)) || within(is_over(fault));
            changes && self.concerns(&fault.kind, agent)
        })
    }

    /// Whether a fault is one of this agent, of the map server, or of everybody.
    fn concerns(&self, kind: &FaultKind, agent: u32) -> bool {
        match kind {
            FaultKind::Crash { agent: whose, .. }
            | FaultKind::Stop { agent: whose, .. }
            | FaultKind::Replace { agent: whose }
            | FaultKind::Move { agent: whose }
            | FaultKind::Uplink { agent: whose, .. }
            | FaultKind::NatRestart { agent: whose }
            | FaultKind::DataPlane { agent: whose, .. }
            | FaultKind::Scan { agent: whose, .. }
            | FaultKind::NotForwarding { agent: whose } => *whose == agent,
            FaultKind::Cut { side, .. } => {
                let one =
                    |host: &Host| matches!(host, Host::Agent(it) if self.scenario.is_proxy(*it));
                !side.iter().all(one) || side.contains(&Host::Agent(agent))
            }
            FaultKind::Weather { .. }
            | FaultKind::CrashServer { .. }
            | FaultKind::ClockJump { .. }
            | FaultKind::Attack { .. } => true,
        }
    }

    /// Whether nothing has gone wrong, and nobody was moved, for so long that all have settled.
    fn has_settled(&self) -> bool {
        let now = self.now();
        let faults = self.scenario.faults.iter();
        let faults = faults.filter(|fault| millis(fault.at_ms) <= now);
        let ends = faults.map(|fault| millis(fault.at_ms + fault.for_ms));
        let moves = self.scenario.moves().iter();
        let moves = moves.map(|it| millis(it.at_ms)).filter(|at| *at <= now);
        let latest = ends.chain(moves).max().unwrap_or(Timestamp::ZERO);
        now > latest.max(self.bounds.warm_from) + SETTLED
    }

    /// Checks whom clients use, and which proxies know them.
    pub(super) fn check_proxied(&mut self) {
        let proxies = self.scenario.proxies.as_ref();
        let Some(count) = proxies.filter(|it| !it.relays).map(|it| it.count) else {
            return;
        };
        self.note_far_ends(count);
        if !self.has_settled() {
            return self.strays.clear();
        }
        let clients = (count..self.scenario.agents)
            .filter(|client| self.is_up(*client) && !self.refusers.contains(client));
        let mut strays = BTreeSet::new();
        let mut divided = None;
        for client in clients {
            let [v4, v6] = [false, true].map(|ipv6| self.holder(client, ipv6));
            if v4.zip(v6).is_some_and(|(v4, v6)| v4 != v6) {
                divided = Some(client);
            }
            let Some(used) = v4.or(v6) else {
                continue;
            };
            let others = (0..count)
                .filter(|proxy| self.knows(*proxy, client) && !self.may_know(*proxy, client));
            let others = others.filter(|proxy| self.key_of(*proxy) != Some(used));
            strays.extend(others.map(|proxy| (proxy, client)));
        }
        if let Some(client) = divided
            && !self.has_forgotten_assignments()
        {
            self.broken(Invariant::OneProxy, || {
                format!("agent {client} uses one proxy for IPv4 and another one for IPv6")
            });
        }
        if let Some((proxy, client)) = strays.intersection(&self.strays).next().copied() {
            self.broken(Invariant::Dismissed, || {
                format!("agent {client} has left proxy {proxy}, and can reach it still")
            });
        }
        self.strays = strays;
    }

    /// Notes which clients know an address of a proxy itself.
    fn note_far_ends(&mut self, proxies: u32) {
        let now = self.now();
        let clients = proxies..self.scenario.agents;
        let pairs = clients.flat_map(|client| (0..proxies).map(move |proxy| (proxy, client)));
        let known = pairs.filter(|(proxy, client)| self.knows(*client, *proxy));
        let known: Vec<_> = known.collect();
        self.far_ends
            .extend(known.into_iter().map(|pair| (pair, now)));
    }

    /// Whether a proxy may know somebody who is no client of it. Who knows an address of its own is a far end of that,
    /// whatever else it has left; each of the two forgets that by itself, within a TTL of the other. And a map server that
    /// has lost facts does not know any more whom to tell that clients have left it: that has an end after a TTL, too.
    fn may_know(&self, proxy: u32, client: u32) -> bool {
        let now = self.now();
        let ttl = Duration::from_secs(u64::from(self.scenario.ttl_min) * 60);
        let is_young = |since: Timestamp| now <= since + ttl + TOLD_WITHIN;
        let met = self.far_ends.get(&(proxy, client));
        let mut faults = self.scenario.faults.iter();
        met.is_some_and(|met| is_young(*met))
            || faults.any(|fault| {
                let ends = millis(fault.at_ms + fault.for_ms);
                let (begins, kind) = (millis(fault.at_ms), &fault.kind);
                let is_lost = matches!(
                    kind,
                    FaultKind::CrashServer {
                        server,
                        disk: Disk::Torn(_) | Disk::Lost,
                    } if *server < self.scenario.servers
                );
                is_lost && begins <= now && is_young(ends)
            })
    }

    /// Whether the map server may have lost where clients are: then it puts them there anew, one prefix at
    /// a time, as they ask.
    fn has_forgotten_assignments(&self) -> bool {
        let mut faults = self.scenario.faults.iter();
        faults.any(|fault| matches!(fault.kind, FaultKind::CrashServer { .. }))
    }

    /// Whether the data plane of an agent lets another one in; of one that has refused changes nothing is
    /// said.
    fn knows(&self, agent: u32, other: u32) -> bool {
        let host = self.agents.get(agent as usize);
        let Some(running) = host.and_then(|host| host.running.as_deref()) else {
            return false;
        };
        let table = running.plane.interface.table();
        !self.refusers.contains(&agent)
            && [false, true].iter().any(|ipv6| {
                let eid = addresses::eid(other, *ipv6, 0);
                table
                    .lookup(eid)
                    .is_some_and(|key| Some(key) == self.key_of(other))
            })
    }

    fn key_of(&self, agent: u32) -> Option<lisp_proto::PublicKey> {
        let host = self.agents.get(agent as usize)?;
        Some(host.running.as_deref()?.key)
    }
}

/// When nothing is to be seen of a fault any more: a map server that has lost its registrations gets them
/// again with the next refreshes.
fn is_over(fault: &Fault) -> Timestamp {
    let ends = millis(fault.at_ms + fault.for_ms);
    if matches!(fault.kind, FaultKind::CrashServer { .. }) {
        return ends + REGISTERED_AGAIN;
    }
    ends
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
