//! What is accepted of a proxy, and what complaints say.

use super::*;

/// A proxy, line by line.
const PROXY: &str = r#"
overlay = ["10.0.0.0/8", "fd00:1::/48"]
eid_prefixes = ["10.0.1.1/32", "fd00:1:0:1::1/128"]
role = "proxy"
nat = "masquerade"
uplink = "eth0"
[map_server]
public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
endpoint = "203.0.113.1:51820"
address = "fd4c:1::1"
control_address = "fd4c:1::a"
"#;

#[test]
fn a_proxy_serves_default_routes_unless_it_says_what() {
    let config = parse(PROXY).unwrap();
    let proxy = &config.instances[0];
    let served: Vec<_> = proxy.serves.iter().map(ToString::to_string).collect();
    assert_eq!(served, ["0.0.0.0/0", "::/0"]);
    assert!(proxy.shared && proxy.forward && !proxy.is_everything);
    let uplink = Some("eth0".to_owned());
    let nat = Nat {
        translation: Translation::Masquerade,
        uplink,
    };
    assert_eq!((proxy.nat.clone(), config.mark()), (nat, 0));
    let text = PROXY.replace("nat = \"masquerade\"", "serves = [\"198.51.100.7/24\"]");
    let config = parse(&text.replace("uplink", "#")).unwrap();
    let served: Vec<IpNet> = vec!["198.51.100.0/24".parse().unwrap()];
    assert_eq!(config.instances[0].serves, served);
    assert_eq!(config.instances[0].nat, Nat::default());
    let one_family = PROXY.replace(", \"fd00:1:0:1::1/128\"", "");
    assert_eq!(parse(&one_family).unwrap().instances[0].serves.len(), 1);
}

#[test]
fn what_leaves_a_proxy_may_have_addresses_of_its_own() {
    let with = |nat: &str| parse(&PROXY.replace("\"masquerade\"", nat));
    let addresses: [IpAddr; 2] = ["203.0.113.9", "2001:db8::9"].map(|it| it.parse().unwrap());
    for (nat, expected) in [
        ("{ address = \"203.0.113.9\" }", &addresses[..1]),
        (
            "{ address = [\"203.0.113.9\", \"2001:db8::9\"] }",
            &addresses,
        ),
    ] {
        let config = with(nat).unwrap();
        let to = Translation::To(expected.to_vec());
        assert_eq!(config.instances[0].nat.translation, to);
    }
    for (nat, expected) in [
        (
            "{ address = [] }",
            "agent.toml:5: nat: no addresses in one family; name one",
        ),
        (
            "{ address = [\"203.0.113.9\", \"203.0.113.8\"] }",
            "agent.toml:5: nat: 2 addresses in one family; name one",
        ),
        (
            "{ address = \"127.0.0.1\" }",
            "nat: nobody can answer to 127.0.0.1; name",
        ),
        (
            "{ address = \"10.0.1.1\" }",
            "nat: is within 10.0.1.1/32, which lives here; name",
        ),
        (
            "{ adress = \"203.0.113.9\" }",
            "is `\"none\"`, `\"masquerade\"` or `{ address",
        ),
        ("\"snat\"", "is `\"none\"`, `\"masquerade\"` or `{ address"),
    ] {
        let error = with(nat).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_is_for_proxies_and_makes_no_sense_is_refused_with_a_remedy() {
    for (from, to, expected) in [
        (
            "role = \"proxy\"",
            "",
            "agent.toml:5: nat: is for proxies; add `role",
        ),
        ("\"proxy\"", "\"relay\"", "unknown variant `relay`"),
        (
            "\"masquerade\"",
            "\"none\"",
            "agent.toml:6: uplink: is of no use",
        ),
        (
            "\"eth0\"",
            "\"eth 0\"",
            "agent.toml:6: uplink: `eth 0` is not the name",
        ),
        (
            "\"10.0.0.0/8\"",
            "\"0.0.0.0/0\"",
            "agent.toml:2: overlay: 0.0.0.0/0 would lead",
        ),
        (
            "role",
            "serves = [\"10.9.0.0/16\", \"10.0.0.0/8\"]\nrole",
            "agent.toml:4: serves: 10.0.0.0/8 and 10.9.0.0/16 overlap",
        ),
        (
            "role",
            "serves = [\"10.0.1.1/32\"]\nrole",
            "serves: 10.0.1.1/32 lies within 10.0.1.1/32",
        ),
        (
            "role",
            "serves = []\nrole",
            "serves: has 0 prefixes; name between",
        ),
        (
            ", \"fd00:1:0:1::1/128\"]",
            "]\nserves = [\"::/0\"]",
            "agent.toml:4: serves: ::/0 needs an address of the proxy in its family; add",
        ),
    ] {
        let error = parse(&PROXY.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let (head, _) = PROXY.split_once("public_key").unwrap();
    let plain = "address = \"192.0.2.1\"\nalgorithm = \"sha1\"\nkey = \"password\"\n";
    let error = parse(&format!("{head}{plain}")).unwrap_err();
    assert!(
        error.contains("agent.toml:4: role: cannot be a proxy"),
        "{error}"
    );
}
