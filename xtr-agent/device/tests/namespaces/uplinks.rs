//! Uplinks: which interface does a packet leave by, and what is left when they go?

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;
use wg_device::{
    AddressWatch, BackendChoice, Device, DeviceConfig, PeerSpec, PrivateKey, Sources,
    UNDERLAY_MARK, UplinkSpec, Uplinks,
};

use crate::support::{PATIENCE, SILENCE, add_to_loopback, config, in_namespace, ip};

const MARKED: u32 = UNDERLAY_MARK;

/// Interfaces `up0`, `up1` and so on, each with a carrier and one of these addresses.
fn interfaces(addresses: &[&str]) {
    for (number, address) in addresses.iter().enumerate() {
        ip(&format!("link add up{number} type veth peer far{number}"));
        ip(&format!("addr add {address} dev up{number}"));
        ip(&format!("link set far{number} up"));
        ip(&format!("link set up{number} up"));
    }
}

fn uplink(number: u8, address: &str, gateway: &str) -> UplinkSpec {
    UplinkSpec {
        address: address.parse().unwrap(),
        interface: format!("up{number}"),
        gateway: Some(gateway.parse().unwrap()),
        rank: number.into(),
    }
}

fn addresses(all: &[&str]) -> Vec<IpAddr> {
    all.iter().map(|it| it.parse().unwrap()).collect()
}

/// How a packet of a tunnel leaves: the rest of the first line that `ip` says.
fn way(to: &str, from: &str) -> String {
    let from = match from {
        "" => String::new(),
        from => format!("from {from}"),
    };
    ip(&format!("route get {to} {from} mark {MARKED}"))
}

fn leaves_by(to: &str, from: &str, interface: &str) {
    let way = way(to, from);
    assert!(way.contains(&format!("dev {interface} ")), "{way}");
}

/// Sets `wanted` until those with `expected` are there: the kernel takes its time for a carrier.
async fn set(uplinks: &Uplinks, wanted: &[UplinkSpec], expected: &[&str]) {
    let expected = addresses(expected);
    let set = async {
        while uplinks.set(wanted).unwrap() != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, set).await.expect("others are there");
}

const FIRST: &str = "192.0.2.1";
const SECOND: &str = "198.51.100.1";

/// No interface gets a link-local address, with routes of its own, some time after it was made.
fn nothing_comes_by_itself() {
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
}

/// Two uplinks, and a third interface.
fn two() -> [UplinkSpec; 2] {
    interfaces(&["192.0.2.1/24", "198.51.100.1/24", "203.0.113.1/24"]);
    ip("route add default via 192.0.2.254");
    [
        uplink(0, FIRST, "192.0.2.254"),
        uplink(1, SECOND, "198.51.100.254"),
    ]
}

#[test]
fn who_is_at_another_interface_is_reached_there() {
    in_namespace(|| async {
        let wanted = two();
        let uplinks = Uplinks::claim(None).unwrap();
        set(&uplinks, &wanted, &[FIRST, SECOND]).await;
        ip("route add 10.9.0.0/16 via 203.0.113.254");
        for to in ["203.0.113.9", "10.9.0.1"] {
            for from in ["", FIRST, SECOND] {
                leaves_by(to, from, "up2");
            }
        }
        for (from, interface) in [("", "up0"), (FIRST, "up0"), (SECOND, "up1")] {
            leaves_by("10.8.0.1", from, interface);
            // The main table knows that network, by the interface of the first one alone.
            leaves_by("192.0.2.9", from, interface);
        }
    });
}

