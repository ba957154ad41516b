//! Every message that can be written, with every option.

mod registers;
mod replies;
mod requests;

use std::net::IpAddr;

use lisp_proto::{Action, Locator, Nonce, PublicKey, Record, Rloc, SiteId, Ttl, XtrId};

const NONCE: Nonce = Nonce(0x1122_3344_5566_7788);
const NONCE_TEXT: &str = "0x1122334455667788";
const IDS: (XtrId, SiteId) = (XtrId([0xa1; 16]), SiteId([0xb2; 8]));
const XTR_ID_TEXT: &str = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1";
const SITE_ID_TEXT: &str = "b2b2b2b2b2b2b2b2";

/// Names of fields as tshark has them, and all values in the message, separated by `;`.
type Expected<'a> = &'a [(&'static str, &'static str)];

/// A message, and what a dissector must find in it.
pub(crate) struct Encoded {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) expected: Vec<(&'static str, &'static str)>,
}

/// All of them.
pub(crate) fn every_message() -> Vec<Encoded> {
    let mut all = requests::all();
    all.extend(replies::all());
    all.extend(registers::all());
    all
}

fn message(
    name: &'static str,
    expected: Expected<'_>,
    encode: impl FnOnce(&mut Vec<u8>),
) -> Encoded {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    Encoded {
        name,
        bytes,
        expected: expected.to_vec(),
    }
}

fn record(eid: &str, locators: Vec<Locator>) -> Record {
    Record {
        eid: eid.parse().unwrap(),
        ttl: Ttl::from_minutes(15),
        action: Action::NoAction,
        authoritative: false,
        locators,
    }
}

fn wireguard(endpoint: &str) -> Locator {
    locator(Rloc::WireGuard {
        endpoint: endpoint.parse().unwrap(),
        key: PublicKey([0x5a; 32]),
    })
}

fn plain(address: &str) -> Locator {
    locator(Rloc::Plain(ip(address)))
}

fn locator(rloc: Rloc) -> Locator {
    Locator {
        priority: 1,
        weight: 100,
        local: false,
        probed: false,
        reachable: true,
        rloc,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
