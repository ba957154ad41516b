//! Where do values live that are found by number?

use std::collections::BTreeSet;
use std::num::NonZeroU32;

/// Values per chunk.
const CHUNK: u32 = 1_024;

/// Names a value for as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SlotId(NonZeroU32);

impl SlotId {
    const fn new(chunk: u32, offset: u16) -> Self {
        // Zero is left out, so that an absent number takes no more room.
        Self(NonZeroU32::MIN.saturating_add(chunk * CHUNK + offset as u32))
    }

    const fn chunk(self) -> usize {
        ((self.0.get() - 1) / CHUNK) as usize
    }

    const fn offset(self) -> usize {
        ((self.0.get() - 1) % CHUNK) as usize
    }
}

/// Values by number, in chunks: growing moves none of them, and empty chunks give their memory back.
#[derive(Clone, Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Chunk<T>>,
    /// Chunks with room.
    open: BTreeSet<u32>,
    len: usize,
}

#[derive(Clone, Debug)]
struct Chunk<T> {
    slots: Vec<Option<T>>,
    /// Of `slots`, those that are empty.
    free: Vec<u16>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self {
            chunks: Vec::new(),
            open: BTreeSet::new(),
            len: 0,
        }
    }

    /// Returns the number of values.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Takes `value` in; tables are bounded far below the 2^32 values that there are numbers for.
    pub(crate) fn insert(&mut self, value: T) -> SlotId {
        let number = self.open.first().copied().unwrap_or_else(|| {
            let number = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
            self.chunks.push(Chunk::new());
            self.open.insert(number);
            number
        });
        #[expect(clippy::indexing_slicing, reason = "chunks that are open are there")]
        let chunk = &mut self.chunks[number as usize];
        let offset = chunk.put(value);
        if chunk.is_full() {
            self.open.remove(&number);
        }
        self.len += 1;
        SlotId::new(number, offset)
    }

    /// Returns the value that `id` names.
    pub(crate) fn get(&self, id: SlotId) -> Option<&T> {
        self.chunks
            .get(id.chunk())?
            .slots
            .get(id.offset())?
            .as_ref()
    }

    /// Returns the value that `id` names, for changing it.
    pub(crate) fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        let chunk = self.chunks.get_mut(id.chunk())?;
        chunk.slots.get_mut(id.offset())?.as_mut()
    }

    /// Takes the value out that `id` names.
    pub(crate) fn remove(&mut self, id: SlotId) -> Option<T> {
        let number = u32::try_from(id.chunk()).ok()?;
        let offset = id.offset();
        let chunk = self.chunks.get_mut(id.chunk())?;
        let value = chunk.slots.get_mut(offset)?.take()?;
        chunk.free.push(u16::try_from(offset).ok()?);
        if chunk.free.len() == chunk.slots.len() {
            *chunk = Chunk::new();
        }
        self.open.insert(number);
        self.len -= 1;
        Some(value)
    }
}

impl<T> Chunk<T> {
    const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= CHUNK as usize
    }

    fn put(&mut self, value: T) -> u16 {
        if let Some(offset) = self.free.pop() {
            if let Some(slot) = self.slots.get_mut(usize::from(offset)) {
                *slot = Some(value);
            }
            return offset;
        }
        let offset = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        self.slots.push(Some(value));
        offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn a_slab_agrees_with_a_map(changes in prop::collection::vec(any::<prop::sample::Index>(), 0..5_000), removals in 1usize..4) {
            let mut slab = Slab::new();
            let mut map: BTreeMap<SlotId, usize> = BTreeMap::new();
            for (value, change) in changes.into_iter().enumerate() {
                if value % (removals + 1) > 0 && !map.is_empty() {
                    let id = *map.keys().nth(change.index(map.len())).unwrap();
                    prop_assert_eq!(slab.remove(id), map.remove(&id));
                    prop_assert_eq!(slab.get(id), None);
                } else {
                    prop_assert_eq!(map.insert(slab.insert(value), value), None);
                }
                prop_assert_eq!(slab.len(), map.len());
            }
            for (id, value) in &map {
                prop_assert_eq!(slab.get(*id), Some(value));
            }
        }
    }

    #[test]
    fn an_emptied_slab_keeps_no_values_in_memory() {
        let mut slab = Slab::new();
        let ids: Vec<_> = (0..5_000).map(|value| slab.insert(value)).collect();
        assert_eq!(slab.chunks.len(), 5);
        for id in ids {
            slab.remove(id);
        }
        assert!(slab.chunks.iter().all(|chunk| chunk.slots.capacity() == 0));
        slab.insert(7);
        assert_eq!((slab.chunks.len(), slab.len()), (5, 1));
    }
}
