//! Changes of a peer while packets flow through it.

use std::time::Duration;

use tokio::time::timeout;

use crate::support::{Cable, Node, PORT, bind, with_each_backend};

const PACKETS: u32 = 3_000;
const SILENCE: Duration = Duration::from_secs(5);

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

        let send = async {
            for number in 0..PACKETS {
                let bytes = number.to_be_bytes();
                near_socket
                    .send_to(&bytes, ("10.0.0.2", PORT))
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        };
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
        let receive = async {
            let mut got = Vec::new();
            let mut buffer = [0; 16];
            while got.last() != Some(&(PACKETS - 1))
                && let Ok(length) = timeout(SILENCE, far_socket.recv(&mut buffer)).await
            {
                let bytes = buffer[..length.unwrap()].try_into().unwrap();
                got.push(u32::from_be_bytes(bytes));
            }
            got
        };
        let sending_and_receiving = async { tokio::join!(send, receive).1 };
        let got = tokio::select! {
            got = sending_and_receiving => got,
            () = change => unreachable!("it changes for ever"),
        };
        assert!(changes > 10, "{changes} changes");
        assert_eq!(got, (0..PACKETS).collect::<Vec<_>>(), "{changes} changes");
    });
}
