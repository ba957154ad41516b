//! A server with three clients and three agents that share the default routes, for the tests of this
//! module.

use lisp_proto::{Nonce, Record};

use super::Via;
use super::bench::{Bench, Sent, agent, control, eid, record, xtrs};
use crate::config::{Options, XtrConfig};

/// Clients a, b and c, and proxies d, e and f. Each proxy may also register an address of its own:
/// 10.0.1.4, .5 and .6, and fd00:1::4, ::5 and ::6.
pub(super) fn bench() -> Bench {
    // No push has the nonce of a Map-Register, whose confirmation is acknowledged here as well.
    let options = Options {
        notify_floor: Nonce(1_000_000),
        ..Options::default()
    };
    Bench::of(options, clients_and_proxies())
}

pub(super) fn clients_and_proxies() -> Vec<XtrConfig> {
    let proxy = |name: &str| {
        let served = ["0.0.0.0/0", "::/0", own_address(name), own_address_v6(name)];
        agent(name, served.map(eid).to_vec())
    };
    let mut all = xtrs();
    all.extend(["d", "e", "f"].map(proxy));
    all
}

/// The address that a proxy may register besides what it shares.
pub(super) fn own_address(name: &str) -> &'static str {
    match name {
        "d" => "10.0.1.4",
        "e" => "10.0.1.5",
        _ => "10.0.1.6",
    }
}

/// The same of IPv6.
pub(super) fn own_address_v6(name: &str) -> &'static str {
    match name {
        "d" => "fd00:1::4",
        "e" => "fd00:1::5",
        _ => "fd00:1::6",
    }
}

/// Where the tunnels of a proxy end.
pub(super) fn endpoint(name: &str) -> &'static str {
    match name {
        "d" => "192.0.2.4:51820",
        "e" => "192.0.2.5:51820",
        _ => "192.0.2.6:51820",
    }
}

/// What a proxy shares: both default routes, with this priority and weight.
pub(super) fn default_routes(name: &str, priority: u8, weight: u8) -> [Record; 2] {
    ["0.0.0.0/0", "::/0"].map(|prefix| {
        let mut record = record(prefix, endpoint(name));
        record.locators[0].priority = priority;
        record.locators[0].weight = weight;
        record
    })
}

/// Lets a proxy register `records` with the merge bit.
pub(super) fn share(bench: &mut Bench, name: &str, records: &[Record]) -> Vec<Sent> {
    let mut register = bench.register_of(name, records);
    register.merge = true;
    bench.datagram(control(name), Via::Tunnel, &register.bytes())
}

/// The clients register, and so do the proxies, d with the lowest priority number.
pub(super) fn all_registered() -> Bench {
    let mut bench = bench();
    bench.register_all();
    for (name, priority) in [("d", 1), ("e", 2), ("f", 3)] {
        share(&mut bench, name, &default_routes(name, priority, 100));
    }
    acknowledge_all(&mut bench);
    bench
}

/// Lets everybody acknowledge what is on its way to it, also what that leads to; returns it all.
pub(super) fn acknowledge_all(bench: &mut Bench) -> Vec<Sent> {
    acknowledge(bench, |_| true)
}

/// Lets those acknowledge what is on its way to them that are `willing`.
pub(super) fn acknowledge(bench: &mut Bench, willing: impl Fn(&str) -> bool) -> Vec<Sent> {
    let mut seen = 0;
    let start = bench.sent.len();
    while let Some(sent) = bench.sent.get(seen).cloned() {
        seen += 1;
        let name = name_of(&sent);
        if sent.is_notify() && willing(name) {
            bench.ack(name, &sent);
        }
    }
    bench.sent[start..].to_vec()
}

/// Who a datagram goes to.
pub(super) fn name_of(sent: &Sent) -> &'static str {
    let names = ["a", "b", "c", "d", "e", "f"];
    let found = names.into_iter().find(|name| control(name) == sent.dst);
    found.unwrap_or("gear")
}

/// What is told to whom, of the datagrams `sent`: prefix and where it leads first.
pub(super) fn told(sent: &[Sent]) -> Vec<String> {
    let lines = sent.iter().flat_map(|sent| {
        let name = name_of(sent);
        let records = match sent.is_notify() {
            true => sent.notify(name).1,
            false => sent.reply_records(),
        };
        let lines = records.into_iter().map(move |record| {
            let places = locators(&record);
            let place = places.first().map_or("nowhere", |(place, _)| place);
            format!("{name}: {} at {place}", record.eid)
        });
        lines.collect::<Vec<_>>()
    });
    lines.collect()
}

/// Lets `client` ask for something behind the proxies, and all acknowledge; returns the locators of
/// the answer as address and priority.
pub(super) fn connect(bench: &mut Bench, client: &str) -> Vec<(String, u8)> {
    let before = bench.sent.len();
    bench.ask(client, "8.8.8.8");
    acknowledge_all(bench);
    let answers = bench.sent[before..].iter();
    let mut answers = answers.filter(|sent| !sent.is_notify() && name_of(sent) == client);
    locators(&answers.next().unwrap().reply_records()[0])
}

/// The locators of a record as address and priority, the best one first.
pub(super) fn locators(record: &Record) -> Vec<(String, u8)> {
    let mut locators = record.locators.clone();
    locators.sort_by_key(|locator| locator.priority);
    let locators = locators.iter();
    locators
        .map(|locator| (locator.rloc.ip().to_string(), locator.priority))
        .collect()
}

/// The name of the proxy that a client is assigned.
pub(super) fn owner(bench: &Bench, eid_prefix: &str, client: &str) -> Option<String> {
    let sites = &bench.server.sites;
    let client = sites.by_name(&client.into())?;
    let assignments = &bench.server.state.assignments;
    let at = assignments.get(&eid(eid_prefix), client)?;
    Some(sites.site(at.owner).name.to_string())
}
