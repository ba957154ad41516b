//! What the ends of a relay hear when it asks for them.

use super::*;

/// Lets d ask for b, for a packet of `source`; what anybody hears.
fn passes_on(bench: &mut Bench, source: &str) -> Vec<String> {
    let before = bench.sent.len();
    let source = (InstanceId(0), source.parse().unwrap());
    let target = EidPrefix::host(InstanceId(0), "10.0.0.2".parse().unwrap());
    ask_with(bench, "d", source, &[target], &[]);
    acknowledge_all(bench);
    told(&bench.sent[before..])
}

fn register_own_of_relay(bench: &mut Bench) {
    let own = record(own_address("d"), endpoint("d"));
    bench.register("d", &[own]);
    acknowledge_all(bench);
}

/// They have forgotten each other, and the end that sends has not.
#[test]
fn an_end_hears_of_the_other_end_and_the_relay_before_that_passes_on_a_packet() {
    let mut bench = network(&["a", "b"], &["d"]);
    register_own_of_relay(&mut bench);
    outcome(&mut bench, &lost("b"));
    for source in ["10.0.0.1", "10.0.1.4"] {
        let news = passes_on(&mut bench, source);
        let answer = news.iter().position(|it| it.starts_with("d: 10.0.0.2/32"));
        for expected in ["b: 10.0.0.1/32 at 192.0.2.4", "b: 10.0.1.4/32 at 192.0.2.4"] {
            let heard = news.iter().position(|it| it == expected);
            assert!(heard.is_some() && heard < answer, "{expected}: {news:?}");
        }
    }
}

#[test]
fn so_it_does_of_a_relay_that_has_nothing_for_itself() {
    let mut bench = network(&["a", "b"], &["d"]);
    outcome(&mut bench, &lost("b"));
    let news = passes_on(&mut bench, "10.0.0.1");
    assert!(
        news.contains(&"b: 10.0.0.1/32 at 192.0.2.4".into()),
        "{news:?}"
    );
}

/// It may have lost all that it knew, and talk to the relay itself.
#[test]
fn whoever_asks_for_his_relay_hears_of_all_that_is_behind_it() {
    let mut bench = network(&["a", "b"], &["d"]);
    register_own_of_relay(&mut bench);
    outcome(&mut bench, &lost("b"));
    let before = bench.sent.len();
    bench.ask("b", "10.0.1.4");
    acknowledge_all(&mut bench);
    let news = told(&bench.sent[before..]);
    let expected = "b: 10.0.0.1/32 at 192.0.2.4".to_owned();
    assert!(news.contains(&expected), "{news:?}");
}

/// One of the two has not heard of it, and its packets still come to the relay.
#[test]
fn ends_that_are_to_try_without_hear_of_each_other_when_the_relay_still_gets_packets() {
    let mut bench = network(&["a", "b"], &["d"]);
    outcome(&mut bench, &lost("b"));
    bench.wait(limits::RELAY_LIFETIME_FIRST);
    acknowledge_all(&mut bench);
    let news = passes_on(&mut bench, "10.0.0.1");
    for expected in ["a: 10.0.0.2/32 at 192.0.2.2", "b: 10.0.0.1/32 at 192.0.2.1"] {
        assert!(news.contains(&expected.to_owned()), "{news:?}");
    }
    let news = passes_on(&mut bench, "10.0.0.3");
    assert!(!news.iter().any(|it| it.starts_with("b: ")), "{news:?}");
}

#[test]
fn whoever_does_not_need_the_relay_hears_nothing_of_others() {
    let mut bench = network(&["a", "b", "c"], &["d"]);
    let others = |news: &[String]| {
        let heard = news.iter().filter(|it| it.starts_with("b: "));
        heard.cloned().collect::<Vec<_>>()
    };
    assert_eq!(
        others(&passes_on(&mut bench, "10.0.0.1")),
        [] as [String; 0]
    );
    complain(&mut bench, "a", "c", &lost("c"));
    acknowledge_all(&mut bench);
    assert_eq!(
        others(&passes_on(&mut bench, "10.0.0.1")),
        [] as [String; 0]
    );
}
