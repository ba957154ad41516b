//! Whole sequences of inputs to the state machines, read from arbitrary bytes.
//!
//! Bytes alone would never pass an HMAC, so a sequence may also say "a good
//! registration by xTR 2", and then bend what it likes.

pub mod agent;
pub mod server;

use std::net::{IpAddr, SocketAddr};

use lisp_proto::{
    Action, Algorithm, AuthKey, EidPrefix, InstanceId, Locator, PublicKey, Record, Rloc, Ttl,
};

/// Reads choices out of arbitrary bytes; zeros when they run out.
pub struct Choices<'a>(pub &'a [u8]);

impl<'a> Choices<'a> {
    /// Whether anything is left to say.
    pub fn more(&self) -> bool {
        !self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub fn below(&mut self, bound: u8) -> u8 {
        self.byte() % bound.max(1)
    }

    /// As many of the bytes that are left as the next one says.
    pub fn bytes(&mut self) -> &'a [u8] {
        let most = usize::from(self.byte());
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// The secret of xTR `n`.
pub fn key(n: u8) -> AuthKey {
    AuthKey::new(1, Algorithm::Sha256_128, &[n; 32])
}

/// Where xTR `n` is in the control tunnel.
pub fn control(n: u8) -> SocketAddr {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[15] = n;
    SocketAddr::new(IpAddr::from(octets), 4342)
}

/// A prefix around the EIDs of xTR `n`.
pub fn prefix(n: u8, choices: &mut Choices<'_>) -> EidPrefix {
    let iid = InstanceId(u32::from(choices.below(16) == 15));
    let net = if choices.below(2) == 0 {
        let addr = IpAddr::from([10, n, choices.below(4), 0]);
        ipnet(addr, [32, 24, 16, 8, 0][usize::from(choices.below(5))])
    } else {
        let addr = IpAddr::from([
            0xfd00,
            1,
            u16::from(n),
            0,
            0,
            0,
            0,
            u16::from(choices.below(4)),
        ]);
        ipnet(addr, [128, 64, 48, 16, 0][usize::from(choices.below(5))])
    };
    EidPrefix::new(iid, net)
}

fn ipnet(addr: IpAddr, length: u8) -> ipnet::IpNet {
    ipnet::IpNet::new(addr, length).expect("lengths fit their family")
}

/// A record about `eid` with a few locators.
pub fn record(eid: EidPrefix, choices: &mut Choices<'_>) -> Record {
    let locators = (0..choices.below(4)).map(|n| {
        let addr = if choices.below(2) == 0 {
            IpAddr::from([192, 0, 2, choices.byte()])
        } else {
            IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(choices.byte())])
        };
        let rloc = if choices.below(4) == 0 {
            Rloc::Plain(addr)
        } else {
            Rloc::WireGuard {
                endpoint: SocketAddr::new(addr, 1 + u16::from(choices.byte())),
                key: PublicKey([1 + choices.below(8); 32]),
            }
        };
        Locator {
            priority: [1, 2, 255][usize::from(choices.below(3))],
            weight: n,
            local: true,
            probed: false,
            reachable: true,
            rloc,
        }
    });
    let locators = locators.collect();
    Record {
        eid,
        ttl: Ttl::from_minutes([0, 1, 15, u32::MAX][usize::from(choices.below(4))]),
        action: Action::NoAction,
        authoritative: true,
        locators,
    }
}

/// Flips a byte of a message now and then.
pub fn bend(bytes: &mut [u8], choices: &mut Choices<'_>) -> bool {
    if choices.below(4) != 0 || bytes.is_empty() {
        return false;
    }
    let at = usize::from(choices.byte()) % bytes.len();
    bytes[at] ^= choices.byte().max(1);
    true
}
