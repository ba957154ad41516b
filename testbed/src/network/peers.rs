//! The peers of an endpoint, as its agent reports them.

use std::time::Duration;

use serde::Deserialize;

use crate::daemon::LogEvent;

/// One peer of an endpoint's data interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReport {
    /// Public key, in base64.
    pub key: String,
    /// EID-prefixes that lead to it.
    pub eids: Vec<String>,
    /// Where it was last seen or is said to be.
    pub endpoint: Option<String>,
    /// Time since the last handshake; `None` before the first one.
    pub since_handshake: Option<Duration>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

/// A peer as the agent writes it.
#[derive(Deserialize)]
struct RawPeer {
    key: String,
    eids: Vec<String>,
    endpoint: Option<String>,
    since_handshake_ms: Option<u64>,
    rx_bytes: u64,
    tx_bytes: u64,
}

/// Reads the field `peers` of an event `peers`; `None` when it is not as expected.
pub(super) fn read(event: &LogEvent) -> Option<Vec<PeerReport>> {
    let raw: Vec<RawPeer> = serde_json::from_str(event.text("peers")).ok()?;
    let read = |peer: RawPeer| PeerReport {
        key: peer.key,
        eids: peer.eids,
        endpoint: peer.endpoint,
        since_handshake: peer.since_handshake_ms.map(Duration::from_millis),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
    };
    Some(raw.into_iter().map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_read_from_the_text_inside_the_event() {
        let peers = r#"[{\"key\":\"K=\",\"eids\":[\"10.0.0.2/32\"],\"endpoint\":null,\"since_handshake_ms\":7,\"rx_bytes\":1,\"tx_bytes\":2}]"#;
        let line = format!(
            r#"{{"timestamp":"1970-01-01T00:00:01Z","level":"INFO","fields":{{"event":"peers","count":1,"peers":"{peers}"}}}}"#
        );
        let peers = read(&LogEvent::read("alpha", &line)).unwrap();
        assert_eq!(
            (peers.len(), peers[0].key.as_str(), peers[0].tx_bytes),
            (1, "K=", 2)
        );
        assert_eq!(peers[0].since_handshake, Some(Duration::from_millis(7)));
        assert_eq!(read(&LogEvent::read("alpha", "no peers")), None);
    }
}
