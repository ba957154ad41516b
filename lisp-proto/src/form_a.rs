//! A WireGuard locator exactly as we write it ourselves, read in one go.
//!
//! Nearly all locators between our own daemons have this form. Reading it item by item gives the same, and
//! takes several times as long.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::mapping::Rloc;
use crate::types::PublicKey;

/// Reads a locator that begins `bytes`, and returns its length as well; `None` if it has another form, or no
/// usable key or port.
pub(crate) fn read_form_a(bytes: &[u8]) -> Option<(Rloc, usize)> {
    match bytes.get(8..10)? {
        [0, 1] => {
            let (address, port, key) = Template::<4, 88>::V4.read(bytes)?;
            found(Ipv4Addr::from_octets(address).into(), port, key, 88)
        }
        [0, 2] => {
            let (address, port, key) = Template::<16, 124>::V6.read(bytes)?;
            found(Ipv6Addr::from_octets(address).into(), port, key, 124)
        }
        _ => None,
    }
}

fn found(address: IpAddr, port: [u8; 2], key: [u8; 32], len: usize) -> Option<(Rloc, usize)> {
    let port = u16::from_be_bytes(port);
    (port != 0 && key != [0; 32]).then(|| {
        let endpoint = SocketAddr::new(address, port);
        let key = PublicKey(key);
        (Rloc::WireGuard { endpoint, key }, len)
    })
}

/// What stands between the addresses, the key and the port, for addresses of `A` bytes and `LEN` bytes in all.
struct Template<const A: usize, const LEN: usize> {
    /// AFI-list, up to the first address.
    list: [u8; 10],
    /// Security Key, up to the key.
    security: [u8; 14],
    /// AFI of the address behind the key.
    afi: [u8; 2],
    /// NAT-Traversal, up to the port.
    nat: [u8; 10],
}

impl Template<4, 88> {
    const V4: Self = Self {
        list: [0x40, 3, 0, 0, 1, 0, 0, 80, 0, 1],
        security: [0x40, 3, 0, 0, 11, 0, 0, 44, 1, 0, 6, 0, 0, 32],
        afi: [0, 1],
        nat: [0x40, 3, 0, 0, 7, 0, 0, 14, 0, 0],
    };
}

impl Template<16, 124> {
    const V6: Self = Self {
        list: [0x40, 3, 0, 0, 1, 0, 0, 116, 0, 2],
        security: [0x40, 3, 0, 0, 11, 0, 0, 56, 1, 0, 6, 0, 0, 32],
        afi: [0, 2],
        nat: [0x40, 3, 0, 0, 7, 0, 0, 26, 0, 0],
    };
}

impl<const A: usize, const LEN: usize> Template<A, LEN> {
    /// Returns address, port and key.
    fn read(&self, bytes: &[u8]) -> Option<([u8; A], [u8; 2], [u8; 32])> {
        let rest = &mut bytes.get(..LEN)?;
        expect(rest, &self.list)?;
        let address: [u8; A] = take(rest)?;
        expect(rest, &self.security)?;
        let key = take(rest)?;
        expect(rest, &self.afi)?;
        expect(rest, &address)?;
        expect(rest, &self.nat)?;
        let port = take(rest)?;
        expect(rest, &self.afi)?;
        expect(rest, &address)?;
        expect(rest, &[0; 4])?;
        Some((address, port, key))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, others) = rest.split_first_chunk()?;
    *rest = others;
    Some(*taken)
}

fn expect<const N: usize>(rest: &mut &[u8], bytes: &[u8; N]) -> Option<()> {
    (take(rest)? == *bytes).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::reader::Reader;
    use crate::wireguard::{read_items, write_rloc};
    use crate::writer::Writer;

    const ENDPOINTS: [&str; 2] = ["192.0.2.1:51820", "[2001:db8::1]:51820"];

    fn written(endpoint: &str) -> (Rloc, Vec<u8>) {
        let rloc = Rloc::WireGuard {
            endpoint: endpoint.parse().unwrap(),
            key: PublicKey([7; 32]),
        };
        let mut bytes = Vec::new();
        write_rloc(&mut Writer::new(&mut bytes), &rloc);
        (rloc, bytes)
    }

    #[test]
    fn what_we_write_is_read_also_when_more_follows() {
        for endpoint in ENDPOINTS {
            let (rloc, mut bytes) = written(endpoint);
            let len = bytes.len();
            assert_eq!(read_form_a(&bytes), Some((rloc, len)));
            bytes.push(1);
            assert_eq!(read_form_a(&bytes), Some((rloc, len)));
            assert_eq!(read_form_a(&bytes[..len - 1]), None);
        }
    }

    #[test]
    fn whatever_is_changed_it_is_read_as_item_by_item_or_not_at_all() {
        for endpoint in ENDPOINTS {
            let (_, written) = written(endpoint);
            let mut read = 0;
            for position in 0..written.len() {
                for bit in 0..8 {
                    let mut bytes = written.clone();
                    bytes[position] ^= 1 << bit;
                    let Some((rloc, len)) = read_form_a(&bytes) else {
                        continue;
                    };
                    let mut reader = Reader::new(&bytes);
                    let address = Address::read(&mut reader, "locator", 0).unwrap();
                    assert_eq!(read_items(&address, 9), Some(rloc));
                    assert_eq!((reader.end(), len), (Ok(()), bytes.len()));
                    read += 1;
                }
            }
            assert_eq!(read, 8 * (32 + 2), "key and port may be others");
        }
    }

    #[test]
    fn without_a_usable_key_or_port_it_is_left_to_others() {
        let (_, written) = written(ENDPOINTS[0]);
        for unusable in [28..60, 76..78] {
            let mut bytes = written.clone();
            bytes[unusable].fill(0);
            assert_eq!(read_form_a(&bytes), None);
        }
    }
}
