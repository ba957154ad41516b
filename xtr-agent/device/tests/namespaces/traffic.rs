//! Changes of a peer while packets flow through it.

use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::support::{Cable, Node, PORT, bind, with_each_backend};

const PACKETS: u32 = 3_000;
const SILENCE: Duration = Duration::from_secs(5);

/// Sends all packets, one after the other.
async fn send(from: &UdpSocket) {
    for number in 0..PACKETS {
        let bytes = number.to_be_bytes();
        from.send_to(&bytes, ("10.0.0.2", PORT)).await.unwrap();
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

/// The numbers of the packets that arrive, up to the last one.
async fn receive(at: &UdpSocket) -> Vec<u32> {
    let mut got = Vec::new();
    let mut buffer = [0; 16];
    while got.last() != Some(&(PACKETS - 1))
        && let Ok(length) = timeout(SILENCE, at.recv(&mut buffer)).await
    {
        let bytes = buffer[..length.unwrap()].try_into().unwrap();
        got.push(u32::from_be_bytes(bytes));
    }
    got
}

#[test]
fn a_peer_that_is_changed_again_and_again_loses_no_packet() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let near = Node::start(choice, "lisp0", "192.0.2.1", &["10.0.0.1/32"]).await;
        let near_socket = bind("10.0.0.1", &near.device);
        cable.far.enter();
        let far = Node::start(choice, "lisp0", "192.0.2.2", &["10.0.0.2/32"]).await;
        let far_socket = bind("10.0.0.2", &far.device);
        near.device.set_peer(&far.as_peer()).await.unwrap();
        far.device.set_peer(&near.as_peer()).await.unwrap();
        near.route_through(&far.device);
        near.device.kick(&far.key.public()).await.unwrap();
        near.wait_for_handshake(&far).await;

        let send = send(&near_socket);
        let mut changes = 0;
        let change = async {
            let mut wider = far.as_peer();
            wider.allowed_ips.push("10.7.0.0/16".parse().unwrap());
            wider.endpoint = None;
            loop {
                for spec in [&wider, &far.as_peer()] {
                    near.device.set_peer(spec).await.unwrap();
                    changes += 1;
                    tokio::time::sleep(Duration::from_micros(300)).await;
                }
            }
        };
        let receive = receive(&far_socket);
        let sending_and_receiving = async { tokio::join!(send, receive).1 };
        let got = tokio::select! {
            got = sending_and_receiving => got,
            () = change => unreachable!("it changes for ever"),
        };
        assert!(changes > 10, "{changes} changes");
        assert_eq!(got, (0..PACKETS).collect::<Vec<_>>(), "{changes} changes");
    });
}

#[test]
fn a_prefix_that_moves_to_a_peer_which_has_shaken_hands_without_it_loses_no_packet() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let near = Node::start(choice, "lisp0", "192.0.2.1", &["10.0.0.1/32"]).await;
        let near_socket = bind("10.0.0.1", &near.device);
        cable.far.enter();
        let before = Node::start(choice, "lisp0", "192.0.2.2", &["10.0.0.2/32"]).await;
        let after = Node::start(choice, "lisp1", "192.0.2.3", &["10.0.0.2/32"]).await;
        let sockets = [&before, &after].map(|far| bind("10.0.0.2", &far.device));
        near.device.set_peer(&before.as_peer()).await.unwrap();
        for far in [&before, &after] {
            far.device.set_peer(&near.as_peer()).await.unwrap();
        }
        near.device.kick(&before.key.public()).await.unwrap();
        near.wait_for_handshake(&before).await;

        let move_over = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let mut armed = after.as_peer();
            armed.allowed_ips.clear();
            near.device.set_peer(&armed).await.unwrap();
            near.device.kick(&after.key.public()).await.unwrap();
            near.wait_for_handshake(&after).await;
            let mut moved = after.as_peer();
            moved.endpoint = None;
            near.device.set_peer(&moved).await.unwrap();
            near.device.remove_peer(&before.key.public()).await.unwrap();
        };
        let ((), (), first, second) = tokio::join!(
            send(&near_socket),
            move_over,
            receive(&sockets[0]),
            receive(&sockets[1])
        );
        assert!(!first.is_empty() && !second.is_empty());
        let got = [first, second].concat();
        assert_eq!(got, (0..PACKETS).collect::<Vec<_>>());
    });
}
