//! Settings that change while the agent runs, and tunnels that do not notice.

use super::*;

fn changed(bench: &mut Bench, change: impl FnOnce(&mut Adjustable)) -> Vec<Action> {
    let mut wanted = bench.agent.adjustable();
    change(&mut wanted);
    let mut actions = Actions::default();
    bench.agent.reconfigure(bench.now, wanted, &mut actions);
    actions.drain().collect()
}

fn registered_ttls(actions: &[Action]) -> Vec<Ttl> {
    let messages = sent(actions)
        .into_iter()
        .map(|bytes| decode(bytes).unwrap());
    let registers = messages.filter_map(|message| match message {
        Message::MapRegister(register) => Some(register.records().next().unwrap().ttl()),
        _ => None,
    });
    registers.collect()
}

#[test]
fn nothing_new_is_nothing_to_do() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    assert_eq!(changed(&mut bench, |_| ()), []);
}

#[test]
fn a_new_ttl_is_registered_at_once() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let ttl = Ttl::from_minutes(3);
    let actions = changed(&mut bench, |wanted| wanted.ttl = ttl);
    assert_eq!(registered_ttls(&actions), [ttl]);
    assert_eq!(story(&actions), ["register"], "and nothing else happens");
}

#[test]
fn a_subscription_that_is_added_is_asked_for_and_one_that_is_removed_ends() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let own = record("10.0.0.1/32", OWN, Ttl::from_minutes(15));
    bench.notify(1000, &own);
    let to = net("10.0.0.7/32");
    let actions = changed(&mut bench, |wanted| wanted.subscriptions = vec![to]);
    assert_eq!(story(&actions), ["register"]);
    let actions = bench.notify(1001, &own);
    let nonce = requests(&actions)[0].nonce.0;
    let there = record("10.0.0.7/32", SMALLER, Ttl::from_minutes(15));
    let answered = bench.notify(nonce, &there);
    bench.done(&answered);

    let actions = changed(&mut bench, |wanted| wanted.subscriptions.clear());
    assert_eq!(story(&actions), ["request", "register"], "its peer stays");
    let requests = requests(&actions);
    let to: Vec<_> = requests[0].itr_rlocs().map(|rloc| rloc.ip()).collect();
    assert_eq!(to, [None], "no more (RFC 9437 6)");
    let ended = bench.notify(requests[0].nonce.0, &there);
    assert!(!story(&ended).contains(&"request".to_owned()));
    for _ in 0..40 {
        let later = bench.after(Duration::from_secs(5));
        let asks = sent(&later).iter().any(|bytes| {
            matches!(decode(bytes).unwrap(), Message::MapRequest(request)
                if request.eids().any(|eid| eid.subscribe))
        });
        assert!(!asks, "it is over");
    }
}
