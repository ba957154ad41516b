//! What WireGuard sends to keep a way open, as far as its length tells.

use std::time::Duration;

use super::limits::KEEPALIVE;

/// Whether WireGuard sends so many bytes within `span` by itself, where nothing else is sent: persistent keepalives,
/// and the handshakes that they lead to, in either role.
pub(super) fn is_upkeep(bytes: u64, span: Duration) -> bool {
    let within = |interval: Duration| 1 + span.as_secs() / interval.as_secs().max(1);
    let handshakes = within(HANDSHAKE_AGAIN);
    let keepalives = within(KEEPALIVE_LEAST);
    let is_made_of = |of: u64, count: u64| {
        // Many of them are in vain, and then there is no session for a keepalive.
        let most = if count > HANDSHAKES_OF_A_SESSION {
            0
        } else {
            // One of them is what the handshake was started for, or confirms it.
            keepalives + count.min(1)
        };
        let rest = bytes.checked_sub(of * count);
        rest.is_some_and(|rest| rest.is_multiple_of(KEEPALIVE) && rest / KEEPALIVE <= most)
    };
    let parts = [HANDSHAKE_INITIATION, HANDSHAKE_RESPONSE];
    (0..=handshakes).any(|count| parts.iter().any(|of| is_made_of(*of, count)))
}

/// Lengths of messages of WireGuard, in bytes.
const HANDSHAKE_INITIATION: u64 = 148;
const HANDSHAKE_RESPONSE: u64 = 92;
/// WireGuard repeats an initiation that is not answered after that long.
const HANDSHAKE_AGAIN: Duration = Duration::from_secs(5);
/// How often one is repeated, at most, before a session comes about; more would look like data with keepalives.
const HANDSHAKES_OF_A_SESSION: u64 = 3;
/// Shortest time between two persistent keepalives.
const KEEPALIVE_LEAST: Duration = Duration::from_secs(25);

#[cfg(test)]
mod tests {
    use super::super::limits::LIVENESS_POLL;
    use super::*;

    #[test]
    fn what_wireguard_sends_to_keep_a_way_open_is_no_use_of_it() {
        let look = LIVENESS_POLL;
        for upkeep in [0, 32, 92, 92 + 32, 148, 148 + 32, 148 + 64] {
            assert!(is_upkeep(upkeep, look), "{upkeep}");
        }
        // The shortest packets, an echo request, and a full one.
        for data in [64, 80, 96, 128, 148 + 128, 240, 1_452] {
            assert!(!is_upkeep(data, look), "{data}");
        }
        assert!(
            is_upkeep(16 * 148, Duration::from_secs(80)),
            "nobody answers"
        );
        assert!(is_upkeep(3 * 32, Duration::from_secs(50)));
        assert!(!is_upkeep(3 * 32, Duration::from_secs(49)));
        // A packet that says hello is one, among very many peers as well.
        for span in [4, 80, 200] {
            let keepalives = 32 * (span / 25);
            assert!(!is_upkeep(keepalives + 80, Duration::from_secs(span)));
        }
    }
}
