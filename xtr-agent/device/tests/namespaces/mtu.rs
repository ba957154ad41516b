//! Sizes of packets: what a path carries, and what forwarded connections are told.

use std::io::Read;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;

use nix::sys::socket::{getsockopt, sockopt};
use wg_device::{ForwardRules, Forwarded, path_mtu};

use crate::support::{Cable, Namespace, in_namespace, ip};

#[test]
fn the_mtu_of_a_path_is_that_of_its_route() {
    in_namespace(|| async {
        let _cable = Cable::lay();
        let far: IpAddr = "192.0.2.2".parse().unwrap();
        assert_eq!(path_mtu(far, 0).unwrap(), 1500);
        ip("route add 192.0.2.2/32 dev cable0 mtu 1300");
        assert_eq!(path_mtu(far, 0).unwrap(), 1300);
        assert!(path_mtu("198.51.100.1".parse().unwrap(), 0).is_err());
    });
}

#[test]
fn forwarded_connections_are_told_a_segment_size_that_fits() {
    in_namespace(|| async {
        if Command::new("nft")
            .arg("list")
            .arg("ruleset")
            .output()
            .is_err()
        {
            println!("skipped: there is no nft");
            return;
        }
        // Behind the gateway `far`: near - cable0 - far - tunnel0 - beyond.
        let cable = Cable::lay();
        ip("route add 198.51.100.0/24 via 192.0.2.2");
        cable.far.enter();
        let beyond = Namespace::enter_new();
        ip("link add tunnel0 type veth peer name tunnel1");
        cable.far.enter();
        let far_path = cable.far.path();
        beyond.enter();
        ip(&format!("link set tunnel1 netns {far_path}"));
        ip("addr add 198.51.100.2/24 dev tunnel0");
        ip("link set tunnel0 up");
        ip("route add 192.0.2.0/24 via 198.51.100.1");
        let listener = TcpListener::bind("198.51.100.2:80").unwrap();
        cable.far.enter();
        ip("addr add 198.51.100.1/24 dev tunnel1");
        ip("link set tunnel1 up");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let segment_size = || {
            cable.near.enter();
            let mut near = TcpStream::connect("198.51.100.2:80").unwrap();
            let (far, _) = listener.accept().unwrap();
            let size = getsockopt(&far, sockopt::TcpMaxSeg).unwrap();
            drop(far);
            near.read_to_end(&mut Vec::new()).unwrap();
            cable.far.enter();
            size
        };
        let before = segment_size();
        let rules = ForwardRules::of("tunnel1");
        let forwarded = Forwarded {
            data: "tunnel1",
            miss: "lispm0",
            mtu: 1380,
            nat: None,
        };
        for _ in 0..2 {
            rules.set(&forwarded).unwrap();
            // With timestamps, which take 12 bytes of each segment.
            assert!(segment_size() <= 1340, "{} before", before);
        }
        rules.remove().unwrap();
        rules.remove().unwrap();
        assert_eq!(segment_size(), before);
    });
}
