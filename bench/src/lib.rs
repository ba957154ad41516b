//! Benchmarks: the messages and the server that `benches/` measure.
//!
//! `cargo bench -p bench` prints times; `cargo bench -p bench -- --test` runs each once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lisp_proto::{
    Action as MapAction, Algorithm, AuthKey, EidPrefix, EncodeError, InstanceId, Locator, Nonce,
    PublicKey, Record, RegisterFlags, RegisterParams, RequestFlags, RequestParams, RequestedEid,
    Rloc, Ttl, encode_map_register, encode_map_request,
};
use map_server::config::{ConfigError, Options, Rate, XtrConfig};
use map_server::{Actions, Config, Input, MapServer, Via};

/// The secret that all benchmarked messages are authenticated with.
#[must_use]
pub fn key(algorithm: Algorithm) -> AuthKey {
    AuthKey::new(1, algorithm, b"0123456789abcdef0123456789abcdef")
}

/// Address number `n` of 10.0.0.0/8.
#[must_use]
pub fn eid(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 | (n & 0x00ff_ffff)).into()
}

/// Control address of the agent number `n`.
#[must_use]
pub fn control(n: u32) -> IpAddr {
    Ipv6Addr::from(0xfd4c_0001_0000_0000_0000_0000_0001_0000 | u128::from(n)).into()
}

/// A mapping of host `n` to one WireGuard locator.
#[must_use]
pub fn record(n: u32) -> Record {
    Record {
        eid: EidPrefix::host(InstanceId(0), eid(n)),
        ttl: Ttl::from_minutes(15),
        action: MapAction::NoAction,
        authoritative: true,
        locators: vec![Locator {
            priority: 1,
            weight: 100,
            local: true,
            probed: false,
            reachable: true,
            rloc: Rloc::WireGuard {
                endpoint: SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 51820),
                key: PublicKey([7; 32]),
            },
        }],
    }
}

/// A Map-Request from agent `n` for the EID of agent `wanted`.
///
/// # Errors
/// Never: it fits the wire format.
pub fn request(n: u32, wanted: u32, nonce: u64) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    let params = RequestParams {
        flags: RequestFlags::default(),
        nonce: Nonce(nonce),
        source_eid: None,
        itr_rlocs: &[control(n)],
        eids: &[RequestedEid {
            subscribe: false,
            eid: EidPrefix::host(InstanceId(0), eid(wanted)),
        }],
        source_record: None,
        gap: None,
        ids: None,
    };
    encode_map_request(&params, &mut out)?;
    Ok(out)
}

/// A Map-Register of agent `n`.
///
/// # Errors
/// Never: it fits the wire format.
pub fn register(n: u32, nonce: u64, key: &AuthKey) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    let params = RegisterParams {
        flags: RegisterFlags {
            proxy_reply: true,
            want_notify: true,
            ..RegisterFlags::default()
        },
        nonce: Nonce(nonce),
        records: &[record(n)],
        ids: None,
    };
    encode_map_register(&params, key, &mut out)?;
    Ok(out)
}

/// Port 4342 of agent `n`.
#[must_use]
pub fn source(n: u32) -> SocketAddr {
    SocketAddr::new(control(n), 4342)
}

/// A map server with `agents` registered agents and no rate limit to speak of.
///
/// # Errors
/// Never: the configuration has no contradictions.
pub fn server(agents: u32, key: &AuthKey) -> Result<MapServer, ConfigError> {
    let unlimited = Rate {
        per_second: u32::MAX,
        burst: u32::MAX,
    };
    let options = Options {
        request_rate: unlimited,
        register_rate: unlimited,
        ..Options::default()
    };
    let xtrs = (0..agents).map(|n| XtrConfig {
        name: n.to_string().into(),
        control_address: Some(control(n)),
        xtr_id: None,
        site_id: None,
        auth: key.clone(),
        replay_check: true,
        eid_prefixes: vec![record(n).eid],
        more_specifics: false,
    });
    let mut server = MapServer::new(Config::new(options, xtrs.collect())?, [1; 32]);
    let mut actions = Actions::new();
    for n in 0..agents {
        if let Ok(bytes) = register(n, 1, key) {
            let input = Input::Datagram {
                src: source(n),
                via: Via::Tunnel,
                bytes: &bytes,
            };
            server.handle(lisp_proto::Timestamp::ZERO, input, &mut actions);
        }
        actions.drain();
    }
    Ok(server)
}