#[test]
fn who_is_in_the_network_of_an_uplink_without_a_carrier_is_reached_by_the_other_one() {
    in_namespace(|| async {
        let wanted = two();
        let uplinks = Uplinks::claim(None).unwrap();
        set(&uplinks, &wanted, &[FIRST, SECOND]).await;
        assert_eq!(uplinks.why_missing(wanted[0].address), None);
        ip("link set far0 down");
        set(&uplinks, &wanted, &[SECOND]).await;
        let why = |says: &str| {
            let why = uplinks.why_missing(wanted[0].address).unwrap();
            assert!(why.contains(says), "{why}");
        };
        why("no carrier");
        for to in ["192.0.2.9", "10.8.0.1"] {
            leaves_by(to, "", "up1");
            leaves_by(to, SECOND, "up1");
        }
        ip("addr del 192.0.2.1/24 dev up0");
        set(&uplinks, &wanted, &[SECOND]).await;
        why("no such address");
        ip("link del up0");
        set(&uplinks, &wanted, &[SECOND]).await;
        why("no such interface");
    });
}

#[test]
fn an_address_that_names_the_other_end_is_an_uplink() {
    in_namespace(|| async {
        interfaces(&[
            "192.0.2.1 peer 192.0.2.2/32",
            "fd00:1::1 peer fd00:1::2/64 nodad",
        ]);
        for (number, address, gateway) in [(0, FIRST, "192.0.2.2"), (1, "fd00:1::1", "fd00:1::2")] {
            for gateway in [Some(gateway.parse().unwrap()), None] {
                let spec = UplinkSpec {
                    gateway,
                    ..uplink(number, address, address)
                };
                let uplinks = Uplinks::claim(None).unwrap();
                set(&uplinks, &[spec], &[address]).await;
                let to = if number == 0 {
                    "203.0.113.9"
                } else {
                    "fd00:9::9"
                };
                leaves_by(to, address, &format!("up{number}"));
            }
        }
    });
}

#[test]
fn one_whose_gateway_is_refused_does_not_keep_others_from_theirs() {
    in_namespace(|| async {
        let [first, second] = two();
        // An address of this host is no gateway.
        let first = UplinkSpec {
            gateway: Some("203.0.113.1".parse().unwrap()),
            ..first
        };
        let uplinks = Uplinks::claim(None).unwrap();
        set(&uplinks, &[first.clone(), second], &[SECOND]).await;
        leaves_by("10.8.0.1", "", "up1");
        // One beyond the network is at the interface nevertheless.
        let first = UplinkSpec {
            gateway: Some("10.7.7.7".parse().unwrap()),
            ..first
        };
        set(&uplinks, &[first], &[FIRST]).await;
        leaves_by("10.8.0.1", "", "up0");
    });
}

#[test]
fn an_ipv6_address_that_others_may_have_is_not_there_yet() {
    in_namespace(|| async {
        ip("link add up0 type veth peer far0");
        // Nobody answers for a minute.
        fs::write("/proc/sys/net/ipv6/conf/up0/dad_transmits", "60").unwrap();
        ip("link set far0 up");
        ip("link set up0 up");
        ip("addr add fd00:1::1/64 dev up0");
        let wanted = [uplink(0, "fd00:1::1", "fd00:1::ff")];
        let uplinks = Uplinks::claim(None).unwrap();
        // Its interface has a carrier by the time at which the first one is there.
        ip("addr add 192.0.2.1/24 dev up0");
        let both = [wanted[0].clone(), uplink(0, FIRST, "192.0.2.254")];
        set(&uplinks, &both, &[FIRST]).await;
        ip("addr del fd00:1::1/64 dev up0");
        ip("addr add fd00:1::1/64 dev up0 nodad");
        set(&uplinks, &wanted, &["fd00:1::1"]).await;
    });
}

