//! How does one locator carry a WireGuard key, an address and a port?
//!
//! No single LCAF holds all three. Sent is form A; forms A to D are read, their items in any
//! order:
//!
//! ```text
//!  A  AFI List { address, Security Key { key, address }, NAT-Traversal { port, address } }
//!  B  Security Key { key, NAT-Traversal { port, address } }
//!  C  Security Key { key, address }                                     the default port
//!  D  AFI List { address, name "@tp-PORT", Security Key { key, address } }
//! ```

use std::net::{IpAddr, SocketAddr};

use crate::address::Address;
use crate::lcaf::{LCAF_AFI_LIST, LCAF_NAT_TRAVERSAL, LCAF_SECURITY_KEY, Lcaf};
use crate::lcaf_body::{NatTraversal, SecurityKey};
use crate::mapping::Rloc;
use crate::types::PublicKey;
use crate::writer::{Writer, address_len};

/// Reads a locator; `None` when it is of no use here or contradicts itself.
pub(crate) fn read_rloc(address: &Address<'_>, default_port: u16) -> Option<Rloc> {
    let mut parts = Parts::default();
    match address {
        Address::Ip(address) => return Some(Rloc::Plain(*address)),
        Address::Lcaf(Lcaf::AfiList(list)) => {
            list.items().try_for_each(|item| parts.add(&item))?;
        }
        Address::Lcaf(Lcaf::SecurityKey(_)) => parts.add(address)?,
        Address::None | Address::Mac(_) | Address::Name(_) | Address::Lcaf(_) => return None,
    }
    let ip = parts.ip?;
    let Some(key) = parts.key else {
        return Some(Rloc::Plain(ip));
    };
    let port = parts.port.unwrap_or(default_port);
    (port != 0).then_some(Rloc::WireGuard {
        endpoint: SocketAddr::new(ip, port),
        key,
    })
}

/// What was found so far; everything found twice must be equal.
#[derive(Default)]
struct Parts {
    ip: Option<IpAddr>,
    port: Option<u16>,
    key: Option<PublicKey>,
}

impl Parts {
    /// Takes one item in; `None` refuses the whole locator. Kinds of items that say nothing
    /// about the endpoint are passed over.
    fn add(&mut self, item: &Address<'_>) -> Option<()> {
        match item {
            Address::Ip(ip) => agree(&mut self.ip, *ip),
            Address::Name(name) => match port_in_name(name) {
                Some(port) => self.add_port(port),
                None => Some(()),
            },
            Address::Lcaf(Lcaf::SecurityKey(keys)) => {
                agree(&mut self.key, x25519_key(keys)?)?;
                self.add_owner(&keys.locator.read())
            }
            Address::Lcaf(Lcaf::NatTraversal(nat)) => self.add_nat(nat),
            Address::None | Address::Mac(_) | Address::Lcaf(_) => Some(()),
        }
    }

    /// Takes in the locator inside a Security Key: a plain address, or form B.
    fn add_owner(&mut self, owner: &Address<'_>) -> Option<()> {
        match owner {
            Address::Ip(ip) => agree(&mut self.ip, *ip),
            Address::Lcaf(Lcaf::NatTraversal(nat)) => self.add_nat(nat),
            Address::None | Address::Mac(_) | Address::Name(_) | Address::Lcaf(_) => Some(()),
        }
    }

    fn add_nat(&mut self, nat: &NatTraversal<'_>) -> Option<()> {
        self.add_port(nat.etr_port)?;
        match nat.global_etr.read().ip() {
            Some(ip) => agree(&mut self.ip, ip),
            None => Some(()),
        }
    }

    fn add_port(&mut self, port: u16) -> Option<()> {
        if port == 0 {
            return None;
        }
        agree(&mut self.port, port)
    }
}

/// Notes a value, or checks that it is the one noted before.
fn agree<T: PartialEq + Copy>(slot: &mut Option<T>, value: T) -> Option<()> {
    (*slot.get_or_insert(value) == value).then_some(())
}

/// Returns the first key if it is a usable X25519 public key.
fn x25519_key(keys: &SecurityKey<'_>) -> Option<PublicKey> {
    if keys.revoked || !X25519_SUITES.contains(&keys.algorithm) {
        return None;
    }
    let key: [u8; 32] = keys.keys().next()?.try_into().ok()?;
    (key != [0; 32]).then_some(PublicKey(key))
}

/// Reads a translated port from a name such as `gw@tp-51820`.
fn port_in_name(name: &[u8]) -> Option<u16> {
    let (_, port) = str::from_utf8(name).ok()?.rsplit_once("@tp-")?;
    port.parse().ok()
}

/// Writes a locator behind its AFI: a plain address, or form A.
pub(crate) fn write_rloc(writer: &mut Writer<'_>, rloc: &Rloc) {
    let (endpoint, key) = match rloc {
        Rloc::Plain(address) => return writer.address(*address),
        Rloc::WireGuard { endpoint, key } => (endpoint, key),
    };
    let address = endpoint.ip();
    let key_len = 4 + 2 + 32 + address_len(address);
    let nat_len = 2 + 2 + address_len(address) + 2 + 2;
    let headers_len = LCAF_HEADER_LEN * 2;
    writer.lcaf(
        LCAF_AFI_LIST,
        address_len(address) + headers_len + key_len + nat_len,
    );
    writer.address(address);

    writer.lcaf(LCAF_SECURITY_KEY, key_len);
    writer.bytes(&[1, 0, SUITE_CHACHA20_POLY1305, 0]);
    writer.u16(32);
    writer.bytes(&key.0);
    writer.address(address);

    writer.lcaf(LCAF_NAT_TRAVERSAL, nat_len);
    writer.u16(0);
    writer.u16(endpoint.port());
    writer.address(address);
    writer.no_address();
    writer.no_address();
}

/// Bytes of an LCAF before its body, AFI included.
const LCAF_HEADER_LEN: u16 = 8;

/// RFC 8061 §6: LISP_256_EC25519_CHACHA20_POLY1305, the one nearest to WireGuard.
const SUITE_CHACHA20_POLY1305: u8 = 6;

/// The suites whose public key is an X25519 key of 32 bytes (RFC 8061 §6).
const X25519_SUITES: [u8; 3] = [2, 5, SUITE_CHACHA20_POLY1305];
