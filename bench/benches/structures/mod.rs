//! Structures that find the longest prefix around an address, all with the same entries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hashbrown::HashMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lisp_proto::{EidPrefix, InstanceId};
use map_server::PrefixTable;
use prefix_trie::PrefixMap;
use treebitmap::IpLookupTable;

/// One entry in so many is shorter than a host.
const SHORTER: u32 = 16;

/// What is compared.
pub(super) trait Structure: Default {
    /// Its name in reports.
    const NAME: &'static str;
    fn insert(&mut self, prefix: IpNet, value: u32);
    fn find(&self, address: IpAddr) -> Option<u32>;
}

/// The map server's own: a hash of all prefixes, and their order beside it.
impl Structure for PrefixTable<u32> {
    const NAME: &'static str = "prefix_table";

    fn insert(&mut self, prefix: IpNet, value: u32) {
        self.insert(EidPrefix::new(InstanceId(0), prefix), value);
    }

    fn find(&self, address: IpAddr) -> Option<u32> {
        let (_, value) = self.longest_match(&EidPrefix::host(InstanceId(0), address))?;
        Some(*value)
    }
}

/// A hash for each length in use, the longest first, and nothing else: what the map server's own is held
/// against.
#[derive(Default)]
pub(super) struct HashPerLength {
    v4: Vec<(u8, HashMap<u32, u32>)>,
    v6: Vec<(u8, HashMap<u128, u32>)>,
}

impl Structure for HashPerLength {
    const NAME: &'static str = "hash_per_length";

    fn insert(&mut self, prefix: IpNet, value: u32) {
        match prefix {
            IpNet::V4(net) => {
                of_length(&mut self.v4, net.prefix_len()).insert(net.network().to_bits(), value)
            }
            IpNet::V6(net) => {
                of_length(&mut self.v6, net.prefix_len()).insert(net.network().to_bits(), value)
            }
        };
    }

    fn find(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(v4) => self.v4.iter().find_map(|(length, entries)| {
                let mask = u32::MAX << (32 - length);
                entries.get(&(v4.to_bits() & mask)).copied()
            }),
            IpAddr::V6(v6) => self.v6.iter().find_map(|(length, entries)| {
                let mask = u128::MAX << (128 - length);
                entries.get(&(v6.to_bits() & mask)).copied()
            }),
        }
    }
}

fn of_length<K>(lengths: &mut Vec<(u8, HashMap<K, u32>)>, length: u8) -> &mut HashMap<K, u32> {
    let at = match lengths.binary_search_by(|(other, _)| length.cmp(other)) {
        Ok(at) => at,
        Err(at) => {
            lengths.insert(at, (length, HashMap::new()));
            at
        }
    };
    &mut lengths.get_mut(at).unwrap().1
}

/// `prefix-trie`: a binary trie.
#[derive(Default)]
pub(super) struct Trie {
    v4: PrefixMap<Ipv4Net, u32>,
    v6: PrefixMap<Ipv6Net, u32>,
}

impl Structure for Trie {
    const NAME: &'static str = "prefix-trie";

    fn insert(&mut self, prefix: IpNet, value: u32) {
        match prefix {
            IpNet::V4(net) => self.v4.insert(net, value),
            IpNet::V6(net) => self.v6.insert(net, value),
        };
    }

    fn find(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(v4) => Some(*self.v4.get_lpm(&v4.into())?.1),
            IpAddr::V6(v6) => Some(*self.v6.get_lpm(&v6.into())?.1),
        }
    }
}

/// `treebitmap`, which is what `ip_network_table` wraps: a trie of several bits per node.
pub(super) struct TreeBitmap {
    v4: IpLookupTable<Ipv4Addr, u32>,
    v6: IpLookupTable<Ipv6Addr, u32>,
}

impl Default for TreeBitmap {
    fn default() -> Self {
        Self {
            v4: IpLookupTable::new(),
            v6: IpLookupTable::new(),
        }
    }
}

impl Structure for TreeBitmap {
    const NAME: &'static str = "treebitmap";

    fn insert(&mut self, prefix: IpNet, value: u32) {
        let length = u32::from(prefix.prefix_len());
        match prefix {
            IpNet::V4(net) => self.v4.insert(net.network(), length, value),
            IpNet::V6(net) => self.v6.insert(net.network(), length, value),
        };
    }

    fn find(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(v4) => Some(*self.v4.longest_match(v4)?.2),
            IpAddr::V6(v6) => Some(*self.v6.longest_match(v6)?.2),
        }
    }
}

/// The addresses of one family.
#[derive(Clone, Copy)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    /// Entry number `n`: a host, or now and then a prefix.
    fn prefix(self, n: u32) -> IpNet {
        let is_shorter = n.is_multiple_of(SHORTER);
        let length = match (self, is_shorter) {
            (Self::V4, false) => 32,
            (Self::V4, true) => 28,
            (Self::V6, false) => 128,
            (Self::V6, true) => 64,
        };
        IpNet::new(self.address(n), length).unwrap().trunc()
    }

    /// An address in entry number `n`, and in no other.
    pub(super) fn address(self, n: u32) -> IpAddr {
        let is_shorter = n.is_multiple_of(SHORTER);
        match (self, is_shorter) {
            (Self::V4, false) => Ipv4Addr::from(0x0a00_0000 | scatter(n, 24)).into(),
            (Self::V4, true) => {
                Ipv4Addr::from(0x0b00_0005 | (scatter(n / SHORTER, 20) << 4)).into()
            }
            (Self::V6, is_shorter) => {
                let site = if is_shorter { 0xfd01_u128 } else { 0xfd00 } << 112;
                let subnet = u128::from(scatter(n, 31)) << 64;
                Ipv6Addr::from(site | subnet | u128::from(scatter(n, 32))).into()
            }
        }
    }
}

/// Spreads numbers over so many bits, each to another place.
const fn scatter(n: u32, bits: u32) -> u32 {
    n.wrapping_mul(0x9e37_79b1) & (u32::MAX >> (32 - bits))
}

/// A structure with so many entries, each of which it finds.
pub(super) fn filled<S: Structure>(family: Family, entries: u32) -> S {
    let mut table = S::default();
    for n in 0..entries {
        table.insert(family.prefix(n), n);
    }
    for n in (0..entries).step_by(97) {
        assert_eq!(table.find(family.address(n)), Some(n), "{} {n}", S::NAME);
    }
    table
}
