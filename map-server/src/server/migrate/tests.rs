//! In which order a client moves, who hears of it, and what is left when something fails.

use std::time::Duration;

use super::*;
use crate::config::Options;
use crate::server::bench::{Bench, Sent, control, eid, empty, key, own_records, record};
use crate::server::operator::Clients;
use crate::server::proxies::{
    acknowledge, acknowledge_all, all_registered, clients_and_proxies, connect, default_routes,
    name_of, own_address, owner, share, told,
};
use crate::server::{Input, Via};

mod connections;
mod failures;
mod gaps;
mod schedules;

const DEFAULT: &str = "0.0.0.0/0";

/// Clients a and b use d, which is where all begin.
fn connected() -> Bench {
    let mut bench = all_registered();
    for client in ["a", "b"] {
        connect(&mut bench, client);
    }
    bench.events.clear();
    bench
}

/// The same when d is the only owner that is left.
fn connected_to_the_only_one() -> Bench {
    let mut bench = connected();
    for name in ["e", "f"] {
        share(&mut bench, name, &[empty(DEFAULT, 0), empty("::/0", 0)]);
    }
    acknowledge_all(&mut bench);
    bench
}

fn operate(bench: &mut Bench, command: Command) -> Vec<Sent> {
    bench.input(Input::Operator(command))
}

fn command(from: &str, to: &str, clients: &[&str]) -> Command {
    let names = clients.iter().map(|name| (*name).into()).collect();
    Command::Migrate {
        from: from.into(),
        to: to.into(),
        clients: match clients {
            [] => Clients::All,
            _ => Clients::Set(names),
        },
        dry_run: false,
    }
}

/// Begins to move a from d to e.
fn migrate(bench: &mut Bench) -> Vec<Sent> {
    operate(bench, command("d", "e", &["a"]))
}

/// Lets everything go well until nobody has anything to say.
fn finish(bench: &mut Bench) -> Vec<Sent> {
    let mut sent = acknowledge_all(bench);
    sent.extend(bench.wait(limits::MIGRATION_LINGER));
    sent.extend(acknowledge_all(bench));
    sent
}

/// What the operator has read of migrations, of one prefix each.
fn story(bench: &Bench) -> Vec<String> {
    let mut lines = Vec::new();
    for event in &bench.events {
        if let Event::Migration {
            client,
            eid: prefix,
            state,
            ..
        } = event
            && prefix.is_none_or(|prefix| prefix == eid(DEFAULT))
        {
            lines.push(format!("{client} {}", state.name()));
        }
    }
    lines
}

fn last(bench: &Bench) -> Migration {
    bench.server.migrations().last().unwrap().clone()
}

/// Those who got a datagram.
fn receivers(sent: &[Sent]) -> BTreeSet<&'static str> {
    sent.iter().map(name_of).collect()
}

/// The proxies that got a datagram.
fn proxies_told(sent: &[Sent]) -> BTreeSet<&'static str> {
    let mut told = receivers(sent);
    told.retain(|name| ["d", "e", "f"].contains(name));
    told
}

#[test]
fn the_destination_knows_the_client_before_the_client_hears_of_it_and_the_source_forgets_it_last() {
    let mut bench = connected();
    let arm = migrate(&mut bench);
    assert_eq!(
        told(&arm),
        [
            "e: 10.0.0.1/32 at 192.0.2.1",
            "e: fd00:1::1/128 at 192.0.2.1"
        ]
    );
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
    let switch = bench.ack("e", &arm[0]);
    assert_eq!(told(&switch), ["a: 0.0.0.0/0 at 192.0.2.5"]);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
    let on_the_way = Duration::from_millis(30);
    assert_eq!(bench.wait(on_the_way), []);
    assert_eq!(bench.ack("a", &switch[0]), [], "d still forwards");
    let confirm = bench.wait(limits::MIGRATION_LINGER);
    assert_eq!(
        told(&confirm),
        ["d: 10.0.0.1/32 at nowhere", "d: fd00:1::1/128 at nowhere"]
    );
    assert_eq!(bench.ack("d", &confirm[0]), []);
    assert_eq!(
        story(&bench),
        ["a queued", "a armed", "a switched", "a confirmed"]
    );
    let report = last(&bench);
    assert_eq!((report.run, report.state), (1, MigrationState::Confirmed));
    let took = report.ended.unwrap() - report.started.unwrap();
    assert_eq!(took, on_the_way + limits::MIGRATION_LINGER);
    let moved = report.moved.unwrap() - report.told.unwrap();
    assert_eq!(moved, on_the_way);
    assert_eq!(bench.server.sizes().migrations, 0);
}

