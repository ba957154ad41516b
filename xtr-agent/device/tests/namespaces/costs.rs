//! What a change of a peer costs: printed, not judged. Run with `--ignored --nocapture costs`.

use std::time::{Duration, Instant};

use wg_device::{Device, DeviceError, PeerSpec, PrivateKey, Routes};

use crate::support::{Cable, Node, config, route, with_each_backend};

#[test]
#[ignore = "measures, and takes a while"]
fn costs_of_changes() {
    with_each_backend(|choice| async move {
        let key = PrivateKey::generate();
        let device = Device::create(config("lisp0", &key, 0, &[]), choice)
            .await
            .unwrap();
        let routes = Routes::new().unwrap();
        let mut peers = 0;
        for target in [10, 1_000, 20_000] {
            while peers < target {
                device.set_peer(&spec(peers)).await.unwrap();
                peers += 1;
            }
            let mut costs: [Vec<Duration>; 5] = Default::default();
            for _ in 0..50 {
                let mut spec = spec(peers);
                costs[0].push(timed(device.set_peer(&spec)).await);
                spec.endpoint = Some("192.0.2.9:9".parse().unwrap());
                costs[1].push(timed(device.set_peer(&spec)).await);
                let route = route(&spec.allowed_ips[0].to_string(), "lisp0");
                costs[2].push(timed(async { routes.add(&route) }).await);
                costs[3].push(timed(async { routes.remove(&route) }).await);
                costs[4].push(timed(device.remove_peer(&spec.key)).await);
            }
            let dump = timed(device.peer_stats()).await;
            print!("{peers} peers:");
            let names = ["set", "endpoint", "route", "unroute", "remove"];
            for (name, mut costs) in names.into_iter().zip(costs) {
                costs.sort();
                print!(" {name} {:?}", costs[costs.len() / 2]);
            }
            println!(" stats {dump:?}");
        }
        device.close().await;
    });
}

#[test]
#[ignore = "measures, and takes a while"]
fn costs_of_an_initiation_the_far_end_ignored() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let near = Node::start(choice, "lisp0", "192.0.2.1", &["10.0.0.1/32"]).await;
        cable.far.enter();
        let far = Node::start(choice, "lisp0", "192.0.2.2", &["10.0.0.2/32"]).await;
        for kicked in [false, true] {
            near.device.set_peer(&far.as_peer()).await.unwrap();
            near.device.kick(&far.key.public()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            far.device.set_peer(&near.as_peer()).await.unwrap();
            let healed = timed(async {
                if kicked {
                    far.device.kick(&near.key.public()).await?;
                }
                near.wait_for_handshake(&far).await;
                Ok::<_, DeviceError>(())
            });
            println!("healed in {:?}, far end kicked: {kicked}", healed.await);
            near.device.remove_peer(&far.key.public()).await.unwrap();
            far.device.remove_peer(&near.key.public()).await.unwrap();
        }
    });
}

/// Peer number `number`; every call makes a new key.
fn spec(number: u16) -> PeerSpec {
    let [high, low] = number.to_be_bytes();
    PeerSpec {
        key: PrivateKey::generate().public(),
        endpoint: Some("192.0.2.2:51821".parse().unwrap()),
        allowed_ips: vec![format!("10.0.{high}.{low}/32").parse().unwrap()],
        keepalive: None,
    }
}

#[expect(clippy::disallowed_methods, reason = "this is a measurement")]
async fn timed<T, E: std::fmt::Debug>(work: impl Future<Output = Result<T, E>>) -> Duration {
    let start = Instant::now();
    work.await.unwrap();
    start.elapsed()
}