#[test]
fn an_ipv6_address_that_goes_while_its_interface_stays_leaves_no_routes() {
    in_namespace(|| async {
        let (first, second) = ("fd00:1::1", "fd00:2::1");
        interfaces(&["fd00:1::1/64 nodad", "fd00:2::1/64 nodad"]);
        let wanted = [
            uplink(0, first, "fd00:1::ff"),
            uplink(1, second, "fd00:2::ff"),
        ];
        let uplinks = Uplinks::claim(None).unwrap();
        set(&uplinks, &wanted, &[first, second]).await;
        let far: IpAddr = "fd00:9::9".parse().unwrap();
        uplinks
            .leave_from(far, Some(first.parse().unwrap()))
            .unwrap();
        // The routes are there, and so that would be seen.
        for table in [4_336, 4_344] {
            assert!(ip(&format!("-6 route show table {table}")).contains("up0"));
        }
        ip("-6 addr del fd00:1::1/64 dev up0");
        set(&uplinks, &wanted, &[second]).await;
        let left = ip("-6 route show table all");
        for table in [4_336, 4_344] {
            assert!(!left.contains(&format!("table {table}")), "{left}");
        }
        leaves_by("fd00:9::9", "", "up1");
    });
}

#[test]
fn what_was_refused_can_be_chosen_later() {
    in_namespace(|| async {
        let wanted = two();
        let uplinks = Uplinks::claim(None).unwrap();
        set(&uplinks, &wanted, &[FIRST, SECOND]).await;
        let (far, second) = ("10.8.0.1", SECOND.parse().unwrap());
        let choose = |from| uplinks.leave_from(far.parse().unwrap(), from);
        ip("link set up1 down");
        assert!(choose(Some(second)).is_err());
        leaves_by(far, "", "up0");
        ip("link set up1 up");
        set(&uplinks, &wanted, &[FIRST, SECOND]).await;
        choose(Some(second)).unwrap();
        leaves_by(far, "", "up1");
        choose(None).unwrap();
        leaves_by(far, "", "up0");
    });
}

#[test]
fn the_routes_and_interfaces_of_others_are_no_reason_to_look_at_uplinks_again() {
    in_namespace(|| async {
        nothing_comes_by_itself();
        two();
        let watch = AddressWatch::open_for_uplinks(vec!["up0".into(), "up1".into()]).unwrap();
        // What is known of the interfaces comes in its time.
        while timeout(SILENCE, watch.changed()).await.is_ok() {}
        ip("route add 10.9.0.0/16 via 203.0.113.254");
        ip("route del 10.9.0.0/16 via 203.0.113.254");
        ip("link add container type veth peer inside");
        ip("link set container up");
        ip("link del container");
        assert!(timeout(SILENCE, watch.changed()).await.is_err());
        for change in [
            "addr add 10.7.0.1/32 dev up2",
            "route add 10.9.0.0/16 dev up1 table 4336",
            "link set far1 down",
        ] {
            ip(change);
            let heard = timeout(PATIENCE, watch.changed()).await;
            heard.expect(change).unwrap();
            while timeout(SILENCE, watch.changed()).await.is_ok() {}
        }
    });
}

/// A route to an address is for packets of all interfaces, and so is the source that belongs to it.
#[test]
fn from_where_packets_leave_is_chosen_for_all_interfaces_at_once() {
    in_namespace(|| async {
        for address in [FIRST, SECOND, "203.0.113.9"] {
            add_to_loopback(&format!("{address}/32")).await;
        }
        let ours = addresses(&[FIRST, SECOND]);
        let far = UdpSocket::bind("203.0.113.9:0").await.unwrap();
        let endpoint = far.local_addr().unwrap();
        let sources = Sources::default();
        sources.set(&ours);
        let mut devices = Vec::new();
        for name in ["one", "other"] {
            let key = PrivateKey::generate();
            let wanted = DeviceConfig {
                sources: Some(sources.clone()),
                ..config(name, &key, 0, &[])
            };
            let device = Device::create(wanted, BackendChoice::Embedded).await;
            devices.push(device.unwrap());
        }
        let peer = PeerSpec {
            key: PrivateKey::generate().public(),
            endpoint: Some(endpoint),
            allowed_ips: Vec::new(),
            keepalive: None,
        };
        for from in [SECOND, FIRST] {
            let from: IpAddr = from.parse().unwrap();
            sources.choose(endpoint.ip(), Some(from));
            for device in &devices {
                device.remove_peer(&peer.key).await.unwrap();
                device.set_peer(&peer).await.unwrap();
                device.kick(&peer.key).await.unwrap();
                let wanted = SocketAddr::new(from, device.listen_port());
                let comes =
                    async { while far.recv_from(&mut [0; 256]).await.unwrap().1 != wanted {} };
                timeout(PATIENCE, comes).await.expect("sent from elsewhere");
            }
        }
    });
}

