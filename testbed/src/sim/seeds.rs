//! Where does chance come from? One stream per concern, all from one seed.

use std::hash::{BuildHasher, RandomState};

use rand::SeedableRng;
use rand::rngs::StdRng;

/// One source of randomness per concern, so that a change to one concern leaves the others alone.
#[derive(Debug)]
pub(super) struct Streams {
    /// Delay, jitter, loss, duplication.
    pub(super) network: StdRng,
    /// How long a data plane takes for a change, and whether it fails.
    pub(super) data_plane: StdRng,
    /// Ephemeral keys and timer jitter of WireGuard.
    pub(super) wireguard: StdRng,
    /// Seeds of agents and servers.
    pub(super) hosts: StdRng,
    /// What attackers send.
    pub(super) attack: StdRng,
}

impl Streams {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            network: stream(seed, "network"),
            data_plane: stream(seed, "data plane"),
            wireguard: stream(seed, "wireguard"),
            hosts: stream(seed, "hosts"),
            attack: stream(seed, "attack"),
        }
    }
}

/// A number that is another one each time, as the order of a hash map is.
pub(super) fn dice() -> u64 {
    RandomState::new().hash_one(0)
}

/// The stream of `seed` that serves `concern`.
pub(super) fn stream(seed: u64, concern: &str) -> StdRng {
    StdRng::from_seed(bytes(seed, concern))
}

/// 32 bytes that depend on `seed` and `concern` alone.
pub(super) fn bytes(seed: u64, concern: &str) -> [u8; 32] {
    // FNV-1a tells the concerns apart, SplitMix64 spreads the result.
    let mut state = concern
        .bytes()
        .fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let mut out = [0; 32];
    for chunk in out.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(&mix(state).to_be_bytes());
    }
    out
}

/// A number in which every bit depends on every bit of `value`.
pub(super) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_depend_on_seed_and_concern_and_on_nothing_else() {
        assert_eq!(bytes(7, "network"), bytes(7, "network"));
        assert_ne!(bytes(7, "network"), bytes(8, "network"));
        assert_ne!(bytes(7, "network"), bytes(7, "hosts"));
    }
}
