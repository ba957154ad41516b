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

use crate::address::{Address, EncodedAddress};
use crate::form_a::read_form_a;
use crate::lcaf::{LCAF_AFI_LIST, LCAF_NAT_TRAVERSAL, LCAF_SECURITY_KEY, Lcaf};
use crate::lcaf_body::{NatTraversal, SecurityKey};
use crate::mapping::Rloc;
use crate::types::PublicKey;
use crate::writer::{Writer, address_len};

/// Reads a locator; `None` when it is of no use here or contradicts itself.
pub(crate) fn read_rloc(address: &EncodedAddress<'_>, default_port: u16) -> Option<Rloc> {
    match read_form_a(address.bytes()) {
        Some((rloc, _)) => Some(rloc),
        None => read_items(&address.read(), default_port),
    }
}

/// Reads a locator in whatever form it is written.
pub(crate) fn read_items(address: &Address<'_>, default_port: u16) -> Option<Rloc> {
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
                Some(port) => self.add_port(port.parse().ok()?),
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

/// Finds the translated port in a name such as `gw@tp-51820`.
fn port_in_name(name: &[u8]) -> Option<&str> {
    let (_, port) = str::from_utf8(name).ok()?.rsplit_once("@tp-")?;
    Some(port)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;
    use crate::reader::Reader;

    const KEY: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
    const PORT: &str = "ca6c"; // 51820

    #[test]
    fn form_a_is_sent_byte_for_byte() {
        let expected = hex(&format!(
            "4003 00000100 0050
             0001 c0000201
             4003 00000b00 002c 01000600 0020 {KEY} 0001 c0000201
             4003 00000700 000e 0000 {PORT} 0001 c0000201 0000 0000"
        ));
        assert_eq!(write(&endpoint("192.0.2.1:51820")), expected);

        let v6 = write(&endpoint("[2001:db8::1]:51820"));
        assert_eq!(v6.len(), 124);
        assert_eq!(v6[6..8], [0, 0x74]);
        assert_eq!(v6[26 + 6..26 + 8], [0, 0x38]);
        assert_eq!(v6[90 + 6..90 + 8], [0, 0x1a]);
        assert_eq!(read(&v6), Some(endpoint("[2001:db8::1]:51820")));
    }

    #[test]
    fn forms_b_c_and_d_are_read() {
        let b = format!(
            "4003 00000b00 003c 01000600 0020 {KEY}
             4003 00000700 000e 0000 {PORT} 0001 c0000201 0000 0000"
        );
        assert_eq!(read(&hex(&b)), Some(endpoint("192.0.2.1:51820")));
        let c = format!("4003 00000b00 002c 01000600 0020 {KEY} 0001 c0000201");
        assert_eq!(read(&hex(&c)), Some(endpoint("192.0.2.1:7")));
        let d = list(&[
            "0001 c0000201",
            &name("gw@tp-51820"),
            &key("06", "00", "0000"),
        ]);
        assert_eq!(read(&d), Some(endpoint("192.0.2.1:51820")));
    }

    #[test]
    fn items_are_read_in_any_order_and_unknown_ones_passed_over() {
        let unknown = "4003 0000aa00 0003 010203";
        let (key, nat) = (key("02", "00", "0001 c0000201"), nat(PORT, "0000"));
        for items in [
            [&nat, unknown, &key, "0001 c0000201"],
            [&key, "0001 c0000201", &nat, unknown],
            [unknown, "0000", &nat, &key],
        ] {
            assert_eq!(read(&list(&items)), Some(endpoint("192.0.2.1:51820")));
        }
    }

    #[test]
    fn a_locator_that_contradicts_itself_is_refused() {
        let (address, other) = ("0001 c0000201", "0001 c0000202");
        let good = key("06", "00", address);
        let second = good.replace("8520", "8521");
        for items in [
            vec![other, &good],
            vec![address, other, &good],
            vec![address, &good, &nat(PORT, other)],
            vec![&good, &nat(PORT, "0000"), &nat("ca6d", "0000")],
            vec![&good, &nat(PORT, "0000"), &name("@tp-51821")],
            vec![&good, &second],
        ] {
            assert_eq!(read(&list(&items)), None, "{items:?}");
        }
    }

    #[test]
    fn useless_keys_and_ports_are_refused() {
        let address = "0001 c0000201";
        let zero_key = key("06", "00", address).replace(KEY, &"00".repeat(32));
        let short = format!("4003 00000b00 002b 01000600 001f {} {address}", &KEY[2..]);
        for items in [
            vec![zero_key.as_str()],
            vec![&short],
            vec![&key("06", "01", address)],
            vec![&key("01", "00", address)],
            vec![&key("06", "00", "0000")],
            vec![&key("06", "00", address), &nat("0000", "0000")],
            vec![&key("06", "00", address), &name("@tp-65536")],
            vec![],
        ] {
            assert_eq!(read(&list(&items)), None, "{items:?}");
        }
        let no_port = list(&[&key("06", "00", address)]);
        let mut reader = Reader::new(&no_port);
        let locator = Address::read(&mut reader, "locator", 0).unwrap();
        assert_eq!(read_items(&locator, 0), None);
    }

    #[test]
    fn the_first_of_several_keys_counts() {
        let other = "11".repeat(32);
        let keys = format!("4003 00000b00 004e 02000600 0020 {KEY} 0020 {other} 0001 c0000201");
        assert_eq!(read(&hex(&keys)), Some(endpoint("192.0.2.1:7")));
    }

    #[test]
    fn an_address_without_a_key_is_a_plain_locator() {
        let plain = Some(Rloc::Plain([192, 0, 2, 1].into()));
        assert_eq!(read(&hex("0001 c0000201")), plain);
        assert_eq!(read(&list(&["0001 c0000201", &name("gw")])), plain);
        assert_eq!(read(&hex(&nat(PORT, "0001 c0000201"))), None);
        assert_eq!(read(&hex("0000")), None);
    }

    fn endpoint(text: &str) -> Rloc {
        Rloc::WireGuard {
            endpoint: text.parse().unwrap(),
            key: PublicKey(hex(KEY).try_into().unwrap()),
        }
    }

    fn key(suite: &str, flags: &str, owner: &str) -> String {
        let owner_len = hex(owner).len();
        format!(
            "4003 00000b00 {:04x} 0100{suite}{flags} 0020 {KEY} {owner}",
            38 + owner_len
        )
    }

    fn nat(port: &str, address: &str) -> String {
        let address_len = hex(address).len();
        format!(
            "4003 00000700 {:04x} 0000 {port} {address} 0000 0000",
            8 + address_len
        )
    }

    fn name(text: &str) -> String {
        let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        format!("0011 {digits} 00")
    }

    fn list(items: &[&str]) -> Vec<u8> {
        let items = hex(&items.concat());
        let header = hex(&format!("4003 00000100 {:04x}", items.len()));
        [header, items].concat()
    }

    /// Reads a locator; port 7 if it does not say.
    fn read(bytes: &[u8]) -> Option<Rloc> {
        let mut reader = Reader::new(bytes);
        let (encoded, address) = EncodedAddress::take(&mut reader, "locator", 0).unwrap();
        assert_eq!(reader.end(), Ok(()));
        let rloc = read_rloc(&encoded, 7);
        assert_eq!(rloc, read_items(&address, 7));
        rloc
    }

    fn write(rloc: &Rloc) -> Vec<u8> {
        let mut out = Vec::new();
        write_rloc(&mut Writer::new(&mut out), rloc);
        out
    }
}
