//! Two devices on one cable, with every data plane this machine has.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::support::{
    Cable, Node, PORT, bind, config, is_silent, receive, udp_packet, with_each_backend,
};
use wg_device::{Backend, BackendChoice, Device, DeviceError, PeerSpec, PrivateKey};

#[test]
fn datagrams_pass_in_both_directions_and_families() {
    with_each_backend(|choice| async move {
        let (cable, near, far) = joined_pair(choice).await;
        for (near_ip, far_ip) in [("10.0.0.1", "10.0.0.2"), ("fd00:1::1", "fd00:1::2")] {
            cable.near.enter();
            let near_socket = bind(near_ip, &near.device);
            cable.far.enter();
            let far_socket = bind(far_ip, &far.device);
            near_socket.send_to(b"there", inner(far_ip)).await.unwrap();
            assert_eq!(receive(&far_socket).await, text("there", near_ip));
            far_socket.send_to(b"back", inner(near_ip)).await.unwrap();
            assert_eq!(receive(&near_socket).await, text("back", far_ip));
        }
        let stats = near.stats_of(&far).await;
        assert!(stats.rx_bytes > 0 && stats.tx_bytes > 0, "{stats:?}");
        assert_eq!(stats.endpoint, Some(far.endpoint));
        assert!(stats.since_handshake.is_some());
    });
}

#[test]
fn an_allowed_ip_moves_to_another_peer_and_no_packet_is_lost() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let near = Node::start(choice, "lisp0", "192.0.2.1", &["10.0.0.1/32"]).await;
        cable.far.enter();
        let old = Node::start(choice, "old", "192.0.2.2", &["10.0.0.9/32"]).await;
        let new = Node::start(choice, "new", "192.0.2.3", &["10.0.0.9/32"]).await;
        let (old_socket, new_socket) =
            (bind("10.0.0.9", &old.device), bind("10.0.0.9", &new.device));
        for far in [&old, &new] {
            far.device.set_peer(&near.as_peer()).await.unwrap();
        }
        near.device.set_peer(&new.as_peer()).await.unwrap();
        near.device.kick(&new.key.public()).await.unwrap();
        near.wait_for_handshake(&new).await;
        near.device.set_peer(&old.as_peer()).await.unwrap();
        let send = async |text: &str| {
            let packet = udp_packet("10.0.0.1", "10.0.0.9", text);
            near.device.inject(&packet).await.unwrap();
            tokio::task::yield_now().await;
        };
        send("before").await;
        assert_eq!(receive(&old_socket).await.0, "before");

        near.device.set_peer(&new.as_peer()).await.unwrap();
        send("after").await;
        assert_eq!(receive(&new_socket).await.0, "after");

        // What is left of the old peer does not take the prefix with it.
        let mut empty = old.as_peer();
        empty.allowed_ips.clear();
        near.device.set_peer(&empty).await.unwrap();
        send("still").await;
        assert_eq!(receive(&new_socket).await.0, "still");
        near.device.remove_peer(&old.key.public()).await.unwrap();
        send("gone").await;
        assert_eq!(receive(&new_socket).await.0, "gone");
        assert!(is_silent(&old_socket).await);
    });
}

#[test]
fn a_prefix_that_goes_back_and_forth_arrives_every_time() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let near = Node::start(choice, "lisp0", "192.0.2.1", &["10.0.0.1/32"]).await;
        cable.far.enter();
        let left = Node::start(choice, "left", "192.0.2.2", &["10.0.0.9/32"]).await;
        let right = Node::start(choice, "right", "192.0.2.3", &["10.0.0.9/32"]).await;
        let sockets = [
            bind("10.0.0.9", &left.device),
            bind("10.0.0.9", &right.device),
        ];
        for far in [&left, &right] {
            far.device.set_peer(&near.as_peer()).await.unwrap();
            near.device.set_peer(&far.as_peer()).await.unwrap();
            near.device.kick(&far.key.public()).await.unwrap();
            near.wait_for_handshake(far).await;
        }
        for round in 0..20 {
            let far = [&left, &right][round % 2];
            near.device.set_peer(&far.as_peer()).await.unwrap();
            let text = format!("round {round}");
            let packet = udp_packet("10.0.0.1", "10.0.0.9", &text);
            near.device.inject(&packet).await.unwrap();
            assert_eq!(receive(&sockets[round % 2]).await.0, text);
        }
    });
}

