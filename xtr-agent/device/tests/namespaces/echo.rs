//! Round trips through an interface.

use std::future::poll_fn;
use std::net::IpAddr;
use std::time::Duration;

use wg_device::{Listener, Pinger, SMALL_ECHO, round_trips};

use crate::support::{Cable, in_namespace};

#[test]
fn those_that_answer_have_a_round_trip_and_others_have_none() {
    in_namespace(|| async {
        let _cable = Cable::lay();
        let [far, second, ipv6, nobody]: [IpAddr; 4] =
            ["192.0.2.2", "192.0.2.3", "2001:db8::2", "192.0.2.77"]
                .map(|address| address.parse().unwrap());
        // The far end of a cable that was laid just now may take a moment.
        let mut answered = std::collections::BTreeMap::new();
        while answered.len() < 3 {
            let wait = Duration::from_secs(1);
            let targets = [far, second, ipv6, nobody];
            answered.extend(
                round_trips(None, "cable0", &targets, SMALL_ECHO, wait)
                    .await
                    .unwrap(),
            );
        }
        assert!(!answered.contains_key(&nobody));
    });
}

#[test]
fn an_echo_is_answered_by_whom_it_went_to_and_with_its_number() {
    in_namespace(|| async {
        let _cable = Cable::lay();
        let mut pinger = Pinger::new(None, "cable0");
        for (number, far) in [(7, "192.0.2.2"), (7, "2001:db8::2"), (65_535, "192.0.2.3")] {
            let far: IpAddr = far.parse().unwrap();
            // The far end of a cable that was laid just now may take a moment.
            let mut answers = Vec::new();
            for _ in 0..30 {
                drop(pinger.send(far, number));
                let answer = poll_fn(|context| pinger.poll_answer(context));
                let wait = Duration::from_secs(1);
                answers.extend(tokio::time::timeout(wait, answer).await);
                if answers.contains(&(far, number)) {
                    break;
                }
            }
            assert!(answers.contains(&(far, number)), "{answers:?}");
        }
        let mut nowhere = Pinger::new(None, "none0");
        nowhere.send("192.0.2.2".parse().unwrap(), 1).unwrap_err();
    });
}

/// Lets time pass in which the runtime does not get a turn.
#[expect(
    clippy::disallowed_methods,
    reason = "it is the runtime that shall not know"
)]
fn blocked_for(time: Duration) {
    std::thread::sleep(time);
}

/// Whoever looks at counters cannot wait until the runtime has told it of what has come before.
#[test]
fn an_answer_that_has_come_is_there_without_waiting() {
    in_namespace(|| async {
        let _cable = Cable::lay();
        let mut pinger = Pinger::new(None, "cable0");
        assert_eq!(pinger.answered(), None, "nobody was asked");
        for far in ["192.0.2.2", "2001:db8::2"] {
            let far: IpAddr = far.parse().unwrap();
            let mut answers = Vec::new();
            for number in 0..30 {
                drop(pinger.send(far, number));
                blocked_for(Duration::from_millis(200));
                answers.extend(std::iter::from_fn(|| pinger.answered()));
                if !answers.is_empty() {
                    break;
                }
            }
            assert!(answers.iter().all(|(from, _)| *from == far) && !answers.is_empty());
            assert_eq!(pinger.answered(), None, "each is answered once");
        }
    });
}

#[test]
fn who_listens_hears_where_packets_go() {
    in_namespace(|| async {
        let _cable = Cable::lay();
        let mut listener = Listener::new(None, "cable0");
        assert!(listener.end().is_empty(), "it has not begun");
        let [v4, v6]: [IpAddr; 2] =
            ["192.0.2.3", "2001:db8::2"].map(|address| address.parse().unwrap());
        let mut heard = Vec::new();
        for _ in 0..30 {
            listener.begin().unwrap();
            for far in [v4, v6] {
                let wait = Duration::from_millis(500);
                drop(round_trips(None, "cable0", &[far], SMALL_ECHO, wait).await);
            }
            heard = listener.end();
            if heard.contains(&v4) && heard.contains(&v6) {
                break;
            }
        }
        assert!(heard.contains(&v4) && heard.contains(&v6), "{heard:?}");
        Listener::new(None, "none0").begin().unwrap_err();
    });
}

#[test]
fn no_interface_is_an_error() {
    in_namespace(|| async {
        let targets = ["192.0.2.2".parse().unwrap()];
        let wait = Duration::from_secs(1);
        round_trips(None, "none0", &targets, SMALL_ECHO, wait)
            .await
            .unwrap_err();
    });
}
