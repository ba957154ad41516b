//! Flows that pause for so long that sessions end, NATs forget, or routes of idle peers go.

use rand::Rng;

use super::scenario::{Flow, Scenario, Target};
use super::seeds::stream;

/// How long they pause, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 60_000..200_000;
/// The first of their packets are sent within this time, in milliseconds.
const BEGIN_WITHIN_MS: u64 = 60_000;
/// Time after the last packet, in milliseconds.
const REST_MS: u64 = 4_000;

impl Scenario {
    /// Adds pairs of hosts of which one sends some packets, and one of the two some more after a long pause, and so on.
    #[must_use]
    pub fn with_pauses(mut self) -> Self {
        let mut rng = stream(self.seed, "pauses");
        let rng = &mut rng;
        let proxies = self.proxies.as_ref().map_or(0, |proxies| proxies.count);
        let hosts = self.agents.saturating_sub(proxies);
        if hosts < 2 {
            return self;
        }
        let warm = self.start_within_ms + 4_000 + self.found_ms();
        for _ in 0..hosts.div_ceil(3) {
            let one = rng.random_range(0..hosts);
            let other = (one + rng.random_range(1..hosts)) % hosts;
            let (mut one, mut other) = (proxies + one, proxies + other);
            let mut start_ms = warm + rng.random_range(0..BEGIN_WITHIN_MS);
            let (ipv6, echo) = (rng.random_bool(0.4), rng.random_bool(0.6));
            for _ in 0..rng.random_range(3..=4) {
                let flow = Flow {
                    from: one,
                    to: Target::Agent(other, rng.random_range(0..16)),
                    ipv6,
                    echo,
                    start_ms,
                    packets: rng.random_range(2..8),
                    interval_us: rng.random_range(100_000..600_000),
                };
                self.flows.push(flow);
                let ends_ms = start_ms + u64::from(flow.packets) * flow.interval_us / 1_000;
                self.duration_ms = self.duration_ms.max(ends_ms + REST_MS);
                start_ms = ends_ms + rng.random_range(PAUSE_MS);
                if rng.random() {
                    (one, other) = (other, one);
                }
            }
        }
        self
    }
}
