//! Whatever is lost, late or doubled: in the end a subscriber knows what is registered.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What a may subscribe to.
const PREFIXES: [&str; 4] = ["10.0.0.2", "10.0.0.3", "10.0.0.0/24", "0.0.0.0/0"];

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    /// An owner registers its IPv4 prefix at this port.
    Register(&'static str, u16),
    /// An owner takes its IPv4 prefix back.
    Withdraw(&'static str),
    Subscribe(usize),
    Unsubscribe(usize),
    /// A datagram on its way to a arrives, and is acknowledged.
    Arrive(prop::sample::Index),
    /// A datagram on its way to a arrives; the acknowledgement is lost, or another copy comes.
    ArriveOnly(prop::sample::Index),
    /// A datagram on its way to a is lost.
    Lose(prop::sample::Index),
    Wait(u64),
}

/// The server, what is on its way to a, and what a makes of it.
struct World {
    bench: Bench,
    to_a: Vec<Sent>,
    /// The newest word about each prefix.
    heard: BTreeMap<EidPrefix, (Nonce, Record)>,
    subscribed: BTreeSet<usize>,
    /// What the nonces of Map-Requests were used for; `None` to end a subscription.
    asked: BTreeMap<Nonce, Option<EidPrefix>>,
    /// What was answered: all that is older than the answer is said again in it.
    answered: Vec<(EidPrefix, Nonce)>,
    last_nonce: u64,
}

proptest! {
    #[test]
    fn a_subscriber_ends_up_knowing_what_is_registered(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        world.settle();
        for prefix in world.subscribed.iter().map(|number| eid(PREFIXES[*number])) {
            for host in ["10.0.0.2", "10.0.0.3", "10.0.0.9"].map(eid) {
                if prefix.covers(&host) {
                    let server = &world.bench.server;
                    let truth = server.describe(server.state.mappings.find(&host), host, None);
                    prop_assert_eq!(world.belief(&host), truth.locators, "{} of {}", host, prefix);
                }
            }
        }
    }
}

impl World {
    fn new() -> Self {
        let mut bench = Bench::new();
        bench.register("a", &own_records("a"));
        Self {
            bench,
            to_a: Vec::new(),
            heard: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            asked: BTreeMap::new(),
            answered: Vec::new(),
            last_nonce: 0,
        }
    }

    fn take(&mut self, step: &Step) {
        let sent = match step {
            Step::Register(owner, port) => {
                let own = own_records(owner)[0].eid.net().addr().to_string();
                let record = record(&own, &format!("198.51.100.1:{port}"));
                self.bench.register(owner, &[record])
            }
            Step::Withdraw(owner) => {
                let own = own_records(owner)[0].eid.net().addr().to_string();
                self.bench.register(owner, &[empty(&own, 0)])
            }
            Step::Subscribe(number) => {
                self.subscribed.insert(*number);
                // Above all that is on its way.
                self.last_nonce += 1_000;
                let asked = Some(eid(PREFIXES[*number]));
                self.asked.insert(Nonce(self.last_nonce), asked);
                subscribe(&mut self.bench, &[PREFIXES[*number]], self.last_nonce)
            }
            Step::Unsubscribe(number) => {
                self.subscribed.remove(number);
                self.forget_what_is_not_subscribed();
                self.last_nonce += 1_000;
                self.asked.insert(Nonce(self.last_nonce), None);
                unsubscribe(&mut self.bench, &[PREFIXES[*number]], self.last_nonce)
            }
            Step::Arrive(index) => self.arrive(index, true),
            Step::ArriveOnly(index) => self.arrive(index, false),
            Step::Lose(index) => {
                if !self.to_a.is_empty() {
                    self.to_a.remove(index.index(self.to_a.len()));
                }
                Vec::new()
            }
            Step::Wait(millis) => self.bench.wait(Duration::from_millis(*millis)),
        };
        self.carry(sent);
    }

    fn arrive(&mut self, index: &prop::sample::Index, acknowledged: bool) -> Vec<Sent> {
        if self.to_a.is_empty() {
            return Vec::new();
        }
        let index = index.index(self.to_a.len());
        let sent = match acknowledged {
            true => self.to_a.remove(index),
            false => self.to_a[index].clone(),
        };
        self.hear(&sent);
        match acknowledged {
            true => self.bench.ack("a", &sent),
            false => Vec::new(),
        }
    }

    /// Carries datagrams; the owners acknowledge at once.
    fn carry(&mut self, sent: Vec<Sent>) {
        let mut left = sent;
        while let Some(sent) = left.pop() {
            if sent.dst == control("a") {
                self.to_a.push(sent);
            } else {
                let owner = if sent.dst == control("b") { "b" } else { "c" };
                left.extend(self.bench.ack(owner, &sent));
            }
        }
    }

    fn hear(&mut self, sent: &Sent) {
        let (nonce, records) = sent.notify("a");
        self.last_nonce = self.last_nonce.max(nonce.0);
        match self.asked.get(&nonce) {
            Some(None) => return,
            Some(Some(asked)) => {
                self.answered.push((*asked, nonce));
                let older = |eid: &EidPrefix, word: &Nonce| asked.covers(eid) && *word < nonce;
                self.heard.retain(|eid, (word, _)| !older(eid, word));
            }
            None => {}
        }
        for record in records {
            let older =
                |answer: &(EidPrefix, Nonce)| answer.0.covers(&record.eid) && nonce < answer.1;
            let known = self.heard.get(&record.eid);
            if known.is_none_or(|(newest, _)| *newest <= nonce) && !self.answered.iter().any(older)
            {
                self.heard.insert(record.eid, (nonce, record));
            }
        }
        self.forget_what_is_not_subscribed();
    }

    fn forget_what_is_not_subscribed(&mut self) {
        let subscribed: Vec<_> = self
            .subscribed
            .iter()
            .map(|number| eid(PREFIXES[*number]))
            .collect();
        self.heard.retain(|known, _| {
            subscribed
                .iter()
                .any(|prefix| prefix.covers(known) || known.covers(prefix))
        });
    }

    /// Nothing is lost any more.
    fn settle(&mut self) {
        for _ in 0..20 {
            while let Some(sent) = self.to_a.pop() {
                self.hear(&sent);
                let more = self.bench.ack("a", &sent);
                self.carry(more);
            }
            let sent = self.bench.wait(Duration::from_millis(500));
            self.carry(sent);
        }
    }

    /// Returns where a would send what is for `host`.
    fn belief(&self, host: &EidPrefix) -> Vec<lisp_proto::Locator> {
        let alive = self.heard.values().map(|(_, record)| record);
        let covering = alive.filter(|it| !it.ttl.is_withdrawal() && it.eid.covers(host));
        let best = covering.max_by_key(|record| record.eid.net().prefix_len());
        best.map_or_else(Vec::new, |record| record.locators.clone())
    }
}

fn step() -> impl Strategy<Value = Step> {
    let owner = prop::sample::select(&["b", "c"][..]);
    prop_oneof![
        3 => (owner.clone(), 1u16..5).prop_map(|(owner, port)| Step::Register(owner, port)),
        1 => owner.prop_map(Step::Withdraw),
        2 => (0..PREFIXES.len()).prop_map(Step::Subscribe),
        1 => (0..PREFIXES.len()).prop_map(Step::Unsubscribe),
        4 => any::<prop::sample::Index>().prop_map(Step::Arrive),
        1 => any::<prop::sample::Index>().prop_map(Step::ArriveOnly),
        3 => any::<prop::sample::Index>().prop_map(Step::Lose),
        2 => (1u64..800).prop_map(Step::Wait),
    ]
}
