//! Reading, writing and authenticating messages.
#![expect(clippy::unwrap_used, reason = "the messages are known to be good")]

use std::hint::black_box;

use bench::{key, record, register, request};
use criterion::{Criterion, criterion_group, criterion_main};
use lisp_proto::{Algorithm, Message, Nonce, ReplyParams, decode, encode_map_reply, verify};

fn codec(criterion: &mut Criterion) {
    let request = request(1, 2, 3).unwrap();
    criterion.bench_function("decode/map_request", |bencher| {
        bencher.iter(|| decode(black_box(&request)).is_ok());
    });
    let mut reply = Vec::new();
    let records = [record(2)];
    let params = ReplyParams {
        probe: false,
        echo_nonce: false,
        nonce: Nonce(3),
        records: &records,
    };
    encode_map_reply(&params, &mut reply).unwrap();
    criterion.bench_function("decode/map_reply_with_key", |bencher| {
        bencher.iter(|| match decode(black_box(&reply)) {
            Ok(Message::MapReply(reply)) => reply
                .records()
                .filter_map(|record| record.to_record(51820))
                .count(),
            Ok(_) | Err(_) => 0,
        });
    });
    let mut out = Vec::with_capacity(512);
    criterion.bench_function("encode/map_reply_with_key", |bencher| {
        bencher.iter(|| {
            out.clear();
            encode_map_reply(black_box(&params), &mut out).is_ok()
        });
    });
    for (name, algorithm) in [
        ("sha1", Algorithm::Sha1_96),
        ("sha256", Algorithm::Sha256_128),
        ("sha256-hkdf", Algorithm::Sha256_128Hkdf),
    ] {
        let key = key(algorithm);
        let register = register(1, 1, &key).unwrap();
        criterion.bench_function(&format!("verify/map_register/{name}"), |bencher| {
            bencher.iter(|| verify(&key, black_box(&register)).is_ok());
        });
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
