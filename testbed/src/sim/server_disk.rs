//! What is on a map server's disk? What the daemon's shell writes there, and when.
//!
//! A log of facts that a snapshot replaces now and then, and where the agents were last seen.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use lisp_proto::{PublicKey, Timestamp};
use map_server::StoreEvent;

use super::scenario::Disk;
use super::server_host::RunningServer;
use super::world::World;

/// The log is replaced by a snapshot when it has grown by this many facts and doubled.
const GROWTH: usize = 5_000;
/// How often the log is told that the server is alive, in seconds.
const HEARTBEAT_S: u64 = 30;
/// How often is looked where the agents are, in seconds, if none registers anew.
const LOOK_S: u64 = 10;
/// Least time between two looks.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// How long a server whose log was cut off says no to nobody: one refresh interval of the agents.
const QUIET_PERIOD: Duration = Duration::from_secs(75);

/// The disk of a map server.
#[derive(Debug, Default)]
pub(super) struct ServerDisk {
    /// The facts, and what the wall clock showed when each was written, in microseconds.
    log: Vec<(u64, StoreEvent)>,
    len_after_snapshot: usize,
    /// What the wall clock showed when something was last written, in microseconds.
    written_us: u64,
    /// Whether the end of the log is missing.
    torn: bool,
    endpoints: BTreeMap<PublicKey, SocketAddr>,
    /// When the server last looked where the agents are.
    looked: Timestamp,
    /// Whether an agent has registered anew since.
    unseen: bool,
}

impl ServerDisk {
    /// Appends a fact.
    pub(super) fn append(&mut self, wall_us: u64, event: StoreEvent) {
        self.written_us = wall_us;
        self.log.push((wall_us, event));
    }

    /// Whether a snapshot would be much shorter than the log.
    pub(super) const fn wants_snapshot(&self) -> bool {
        self.log.len() > 2 * self.len_after_snapshot + GROWTH
    }

    /// Puts a snapshot in place of the log.
    pub(super) fn replace(&mut self, wall_us: u64, snapshot: Vec<StoreEvent>) {
        self.written_us = wall_us;
        self.torn = false;
        self.len_after_snapshot = snapshot.len();
        self.log = snapshot.into_iter().map(|fact| (wall_us, fact)).collect();
    }

    /// Loses what a crash takes with it.
    pub(super) fn damage(&mut self, disk: Disk) {
        match disk {
            Disk::Kept => {}
            Disk::Torn(facts) => {
                let left = self.log.len().saturating_sub(facts as usize);
                self.log.truncate(left);
                self.torn = true;
            }
            Disk::Lost => *self = Self::default(),
        }
        // A server that starts has yet to look.
        (self.looked, self.unseen) = (Timestamp::ZERO, false);
    }

    /// What a server that starts now finds: the facts, as old as they are by now, and how long it says no to nobody.
    pub(super) fn recover(&self, wall_us: u64) -> (Vec<StoreEvent>, Duration) {
        let since = |then_us| Duration::from_micros(wall_us.saturating_sub(then_us));
        let facts = self.log.iter().map(|(kept_us, fact)| {
            let mut fact = fact.clone();
            fact.age(since(*kept_us), since(self.written_us));
            fact
        });
        let facts = facts.collect();
        let quiet_period = if self.torn {
            QUIET_PERIOD
        } else {
            Duration::ZERO
        };
        (facts, quiet_period)
    }

    /// Writes down where the agents are.
    fn look(&mut self, now: Timestamp, running: &RunningServer) {
        self.endpoints.extend(running.endpoints());
        self.looked = now;
        self.unseen = false;
    }

    /// Where the holder of a key was last seen.
    pub(super) fn endpoint(&self, key: &PublicKey) -> Option<SocketAddr> {
        self.endpoints.get(key).copied()
    }
}

impl World {
    /// Map servers write down that they are alive, and where the agents are.
    pub(super) fn keep_disks(&mut self) {
        let now = self.now();
        for host in &mut self.servers {
            let wall_us = host.wall_us(now);
            let Some(running) = &host.running else {
                continue;
            };
            let up_s = running.uptime(now).as_secs();
            if up_s.is_multiple_of(HEARTBEAT_S) {
                host.disk.written_us = wall_us;
            }
            if up_s.is_multiple_of(LOOK_S) || host.disk.unseen {
                host.disk.look(now, running);
            }
        }
    }

    /// A registration is new or has changed: the map server looks where its agent is.
    pub(super) fn look_for_agents(&mut self, number: u32) {
        let now = self.now();
        let Some(host) = self.servers.get_mut(number as usize) else {
            return;
        };
        host.disk.unseen = true;
        if let Some(running) = &host.running
            && now - host.disk.looked >= LOOK_PAUSE
        {
            host.disk.look(now, running);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lisp_proto::Nonce;

    fn fact(nonce: u64) -> StoreEvent {
        StoreEvent::NotifyFloor {
            xtr: "a".into(),
            nonce: Nonce(nonce),
        }
    }

    #[test]
    fn a_torn_log_lacks_its_end_and_makes_the_server_careful() {
        let mut disk = ServerDisk::default();
        (0..5).for_each(|nonce| disk.append(7, fact(nonce)));
        disk.damage(Disk::Kept);
        assert_eq!(
            disk.recover(7),
            ((0..5).map(fact).collect(), Duration::ZERO)
        );
        disk.damage(Disk::Torn(2));
        assert_eq!(disk.recover(7), ((0..3).map(fact).collect(), QUIET_PERIOD));
        disk.replace(7, vec![fact(9)]);
        assert_eq!(disk.recover(7), (vec![fact(9)], Duration::ZERO));
        disk.damage(Disk::Lost);
        assert_eq!(disk.recover(7), (Vec::new(), Duration::ZERO));
    }
}
