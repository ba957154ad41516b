//! What waits for the thread that owns the state machine.
//!
//! Questions that change nothing are answered as soon as they are received, and everything else waits here: so
//! a question waits for a few registrations at most, however many came before it.

use std::collections::VecDeque;
use std::net::SocketAddr;

/// Datagrams that are handled before new ones are received, where somebody asks.
const SLICE: usize = 16;
/// Bytes of memory for what waits; sockets are left alone then, and drop what finds no room there.
const ROOM: usize = 8 << 20;

/// Bytes for each datagram besides its own.
const ENTRY: usize = size_of::<(SocketAddr, usize)>();

/// Slices whose memory is kept for others, and bytes of the longest of them.
const SPARE: usize = 64;
const SPARE_BYTES: usize = 16 << 10;

/// Datagrams that came in the plain.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    bytes: Vec<u8>,
    list: Vec<(SocketAddr, usize)>,
}

impl Datagrams {
    pub(super) fn push(&mut self, src: SocketAddr, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.list.push((src, bytes.len()));
    }

    /// Returns how many bytes of memory they take: an empty one takes some as well.
    const fn size(&self) -> usize {
        self.bytes.len() + self.list.len() * ENTRY
    }

    /// Returns how many there are.
    pub(super) const fn len(&self) -> usize {
        self.list.len()
    }

    /// Lists them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        let mut rest = self.bytes.as_slice();
        self.list.iter().filter_map(move |(src, len)| {
            let (bytes, others) = rest.split_at_checked(*len)?;
            rest = others;
            Some((*src, bytes))
        })
    }
}

/// All that waits, in the order in which it came.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    slices: VecDeque<Datagrams>,
    /// Bytes of memory that they take.
    size: usize,
    /// Memory for slices to come.
    spare: Vec<Datagrams>,
}

impl Backlog {
    /// Takes one more in.
    pub(super) fn push(&mut self, src: SocketAddr, bytes: &[u8]) {
        self.size += bytes.len() + ENTRY;
        let last = self.slices.back_mut().filter(|last| last.len() < SLICE);
        match last {
            Some(last) => last.push(src, bytes),
            None => {
                let mut slice = self.spare.pop().unwrap_or_default();
                slice.push(src, bytes);
                self.slices.push_back(slice);
            }
        }
    }

    /// Returns what is to be handled next.
    pub(super) fn pop(&mut self) -> Option<Datagrams> {
        let slice = self.slices.pop_front()?;
        self.size -= slice.size();
        Some(slice)
    }

    /// Takes a slice back that was handled: its memory is used again.
    pub(super) fn recycle(&mut self, mut slice: Datagrams) {
        if self.spare.len() < SPARE && slice.bytes.len() <= SPARE_BYTES {
            slice.bytes.clear();
            slice.list.clear();
            self.spare.push(slice);
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Whether no more should be received.
    pub(super) const fn is_full(&self) -> bool {
        self.size >= ROOM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_is_handled_first_a_slice_at_a_time() {
        let source = SocketAddr::from(([192, 0, 2, 1], 4342));
        let mut backlog = Backlog::default();
        let all: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n; usize::from(n)]).collect();
        all.iter().for_each(|bytes| backlog.push(source, bytes));
        let mut handled = Vec::new();
        while let Some(slice) = backlog.pop() {
            assert!(slice.len() <= SLICE);
            handled.extend(slice.iter().map(|(_, bytes)| bytes.to_vec()));
            backlog.recycle(slice);
        }
        assert_eq!(handled, all);
        assert!(backlog.is_empty());
        backlog.push(source, &[7]);
        let next = backlog.pop().unwrap();
        let next: Vec<_> = next.iter().collect();
        assert_eq!(next, [(source, &[7][..])], "nothing of what was handled");
    }

    #[test]
    fn there_is_room_again_when_it_is_handled() {
        let source = SocketAddr::from(([192, 0, 2, 1], 4342));
        let mut backlog = Backlog::default();
        while !backlog.is_full() {
            backlog.push(source, &[0; 60_000]);
        }
        backlog.pop();
        assert!(!backlog.is_full());
    }

    #[test]
    fn datagrams_without_a_byte_take_room_as_well() {
        let source = SocketAddr::from(([192, 0, 2, 1], 4342));
        let mut backlog = Backlog::default();
        let mut all = 0..ROOM / 8;
        while !backlog.is_full() {
            all.next().expect("there is no end to them");
            backlog.push(source, &[]);
        }
        while backlog.pop().is_some() {}
        assert_eq!(backlog.size, 0);
    }
}