#[test]
fn a_new_endpoint_keeps_the_session() {
    with_each_backend(|choice| async move {
        let (_cable, near, far) = joined_pair(choice).await;
        near.device.kick(&far.key.public()).await.unwrap();
        near.wait_for_handshake(&far).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = near.stats_of(&far).await.since_handshake.unwrap();
        let mut moved = far.as_peer();
        let endpoint = SocketAddr::new(ip("192.0.2.3"), far.endpoint.port());
        moved.endpoint = Some(endpoint);
        near.device.set_peer(&moved).await.unwrap();
        let stats = near.stats_of(&far).await;
        assert_eq!(stats.endpoint, Some(endpoint));
        assert!(stats.since_handshake.unwrap() >= before);
        // Without an endpoint the one that is there stays.
        moved.endpoint = None;
        moved.allowed_ips.push("10.7.0.0/16".parse().unwrap());
        near.device.set_peer(&moved).await.unwrap();
        let stats = near.stats_of(&far).await;
        assert_eq!(stats.endpoint, Some(endpoint));
        assert!(stats.since_handshake.unwrap() >= before);
    });
}

#[test]
fn injected_packets_leave_in_order_and_before_later_ones() {
    with_each_backend(|choice| async move {
        let (cable, near, far) = joined_pair(choice).await;
        cable.near.enter();
        let near_socket = bind("10.0.0.1", &near.device);
        cable.far.enter();
        let far_socket = bind("10.0.0.2", &far.device);
        // No session yet: the first of them starts the handshake, all of them wait for it.
        let mut expected = Vec::new();
        for number in 0..8 {
            let text = format!("held {number}");
            let packet = udp_packet("10.0.0.1", "10.0.0.2", &text);
            near.device.inject(&packet).await.unwrap();
            expected.push(text);
        }
        for number in 0..8 {
            let text = format!("later {number}");
            near_socket
                .send_to(text.as_bytes(), inner("10.0.0.2"))
                .await
                .unwrap();
            expected.push(text);
        }
        for text in expected {
            assert_eq!(receive(&far_socket).await.0, text);
        }
    });
}

#[test]
fn while_paused_only_injected_packets_leave() {
    with_each_backend(|choice| async move {
        let (cable, near, far) = joined_pair(choice).await;
        cable.near.enter();
        let near_socket = bind("10.0.0.1", &near.device);
        cable.far.enter();
        let far_socket = bind("10.0.0.2", &far.device);
        near.device.pause();
        near_socket
            .send_to(b"waits", inner("10.0.0.2"))
            .await
            .unwrap();
        assert!(is_silent(&far_socket).await);
        for text in ["first", "second"] {
            near.device
                .inject(&udp_packet("10.0.0.1", "10.0.0.2", text))
                .await
                .unwrap();
        }
        assert_eq!(receive(&far_socket).await.0, "first");
        assert_eq!(receive(&far_socket).await.0, "second");
        assert!(is_silent(&far_socket).await);
        near.device.resume();
        assert_eq!(receive(&far_socket).await.0, "waits");
    });
}

#[test]
fn an_ipv6_packet_is_injected_without_a_route() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let (near, far) = pair(&cable, choice).await;
        let far_socket = bind("fd00:1::2", &far.device);
        let packet = udp_packet("fd00:1::1", "fd00:1::2", "no route yet");
        near.device.inject(&packet).await.unwrap();
        assert_eq!(
            receive(&far_socket).await,
            text("no route yet", "fd00:1::1")
        );
        let refused = near.device.inject(b"not an IP packet").await.unwrap_err();
        assert!(matches!(refused, DeviceError::NotIp { .. }), "{refused}");
    });
}

#[test]
fn a_kick_starts_a_handshake_without_traffic() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let (near, far) = pair(&cable, choice).await;
        far.device.kick(&near.key.public()).await.unwrap();
        far.wait_for_handshake(&near).await;
        near.wait_for_handshake(&far).await;
        let stranger = PrivateKey::generate().public();
        let refused = near.device.kick(&stranger).await.unwrap_err();
        assert!(
            matches!(refused, DeviceError::UnknownPeer { .. }),
            "{refused}"
        );
    });
}

#[test]
fn an_initiation_that_came_too_early_is_healed_by_a_kick_from_the_other_side() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let (near, far) = strangers(&cable, choice).await;
        near.device.set_peer(&far.as_peer()).await.unwrap();
        near.device.kick(&far.key.public()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        far.device.set_peer(&near.as_peer()).await.unwrap();
        far.device.kick(&near.key.public()).await.unwrap();
        far.wait_for_handshake(&near).await;
    });
}

