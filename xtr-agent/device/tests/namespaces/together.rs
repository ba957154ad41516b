//! Many peers that are set in one go, with every data plane this machine has.

use std::collections::BTreeMap;
use std::process::Command;

use ipnet::IpNet;
use wg_device::{Backend, Device, PeerSpec, PrivateKey};

use crate::support::{Cable, Node, bind, config, receive, udp_packet, with_each_backend};

/// Peers that nobody is, each with one prefix.
fn others(count: u16) -> Vec<PeerSpec> {
    let numbers = 0..count;
    let others = numbers.map(|number| {
        let [high, low] = number.to_be_bytes();
        PeerSpec {
            key: PrivateKey::generate().public(),
            endpoint: Some("192.0.2.77:1000".parse().unwrap()),
            allowed_ips: vec![format!("10.7.{high}.{low}/32").parse().unwrap()],
            keepalive: None,
        }
    });
    others.collect()
}

#[test]
fn peers_set_together_are_each_as_described_and_a_prefix_goes_to_the_last_that_has_it() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let near = Node::start(choice, "lisp0", "192.0.2.1", &["10.0.0.1/32"]).await;
        cable.far.enter();
        let far = Node::start(choice, "lisp0", "192.0.2.2", &["10.0.0.9/32"]).await;
        far.device.set_peer(&near.as_peer()).await.unwrap();
        let socket = bind("10.0.0.9", &far.device);
        let mut specs = others(300);
        specs[0].allowed_ips = far.inner.clone();
        // More than one message of the kernel takes.
        specs[7].allowed_ips = (0..3_000_u16)
            .map(|number| format!("fd00:2:{number:x}::/48").parse().unwrap())
            .collect();
        specs.insert(200, far.as_peer());
        let results = near.device.set_peers(&specs).await;
        assert_eq!(results.len(), specs.len());
        assert!(results.iter().all(Result::is_ok));
        let mut there = near.device.peers().await;
        let mut wanted: Vec<_> = specs.iter().map(|spec| spec.key).collect();
        let read = near.device.peer_stats().await.unwrap();
        let mut read: Vec<_> = read.iter().map(|peer| (peer.key, peer.endpoint)).collect();
        let mut told: Vec<_> = specs.iter().map(|spec| (spec.key, spec.endpoint)).collect();
        read.sort();
        told.sort();
        there.sort();
        wanted.sort();
        assert_eq!(there, wanted);
        assert_eq!(read, told);

        let packet = |text: &str| udp_packet("10.0.0.1", "10.0.0.9", text);
        near.device.inject(&packet("first")).await.unwrap();
        assert_eq!(receive(&socket).await.0, "first");
        near.wait_for_handshake(&far).await;
        let session = near.stats_of(&far).await;

        // What is as it was is left alone, and who lost his prefix does not get it back.
        specs[0].allowed_ips.clear();
        let mut roamed = far.as_peer();
        roamed.endpoint = None;
        specs[200] = roamed;
        let results = near.device.set_peers(&specs).await;
        assert!(results.iter().all(Result::is_ok));
        near.device.inject(&packet("again")).await.unwrap();
        assert_eq!(receive(&socket).await.0, "again");
        let later = near.stats_of(&far).await;
        assert_eq!(later.endpoint, session.endpoint);
        assert!(later.tx_bytes > session.tx_bytes, "the same session");
        assert!(near.device.set_peers(&[]).await.is_empty());
    });
}

#[test]
fn the_prefixes_of_peers_set_together_are_taken_over_by_the_next_run() {
    with_each_backend(|choice| async move {
        let _cable = Cable::lay();
        let key = PrivateKey::generate();
        let mut wanted = config("lisp0", &key, 0, &[]);
        wanted.adopt = true;
        let device = Device::create(wanted.clone(), choice).await.unwrap();
        if device.backend() != Backend::Kernel {
            return device.close().await;
        }
        let specs = others(64);
        assert!(device.set_peers(&specs).await.iter().all(Result::is_ok));
        device.stay();
        drop(device);
        let device = Device::create(wanted, choice).await.unwrap();
        let shown = Command::new("wg")
            .args(["show", "lisp0", "allowed-ips"])
            .output();
        let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
        let lines = shown.lines().filter_map(|line| line.split_once('\t'));
        let found: BTreeMap<String, IpNet> = lines
            .map(|(key, prefix)| (key.to_owned(), prefix.parse().unwrap()))
            .collect();
        let told = specs.iter();
        let told: BTreeMap<_, _> = told
            .map(|spec| (spec.key.to_string(), spec.allowed_ips[0]))
            .collect();
        assert_eq!(found, told);
        device.close().await;
    });
}

#[test]
fn where_none_can_be_set_each_is_told() {
    with_each_backend(|choice| async move {
        let _cable = Cable::lay();
        let key = PrivateKey::generate();
        let device = Device::create(config("lisp0", &key, 0, &[]), choice)
            .await
            .unwrap();
        let refused = device.backend() == Backend::Kernel;
        let gone = Command::new("ip").args(["link", "del", "lisp0"]).status();
        assert!(gone.unwrap().success());
        let results = device.set_peers(&others(5)).await;
        assert_eq!(results.len(), 5);
        // The embedded data plane keeps its own table.
        assert!(results.iter().all(|result| result.is_err() == refused));
    });
}
