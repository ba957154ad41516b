//! The server's state machine: one message in, its answer out.
#![expect(clippy::unwrap_used, reason = "the messages are known to be good")]

use std::hint::black_box;

use bench::{key, register, request, server, source};
use criterion::{Criterion, criterion_group, criterion_main};
use lisp_proto::{Algorithm, Timestamp};
use map_server::{Actions, Input, Via};

fn handle(criterion: &mut Criterion) {
    let key = key(Algorithm::Sha256_128Hkdf);
    for agents in [1_000, 10_000] {
        let mut server = server(agents, &key).unwrap();
        let mut actions = Actions::new();
        let requests: Vec<_> = (0..agents)
            .map(|n| {
                (
                    source(n),
                    request(n, n.wrapping_mul(7919) % agents, 1).unwrap(),
                )
            })
            .collect();
        let mut turn = requests.iter().cycle();
        let mut now = Timestamp::ZERO;
        criterion.bench_function(&format!("request/{agents}_mappings"), |bencher| {
            bencher.iter(|| {
                now = Timestamp(now.0 + 1_000_000);
                let (src, bytes) = turn.next().unwrap();
                let input = Input::Datagram {
                    src: *src,
                    via: Via::Tunnel,
                    bytes: black_box(bytes),
                };
                server.handle(now, input, &mut actions);
                actions.drain().count()
            });
        });
        let mut nonce = 1;
        criterion.bench_function(&format!("refresh/{agents}_mappings"), |bencher| {
            bencher.iter_batched(
                || {
                    nonce += 1;
                    register(5, nonce, &key).unwrap()
                },
                |bytes| {
                    let input = Input::Datagram {
                        src: source(5),
                        via: Via::Tunnel,
                        bytes: &bytes,
                    };
                    server.handle(now, input, &mut actions);
                    actions.drain().count()
                },
                criterion::BatchSize::SmallInput,
            );
        });
    }
}

criterion_group!(benches, handle);
criterion_main!(benches);
