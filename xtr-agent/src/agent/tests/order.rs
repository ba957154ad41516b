//! Map-Notifies that overtake each other, and those of several map servers.

use super::*;

const OTHER: &str = "[fd4c:1::2]:4342";

fn two_servers() -> Bench {
    let mut config = Bench::config();
    config.map_servers.push(MapServer {
        address: OTHER.parse().unwrap(),
        key: key(),
        outer: None,
    });
    Bench::with(config)
}

#[test]
fn an_older_notify_does_not_bring_a_withdrawn_mapping_back() {
    let mut bench = Bench::new();
    let installing = bench.notify(5, &far_end(SMALLER));
    bench.done(&installing);
    let gone = bench.notify(7, &record("10.0.0.2/32", SMALLER, Ttl::WITHDRAW));
    assert_eq!(story(&bench.done(&gone)), ["ack"]);
    let late = bench.notify(6, &far_end(SMALLER));
    assert_eq!(story(&late), ["StaleNotify", "ack"]);
    assert_eq!(bench.agent.peers().count(), 0);
    assert_eq!(
        story(&bench.notify(8, &far_end(SMALLER))),
        ["peer [10.0.0.2/32]"]
    );
}

#[test]
fn an_older_notify_does_not_bring_back_what_was_withdrawn_before_it_was_known() {
    let mut bench = Bench::new();
    bench.notify(7, &record("10.0.0.2/32", SMALLER, Ttl::WITHDRAW));
    let late = bench.notify(6, &far_end(SMALLER));
    assert_eq!(story(&late), ["StaleNotify", "ack"]);
}

#[test]
fn nonces_of_different_map_servers_are_not_compared() {
    let mut bench = two_servers();
    bench.notify(500, &far_end(SMALLER));
    let mut bytes = Vec::new();
    let params = NotifyParams {
        nonce: Nonce(3),
        records: &[far_end(BIGGER)],
        handoff: None,
    };
    encode_map_notify(&params, &key(), &mut bytes).unwrap();
    let src = OTHER.parse().unwrap();
    let moved = bench.input(Input::Datagram { src, bytes: &bytes });
    assert_eq!(story(&moved), ["peer [10.0.0.2/32]", "no peer"]);
}

#[test]
fn only_the_silent_map_server_gets_a_new_control_tunnel() {
    let mut bench = two_servers();
    bench.now = Timestamp::ZERO + Duration::from_secs(100);
    // The second one is there.
    let bytes = {
        let mut bytes = Vec::new();
        let params = NotifyParams {
            nonce: Nonce(3),
            records: &[record("10.0.0.9/32", SMALLER, Ttl::WITHDRAW)],
            handoff: None,
        };
        encode_map_notify(&params, &key(), &mut bytes).unwrap();
        bytes
    };
    let src = OTHER.parse().unwrap();
    bench.input(Input::Datagram { src, bytes: &bytes });
    bench.input(Input::TunPacket(&to_far_end(&[1])));
    let renewed = |actions: &[Action]| {
        let renewed = actions.iter().filter_map(|action| match action {
            Action::RenewControlTunnel(index) => Some(*index),
            _ => None,
        });
        renewed.collect::<Vec<_>>()
    };
    assert_eq!(renewed(&bench.after(limits::REQUEST_RETRY)), [0]);
    bench.input(Input::Datagram { src, bytes: &bytes });
    assert!(renewed(&bench.after(limits::REQUEST_RETRY * 2)).is_empty());
}

#[test]
fn for_a_peer_that_stays_silent_another_map_server_is_asked_each_time() {
    let mut bench = two_servers();
    bench.connect(1, &far_end(SMALLER), 1);
    let mut asked = Vec::new();
    for n in 1..40 {
        let actions = bench.after(limits::LIVENESS_POLL);
        let stats = PeerStats {
            key: SMALLER,
            endpoint: None,
            handshake_seen: true,
            rx_bytes: 1,
            tx_bytes: n * 100,
            read_at: bench.now,
        };
        let more = bench.input(Input::PeerStats(&[stats]));
        for action in actions.into_iter().chain(more) {
            if let Action::Send { dst, bytes } = action
                && let Ok(Message::MapRequest(request)) = decode(&bytes)
            {
                asked.push(dst);
                bench.reply(request.nonce, &far_end(SMALLER));
            }
        }
    }
    asked.truncate(3);
    let [first, second] = [0, 1].map(|index| bench.agent.config.map_servers[index].address);
    assert_eq!(asked, [first, second, first]);
}
