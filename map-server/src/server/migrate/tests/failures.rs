//! What is left when something fails on the way.

use lisp_proto::{Locator, Nonce, RequestParams, RequestedEid, encode_map_request};

use super::*;

fn failed(bench: &Bench) -> (Step, String) {
    match last(bench).state {
        MigrationState::Failed { step, why } => (step, why.to_string()),
        state @ (MigrationState::Queued
        | MigrationState::Armed
        | MigrationState::Switched
        | MigrationState::Confirmed) => panic!("{state:?}"),
    }
}

/// No proxy but its owner hears when a changes.
fn is_known_to(bench: &mut Bench, owner: &str) {
    acknowledge_all(bench);
    bench.wait(Duration::from_secs(6));
    let moved = record("10.0.0.1", "198.51.100.77:51820");
    let sent = bench.register("a", &[moved]);
    assert_eq!(proxies_told(&sent), [owner].into());
}

#[test]
fn a_destination_that_does_not_acknowledge_leaves_the_client_where_it_was() {
    let mut bench = connected();
    migrate(&mut bench);
    let sent = bench.wait(limits::MIGRATION_STEP);
    assert_eq!(receivers(&sent), ["e"].into(), "the client hears nothing");
    assert_eq!(failed(&bench), (Step::Arm, "e has not acknowledged".into()));
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
    let last = told(&sent).pop().unwrap();
    assert!(last.ends_with("at nowhere"), "e shall forget it: {last}");
    is_known_to(&mut bench, "d");
}

#[test]
fn a_client_that_does_not_acknowledge_is_put_back_and_the_destination_forgets_it() {
    for answers in [true, false] {
        let mut bench = connected();
        let arm = migrate(&mut bench);
        bench.ack("e", &arm[0]);
        let sent = bench.wait(limits::MIGRATION_STEP);
        assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
        assert_eq!(told(&sent).pop().unwrap(), "a: 0.0.0.0/0 at 192.0.2.4");
        assert!(
            !receivers(&sent).contains("e"),
            "it may be on its way there"
        );
        let sent = match answers {
            true => bench.ack("a", sent.last().unwrap()),
            false => bench.wait(limits::MIGRATION_STEP),
        };
        assert!(told(&sent).contains(&"e: 10.0.0.1/32 at nowhere".to_owned()));
        assert_eq!(
            failed(&bench),
            (Step::Switch, "a has not acknowledged".into())
        );
        is_known_to(&mut bench, "d");
    }
}

#[test]
fn a_source_that_does_not_acknowledge_is_told_on_and_the_client_stays_where_it_went() {
    let mut bench = connected();
    migrate(&mut bench);
    acknowledge_all(&mut bench);
    bench.wait(limits::MIGRATION_LINGER + limits::MIGRATION_STEP);
    assert_eq!(
        failed(&bench),
        (Step::Confirm, "d has not acknowledged".into())
    );
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
    let sent = bench.wait(Duration::from_secs(6));
    assert!(told(&sent).contains(&"d: 10.0.0.1/32 at nowhere".to_owned()));
    is_known_to(&mut bench, "e");
}

#[test]
fn a_destination_that_leaves_gives_the_client_back() {
    let leave = [empty(DEFAULT, 0), empty("::/0", 0)];
    for acknowledged in ["", "e", "ea"] {
        let mut bench = connected();
        migrate(&mut bench);
        acknowledge(&mut bench, |name| acknowledged.contains(name));
        let moved = if acknowledged.is_empty() { "d" } else { "e" };
        assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), moved);
        share(&mut bench, "e", &leave);
        assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
        finish(&mut bench);
        let (_, why) = failed(&bench);
        assert_eq!(why, "e is registered no longer");
        assert_eq!(bench.server.sizes().migrations, 0);
        assert_eq!(connect(&mut bench, "a")[0].0, "192.0.2.4");
        is_known_to(&mut bench, "d");
    }
}

#[test]
fn a_source_that_leaves_loses_the_client_at_once() {
    let leave = [empty(DEFAULT, 0), empty("::/0", 0)];
    for (acknowledged, state) in [("", "failed"), ("e", "confirmed"), ("ea", "confirmed")] {
        let mut bench = connected();
        migrate(&mut bench);
        acknowledge(&mut bench, |name| acknowledged.contains(name));
        share(&mut bench, "d", &leave);
        assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
        finish(&mut bench);
        assert_eq!(last(&bench).state.name(), state, "after {acknowledged:?}");
        is_known_to(&mut bench, "e");
    }
}

#[test]
fn a_client_that_leaves_is_forgotten_by_both() {
    for acknowledged in ["", "e", "ea"] {
        let mut bench = connected();
        migrate(&mut bench);
        acknowledge(&mut bench, |name| acknowledged.contains(name));
        let sent = bench.register("a", &[empty("10.0.0.1", 0), empty("fd00:1::1", 0)]);
        for proxy in ["d", "e"] {
            let line = format!("{proxy}: 10.0.0.1/32 at nowhere");
            assert!(told(&sent).contains(&line), "{:?}", told(&sent));
        }
        let (_, why) = failed(&bench);
        assert_eq!(why, "a is registered no longer");
        assert_eq!(owner(&bench, DEFAULT, "a"), None);
    }
}

