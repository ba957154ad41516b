//! Who is asked whether a proxy leads anywhere.

use super::*;
use crate::agent::limits::{LEARNT, LISTEN_EVERY_MAX, WITNESSES_ASIDE};

#[test]
fn what_packets_wanted_becomes_a_witness_if_it_answers() {
    let mut client = Client::new(&[]);
    client.flow(100);
    let seeking = client.echoes.len();
    assert!((3..10).contains(&seeking), "once in a second: {seeking}");
    assert_eq!(client.lost(), [], "it has never answered");
    client.answers.push((addr(FAR), SMALLER));
    client.flow(60);
    client.answers.clear();
    client.flow(10);
    assert_eq!(client.lost(), [SMALLER]);
}

#[test]
fn where_nobody_beyond_answers_the_proxy_itself_is_asked() {
    let mut client = Client::new(&[]);
    let own = record("10.0.1.1/32", SMALLER, Ttl::from_minutes(15));
    let told = client.bench.notify(1, &own);
    client.follow(told);
    client.answers.push((addr("10.0.1.1"), SMALLER));
    client.flow(200);
    assert_eq!(client.lost(), []);
    client.answers.clear();
    client.flow(10);
    assert_eq!(client.lost(), [SMALLER]);
}

#[test]
fn what_the_proxy_itself_sends_does_not_hide_that_two_witnesses_are_silent() {
    let second = "10.200.0.11";
    let mut client = Client::new(&[FAR, second]);
    client.answers.push((addr(second), SMALLER));
    let mut client = client.proves();
    client.answers.clear();
    client.pass(25, 1_000, EVIDENCE * 2);
    assert_eq!(client.lost(), [SMALLER]);
}

#[test]
fn where_packets_go_is_heard_until_two_are_known_who_answer() {
    let mut client = Client::new(&[]);
    client.heard = ["10.0.0.1", "10.200.0.20", "10.200.0.21", "239.0.0.1"]
        .map(addr)
        .to_vec();
    client.flow(30);
    assert_eq!(client.listens, 1);
    for far in ["10.200.0.20", "10.200.0.21"] {
        client.answers.push((addr(far), SMALLER));
    }
    client.flow(200);
    assert!(!client.echoes.contains(&addr("10.0.0.1")), "that is us");
    let (listens, echoes) = (client.listens, client.echoes.len());
    client.flow(2_000);
    assert_eq!(client.listens, listens);
    assert!(client.echoes.len() > echoes);
    client.answers.clear();
    client.flow(10);
    assert_eq!(client.lost(), [SMALLER]);
}

#[test]
fn where_nobody_answers_it_listens_ever_less_often_and_only_while_packets_flow() {
    let mut client = Client::new(&[]);
    client.heard = vec![addr("10.200.0.20")];
    client.flow(10_000);
    // Ten minutes have passed.
    assert!(client.listens <= 15, "{}", client.listens);
    client.pass(100, 0, 0);
    let listens = client.listens;
    let span = LISTEN_EVERY_MAX.as_millis() * 4 / PROBE_EVERY.as_millis();
    client.pass(u32::try_from(span).unwrap(), 0, 0);
    assert_eq!(client.listens, listens);
}

#[test]
fn whoever_has_answered_is_remembered_before_others_who_have_not() {
    let mut client = Client::new(&[]);
    client.answers.push((addr(FAR), SMALLER));
    client.flow(40);
    let agent = &mut client.bench.agent;
    for number in 100..200 {
        agent.heard(&[addr(&format!("10.200.0.{number}"))]);
    }
    assert!(agent.failover.learnt.contains(&addr(FAR)));
    assert!(agent.failover.learnt.contains(&addr("10.200.0.199")));
    assert_eq!(agent.failover.learnt.len(), LEARNT);
}

/// So many times the time between two looks is that long.
fn looks(span: Duration) -> u32 {
    u32::try_from(span.as_millis() / PROBE_EVERY.as_millis()).unwrap()
}

/// A client that has lost the proxy `SMALLER`, and then `BIGGER` as well, where it is.
fn lost_both(mut client: Client) -> Client {
    client.answers.retain(|(_, through)| *through != SMALLER);
    client.flow(10);
    client.answered(&served_by(BIGGER, SMALLER));
    client.counts.insert(BIGGER, (92, 148));
    client.flow(30);
    assert_eq!(client.lost(), [SMALLER, BIGGER]);
    assert_eq!(client.unreachable(), [SMALLER, BIGGER]);
    client.answered(&served_by(BIGGER, SMALLER));
    client.requests.clear();
    client
}

#[test]
fn a_witness_that_goes_takes_a_client_to_the_next_proxy_and_then_nowhere_for_ever_longer() {
    let mut client = lost_both(Client::proven());
    client.flow(looks(WITNESSES_ASIDE * 3 / 4));
    assert_eq!(client.lost(), [SMALLER, BIGGER], "nothing can be said");
    assert_eq!(client.serves(addr(FAR)), BIGGER);
    client.flow(looks(Duration::from_secs(1_800)));
    let lost = client.lost().len();
    assert!((5..60).contains(&lost), "{lost} in half an hour");
}

#[test]
fn a_proxy_that_answers_itself_and_leads_nowhere_is_left_when_another_one_may_be_back() {
    let own = "10.0.1.2";
    let mut client = Client::proven();
    let told = format!("{own}/32");
    let told = record(&told, BIGGER, Ttl::from_minutes(15));
    let told = client.bench.notify(1, &told);
    client.follow(told);
    client.answers.push((addr(own), BIGGER));
    let mut client = lost_both(client);
    client.flow(looks(WITNESSES_ASIDE / 2));
    assert!(client.echoes.contains(&addr(own)), "it answers");
    client.answers.push((addr(FAR), SMALLER));
    client.flow(looks(WITNESSES_ASIDE));
    assert_eq!(client.unreachable(), [BIGGER]);
    client.answered(&served_by(SMALLER, BIGGER));
    let (received, sent) = client.counts[&SMALLER];
    client.counts.insert(SMALLER, (received + 92, sent));
    let lost = client.lost();
    client.flow(looks(WITNESSES_ASIDE * 2));
    assert_eq!(client.serves(addr(FAR)), SMALLER);
    assert_eq!(client.lost(), lost, "there it stays");
}
