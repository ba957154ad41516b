//! Whole messages, written down byte by byte, are sent and read exactly so.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::hex;
use lisp_proto::{
    Action, Algorithm, AuthError, AuthKey, InstanceId, Locator, MapRegister, Message, Nonce,
    PublicKey, Record, RegisterFlags, RegisterParams, ReplyParams, RequestParams, RequestedEid,
    Rloc, SiteId, Ttl, XtrId, decode, encode_map_register, encode_map_reply, encode_map_request,
    verify,
};

const LOCATOR: &str = "
    4003 00 00 01 00 0050       AFI 16387, type 1 AFI List, length 80
    0001 c0000201               item 1: 192.0.2.1
    4003 00 00 0b 00 002c       item 2: type 11 Security Key, length 44
    01 00 06 00                 one key, suite 6, not revoked
    0020                        key length 32
    8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a
    0001 c0000201               the locator that owns the key
    4003 00 00 07 00 000e       item 3: type 7 NAT-Traversal, length 14
    0000 ca6c                   MS port 0, ETR port 51820
    0001 c0000201               Global ETR RLOC
    0000                        MS RLOC: none
    0000                        Private ETR RLOC: none";

const IDS: &str = "000102030405060708090a0b0c0d0e0f 1011121314151617";

fn register_with(auth: &str) -> Vec<u8> {
    hex(&format!(
        "3a 00 09 01                 Map-Register, P I, T M, one record
         0000000000000001            nonce
         {auth}
         000005a0 01 20 1000 0000    TTL 1440, one locator, mask-len 32, A
         0001 0a000002               10.0.0.2
         01 64 ff 00 0005            priority 1, weight 100, L R
         {LOCATOR}
         {IDS}"
    ))
}

#[test]
fn register_with_algorithm_2() {
    let expected = register_with("00 02 0010 979f15d322dae27177a95577d8b9c1fb");
    check_register(
        &AuthKey::new(0, Algorithm::Sha256_128, b"password"),
        &expected,
    );
}

#[test]
fn register_with_algorithm_3() {
    let expected = register_with("01 03 0010 60f01a3932a096512ffb339602d7a1e5");
    check_register(
        &AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"password"),
        &expected,
    );
}

