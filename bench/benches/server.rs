//! The server's state machine: one message in, its answer out. And lookups by themselves: in the server's table,
//! and in what it could have been instead.
#![expect(clippy::unwrap_used, reason = "the messages are known to be good")]

mod structures;

use std::cell::LazyCell;
use std::env;
use std::hint::black_box;
use std::time::Duration;

use bench::{key, register, request, server, source};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use lisp_proto::{Algorithm, Timestamp};
use map_server::{Actions, Input, PrefixTable, Via};
use structures::{Family, HashPerLength, Structure, TreeBitmap, Trie, filled};

/// Sizes of the tables.
const SIZES: [u32; 4] = [1_000, 100_000, 1_000_000, 10_000_000];
/// More entries need gigabytes, and minutes: only whoever asks for them gets them.
const MOST: u32 = 1_000_000;
/// Says how many they may be.
const MOST_VARIABLE: &str = "LISPWIRE_BENCH_ENTRIES";

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

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    let most = env::var(MOST_VARIABLE).map_or(MOST, |most| most.parse().unwrap());
    // Without this flag everything runs once, to see whether it works.
    let most = match env::args().any(|argument| argument == "--bench") {
        true => most,
        false => 1_000,
    };
    for size in SIZES.into_iter().filter(|size| *size <= most) {
        for family in Family::ALL {
            find::<PrefixTable<u32>>(&mut group, family, size);
            find::<HashPerLength>(&mut group, family, size);
            find::<Trie>(&mut group, family, size);
            find::<TreeBitmap>(&mut group, family, size);
        }
    }
    group.finish();
}

/// Looks random addresses up, each of which is known only when the one before it is found: nothing else hides
/// how long memory takes.
fn find<S: Structure>(group: &mut BenchmarkGroup<'_, WallTime>, family: Family, size: u32) {
    // What a filter leaves out is not built.
    let table = LazyCell::new(|| filled::<S>(family, size));
    let mut random = 1_u32;
    let name = format!("{}/{}/{size}", S::NAME, family.name());
    group.bench_function(name, |bencher| {
        let table: &S = &table;
        bencher.iter(|| {
            let found = table.find(family.address(random % size)).unwrap();
            random = (random ^ found)
                .wrapping_mul(0x2c1b_3c6d)
                .wrapping_add(0x297a_2d39);
            random ^= random >> 15;
            found
        });
    });
}

criterion_group!(benches, handle, lookup);
criterion_main!(benches);
