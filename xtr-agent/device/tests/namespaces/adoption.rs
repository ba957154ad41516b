//! What a process leaves in place, and how the next one takes it over.

use std::time::Duration;

use tokio::time::timeout;
use wg_device::{
    BackendChoice, Device, DeviceConfig, DeviceError, MissTun, RouteSpec, Routes, remove_leftover,
};

use crate::support::{
    Cable, Node, PATIENCE, SILENCE, bind, config, create_again, in_namespace, ip, receive, route,
    with_each_backend,
};

#[test]
fn a_session_outlives_its_process_and_the_next_one_adopts_it() {
    with_each_backend(|choice| async move {
        if choice == BackendChoice::Embedded {
            println!("skipped for embedded: its sessions go with the process");
            return;
        }
        let cable = Cable::lay();
        let mut near = Node::start(choice, "lisp0", "192.0.2.1", &["10.0.0.1/32"]).await;
        cable.far.enter();
        let far = Node::start(choice, "lisp0", "192.0.2.2", &["10.0.0.2/32"]).await;
        far.device.set_peer(&near.as_peer()).await.unwrap();
        near.route_through(&far.device);
        let far_socket = bind("10.0.0.2", &far.device);
        cable.near.enter();
        near.device.set_peer(&far.as_peer()).await.unwrap();
        far.route_through(&near.device);
        let near_socket = bind("10.0.0.1", &near.device);
        near_socket.send_to(b"first", inner()).await.unwrap();
        assert_eq!(receive(&far_socket).await.0, "first");
        let index = ip("-o link show lisp0");
        tokio::time::sleep(SILENCE).await;
        let handshake = near.stats_of(&far).await.since_handshake.unwrap();
        let port = near.device.listen_port();

        let again = DeviceConfig {
            adopt: true,
            ..config("lisp0", &near.key, 0, &near.inner)
        };
        near.device.stay();
        near.device = replaced(near.device, &again, choice, async || {
            near_socket.send_to(b"nobody", inner()).await.unwrap();
            assert_eq!(receive(&far_socket).await.0, "nobody");
        })
        .await;
        assert_eq!(near.device.listen_port(), port);
        assert_eq!(near.device.peers().await, [far.key.public()]);
        near.device.set_peer(&far.as_peer()).await.unwrap();
        assert_eq!(ip("-o link show lisp0"), index);
        near_socket.send_to(b"last", inner()).await.unwrap();
        assert_eq!(receive(&far_socket).await.0, "last");
        let later = near.stats_of(&far).await.since_handshake.unwrap();
        assert!(later > handshake, "there was another handshake");

        // An adopted interface stays without being told again, and goes when it is closed.
        let same = replaced(near.device, &again, choice, async || ()).await;
        same.close().await;
        assert!(!ip("link show").contains("lisp0"));
    });
}

#[test]
fn addresses_and_mtu_of_an_adopted_interface_follow_the_configuration() {
    with_each_backend(|choice| async move {
        let key = wg_device::PrivateKey::generate();
        let old = ["10.0.0.1/32", "10.0.0.7/32", "fd00:1::1/128"].map(|net| net.parse().unwrap());
        let device = Device::create(config("lisp0", &key, 0, &old), choice).await;
        let device = device.unwrap();
        device.stay();
        let new = ["10.0.0.1/32", "fd00:1::2/128"].map(|net| net.parse().unwrap());
        let changed = DeviceConfig {
            adopt: true,
            mtu: 1380,
            ..config("lisp0", &key, 0, &new)
        };
        let device = replaced(device, &changed, choice, async || ()).await;
        let shown = ip("addr show dev lisp0") + &ip("link show lisp0");
        for (text, there) in [
            ("mtu 1380", true),
            ("10.0.0.1/32", true),
            ("10.0.0.7/32", false),
            ("fd00:1::1/128", false),
            ("fd00:1::2/128", true),
            ("alias lispwire", true),
        ] {
            assert_eq!(shown.contains(text), there, "{text}: {shown}");
        }
        device.close().await;
    });
}

