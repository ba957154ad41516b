//! Messages that wait for their answers.

/// Places; what is overwritten counts as lost.
const PLACES: u64 = 1 << 16;

/// One message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiter {
    /// Zero where nothing waits.
    nonce: u64,
    /// When it was due, in nanoseconds.
    pub(super) due: u64,
    /// What it is about.
    pub(super) subject: u32,
}

/// All messages that wait, by their nonces, which grow by one.
#[derive(Debug)]
pub(super) struct Waiting {
    places: Vec<Waiter>,
    next: u64,
    len: u64,
}

impl Waiting {
    pub(super) fn new(first_nonce: u64) -> Self {
        Self {
            places: (0..PLACES).map(|_| Waiter::default()).collect(),
            next: first_nonce.max(1),
            len: 0,
        }
    }

    /// Returns how many wait.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Takes one in; returns its nonce.
    pub(super) fn begin(&mut self, due: u64, subject: u32) -> u64 {
        let nonce = self.next;
        self.next += 1;
        let waiter = Waiter {
            nonce,
            due,
            subject,
        };
        if let Some(place) = self.place(nonce) {
            let before = std::mem::replace(place, waiter);
            self.len += u64::from(before.nonce == 0);
        }
        nonce
    }

    /// Takes one out.
    pub(super) fn end(&mut self, nonce: u64) -> Option<Waiter> {
        let place = self.place(nonce)?;
        if nonce == 0 || place.nonce != nonce {
            return None;
        }
        let waiter = std::mem::take(place);
        self.len -= 1;
        Some(waiter)
    }

    /// Takes all out, the oldest first.
    pub(super) fn give_up(&mut self) -> Vec<Waiter> {
        let mut all: Vec<_> = self.places.iter_mut().map(std::mem::take).collect();
        all.retain(|waiter| waiter.nonce != 0);
        all.sort_by_key(|waiter| waiter.nonce);
        self.len = 0;
        all
    }

    fn place(&mut self, nonce: u64) -> Option<&mut Waiter> {
        let at = usize::try_from(nonce % PLACES).ok()?;
        self.places.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_answered_once_and_the_rest_given_up_in_order() {
        let mut waiting = Waiting::new(7);
        let nonces: Vec<_> = (0..5).map(|n| waiting.begin(100 + n, 9)).collect();
        assert_eq!(nonces, [7, 8, 9, 10, 11]);
        assert_eq!(waiting.end(8).map(|waiter| waiter.due), Some(101));
        assert_eq!(waiting.end(8), None);
        assert_eq!(waiting.len(), 4);
        let dues: Vec<_> = waiting.give_up().iter().map(|waiter| waiter.due).collect();
        assert_eq!(dues, [100, 102, 103, 104]);
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn what_is_overwritten_waits_no_longer() {
        let mut waiting = Waiting::new(1);
        let first = waiting.begin(0, 0);
        (0..PLACES).for_each(|due| {
            waiting.begin(due, 0);
        });
        assert_eq!(waiting.len(), PLACES);
        assert_eq!(waiting.end(first), None);
    }
}
