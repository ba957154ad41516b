//! What was refused, and whether it is asked for again.

use super::*;

/// Has packets to the far end refused for `minutes`, from now on.
fn refused(bench: &mut Bench, eid: &str, minutes: u32) {
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let mut none = record(eid, OWN, Ttl::from_minutes(minutes));
    none.locators.clear();
    assert_eq!(
        story(&bench.reply(nonce, &none)),
        ["NegativeMapping", "icmp"]
    );
}

#[test]
fn a_refused_destination_that_packets_still_go_to_is_asked_for_again_later_and_later() {
    let mut bench = Bench::new();
    refused(&mut bench, "10.0.0.2/32", 15);
    let mut asked = Vec::new();
    for second in 1..=100 {
        bench.after(Duration::from_secs(1));
        let actions = bench.input(Input::TunPacket(&to_far_end(&[2])));
        let Some(nonce) = requests(&actions).first().map(|request| request.nonce) else {
            assert_eq!(story(&actions), ["NegativeMapping", "icmp"]);
            continue;
        };
        assert_eq!(story(&actions), ["request"], "the packet waits");
        asked.push(second);
        if asked.len() < 3 {
            let mut none = record("10.0.0.2/32", OWN, Ttl::from_minutes(15));
            none.locators.clear();
            bench.reply(nonce, &none);
        } else {
            let installing = bench.reply(nonce, &far_end(SMALLER));
            assert_eq!(story(&installing), ["peer [10.0.0.2/32]"]);
            assert_eq!(story(&bench.done(&installing)), ["sent on 2"]);
            break;
        }
    }
    assert_eq!(asked, [10, 30, 70]);
}

#[test]
fn a_refusal_holds_while_nobody_answers_the_second_question() {
    let mut bench = Bench::new();
    refused(&mut bench, "10.0.0.2/31", 15);
    bench.after(limits::REFUSED_RETRY);
    let asked = bench.input(Input::TunPacket(&to_far_end(&[2])));
    assert_eq!(requests(&asked).len(), 1);
    let waiting = bench.input(Input::TunPacket(&to_far_end(&[3])));
    assert_eq!(story(&waiting), [""; 0], "it waits as well");
    let given_up = bench.after(Duration::from_secs(3));
    let refusals = story(&given_up).iter().filter(|it| *it == "icmp").count();
    assert_eq!(refusals, 2);
    bench.after(Duration::from_secs(2));
    let later = bench.input(Input::TunPacket(&to_far_end(&[4])));
    assert_eq!(story(&later), ["NegativeMapping", "icmp"]);
}

#[test]
fn a_mapping_around_a_refused_destination_takes_its_place() {
    let mut bench = Bench::new();
    refused(&mut bench, "10.0.0.2/31", 15);
    bench.after(limits::REFUSED_RETRY);
    let asked = bench.input(Input::TunPacket(&to_far_end(&[2])));
    let nonce = requests(&asked)[0].nonce;
    let wide = record("10.0.0.0/24", SMALLER, Ttl::from_minutes(15));
    let installing = bench.reply(nonce, &wide);
    bench.done(&installing);
    let later = bench.input(Input::TunPacket(&to_far_end(&[3])));
    assert_eq!(story(&later), ["sent on 3"]);
}

#[test]
fn what_a_map_server_refused_before_it_was_lost_is_asked_for_again_when_it_is_found() {
    let mut bench = Bench::new();
    bench.now = Timestamp::ZERO + Duration::from_secs(100);
    refused(&mut bench, "10.0.0.2/32", 15);
    bench.after(Duration::from_secs(5));
    let other = packet("10.0.0.1", "10.0.0.9", &[1]);
    bench.input(Input::TunPacket(&other));
    let retried = bench.after(limits::REQUEST_RETRY);
    assert_eq!(story(&retried), ["new control tunnel", "request"]);
    let lost = bench.input(Input::TunPacket(&to_far_end(&[2])));
    assert_eq!(story(&lost), ["NegativeMapping", "icmp"]);
    bench.after(Duration::from_millis(10));
    bench.notify(1, &record("10.0.0.8/32", SMALLER, Ttl::WITHDRAW));
    let found = bench.input(Input::TunPacket(&to_far_end(&[3])));
    assert_eq!(story(&found), ["request"]);
}