#[test]
fn the_miss_interface_stays_and_is_adopted_with_its_routes() {
    in_namespace(|| async {
        let miss = MissTun::create("lispm0", 1420, true).unwrap();
        miss.stay();
        let kept = route("10.0.0.0/8", "lispm0");
        let before = Routes::new().unwrap();
        before.add(&kept).unwrap();
        before.add(&route("10.7.0.0/16", "lispm0")).unwrap();
        before.add(&route("fd00:7::/48", "lispm0")).unwrap();
        ip("route add 10.9.0.0/16 dev lispm0 metric 50");
        drop(miss);
        assert!(ip("route show").contains("10.0.0.0/8"));

        let miss = adopted_tun().await;
        let routes = Routes::new().unwrap();
        routes.adopt("lispm0").unwrap();
        assert!(routes.has(&kept));
        let other = RouteSpec {
            metric: kept.metric + 1,
            ..kept.clone()
        };
        assert!(!routes.has(&other));
        routes.add(&kept).unwrap();
        assert!(routes.has(&kept));
        assert_eq!(routes.remove_stale().unwrap(), 2);
        assert_eq!(routes.remove_stale().unwrap(), 0);
        let shown = ip("-4 route show dev lispm0");
        assert!(shown.contains("10.0.0.0/8") && shown.contains("10.9.0.0/16"));
        assert_eq!(shown.lines().count(), 2, "{shown}");
        assert!(!ip("-6 route show dev lispm0").contains("fd00:7::/48"));
        miss.close();
        assert!(!ip("link show").contains("lispm0"));
    });
}

#[test]
fn a_route_left_with_another_source_is_replaced() {
    in_namespace(|| async {
        ip("tuntap add left0 mode tun");
        ip("link set left0 up");
        ip("addr add 10.0.0.1/32 dev left0");
        ip("addr add 10.0.0.2/32 dev left0");
        let from = |source: &str| RouteSpec {
            source: Some(source.parse().unwrap()),
            ..route("10.1.0.0/16", "left0")
        };
        Routes::new().unwrap().add(&from("10.0.0.1")).unwrap();
        let routes = Routes::new().unwrap();
        routes.adopt("left0").unwrap();
        routes.add(&from("10.0.0.2")).unwrap();
        assert_eq!(routes.remove_stale().unwrap(), 0);
        let shown = ip("route show 10.1.0.0/16");
        assert!(shown.contains("src 10.0.0.2"), "{shown}");
    });
}

#[test]
fn a_leftover_is_removed_when_nobody_uses_it_and_it_is_ours() {
    in_namespace(|| async {
        assert!(!remove_leftover(None, "lispm0").unwrap());
        let miss = MissTun::create("lispm0", 1420, true).unwrap();
        let used = remove_leftover(None, "lispm0").unwrap_err();
        assert!(matches!(used, DeviceError::Running { .. }), "{used}");
        miss.stay();
        drop(miss);
        let removed = async {
            // A program another test starts holds copies of all sockets between fork and exec.
            while let Err(error) = remove_leftover(None, "lispm0") {
                assert!(matches!(error, DeviceError::Running { .. }), "{error}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, removed).await.unwrap();
        assert!(!ip("link show").contains("lispm0"));
        ip("tuntap add lispm0 mode tun");
        let foreign = remove_leftover(None, "lispm0").unwrap_err();
        assert!(matches!(foreign, DeviceError::Foreign { .. }), "{foreign}");
        assert!(ip("link show").contains("lispm0"));
    });
}

/// Drops a device, does something meanwhile, and makes it again.
async fn replaced(
    device: Device,
    config: &DeviceConfig,
    choice: BackendChoice,
    meanwhile: impl AsyncFnOnce(),
) -> Device {
    drop(device);
    meanwhile().await;
    create_again(config, choice).await
}

async fn adopted_tun() -> MissTun {
    let adopted = async {
        loop {
            match MissTun::create("lispm0", 1420, true) {
                Err(DeviceError::Running { .. } | DeviceError::NameTaken { .. }) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                result => return result.unwrap(),
            }
        }
    };
    timeout(PATIENCE, adopted).await.expect("never given back")
}

fn inner() -> std::net::SocketAddr {
    std::net::SocketAddr::new("10.0.0.2".parse().unwrap(), crate::support::PORT)
}
