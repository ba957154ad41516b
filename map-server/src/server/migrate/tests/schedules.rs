//! Whatever is lost or late, and whoever comes and goes: a client has one owner, and who has
//! dismissed a client hears of it no more.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const CLIENTS: [&str; 3] = ["a", "b", "c"];
const PROXIES: [&str; 3] = ["d", "e", "f"];

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    Ask(usize),
    Move(usize, usize),
    Drain(usize, bool),
    Come(usize),
    Leave(usize),
    /// A Map-Notify arrives, and is acknowledged.
    Arrive(prop::sample::Index),
    /// A Map-Notify is lost.
    Lose(prop::sample::Index),
    Wait(u64),
}

struct World {
    bench: Bench,
    on_the_way: Vec<Sent>,
    /// Which proxies are registered.
    here: BTreeSet<&'static str>,
    /// What each proxy knows of the clients: the nonce of the latest word, and whether it is good.
    known: BTreeMap<(&'static str, EidPrefix), (u64, bool)>,
}

impl World {
    fn new() -> Self {
        Self {
            bench: all_registered(),
            on_the_way: Vec::new(),
            here: PROXIES.into(),
            known: BTreeMap::new(),
        }
    }

    fn take(&mut self, step: &Step) {
        let bench = &mut self.bench;
        let sent = match step {
            Step::Ask(client) => bench.ask(CLIENTS[*client], "8.8.8.8"),
            Step::Move(from, to) => {
                let command = command(PROXIES[*from], PROXIES[*to], &[]);
                operate(bench, command)
            }
            Step::Drain(proxy, undo) => {
                let from = PROXIES[*proxy].into();
                let drain = Command::Drain {
                    from,
                    dry_run: false,
                };
                let undrain = Command::Undrain {
                    from: PROXIES[*proxy].into(),
                };
                operate(bench, if *undo { undrain } else { drain })
            }
            Step::Come(proxy) => self.come(PROXIES[*proxy]),
            Step::Leave(proxy) => self.leave(PROXIES[*proxy]),
            Step::Arrive(index) => self.arrive(index),
            Step::Lose(index) => {
                if !self.on_the_way.is_empty() {
                    let index = index.index(self.on_the_way.len());
                    self.on_the_way.remove(index);
                }
                Vec::new()
            }
            Step::Wait(millis) => self.wait(*millis),
        };
        self.on_the_way.extend(sent);
        self.on_the_way.retain(Sent::is_notify);
    }

    fn come(&mut self, proxy: &'static str) -> Vec<Sent> {
        self.here.insert(proxy);
        share(&mut self.bench, proxy, &default_routes(proxy, 1, 100))
    }

    /// A proxy that leaves forgets all clients.
    fn leave(&mut self, proxy: &'static str) -> Vec<Sent> {
        self.here.remove(proxy);
        self.known.retain(|(who, _), _| *who != proxy);
        self.on_the_way.retain(|sent| name_of(sent) != proxy);
        let leave = [empty(DEFAULT, 0), empty("::/0", 0)];
        let mut sent = share(&mut self.bench, proxy, &leave);
        sent.retain(|sent| name_of(sent) != proxy);
        sent
    }

    /// Time passes; all refresh what they have registered.
    fn wait(&mut self, millis: u64) -> Vec<Sent> {
        let mut sent = self.bench.wait(Duration::from_millis(millis));
        for client in CLIENTS {
            sent.extend(self.bench.register(client, &own_records(client)));
        }
        for proxy in self.here.clone() {
            sent.extend(self.come(proxy));
        }
        sent
    }

    fn arrive(&mut self, index: &prop::sample::Index) -> Vec<Sent> {
        if self.on_the_way.is_empty() {
            return Vec::new();
        }
        let index = index.index(self.on_the_way.len());
        let sent = self.on_the_way.remove(index);
        self.hear(&sent)
    }

    fn hear(&mut self, sent: &Sent) -> Vec<Sent> {
        let name = name_of(sent);
        let (nonce, records) = sent.notify(name);
        // Confirmations of Map-Registers have smaller nonces, and say nothing of clients.
        for record in records.iter().filter(|_| self.here.contains(name)) {
            let word = (nonce.0, !record.ttl.is_withdrawal());
            let known = self.known.entry((name, record.eid)).or_insert(word);
            *known = word.max(*known);
        }
        self.bench.ack(name, sent)
    }

    /// Nothing is lost any more.
    fn settle(&mut self) {
        for _ in 0..16 {
            while let Some(sent) = self.on_the_way.pop() {
                let more = self.hear(&sent);
                self.on_the_way.extend(more);
                self.on_the_way.retain(Sent::is_notify);
            }
            let more = self.wait(2_000);
            self.on_the_way.extend(more);
            self.on_the_way.retain(Sent::is_notify);
        }
    }

    /// Every client is with somebody who is there, or nobody is.
    fn check(&self) -> Result<(), TestCaseError> {
        for client in CLIENTS {
            match owner(&self.bench, DEFAULT, client) {
                Some(owner) => prop_assert!(self.here.contains(&*owner), "{client} is on {owner}"),
                None => {
                    let server = &self.bench.server;
                    let xtr = server.sites.by_name(&client.into()).unwrap();
                    let tells = server.state.subscribers.count(xtr) > 0;
                    prop_assert!(self.here.is_empty() || !tells, "{client} is on nobody");
                }
            }
        }
        Ok(())
    }

    /// Who is not in use knows no client, and hears of none.
    fn check_dismissed(&mut self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.bench.server.sizes().migrations, 0);
        for client in CLIENTS {
            let own = own_records(client)[0].clone();
            let at = owner(&self.bench, DEFAULT, client);
            for proxy in self.here.iter().filter(|it| Some(**it) != at.as_deref()) {
                let known = self.known.get(&(*proxy, own.eid));
                prop_assert!(
                    known.is_none_or(|(_, good)| !good),
                    "{proxy} knows {client}"
                );
            }
            let address = own.eid.net().addr().to_string();
            let sent = self
                .bench
                .register(client, &[record(&address, "198.51.100.9:9")]);
            for told in proxies_told(&sent) {
                prop_assert_eq!(Some(told), at.as_deref());
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_client_has_one_owner_and_nobody_else_knows_it(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
            world.check()?;
        }
        world.settle();
        world.check()?;
        world.check_dismissed()?;
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3usize).prop_map(Step::Ask),
        4 => (0..3usize, 0..3usize).prop_map(|(from, to)| Step::Move(from, to)),
        1 => (0..3usize, any::<bool>()).prop_map(|(proxy, undo)| Step::Drain(proxy, undo)),
        1 => (0..3usize).prop_map(Step::Come),
        1 => (0..3usize).prop_map(Step::Leave),
        8 => any::<prop::sample::Index>().prop_map(Step::Arrive),
        2 => any::<prop::sample::Index>().prop_map(Step::Lose),
        3 => prop::sample::select(&[20u64, 300, 1_100, 11_000][..]).prop_map(Step::Wait),
    ]
}