#[test]
fn all_clients_move_and_nobody_else_hears_of_it() {
    let mut bench = connected();
    let d = bench.server.sites.by_name(&"d".into()).unwrap();
    bench.server.state.assignments.drain(d, true);
    connect(&mut bench, "c");
    assert_eq!(owner(&bench, DEFAULT, "c").unwrap(), "e");
    let mut sent = migrate(&mut bench);
    sent.extend(finish(&mut bench));
    assert_eq!(receivers(&sent), ["a", "d", "e"].into());
    let about = |name: &str| {
        let told = told(&sent);
        told.iter().any(|line| line.contains(name))
    };
    assert!(!about("10.0.0.2") && !about("10.0.0.3"));
    let mut sent = operate(&mut bench, command("d", "e", &[]));
    sent.extend(finish(&mut bench));
    assert_eq!(receivers(&sent), ["b", "d", "e"].into());
}

#[test]
fn both_address_families_of_a_client_move_together() {
    let mut bench = connected();
    let nonce = bench.nonce();
    bench.ask_again("a", "2001:db8::8", nonce);
    acknowledge_all(&mut bench);
    let arm = migrate(&mut bench);
    assert_eq!(arm.len(), 1, "the destination learns the client once");
    let switch = bench.ack("e", &arm[0]);
    assert_eq!(
        told(&switch),
        ["a: 0.0.0.0/0 at 192.0.2.5", "a: ::/0 at 192.0.2.5"]
    );
    finish(&mut bench);
    let both = [DEFAULT, "::/0"].map(|prefix| owner(&bench, prefix, "a").unwrap());
    assert_eq!(both, ["e", "e"]);
    assert_eq!(last(&bench).eids.len(), 2);
}

#[test]
fn a_source_that_the_client_needs_for_something_else_is_not_told_to_forget_it() {
    for needed in [true, false] {
        let mut bench = connected();
        share(
            &mut bench,
            "d",
            &[record(own_address("d"), "192.0.2.4:51820")],
        );
        acknowledge_all(&mut bench);
        if needed {
            bench.ask("a", own_address("d"));
            acknowledge_all(&mut bench);
        }
        migrate(&mut bench);
        let sent = finish(&mut bench);
        let forgets = told(&sent).contains(&"d: 10.0.0.1/32 at nowhere".to_owned());
        assert_eq!(forgets, !needed, "{:?}", told(&sent));
        let state = last(&bench).state;
        assert_eq!(state, MigrationState::Confirmed);
    }
}

#[test]
fn two_that_part_forget_all_of_each_other() {
    let mut bench = all_registered();
    for name in ["d", "e"] {
        let own = record(own_address(name), crate::server::proxies::endpoint(name));
        share(&mut bench, name, &[own]);
    }
    connect(&mut bench, "a");
    migrate(&mut bench);
    let told = told(&finish(&mut bench));
    assert!(
        told.contains(&"a: 10.0.1.5/32 at 192.0.2.5".to_owned()),
        "{told:?}"
    );
    assert!(
        told.contains(&"a: 10.0.1.4/32 at nowhere".to_owned()),
        "{told:?}"
    );
    let sent = bench.register("a", &[record("10.0.0.1", "198.51.100.1:1")]);
    assert_eq!(proxies_told(&sent), ["e"].into());
}

