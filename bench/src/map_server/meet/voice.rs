//! What agents say to a map server that has them enrolled, by their numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use lisp_proto::{
    Action, Algorithm, AuthKey, EidPrefix, InstanceId, Locator, MapNotify, Nonce, NotifyParams,
    PublicKey, Record, RegisterFlags, RegisterParams, RequestParams, RequestedEid, Rloc, SiteId,
    Ttl, XtrId, encode_map_notify_ack, encode_map_register, encode_map_request,
};
use wg_device::PrivateKey;

/// The control port (RFC 9301 §4), inside the tunnels.
const CONTROL_PORT: u16 = 4_342;
/// The map server inside its tunnels.
pub(in super::super) const SERVER: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0xfd4c, 1, 0, 0, 0, 0, 0, 1)),
    CONTROL_PORT,
);
/// Where the addresses of the agents there begin, and what lives at them.
const INSIDE: Ipv6Addr = Ipv6Addr::new(0xfd4c, 1, 0, 1, 0, 0, 0, 1);
const EIDS: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
/// Key ID of the secret that both ends derive from the control tunnel's keys.
const DERIVED_KEY_ID: u8 = 1;
/// UDP port of the data tunnels.
const DATA_PORT: u16 = 51_821;
/// Nonce of the one Map-Register that each sends.
pub(in super::super) const REGISTERS: Nonce = Nonce(1);

/// One agent, as far as its map server knows it.
#[derive(Clone, Debug)]
pub(in super::super) struct Voice {
    number: u32,
    /// Authenticates what it registers, and what it is told.
    pub(in super::super) key: AuthKey,
    /// Where it is inside its tunnel.
    pub(in super::super) inside: SocketAddr,
}

/// The private key of agent number `number` in its control tunnel.
pub(in super::super) fn secret(number: u32) -> [u8; 32] {
    let mut secret = [0x5a; 32];
    for (to, from) in secret.iter_mut().skip(8).zip(number.to_be_bytes()) {
        *to = from;
    }
    secret
}

/// What lives there.
pub(in super::super) fn eid(number: u32) -> EidPrefix {
    EidPrefix::host(InstanceId(0), address(number))
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(EIDS.to_bits() + number).into()
}

impl Voice {
    /// Agent number `number` of the map server with this key.
    pub(in super::super) fn new(number: u32, server: &PublicKey) -> Self {
        let shared = PrivateKey::from_bytes(secret(number)).map_register_secret(server);
        let inside = Ipv6Addr::from_bits(INSIDE.to_bits() + u128::from(number));
        Self {
            number,
            key: AuthKey::new(DERIVED_KEY_ID, Algorithm::Sha256_128Hkdf, &shared),
            inside: SocketAddr::new(inside.into(), CONTROL_PORT),
        }
    }

    /// Appends the Map-Register of its only prefix.
    pub(in super::super) fn register(&self, out: &mut Vec<u8>) -> Result<()> {
        let mut data_key = secret(self.number);
        data_key.reverse();
        let locator = Locator {
            priority: 1,
            weight: 100,
            local: true,
            probed: false,
            reachable: true,
            rloc: Rloc::WireGuard {
                endpoint: SocketAddr::new(Ipv4Addr::new(203, 0, 113, 9).into(), DATA_PORT),
                key: PublicKey(data_key),
            },
        };
        let record = Record {
            eid: eid(self.number),
            ttl: Ttl::from_minutes(15),
            action: Action::NoAction,
            authoritative: true,
            locators: vec![locator],
        };
        let (id, _) = data_key.split_first_chunk().context("keys are longer")?;
        let params = RegisterParams {
            flags: RegisterFlags {
                proxy_reply: true,
                want_notify: true,
                ..RegisterFlags::default()
            },
            nonce: REGISTERS,
            records: &[record],
            ids: Some((XtrId(*id), SiteId([0; 8]))),
        };
        Ok(encode_map_register(&params, &self.key, out)?)
    }

    /// Appends a Map-Request for what lives at agent number `whom`.
    pub(in super::super) fn ask(&self, whom: u32, nonce: u64, out: &mut Vec<u8>) -> Result<()> {
        let params = RequestParams {
            nonce: Nonce(nonce),
            source_eid: Some((InstanceId(0), address(self.number))),
            itr_rlocs: &[self.inside.ip()],
            eids: &[RequestedEid {
                subscribe: false,
                eid: eid(whom),
            }],
            ..RequestParams::default()
        };
        Ok(encode_map_request(&params, out)?)
    }

    /// Appends the acknowledgement of what it was told.
    pub(in super::super) fn acknowledge(
        &self,
        notify: &MapNotify<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let records = notify.records();
        let records: Vec<_> = records.filter_map(|it| it.to_record(DATA_PORT)).collect();
        let params = NotifyParams {
            nonce: notify.nonce,
            records: &records,
            handoff: None,
        };
        Ok(encode_map_notify_ack(&params, &self.key, out)?)
    }
}
