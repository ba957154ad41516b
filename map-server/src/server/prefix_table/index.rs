//! Where is the entry of exactly this prefix?

use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};
use ipnet::IpNet;
use lisp_proto::EidPrefix;

use super::slab::SlotId;

/// A table with more entries than this is divided, so that growing never takes long.
const UNDIVIDED: usize = 4_096;
/// Parts of a divided table.
const PARTS: usize = 256;
/// The bits of a hash that choose the part: the tables themselves use others.
const PART_SHIFT: u32 = 40;

/// Numbers of entries by the hash of their prefixes, which are read where the entries are. It is never
/// iterated: nothing depends on its order.
#[derive(Clone, Debug)]
pub(super) struct Index {
    parts: Vec<HashTable<SlotId>>,
    hasher: DefaultHashBuilder,
    len: usize,
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            parts: vec![HashTable::new()],
            hasher: DefaultHashBuilder::default(),
            len: 0,
        }
    }

    /// Finds the entry of `eid`; `is_it` compares.
    pub(super) fn find(&self, eid: &EidPrefix, is_it: impl Fn(SlotId) -> bool) -> Option<SlotId> {
        let hash = self.hash(eid);
        let part = self.parts.get(self.part(hash))?;
        part.find(hash, |id| is_it(*id)).copied()
    }

    /// Finds an entry that may be that of `eid`, without looking at it: it mostly is.
    pub(super) fn likely(&self, eid: &EidPrefix) -> Option<SlotId> {
        let hash = self.hash(eid);
        let part = self.parts.get(self.part(hash))?;
        part.find(hash, |_| true).copied()
    }

    /// Takes in where the entry of `eid` is, which has none yet; `eid_at` reads the prefixes of entries.
    pub(super) fn insert(
        &mut self,
        eid: &EidPrefix,
        id: SlotId,
        eid_at: impl Fn(SlotId) -> Option<EidPrefix>,
    ) {
        if self.len == UNDIVIDED && self.parts.len() == 1 {
            self.divide(&eid_at);
        }
        let hash = self.hash(eid);
        let at = self.part(hash);
        let hasher = &self.hasher;
        if let Some(part) = self.parts.get_mut(at) {
            part.insert_unique(hash, id, |id| rehash(hasher, eid_at(*id)));
            self.len += 1;
        }
    }

    /// Forgets the entry of `eid`, and returns where it is.
    pub(super) fn remove(
        &mut self,
        eid: &EidPrefix,
        eid_at: impl Fn(SlotId) -> Option<EidPrefix>,
    ) -> Option<SlotId> {
        let hash = self.hash(eid);
        let at = self.part(hash);
        let hasher = &self.hasher;
        let part = self.parts.get_mut(at)?;
        let found = part.find_entry(hash, |id| eid_at(*id) == Some(*eid)).ok()?;
        let (id, _) = found.remove();
        self.len -= 1;
        if part.len() * 8 < part.capacity() {
            part.shrink_to(part.len() * 2, |id| rehash(hasher, eid_at(*id)));
        }
        Some(id)
    }

    fn divide(&mut self, eid_at: impl Fn(SlotId) -> Option<EidPrefix>) {
        let whole = std::mem::replace(&mut self.parts, vec![HashTable::new(); PARTS]);
        for id in whole.into_iter().flatten() {
            let hash = rehash(&self.hasher, eid_at(id));
            let at = self.part(hash);
            let hasher = &self.hasher;
            if let Some(part) = self.parts.get_mut(at) {
                part.insert_unique(hash, id, |id| rehash(hasher, eid_at(*id)));
            }
        }
    }

    const fn part(&self, hash: u64) -> usize {
        (hash >> PART_SHIFT) as usize & (self.parts.len() - 1)
    }

    fn hash(&self, eid: &EidPrefix) -> u64 {
        hash(&self.hasher, eid)
    }
}

fn rehash(hasher: &DefaultHashBuilder, eid: Option<EidPrefix>) -> u64 {
    eid.map_or(0, |eid| hash(hasher, &eid))
}

fn hash(hasher: &DefaultHashBuilder, eid: &EidPrefix) -> u64 {
    let (family, address) = match eid.net() {
        IpNet::V4(net) => (4, u128::from(net.addr().to_bits())),
        IpNet::V6(net) => (6, net.addr().to_bits()),
    };
    let rest = u64::from(eid.iid().0) << 16 | u64::from(eid.net().prefix_len()) << 8 | family;
    let mut hasher = hasher.build_hasher();
    hasher.write_u128(address);
    hasher.write_u64(rest);
    hasher.finish()
}
