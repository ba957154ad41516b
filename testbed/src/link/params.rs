//! What a link does to the frames that cross it.

use std::time::Duration;

/// A probability, in steps of 2^-32 as netem counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// Never.
    pub const NONE: Self = Self(0);
    /// Always.
    pub const ALL: Self = Self(u32::MAX);

    /// `count` in a million; more than a million is always.
    pub fn per_million(count: u32) -> Self {
        let scaled = (u64::from(count) << 32) / 1_000_000;
        Self(u32::try_from(scaled).unwrap_or(u32::MAX))
    }

    /// `count` in a hundred; more than a hundred is always.
    pub fn percent(count: u32) -> Self {
        Self::per_million(count.saturating_mul(10_000))
    }

    /// Whether this is never.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// The probability times 2^32, rounded down.
    pub(crate) fn scaled(self) -> u32 {
        self.0
    }
}

/// What one direction of a link does to frames. The default does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkParams {
    /// Time a frame is on its way, one way.
    pub delay: Duration,
    /// The delay varies evenly by as much as this, up and down; order is kept.
    pub jitter: Duration,
    /// Share of frames that vanish.
    pub loss: Share,
    /// Share of frames that arrive twice.
    pub duplicate: Share,
    /// Share of frames that skip the delay, so overtake those before them.
    pub reorder: Share,
    /// Bits per second; `None` is unlimited.
    pub rate: Option<u64>,
    /// Frames that may be on their way at once; more are dropped.
    pub queue: usize,
    /// Whether the link can be given delay or loss later even where the kernel has no netem.
    pub adjustable: bool,
    /// Whether the testbed's relay carries the frames even where the kernel has netem.
    pub relayed: bool,
}

impl Default for LinkParams {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: Share::NONE,
            duplicate: Share::NONE,
            reorder: Share::NONE,
            rate: None,
            queue: 10_000,
            adjustable: false,
            relayed: false,
        }
    }
}

impl LinkParams {
    /// A link that delays every frame by `delay` and does nothing else.
    pub fn delayed(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    /// The same with this share of frames lost.
    #[must_use]
    pub fn with_loss(self, loss: Share) -> Self {
        Self { loss, ..self }
    }

    /// The same, changeable later on any kernel.
    #[must_use]
    pub fn adjustable(self) -> Self {
        Self {
            adjustable: true,
            ..self
        }
    }

    /// The same on the testbed's relay, on any kernel.
    #[must_use]
    pub fn relayed(self) -> Self {
        Self {
            relayed: true,
            ..self
        }
    }

    /// Whether frames cross as on a bare cable.
    pub fn is_plain(&self) -> bool {
        let Self {
            delay,
            jitter,
            loss,
            duplicate,
            reorder,
            rate,
            queue: _,
            adjustable: _,
            relayed: _,
        } = self;
        delay.is_zero()
            && jitter.is_zero()
            && [loss, duplicate, reorder]
                .into_iter()
                .all(|share| share.is_none())
            && rate.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_scaled_as_netem_wants_them() {
        assert_eq!(Share::percent(50).scaled(), 1 << 31);
        assert_eq!(Share::percent(100), Share::ALL);
        assert_eq!(Share::percent(1_000), Share::ALL);
        assert_eq!(Share::per_million(0), Share::NONE);
    }

    #[test]
    fn a_default_link_is_plain_and_a_lossy_one_is_not() {
        assert!(LinkParams::default().is_plain());
        assert!(
            !LinkParams::default()
                .with_loss(Share::percent(1))
                .is_plain()
        );
        assert!(!LinkParams::delayed(Duration::from_millis(1)).is_plain());
    }
}
