//! The map server hears for how long nothing came when a mapping moved.

use super::*;
use crate::agent::limits::{ECHO_BYTES, GAP_WATCHED};

#[test]
fn what_comes_of_a_mapping_that_moves_is_watched_and_told_until_it_is_heard() {
    let mut client = moved(1_000);
    let told = client.requests.len();
    assert_eq!(told, 1, "once the move is a moment ago");
    let Some(Gap::Longest(gap)) = client.gap() else {
        panic!("{:?}", client.gap());
    };
    assert!((PROBE_EVERY..PROBE_EVERY * 4).contains(&gap), "{gap:?}");
    client.pass(200, 1_000, 1_000);
    assert!(client.requests.len() > 1, "nobody has answered");
    assert_eq!(client.gap(), Some(Gap::Longest(gap)));
    client.answered(&served_by(BIGGER, SMALLER));
    client.requests.clear();
    client.pass(200, 1_000, 1_000);
    assert_eq!(client.requests.len(), 0);
}

#[test]
fn nobody_can_tell_where_nothing_has_come_since() {
    let client = moved(0);
    assert_eq!(client.gap(), Some(Gap::Unknown));
}

#[test]
fn other_questions_about_the_mapping_say_nothing_of_it_and_end_it_neither() {
    let mut client = moved(1_000);
    let gap = client.gap();
    assert!(gap.is_some());
    client.requests.clear();
    let mut actions = Actions::default();
    let (now, flags) = (client.bench.now, RequestFlags::default());
    let agent = &mut client.bench.agent;
    agent.ask_again(now, net(SERVED), flags, &mut actions);
    client.follow(actions.drain().collect());
    assert_eq!(client.gap(), None, "whoever has to know us is told");
    client.answered(&served_by(BIGGER, SMALLER));
    client.requests.clear();
    client.pass(40, 1_000, 1_000);
    assert_eq!(client.gap(), gap, "nobody has heard it yet");
}

#[test]
fn a_lone_acknowledgement_is_as_long_as_the_answer_to_an_echo_and_counts() {
    assert!(matches!(moved(ECHO_BYTES).gap(), Some(Gap::Longest(_))));
}

/// A client that was moved to `BIGGER`, from where so much comes between two looks, a moment ago.
fn moved(received: u64) -> Client {
    let mut client = Client::new(&[]);
    client.pass(20, 1_000, 1_000);
    client.requests.clear();
    let word = client.bench.notify(5_000, &served_by(BIGGER, SMALLER));
    client.follow(word);
    client.counts.insert(BIGGER, (92, 148));
    client.pass(1, 1_000, 1_000);
    assert_eq!(client.serves(addr(FAR)), BIGGER);
    assert_eq!(client.requests.len(), 0);
    let looks = GAP_WATCHED.as_millis() / PROBE_EVERY.as_millis() + 2;
    client.pass(u32::try_from(looks).unwrap(), 1_000, received);
    client
}

impl Client {
    /// What the latest Map-Request says of a gap.
    fn gap(&self) -> Option<Gap> {
        match decode(self.requests.last().unwrap()) {
            Ok(Message::MapRequest(request)) => request.gap(),
            other => panic!("{other:?}"),
        }
    }
}
