//! Words about one mapping in any order, while peers answer or not and changes are done or refused:
//! what is left in the data plane is what the agent says, and only who was named last is
//! acknowledged.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const PREFIX: &str = "10.0.0.2/32";

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The map server says who serves the prefix, and where that lives.
    Word(u8, u8),
    /// It says that nobody does.
    Withdrawal,
    /// A peer has shaken hands, if it is installed, or it has not; with bytes received and sent.
    Counted(u8, bool, u64, u64),
    /// The data plane does the next change, or refuses it.
    Change(bool),
    /// Time passes, in milliseconds.
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..4u8, 0..2u8).prop_map(|(key, host)| Step::Word(key, host)),
        1 => Just(Step::Withdrawal),
        4 => (1..4u8, any::<bool>(), 0..3u64, 0..3u64)
            .prop_map(|(key, seen, rx, tx)| Step::Counted(key, seen, rx * 100, tx * 100)),
        8 => (0..8u8).prop_map(|n| Step::Change(n > 0)),
        3 => (0..4_000u64).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 0..60)
}

/// An agent, and a data plane that does what it is told when it is told to.
struct World {
    bench: Bench,
    changes: VecDeque<(ChangeId, Change)>,
    table: BTreeMap<PublicKey, Vec<IpNet>>,
    nonce: u64,
    /// Whom the latest Map-Notify has named.
    named: Option<PublicKey>,
}

impl World {
    fn new() -> Self {
        Self {
            bench: Bench::new(),
            changes: VecDeque::new(),
            table: BTreeMap::new(),
            nonce: 0,
            named: None,
        }
    }

    fn step(&mut self, step: Step) {
        let actions = match step {
            Step::Word(key, host) => {
                let key = PublicKey([key; 32]);
                self.named = Some(key);
                self.told(key, host, Ttl::from_minutes(15))
            }
            Step::Withdrawal => {
                self.named = None;
                self.told(PublicKey([1; 32]), 0, Ttl::WITHDRAW)
            }
            Step::Counted(key, handshake_seen, rx_bytes, tx_bytes) => {
                let key = PublicKey([key; 32]);
                let stats = [PeerStats {
                    key,
                    endpoint: None,
                    handshake_seen,
                    rx_bytes,
                    tx_bytes,
                    read_at: self.bench.now,
                }];
                let known = usize::from(self.table.contains_key(&key));
                self.bench.input(Input::PeerStats(&stats[..known]))
            }
            Step::Change(ok) => self.change(ok),
            Step::Wait(ms) => self.bench.after(Duration::from_millis(ms)),
        };
        self.took(actions);
    }

    fn told(&mut self, key: PublicKey, host: u8, ttl: Ttl) -> Vec<Action> {
        let mut told = record(PREFIX, key, ttl);
        for locator in &mut told.locators {
            let endpoint = SocketAddr::new([192, 0, key.0[0], host].into(), 51820);
            locator.rloc = Rloc::WireGuard { endpoint, key };
        }
        self.nonce += 1;
        self.bench.notify(self.nonce, &told)
    }

    fn change(&mut self, ok: bool) -> Vec<Action> {
        let Some((id, change)) = self.changes.pop_front() else {
            return Vec::new();
        };
        match change {
            Change::SetPeer(spec) if ok => {
                for prefixes in self.table.values_mut() {
                    prefixes.retain(|prefix| !spec.allowed_ips.contains(prefix));
                }
                self.table.insert(spec.key, spec.allowed_ips);
            }
            Change::RemovePeer(key) if ok => {
                self.table.remove(&key);
            }
            _ => {}
        }
        self.bench.input(Input::Applied { id, ok })
    }

    fn owner(&self) -> Option<PublicKey> {
        let mut rows = self.table.iter();
        let row = rows.find(|(_, prefixes)| prefixes.contains(&net(PREFIX)));
        row.map(|(key, _)| *key)
    }

    fn took(&mut self, actions: Vec<Action>) {
        for bytes in sent(&actions) {
            if let Message::MapNotifyAck(ack) = decode(bytes).unwrap()
                && ack.nonce.0 == self.nonce
                && self.named.is_some()
            {
                assert_eq!(self.owner(), self.named, "acknowledged before it was done");
            }
        }
        for action in actions {
            if let Action::Apply { id, change } = action {
                self.changes.push_back((id, change));
            }
        }
    }

    /// Lets everything that is under way come to its end.
    fn settle(&mut self) {
        for _ in 0..50 {
            self.step(Step::Wait(2_000));
            while !self.changes.is_empty() {
                self.step(Step::Change(true));
            }
        }
    }
}

proptest! {
    #[test]
    fn what_is_left_is_what_the_agent_says(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
        let wanted: BTreeMap<_, _> = world
            .bench
            .agent
            .peers()
            .map(|peer| (peer.key, peer.allowed_ips))
            .collect();
        prop_assert_eq!(&world.table, &wanted);
        prop_assert!(wanted.len() <= 1, "{:?}", wanted);
        let mut mappings = world.bench.agent.map_cache();
        let serves = mappings.find_map(|(_, _, chosen, _)| chosen).map(|chosen| chosen.key);
        prop_assert_eq!(world.owner(), serves);
        let sizes = world.bench.agent.sizes();
        prop_assert_eq!((sizes.acks, sizes.changes), (0, 0));
        prop_assert!(sizes.handovers <= usize::from(serves.is_some()));
    }
}