/// Each has numbers of its own, also while another one is away and its tunnels go on.
#[test]
fn two_agents_in_one_namespace_leave_each_other_s_rules_alone() {
    in_namespace(|| async {
        nothing_comes_by_itself();
        let wanted = two();
        let there = || ip("rule") + &ip("route show table all");
        let nothing = there();
        let one = Uplinks::claim(None).unwrap();
        set(&one, &wanted, &[FIRST, SECOND]).await;
        let with_one = there();
        let other = Uplinks::claim(Some(one.number())).unwrap();
        assert_ne!(one.number(), other.number());
        set(&other, &wanted[1..], &[SECOND]).await;
        let number = one.number();
        one.stay();
        drop(one);
        drop(other);
        assert_eq!(there(), with_one);
        let other = Uplinks::claim(None).unwrap();
        assert_ne!(other.number(), number, "something was left there");
        set(&other, &wanted, &[FIRST, SECOND]).await;
        let with_both = there();
        Uplinks::remove_leftover(other.number()).unwrap();
        assert_eq!(there(), with_both, "it runs");
        Uplinks::remove_leftover(number).unwrap();
        leaves_by("10.8.0.1", "", "up0");
        leaves_by("10.8.0.1", SECOND, "up1");
        drop(other);
        assert_eq!(there(), nothing);
    });
}

/// The kernel tells of the tables of uplinks only, whatever else there is.
#[test]
fn routes_of_an_uplink_that_are_gone_come_back_and_others_stay() {
    in_namespace(|| async {
        nothing_comes_by_itself();
        let wanted = two();
        let uplinks = Uplinks::claim(None).unwrap();
        set(&uplinks, &wanted, &[FIRST, SECOND]).await;
        let routes = || ip("route show table all");
        let before = routes();
        ip("route flush table 4344");
        assert_ne!(routes(), before);
        ip("route add 10.9.0.0/16 dev up2 proto 76 table 4345");
        ip("route add 10.9.0.0/16 dev up2 proto 76");
        uplinks.set(&wanted).unwrap();
        ip("route del 10.9.0.0/16 dev up2 proto 76");
        assert_eq!(routes(), before);
    });
}

#[test]
fn one_that_is_held_back_is_not_used_and_says_so() {
    in_namespace(|| async {
        let wanted = two();
        let uplinks = Uplinks::claim(None).unwrap();
        set(&uplinks, &wanted, &[FIRST, SECOND]).await;
        let first = wanted[0].address;
        let set = uplinks.set_but(&wanted, |there| {
            assert_eq!(there.len(), 2);
            [first].into()
        });
        assert_eq!(set.unwrap(), [wanted[1].address]);
        leaves_by("10.8.0.1", "", "up1");
        let why = uplinks.why_missing(first).unwrap();
        assert!(why.contains("comes and goes"), "{why}");
    });
}

#[test]
fn nothing_is_left_but_what_shall_stay() {
    in_namespace(|| async {
        nothing_comes_by_itself();
        let wanted = two();
        let there = || ip("rule") + &ip("route show table all");
        let before = there();
        let uplinks = Uplinks::claim(None).unwrap();
        set(&uplinks, &wanted, &[FIRST, SECOND]).await;
        drop(uplinks);
        assert_eq!(there(), before);
        let uplinks = Uplinks::claim(None).unwrap();
        uplinks.set(&wanted).unwrap();
        uplinks.stay();
        drop(uplinks);
        assert_ne!(there(), before);
        Uplinks::remove_leftover(0).unwrap();
        assert_eq!(there(), before);
    });
}
