//! Round trips through an interface.

use std::net::IpAddr;
use std::time::Duration;

use wg_device::{SMALL_ECHO, round_trips};

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
fn no_interface_is_an_error() {
    in_namespace(|| async {
        let targets = ["192.0.2.2".parse().unwrap()];
        let wait = Duration::from_secs(1);
        round_trips(None, "none0", &targets, SMALL_ECHO, wait)
            .await
            .unwrap_err();
    });
}