#[test]
fn a_removed_peer_is_neither_sent_to_nor_heard() {
    with_each_backend(|choice| async move {
        let (cable, near, far) = joined_pair(choice).await;
        near.device.kick(&far.key.public()).await.unwrap();
        near.wait_for_handshake(&far).await;
        cable.near.enter();
        let near_socket = bind("10.0.0.1", &near.device);
        near.device.remove_peer(&far.key.public()).await.unwrap();
        near.device.remove_peer(&far.key.public()).await.unwrap();
        assert_eq!(near.device.peer_stats().await.unwrap(), []);
        far.device
            .inject(&udp_packet("10.0.0.2", "10.0.0.1", "unheard"))
            .await
            .unwrap();
        assert!(is_silent(&near_socket).await);
        // It may come back.
        near.device.set_peer(&far.as_peer()).await.unwrap();
        near.device
            .inject(&udp_packet("10.0.0.1", "10.0.0.2", "again"))
            .await
            .unwrap();
        near.wait_for_handshake(&far).await;
    });
}

#[test]
fn many_peers_with_many_allowed_ips_are_all_read_back() {
    with_each_backend(|choice| async move {
        let key = PrivateKey::generate();
        let config = config("lisp0", &key, 0, &[]);
        let device = Device::create(config, choice).await.unwrap();
        let mut keys = Vec::new();
        for number in 0..300_u16 {
            let [high, low] = number.to_be_bytes();
            let spec = PeerSpec {
                key: PrivateKey::generate().public(),
                endpoint: Some(SocketAddr::new(ip("192.0.2.2"), 1000 + number)),
                allowed_ips: vec![format!("10.{high}.{low}.0/24").parse().unwrap()],
                keepalive: None,
            };
            device.set_peer(&spec).await.unwrap();
            keys.push(spec.key);
        }
        let large = PeerSpec {
            key: PrivateKey::generate().public(),
            endpoint: None,
            allowed_ips: (0..3000_u16)
                .map(|number| format!("fd00:2:{number:x}::/48").parse().unwrap())
                .collect(),
            keepalive: Some(25),
        };
        device.set_peer(&large).await.unwrap();
        keys.push(large.key);
        let stats = device.peer_stats().await.unwrap();
        let mut read: Vec<_> = stats.iter().map(|stats| stats.key).collect();
        read.sort();
        keys.sort();
        assert_eq!(read, keys);
        device.close().await;
    });
}

#[test]
fn the_embedded_data_plane_tells_of_a_handshake_and_of_a_peer_that_went_before() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let (near, far) = strangers(&cable, choice).await;
        near.device.set_peer(&far.as_peer()).await.unwrap();
        let told = near.device.handshake(&far.key.public());
        assert_eq!(told.is_some(), near.device.backend() == Backend::Embedded);
        let Some(told) = told else { return };
        let told = tokio::spawn(told);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!told.is_finished(), "it waits");
        near.device.remove_peer(&far.key.public()).await.unwrap();
        assert!(!told.await.unwrap(), "that one is gone");
        near.device.set_peer(&far.as_peer()).await.unwrap();
        far.device.set_peer(&near.as_peer()).await.unwrap();
        let key = far.key.public();
        assert!(near.device.handshake(&key).unwrap().await);
        assert!(near.device.handshake(&key).unwrap().await, "it lasts");
    });
}

/// Two devices that know each other; stays in the far namespace.
async fn pair(cable: &Cable, choice: BackendChoice) -> (Node, Node) {
    let (near, far) = strangers(cable, choice).await;
    near.device.set_peer(&far.as_peer()).await.unwrap();
    far.device.set_peer(&near.as_peer()).await.unwrap();
    (near, far)
}

/// Two devices that do not know each other; stays in the far namespace.
async fn strangers(cable: &Cable, choice: BackendChoice) -> (Node, Node) {
    cable.near.enter();
    let near_inner = ["10.0.0.1/32", "fd00:1::1/128"];
    let near = Node::start(choice, "lisp0", "192.0.2.1", &near_inner).await;
    cable.far.enter();
    let far_inner = ["10.0.0.2/32", "fd00:1::2/128"];
    let far = Node::start(choice, "lisp0", "192.0.2.2", &far_inner).await;
    (near, far)
}

/// A pair with routes to each other.
async fn joined_pair(choice: BackendChoice) -> (Cable, Node, Node) {
    let cable = Cable::lay();
    let (near, far) = pair(&cable, choice).await;
    near.route_through(&far.device);
    cable.near.enter();
    far.route_through(&near.device);
    (cable, near, far)
}

fn inner(address: &str) -> SocketAddr {
    SocketAddr::new(ip(address), PORT)
}

fn text(text: &str, source: &str) -> (String, IpAddr) {
    (text.to_owned(), ip(source))
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}