#[test]
fn full_tag_of_another_implementation_verifies_over_the_whole_message() {
    let register = hex("38000101 ffbb000000000000 00 02 0020
         7030d4c610440d83be4dbffda98c576d68a5bf3211c97b58c4b99f061123b938
         0000000a 01 20 1000 0000 0001 9910fe01
         01 64 ff 00 0005 0001 c0a8880a");
    let key = AuthKey::new(0, Algorithm::Sha256_128, b"password");
    let tag = verify(&key, &register).unwrap();
    assert_eq!((tag.tag_len, tag.full), (32, true));
    let other = AuthKey::new(0, Algorithm::Sha256_128, b"Password");
    assert_eq!(verify(&other, &register), Err(AuthError::Mismatch));
}

#[test]
fn negative_reply() {
    let expected = hex("20000001 8877665544332211   Map-Reply, one record, nonce
         0000000f 00 09 2000 0000    TTL 15, no locator, mask-len 9, natively forward
         0001 0a000000               10.0.0.0");
    let record = Record {
        eid: "10.0.0.0/9".parse().unwrap(),
        ttl: Ttl::from_minutes(15),
        action: Action::NativelyForward,
        authoritative: false,
        locators: Vec::new(),
    };
    let params = ReplyParams {
        nonce: Nonce(0x8877_6655_4433_2211),
        records: std::slice::from_ref(&record),
        ..ReplyParams::default()
    };
    let mut out = Vec::new();
    encode_map_reply(&params, &mut out).unwrap();
    assert_eq!(out, expected);
    let Ok(Message::MapReply(reply)) = decode(&expected) else {
        panic!("not a Map-Reply");
    };
    assert_eq!(reply.nonce, params.nonce);
    let read: Vec<_> = reply
        .records()
        .filter_map(|record| record.to_record(1))
        .collect();
    assert_eq!(read, [record]);
}

#[test]
fn request() {
    let expected = hex("10000001 8877665544332211   Map-Request, one record, nonce
         0001 0a010101               source EID 10.1.1.1
         0001 c0000201               ITR-RLOC 192.0.2.1
         00 20 0001 0a020202         10.2.2.2/32");
    check_request(false, None, &expected);
}

#[test]
fn subscription() {
    let expected = hex(&format!(
        "10100001 8877665544332211   Map-Request, I, one record, nonce
         0001 0a010101               source EID 10.1.1.1
         0001 c0000201               ITR-RLOC 192.0.2.1
         80 20 0001 0a020202         N, 10.2.2.2/32
         {IDS}"
    ));
    check_request(true, Some(ids()), &expected);
}

fn check_register(key: &AuthKey, expected: &[u8]) {
    let record = Record {
        eid: "10.0.0.2/32".parse().unwrap(),
        ttl: Ttl::from_minutes(1440),
        action: Action::NoAction,
        authoritative: true,
        locators: vec![Locator {
            priority: 1,
            weight: 100,
            local: true,
            probed: false,
            reachable: true,
            rloc: Rloc::WireGuard {
                endpoint: "192.0.2.1:51820".parse().unwrap(),
                key: public_key(),
            },
        }],
    };
    let params = RegisterParams {
        flags: RegisterFlags {
            proxy_reply: true,
            use_ttl: true,
            want_notify: true,
            ..RegisterFlags::default()
        },
        nonce: Nonce(1),
        records: std::slice::from_ref(&record),
        ids: Some(ids()),
    };
    let mut out = Vec::new();
    encode_map_register(&params, key, &mut out).unwrap();
    assert_eq!(out, expected);

    let register = read_register(expected);
    assert_eq!(register.flags, params.flags);
    assert_eq!(register.nonce, params.nonce);
    assert_eq!(register.ids, params.ids);
    assert_eq!(register.auth.key_id, key.key_id());
    assert_eq!(register.auth.algorithm_id, key.algorithm().id());
    assert_eq!(
        verify(key, expected).unwrap().tag_len,
        register.auth.tag.len()
    );
    let records: Vec<_> = register
        .records()
        .filter_map(|record| record.to_record(1))
        .collect();
    assert_eq!(records, [record]);
}

fn check_request(subscribe: bool, ids: Option<(XtrId, SiteId)>, expected: &[u8]) {
    let requested = RequestedEid {
        subscribe,
        eid: "10.2.2.2".parse().unwrap(),
    };
    let params = RequestParams {
        nonce: Nonce(0x8877_6655_4433_2211),
        source_eid: Some((InstanceId(0), [10, 1, 1, 1].into())),
        itr_rlocs: &[[192, 0, 2, 1].into()],
        eids: &[requested],
        ids,
        ..RequestParams::default()
    };
    let mut out = Vec::new();
    encode_map_request(&params, &mut out).unwrap();
    assert_eq!(out, expected);

    let Ok(Message::MapRequest(request)) = decode(expected) else {
        panic!("not a Map-Request");
    };
    assert_eq!(request.flags, params.flags);
    assert_eq!(request.nonce, params.nonce);
    assert_eq!(request.source_eid(), params.source_eid);
    let itr_rlocs: Vec<_> = request
        .itr_rlocs()
        .filter_map(|address| address.ip())
        .collect();
    assert_eq!(itr_rlocs, params.itr_rlocs);
    assert_eq!(request.eids().collect::<Vec<_>>(), [requested]);
    assert_eq!(request.source_record(), None);
    assert_eq!(request.ids, ids);
}

fn read_register(bytes: &[u8]) -> MapRegister<'_> {
    match decode(bytes) {
        Ok(Message::MapRegister(register)) => register,
        other => panic!("{other:?}"),
    }
}

fn ids() -> (XtrId, SiteId) {
    let bytes = hex(IDS);
    let (xtr, site) = bytes.split_at(16);
    (
        XtrId(xtr.try_into().unwrap()),
        SiteId(site.try_into().unwrap()),
    )
}

/// RFC 7748 §6.1, Alice.
fn public_key() -> PublicKey {
    "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
        .parse()
        .unwrap()
}