#[test]
fn a_client_that_uses_nothing_moves_without_a_word_to_the_destination() {
    let mut bench = connected();
    let a = bench.server.sites.by_name(&"a".into()).unwrap();
    bench
        .server
        .state
        .subscribers
        .leave_inside(&eid(DEFAULT), a);
    let mut sent = migrate(&mut bench);
    sent.extend(finish(&mut bench));
    assert_eq!(receivers(&sent), ["d"].into());
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
}

#[test]
fn who_comes_back_is_moved_back() {
    let mut bench = connected();
    migrate(&mut bench);
    finish(&mut bench);
    operate(&mut bench, command("e", "d", &["a"]));
    finish(&mut bench);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
    let moved = record("10.0.0.1", "198.51.100.1:51820");
    let sent = bench.register("a", &[moved]);
    assert_eq!(proxies_told(&sent), ["d"].into(), "e has forgotten it");
}

#[test]
fn a_dry_run_changes_nothing() {
    let mut bench = connected();
    let before = bench.server.fingerprint();
    for command in [
        Command::Migrate {
            from: "d".into(),
            to: "e".into(),
            clients: Clients::All,
            dry_run: true,
        },
        Command::Drain {
            from: "d".into(),
            dry_run: true,
        },
    ] {
        let plan = bench.server.plan(&command).unwrap();
        let ways: Vec<_> = plan
            .iter()
            .map(|it| (&*it.client, it.to.as_deref()))
            .collect();
        assert_eq!(ways, [("a", Some("e")), ("b", Some("e"))]);
        assert_eq!(operate(&mut bench, command), []);
        assert_eq!(bench.server.fingerprint(), before);
        assert_eq!(bench.events, []);
    }
}

#[test]
fn drained_owners_lose_their_clients_and_get_no_new_ones_until_that_is_undone() {
    let mut bench = connected();
    let drain = || Command::Drain {
        from: "d".into(),
        dry_run: false,
    };
    operate(&mut bench, drain());
    finish(&mut bench);
    for client in ["a", "b"] {
        assert_eq!(owner(&bench, DEFAULT, client).unwrap(), "e");
    }
    let mut bench = bench.restart_as(clients_and_proxies());
    connect(&mut bench, "c");
    assert_eq!(
        owner(&bench, DEFAULT, "c").unwrap(),
        "e",
        "also after a restart"
    );
    operate(&mut bench, Command::Undrain { from: "d".into() });
    bench.register("c", &[empty("10.0.0.3", 0), empty("fd00:1::3", 0)]);
    bench.register("c", &own_records("c"));
    connect(&mut bench, "c");
    assert_eq!(owner(&bench, DEFAULT, "c").unwrap(), "d");
    assert_eq!(
        owner(&bench, DEFAULT, "a").unwrap(),
        "e",
        "nobody is moved back"
    );
}

#[test]
fn a_migration_works_after_a_restart_of_the_server() {
    let mut bench = connected().restart_as(clients_and_proxies());
    let arm = migrate(&mut bench);
    let switch = bench.ack("e", &arm[0]);
    assert_eq!(told(&switch), ["a: 0.0.0.0/0 at 192.0.2.5"]);
    let sent = finish(&mut bench);
    assert!(told(&sent).contains(&"d: 10.0.0.1/32 at nowhere".to_owned()));
}

#[test]
fn a_crash_in_the_middle_leaves_every_client_with_one_owner() {
    let mut bench = connected();
    let arm = migrate(&mut bench);
    let restarted = bench.restart_as(clients_and_proxies());
    assert_eq!(owner(&restarted, DEFAULT, "a").unwrap(), "d", "not armed");
    bench.ack("e", &arm[0]);
    let restarted = bench.restart_as(clients_and_proxies());
    assert_eq!(
        owner(&restarted, DEFAULT, "a").unwrap(),
        "e",
        "not switched"
    );
    assert_eq!(restarted.server.migrations().count(), 0);
}

