//! The interface that catches packets to destinations nobody has resolved yet.

use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;
use wg_device::{DeviceError, MissTun, RouteSpec, Routes};

use crate::support::{
    PATIENCE, PORT, add_to_loopback, in_namespace, ip, receive, route, udp_packet,
};

#[test]
fn a_packet_to_an_unknown_destination_is_caught_whole() {
    in_namespace(|| async {
        let miss = overlay().await;
        let mut buffer = [0; 2048];
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00:1::1", "fd00:1::2")] {
            let socket = UdpSocket::bind((source, PORT)).await.unwrap();
            for text in ["one", "two"] {
                socket
                    .send_to(text.as_bytes(), (destination, PORT))
                    .await
                    .unwrap();
            }
            let length = timeout(PATIENCE, miss.recv(&mut buffer))
                .await
                .unwrap()
                .unwrap();
            let caught = &buffer[..length];
            assert!(caught.ends_with(b"one"));
            assert_eq!(length, udp_packet(source, destination, "one").len());
            let length = miss.try_recv(&mut buffer).unwrap();
            assert!(buffer[..length].ends_with(b"two"));
            assert_eq!(miss.try_recv(&mut buffer), None);
        }
    });
}

#[test]
fn a_packet_can_be_handed_to_the_local_stack() {
    in_namespace(|| async {
        let miss = overlay().await;
        for (source, destination) in [("10.0.0.2", "10.0.0.1"), ("fd00:1::2", "fd00:1::1")] {
            let socket = UdpSocket::bind((destination, PORT)).await.unwrap();
            miss.send(&udp_packet(source, destination, "hello"))
                .await
                .unwrap();
            assert_eq!(receive(&socket).await.0, "hello");
        }
    });
}

#[test]
fn the_kernel_says_nothing_of_its_own() {
    in_namespace(|| async {
        // A router has more to say than a host.
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        let miss = overlay().await;
        let mut buffer = [0; 2048];
        let chatter = timeout(Duration::from_millis(2500), miss.recv(&mut buffer)).await;
        assert!(chatter.is_err(), "{:02x?}", &buffer[..80]);
        let link = ip("link show lispm0");
        assert!(link.contains("UP") && link.contains("mtu 1420"), "{link}");
        assert!(!ip("addr show dev lispm0").contains("inet"));
    });
}

#[test]
fn the_interface_goes_when_it_is_dropped_and_its_name_is_taken_until_then() {
    in_namespace(|| async {
        let miss = MissTun::create("lispm0", 1420, false).unwrap();
        assert_eq!(miss.name(), "lispm0");
        let second = MissTun::create("lispm0", 1420, false).err().unwrap();
        assert!(matches!(second, DeviceError::Running { .. }), "{second}");
        drop(miss);
        assert!(!ip("link show").contains("lispm0"));
        let free = async {
            // A program another test starts holds copies of all sockets between fork and exec.
            while let Err(error) = MissTun::create("lispm0", 1420, false) {
                assert!(matches!(error, DeviceError::Running { .. }), "{error}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, free).await.unwrap();
    });
}

/// A host with inner addresses and the overlay behind the miss interface.
async fn overlay() -> MissTun {
    add_to_loopback("10.0.0.1").await;
    add_to_loopback("fd00:1::1").await;
    let miss = MissTun::create("lispm0", 1420, false).unwrap();
    let routes = Routes::new().unwrap();
    for prefix in ["10.0.0.0/8", "fd00:1::/48"] {
        let spec = RouteSpec {
            metric: 1000,
            ..route(prefix, miss.name())
        };
        routes.add(&spec).unwrap();
    }
    miss
}
