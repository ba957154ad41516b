//! What an agent keeps for its next life.

use super::*;

/// An agent with one mapping in use, and a snapshot of it.
fn before() -> Snapshot {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(BIGGER));
    bench.done(&installing);
    let other = bench.notify(2, &record("10.3.0.0/16", BIGGER, Ttl::from_minutes(10)));
    bench.done(&other);
    bench.agent.snapshot(bench.now)
}

fn restored(snapshot: &Snapshot, age: Duration, adopted: &[PublicKey]) -> (Bench, Vec<Action>) {
    let mut bench = Bench::new();
    let mut actions = Actions::default();
    let agent = &mut bench.agent;
    agent.restore(bench.now, snapshot, age, adopted, &mut actions);
    (bench, actions.drain().collect())
}

fn endpoints(actions: &[Action]) -> Vec<Option<SocketAddr>> {
    let specs = actions.iter().filter_map(|action| match action {
        Action::Apply {
            change: Change::SetPeer(spec),
            ..
        } => Some(spec.endpoint),
        _ => None,
    });
    specs.collect()
}

#[test]
fn an_adopted_peer_is_named_whole_and_without_its_endpoint() {
    let (mut bench, actions) = restored(&before(), Duration::ZERO, &[BIGGER]);
    let whole = "peer [10.0.0.2/32, 10.3.0.0/16]";
    assert_eq!(story(&actions), [whole, whole]);
    assert_eq!(endpoints(&actions), [None, None]);
    let routes = bench.done(&actions);
    assert_eq!(story(&routes), ["route 10.0.0.2/32", "route 10.3.0.0/16"]);
    bench.done(&routes);
    let packet = bench.input(Input::TunPacket(&to_far_end(&[7])));
    assert_eq!(story(&packet), ["sent on 7"], "without any map server");
}

#[test]
fn a_peer_that_is_gone_is_set_up_with_its_endpoint() {
    let (_, actions) = restored(&before(), Duration::ZERO, &[]);
    let endpoint: SocketAddr = "192.0.2.2:51820".parse().unwrap();
    assert_eq!(endpoints(&actions), [Some(endpoint), Some(endpoint)]);
}

#[test]
fn what_has_expired_in_the_meantime_is_left_out() {
    let (_, actions) = restored(&before(), Duration::from_secs(601), &[]);
    assert_eq!(story(&actions), ["peer [10.0.0.2/32]"]);
    let (_, actions) = restored(&before(), Duration::from_secs(901), &[]);
    assert_eq!(story(&actions), [""; 0]);
}

#[test]
fn what_does_not_fit_the_configuration_any_more_is_left_out() {
    let saved = before();
    let mut other_key = saved.clone();
    other_key.public_key = Some(SMALLER);
    assert_eq!(story(&restored(&other_key, Duration::ZERO, &[]).1), [""; 0]);
    let mut other_plan = saved.clone();
    other_plan.iid = InstanceId(7);
    assert_eq!(
        story(&restored(&other_plan, Duration::ZERO, &[]).1),
        [""; 0]
    );
    let mut bent = saved;
    let wrong = ["192.168.0.0/24", "10.0.0.1/32", "10.3.0.1/16"];
    let first = bent.mappings[0];
    bent.mappings = wrong
        .map(|prefix| SavedMapping {
            prefix: net(prefix),
            region: net(prefix),
            ..first
        })
        .to_vec();
    bent.mappings.push(SavedMapping {
        endpoint: "[2001:db8::1]:1".parse().unwrap(),
        ..first
    });
    bent.mappings.push(SavedMapping { key: OWN, ..first });
    assert_eq!(story(&restored(&bent, Duration::ZERO, &[]).1), [""; 0]);
}

#[test]
fn restored_mappings_are_asked_for_once_a_map_server_answers() {
    let (mut bench, actions) = restored(&before(), Duration::ZERO, &[BIGGER]);
    let routes = bench.done(&actions);
    bench.done(&routes);
    let started = bench.input(Input::Start);
    let Message::MapRegister(register) = decode(sent(&started)[0]).unwrap() else {
        panic!("no Map-Register");
    };
    let nonce = register.nonce.0;
    assert!(requests(&bench.after(Duration::from_millis(500))).is_empty());
    let own = record("10.0.0.1/32", OWN, Ttl::from_minutes(15));
    let at_once = bench.notify(nonce, &own);
    assert_eq!(requests(&at_once).len(), 1);
    let later = bench.after(limits::RESTORED_REFRESH);
    assert_eq!(requests(&later).len(), 1, "one after the other");
    let nonce = requests(&at_once)[0].nonce;
    let moved = bench.reply(nonce, &far_end(SMALLER));
    assert_eq!(story(&moved), ["peer [10.0.0.2/32]", "peer [10.3.0.0/16]"]);
}

#[test]
fn an_idle_peer_keeps_its_session_over_a_restart_and_gets_no_route() {
    let mut saved = before();
    for mapping in &mut saved.mappings {
        mapping.dozing = true;
    }
    let (_, actions) = restored(&saved, Duration::ZERO, &[]);
    assert_eq!(
        story(&actions),
        [""; 0],
        "without its session it is of no use"
    );
    let (mut bench, actions) = restored(&saved, Duration::ZERO, &[BIGGER]);
    let whole = "peer [10.0.0.2/32, 10.3.0.0/16]";
    assert_eq!(story(&actions), [whole, whole]);
    assert_eq!(story(&bench.done(&actions)), [""; 0]);
    assert_eq!(bench.agent.snapshot(bench.now), saved);
    bench.after(Duration::from_secs(4));
    let looked = bench.handshake(BIGGER, 5_000);
    assert_eq!(
        story(&looked),
        [""; 0],
        "counters of an earlier life are no use of it"
    );
    bench.after(Duration::from_secs(4));
    let used = bench.handshake(BIGGER, 5_100);
    assert_eq!(story(&used), ["route 10.0.0.2/32", "route 10.3.0.0/16"]);
}

#[test]
fn a_packet_to_an_idle_peer_of_an_earlier_life_is_asked_for() {
    let mut saved = before();
    for mapping in &mut saved.mappings {
        mapping.dozing = true;
    }
    let (mut bench, actions) = restored(&saved, Duration::ZERO, &[BIGGER]);
    bench.done(&actions);
    bench.after(Duration::from_millis(10));
    bench.input(Input::TunPacket(&to_far_end(&[1])));
    let looked = bench.handshake(BIGGER, 5_000);
    assert!(story(&looked).contains(&"request".to_owned()), "{looked:?}");
}

#[test]
fn a_snapshot_survives_its_own_restoration() {
    let saved = before();
    let (bench, _) = restored(&saved, Duration::ZERO, &[]);
    assert_eq!(bench.agent.snapshot(bench.now), saved);
}