#[test]
fn so_many_move_at_a_time_and_the_others_wait() {
    let mut xtrs = clients_and_proxies();
    let names: Vec<_> = (100..200).map(|number| format!("{number}")).collect();
    let record_of = |name: &str| record(&format!("10.1.0.1{}", &name[1..]), "192.0.2.77:1");
    for name in &names {
        let client = crate::config::XtrConfig {
            name: name.as_str().into(),
            control_address: Some(control(name).ip()),
            auth: key(name),
            eid_prefixes: vec![record_of(name).eid],
            ..xtrs[0].clone()
        };
        xtrs.push(client);
    }
    let mut bench = Bench::of(Options::default(), xtrs);
    share(&mut bench, "d", &default_routes("d", 1, 100));
    share(&mut bench, "e", &default_routes("e", 2, 100));
    for name in &names {
        bench.register(name, &[record_of(name)]);
        let source = record_of(name).eid.net().addr();
        let nonce = bench.nonce();
        let itr = [control(name).ip()];
        let bytes = crate::server::bench::request(Some(source), &itr, &["8.8.8.8"], nonce);
        bench.datagram(control(name), Via::Tunnel, &bytes);
    }
    let arm = operate(&mut bench, command("d", "e", &[]));
    assert_eq!(arm.len(), limits::MIGRATIONS_AT_ONCE);
    let queued = |bench: &Bench| {
        let all = bench.server.migrations();
        all.filter(|it| it.started.is_none()).count()
    };
    assert_eq!(queued(&bench), 36);
    bench.ack("e", &arm[0]);
    assert_eq!(
        queued(&bench),
        36,
        "the place is taken until it has switched"
    );
    let switch = bench.sent.last().unwrap().clone();
    let name = names
        .iter()
        .find(|name| control(name) == switch.dst)
        .unwrap();
    bench.ack(name, &switch);
    assert_eq!(queued(&bench), 35);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut moves = crate::server::moves::Moves::default();
    let bench = connected();
    let mut report = bench
        .server
        .plan(&command("d", "e", &["a"]))
        .unwrap()
        .remove(0);
    for run in 0..=limits::MIGRATIONS_KEPT as u64 {
        report.run = run;
        moves.remember(Timestamp::ZERO, report.clone());
    }
    assert_eq!(moves.iter().count(), limits::MIGRATIONS_KEPT);
    assert_eq!(
        moves.iter().next().unwrap().run,
        1,
        "the oldest has given way"
    );
}

#[test]
fn the_clients_of_an_owner_that_withholds_its_locators_move_and_stay_until_they_have() {
    let mut bench = connected();
    let arm = share(&mut bench, "d", &default_routes("d", u8::MAX, 100));
    let news = told(&arm);
    assert!(
        news.contains(&"e: 10.0.0.1/32 at 192.0.2.1".to_owned()),
        "{news:?}"
    );
    assert!(
        !news
            .iter()
            .any(|line| line.starts_with("a: 0.0.0.0/0 at 192.0.2.5")),
        "{news:?}"
    );
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
    finish(&mut bench);
    for client in ["a", "b"] {
        assert_eq!(owner(&bench, DEFAULT, client).unwrap(), "e");
    }
    assert!(story(&bench).contains(&"a confirmed".to_owned()));
    assert_eq!(
        connect(&mut bench, "c")[0].0,
        "192.0.2.5",
        "no new ones for d"
    );

    bench.events.clear();
    share(&mut bench, "d", &default_routes("d", 1, 100));
    finish(&mut bench);
    assert_eq!(
        owner(&bench, DEFAULT, "a").unwrap(),
        "e",
        "nobody moves back by himself"
    );
    assert_eq!(story(&bench), [""; 0]);
}

#[test]
fn the_clients_of_the_only_owner_stay_although_it_withholds_its_locators() {
    let mut bench = connected_to_the_only_one();
    share(&mut bench, "d", &default_routes("d", u8::MAX, 100));
    acknowledge_all(&mut bench);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
    assert_eq!(
        connect(&mut bench, "a"),
        [("192.0.2.4".to_owned(), u8::MAX - 2)]
    );
}
