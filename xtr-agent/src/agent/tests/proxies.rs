//! A proxy registers more than lives there: its clients are somewhere inside of what it serves.

use super::*;

/// A proxy of all the world for clients in 10.0.0.0/8.
fn proxy() -> Bench {
    Bench::with(Config {
        serves: vec![net("0.0.0.0/0")],
        shared: true,
        ..Bench::config()
    })
}

/// What another proxy has registered.
fn other_proxy(eid: &str) -> Record {
    record(eid, SMALLER, Ttl::from_minutes(15))
}

#[test]
fn what_lives_there_and_what_is_served_is_registered_together() {
    let mut bench = proxy();
    let actions = bench.input(Input::Start);
    let [bytes] = sent(&actions)[..] else {
        panic!("{actions:?}");
    };
    let Message::MapRegister(register) = decode(bytes).unwrap() else {
        panic!("no registration");
    };
    let eids = register.records().filter_map(|record| record.eid());
    let eids: Vec<_> = eids.map(|eid| eid.net().to_string()).collect();
    assert_eq!(eids, ["10.0.0.1/32", "fd00:1::1/128", "0.0.0.0/0"]);
    let status = bench.agent.status(bench.now);
    assert_eq!(status.eid_prefixes.len(), 3);
}

#[test]
fn packets_from_beyond_a_proxy_are_sent_to_its_clients_and_those_from_elsewhere_are_not() {
    let answer = packet("198.51.100.1", "10.0.0.2", &[1]);
    let mut bench = proxy();
    let asked = bench.input(Input::TunPacket(&answer));
    assert_eq!(story(&asked), ["request"]);
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.reply(nonce, &far_end(SMALLER));
    assert_eq!(story(&installing), ["peer [10.0.0.2/32]"]);
    let fired = bench.done(&installing);
    assert_eq!(story(&fired)[0], "sent on 1");
    let mut endpoint = Bench::new();
    let refused = endpoint.input(Input::TunPacket(&answer));
    assert_eq!(story(&refused), ["SourceNotOurs", "icmp"]);
}

#[test]
fn a_client_that_nobody_knows_is_not_looked_for_behind_another_proxy() {
    let mut bench = proxy();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let refused = bench.reply(nonce, &other_proxy("0.0.0.0/0"));
    assert_eq!(story(&refused), ["NegativeMapping", "icmp"]);
    assert_eq!(bench.agent.sizes().peers, 0);
    // Somebody who serves less is another matter.
    let mut bench = proxy();
    let asked = bench.input(Input::TunPacket(&packet("10.0.0.1", "10.9.0.1", &[1])));
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.reply(nonce, &other_proxy("10.9.0.0/16"));
    assert_eq!(story(&installing), ["peer [10.9.0.0/16]"]);
    // And so is an agent that serves nothing.
    let mut endpoint = Bench::new();
    let asked = endpoint.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let installing = endpoint.reply(nonce, &other_proxy("0.0.0.0/0"));
    assert_eq!(story(&installing), ["peer [10.0.0.0/8]"]);
}

#[test]
fn a_client_is_pushed_to_a_proxy_that_serves_its_address_and_another_proxy_is_not() {
    let mut bench = proxy();
    let acknowledged = bench.notify(1, &other_proxy("0.0.0.0/0"));
    assert_eq!(story(&acknowledged), ["ack"]);
    let installing = bench.notify(2, &far_end(SMALLER));
    assert_eq!(story(&installing), ["peer [10.0.0.2/32]"]);
    assert_eq!(story(&bench.done(&installing)), ["ack"]);
}

#[test]
fn nothing_is_asked_for_that_is_sent_to_many() {
    let mut bench = Bench::with(Config {
        overlay: vec![net("0.0.0.0/0"), net("::/0")],
        ..Bench::config()
    });
    for group in ["224.0.0.251", "239.255.255.250"] {
        let caught = bench.input(Input::TunPacket(&packet("10.0.0.1", group, &[1])));
        assert_eq!(story(&caught), ["NotOverlay"]);
    }
    let asked = bench.input(Input::TunPacket(&packet("10.0.0.1", "198.51.100.1", &[1])));
    assert_eq!(story(&asked), ["request"]);
}
