//! A map server that crashed and came back reaches agents that have not talked to it since.

use std::time::Duration;

use testbed::{Network, NetworkOptions, Ping, monotonic_ns, sleep};

/// How long the server may take to write down where the agents are.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_first_packet_right_after_a_crash_of_the_map_server_is_answered() {
    let mut network = Network::start(&NetworkOptions::default()).unwrap();
    let endpoints = network.server.state_dir.join("endpoints");
    let written = || {
        let text = std::fs::read_to_string(&endpoints).unwrap_or_default();
        text.lines().count() == 2
    };
    wait_for(written);
    network.server.kill();
    let crashed = network.log.position();
    network.server.start(&network.log).unwrap();
    let server = network.server.daemon().unwrap();
    server
        .wait_since(crashed, "started", PATIENCE, |_| true)
        .unwrap();

    let [alpha, beta] = network.endpoints.as_slice() else {
        panic!("two endpoints");
    };
    // One packet: nothing repeats it if the push to beta is lost.
    let reply = Ping::once(beta.eids[0]).run(alpha.namespace()).unwrap();
    assert_eq!(reply.replies.len(), 1);
    let story = network.log.since(crashed);
    let reported = story
        .iter()
        .any(|event| event.daemon == "beta" && event.event == "registered");
    assert!(!reported, "beta has opened the way itself: {story:?}");
}

fn wait_for(condition: impl Fn() -> bool) {
    let end = u128::from(monotonic_ns()) + PATIENCE.as_nanos();
    while !condition() {
        assert!(u128::from(monotonic_ns()) < end, "waited for too long");
        sleep(Duration::from_millis(100));
    }
}
