//! How interfaces come and go, and what is said when they cannot.

use std::io;
use std::net::IpAddr;

use tokio::net::UdpSocket;
use wg_device::{Backend, BackendChoice, Device, DeviceError, PrivateKey, local_address_towards};

use crate::support::{bind, config, create_again, in_namespace, ip, route, with_each_backend};

#[test]
fn an_interface_comes_up_with_its_addresses_usable_at_once() {
    with_each_backend(|choice| async move {
        let inner = ["10.0.0.1/32", "fd00:1::1/128", "10.9.0.1/24"].map(|net| net.parse().unwrap());
        let key = PrivateKey::generate();
        let device = Device::create(config("lisp0", &key, 0, &inner), choice)
            .await
            .unwrap();
        let expected = match choice {
            BackendChoice::Kernel => Backend::Kernel,
            BackendChoice::Embedded | BackendChoice::Auto => Backend::Embedded,
        };
        assert_eq!(device.backend(), expected);
        assert_eq!(device.name(), "lisp0");
        assert_ne!(device.listen_port(), 0);
        for address in ["10.0.0.1", "fd00:1::1", "10.9.0.1"] {
            bind(address, &device);
        }
        let link = ip("link show lisp0");
        assert!(
            link.contains("mtu 1420") && !link.contains("MULTICAST"),
            "{link}"
        );
        assert!(!ip("-6 addr show dev lisp0").contains("fe80"));
        // A host address says nothing about where others are.
        assert_eq!(ip("-4 route show dev lisp0").lines().count(), 1);
        assert!(!ip("-6 route show dev lisp0").contains("fd00:1::1"));
        let towards: IpAddr = "10.9.0.7".parse().unwrap();
        assert_eq!(local_address_towards(towards, 0).unwrap(), inner[2].addr());
    });
}

#[test]
fn nothing_is_left_after_close_and_after_drop() {
    with_each_backend(|choice| async move {
        let key = PrivateKey::generate();
        let port = free_port().await;
        let config = config("lisp0", &key, port, &[]);
        let device = create_again(&config, choice).await;
        device.close().await;
        assert!(!ip("link show").contains("lisp0"));
        let device = create_again(&config, choice).await;
        drop(device);
        assert!(!ip("link show").contains("lisp0"));
        let device = create_again(&config, choice).await;
        device.close().await;
        assert!(!ip("link show").contains("lisp0"));
    });
}

#[test]
fn a_second_instance_is_told_to_choose_another_name() {
    with_each_backend(|choice| async move {
        let key = PrivateKey::generate();
        let first = Device::create(config("lisp0", &key, 0, &[]), choice)
            .await
            .unwrap();
        let second = Device::create(config("lisp0", &key, 0, &[]), choice)
            .await
            .unwrap_err();
        assert!(matches!(second, DeviceError::Running { .. }), "{second}");
        assert!(second.to_string().contains("[interfaces]"), "{second}");
        assert!(ip("link show").contains("lisp0"));
        first.close().await;
    });
}

#[test]
fn a_foreign_device_of_the_name_is_kept_and_named() {
    with_each_backend(|choice| async move {
        for (name, kind) in [("lisp0", "mode tun"), ("lisp1", "mode tap")] {
            ip(&format!("tuntap add {name} {kind}"));
            let config = config(name, &PrivateKey::generate(), 0, &[]);
            let refused = Device::create(config, choice).await.unwrap_err();
            assert!(
                matches!(refused, DeviceError::NameTaken { .. }),
                "{refused}"
            );
            assert!(ip("link show").contains(name));
        }
    });
}

#[test]
fn a_port_in_use_is_named() {
    with_each_backend(|choice| async move {
        let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let key = PrivateKey::generate();
        let refused = Device::create(config("lisp0", &key, port, &[]), choice)
            .await
            .unwrap_err();
        assert!(
            matches!(refused, DeviceError::PortTaken { .. }),
            "{refused}"
        );
        assert!(!ip("link show").contains("lisp0"));
    });
}

#[test]
fn an_interface_a_killed_process_left_is_replaced_only_with_the_same_key() {
    with_each_backend(|choice| async move {
        if choice == BackendChoice::Embedded {
            println!("skipped for embedded: its interfaces go with the process");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.key");
        let key = PrivateKey::load_or_create(&path).unwrap();
        ip("link add lisp0 type wireguard");
        let other = Device::create(config("lisp0", &key, 0, &[]), choice)
            .await
            .unwrap_err();
        assert!(matches!(other, DeviceError::NameTaken { .. }), "{other}");
        let status = std::process::Command::new("wg")
            .args(["set", "lisp0", "private-key"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(status.success());
        let config = config("lisp0", &key, 0, &[]);
        create_again(&config, choice).await.close().await;
    });
}

#[test]
fn the_embedded_data_plane_refuses_packets_it_cannot_carry() {
    in_namespace(|| async {
        let mut config = config("lisp0", &PrivateKey::generate(), 0, &[]);
        config.mtu = 8_920;
        let refused = Device::create(config, BackendChoice::Embedded)
            .await
            .unwrap_err();
        assert!(
            matches!(refused, DeviceError::MtuTooLarge { .. }),
            "{refused}"
        );
    });
}

#[test]
fn a_host_without_ipv6_is_told_so_and_can_do_without() {
    with_each_backend(|choice| async move {
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            std::fs::write(path, "1").unwrap();
        }
        let key = PrivateKey::generate();
        let inner = ["10.0.0.1/32", "fd00:1::1/128"].map(|net| net.parse().unwrap());
        let both = config("lisp0", &key, 0, &inner);
        let refused = Device::create(both, choice).await.unwrap_err();
        assert!(matches!(refused, DeviceError::NoIpv6 { .. }), "{refused}");
        let config = config("lisp0", &key, 0, &inner[..1]);
        create_again(&config, choice).await.close().await;
    });
}

#[test]
fn a_device_stays_in_the_namespace_it_was_made_in() {
    with_each_backend(|choice| async move {
        let home = crate::support::Namespace::present();
        let key = PrivateKey::generate();
        let device = Device::create(config("lisp0", &key, 0, &[]), choice)
            .await
            .unwrap();
        crate::support::Namespace::enter_new();
        let twin = Device::create(config("lisp0", &key, 0, &[]), choice)
            .await
            .unwrap();
        device.close().await;
        assert!(ip("link show").contains("lisp0"));
        twin.close().await;
        home.enter();
        assert!(!ip("link show").contains("lisp0"));
    });
}

#[test]
fn routes_go_with_their_interface() {
    with_each_backend(|choice| async move {
        let key = PrivateKey::generate();
        let device = Device::create(config("lisp0", &key, 0, &[]), choice)
            .await
            .unwrap();
        let routes = wg_device::Routes::new().unwrap();
        let spec = route("10.1.0.0/16", "lisp0");
        routes.add(&spec).unwrap();
        device.close().await;
        assert_eq!(ip("route show"), "");
        routes.remove(&spec).unwrap();
    });
}

#[test]
fn futures_of_a_device_may_move_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    fn check(device: &Device, spec: &wg_device::PeerSpec) {
        is_send(device);
        is_send(&device.set_peer(spec));
        is_send(&device.remove_peer(&spec.key));
        is_send(&device.peer_stats());
        is_send(&device.kick(&spec.key));
    }
    let _ = check;
}

async fn free_port() -> u16 {
    let socket: io::Result<UdpSocket> = UdpSocket::bind("0.0.0.0:0").await;
    socket.unwrap().local_addr().unwrap().port()
}
