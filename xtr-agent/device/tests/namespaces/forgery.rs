//! A packet from the underlay that claims to come out of the tunnel.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use wg_device::bind_control_socket;

use crate::support::{
    Cable, Node, PORT, add_to_loopback, ip, is_silent, receive, with_each_backend,
};

#[test]
fn a_forged_inner_source_is_heard_without_the_device_and_not_with_it() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let inner = ["10.0.0.1/32", "fd00:1::1/128"];
        let near = Node::start(choice, "lispc0", "192.0.2.1", &inner).await;
        // The forger sends in clear to the inner address, from an inner address.
        cable.far.enter();
        add_to_loopback("10.0.0.2").await;
        add_to_loopback("fd00:1::2").await;
        ip("route add 10.0.0.1 via 192.0.2.1");
        ip("route add fd00:1::1 via 2001:db8::1");
        for (target, forged) in [("10.0.0.1", "10.0.0.2"), ("fd00:1::1", "fd00:1::2")] {
            cable.far.enter();
            let forger = UdpSocket::bind((forged, PORT)).await.unwrap();
            cable.near.enter();
            let open = bind_control_socket(addr(target, 1), None, 0).unwrap();
            // The proof that the forgery works; repeated because the cable may be new to the
            // kernels at its ends.
            let repeat = async {
                loop {
                    let sent = forger.send_to(b"forged", addr(target, 1)).await;
                    assert_eq!(sent.unwrap(), 6);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let heard = tokio::select! {
                heard = receive(&open) => heard,
                () = repeat => unreachable!(),
            };
            assert_eq!(heard, ("forged".into(), forged.parse().unwrap()));
            let device = Some(near.device.name());
            let bound = bind_control_socket(addr(target, 2), device, 0).unwrap();
            forger.send_to(b"forged", addr(target, 2)).await.unwrap();
            assert!(
                is_silent(&bound).await,
                "{target} took a packet of the underlay"
            );
        }
    });
}

fn addr(address: &str, offset: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), PORT + offset)
}