#[test]
fn a_client_that_could_not_use_the_destination_and_went_elsewhere_has_not_moved_there() {
    for (acknowledged, step) in [("e", Step::Switch), ("ea", Step::Confirm)] {
        for (lost, found) in [(vec!["e"], "d"), (vec!["d", "e"], "f")] {
            let mut bench = connected();
            migrate(&mut bench);
            acknowledge(&mut bench, |name| acknowledged.contains(name));
            assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
            cannot_reach(&mut bench, &lost);
            assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), found);
            assert_eq!(failed(&bench), (step, format!("it uses {found}")));
            finish(&mut bench);
            is_known_to(&mut bench, found);
        }
    }
}

/// Client a says that it cannot reach these proxies.
fn cannot_reach(bench: &mut Bench, proxies: &[&str]) {
    let locators = proxies.iter().map(|name| Locator {
        reachable: false,
        ..default_routes(name, 1, 100)[0].locators[0]
    });
    let record = Record {
        locators: locators.collect(),
        ..empty(DEFAULT, 1)
    };
    let params = RequestParams {
        nonce: Nonce(30_000 + bench.sent.len() as u64),
        source_eid: Some((Default::default(), own_records("a")[0].eid.net().addr())),
        itr_rlocs: &[control("a").ip()],
        eids: &[RequestedEid {
            subscribe: false,
            eid: eid(DEFAULT),
        }],
        source_record: Some(&record),
        ..RequestParams::default()
    };
    let mut bytes = Vec::new();
    encode_map_request(&params, &mut bytes).unwrap();
    bench.datagram(control("a"), Via::Tunnel, &bytes);
}

#[test]
fn a_client_that_is_being_moved_is_not_moved_again() {
    let mut bench = connected();
    migrate(&mut bench);
    operate(&mut bench, command("d", "f", &["a"]));
    assert_eq!(
        failed_of(&bench, "a"),
        ["it is being moved already"],
        "the first one goes on"
    );
    finish(&mut bench);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
}

fn failed_of(bench: &Bench, client: &str) -> Vec<String> {
    let all = bench.server.migrations().filter(|it| &*it.client == client);
    let mut failed = Vec::new();
    for it in all {
        if let MigrationState::Failed { why, .. } = &it.state {
            failed.push(why.to_string());
        }
    }
    failed
}

#[test]
fn who_cannot_move_is_named_with_the_reason() {
    let mut bench = connected();
    connect(&mut bench, "c");
    operate(&mut bench, command("d", "e", &["b"]));
    finish(&mut bench);
    bench.register("c", &[empty("10.0.0.3", 0), empty("fd00:1::3", 0)]);
    operate(&mut bench, command("d", "f", &["b", "c", "nobody", "gear"]));
    for (client, why) in [
        ("b", "it uses e"),
        ("c", "it has registered nothing"),
        ("nobody", "no xTR has this name"),
        ("gear", "it has registered nothing"),
    ] {
        assert_eq!(failed_of(&bench, client), [why], "{client}");
    }
    let lines = story(&bench);
    assert!(lines.contains(&"nobody failed".to_owned()), "{lines:?}");
}

#[test]
fn a_client_whose_registration_has_run_out_is_named() {
    let mut bench = connected();
    bench.wait(Duration::from_secs(100));
    for (name, priority) in [("d", 1), ("e", 2)] {
        share(&mut bench, name, &default_routes(name, priority, 100));
    }
    bench.wait(Duration::from_secs(90));
    operate(&mut bench, command("d", "e", &[]));
    assert_eq!(failed_of(&bench, "a"), ["it has registered nothing"]);
}

#[test]
fn the_clients_of_the_only_owner_stay_and_are_named() {
    let mut bench = connected_to_the_only_one();
    let drain = Command::Drain {
        from: "d".into(),
        dry_run: false,
    };
    operate(&mut bench, drain);
    assert_eq!(failed_of(&bench, "a"), ["nobody else shares what it uses"]);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
}

/// Begins to move a from d to e; of the others f suits it better than d.
fn begun_with_a_third() -> (Bench, Vec<Sent>) {
    let mut bench = connected();
    share(&mut bench, "d", &default_routes("d", 9, 100));
    acknowledge_all(&mut bench);
    let arm = migrate(&mut bench);
    let switch = bench.ack("e", &arm[0]);
    (bench, switch)
}

#[test]
fn the_source_forgets_a_client_that_a_third_has_got_because_the_destination_left() {
    for has_moved in [false, true] {
        let (mut bench, switch) = begun_with_a_third();
        if has_moved {
            bench.ack("a", &switch[0]);
        }
        let before = bench.sent.len();
        share(&mut bench, "e", &[empty(DEFAULT, 0), empty("::/0", 0)]);
        finish(&mut bench);
        assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "f");
        let told = told(&bench.sent[before..]);
        let forgotten = "d: 10.0.0.1/32 at nowhere".to_owned();
        assert!(told.contains(&forgotten), "moved: {has_moved}, {told:?}");
    }
}
