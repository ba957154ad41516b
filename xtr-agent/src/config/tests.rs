//! What is accepted, and what complaints say.

use super::*;

const GOOD: &str = r#"
overlay = ["10.0.0.0/8", "fd00:1::/48"]
eid_prefixes = ["10.0.0.1/32", "fd00:1::1/128"]
listen_port = 51821
[map_server]
public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
endpoint = "203.0.113.1:51820"
address = "fd4c:1::1"
control_address = "fd4c:1::a"
"#;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("agent.toml"), text).map_err(|error| error.to_string())
}

#[test]
fn the_defaults_fill_what_is_not_said() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.interfaces.data, "lisp0");
    assert_eq!(config.mtu, 1420);
    assert_eq!(config.register_interval, Duration::from_secs(60));
    assert_eq!(config.map_server.address.port(), 4342);
}

#[test]
fn errors_name_file_line_key_and_remedy() {
    for (from, to, expected) in [
        (
            "10.0.0.1/32",
            "192.168.0.1/32",
            "agent.toml:3: eid_prefixes: 192.168.0.1/32 is outside",
        ),
        (
            "\"fd00:1::/48\"",
            "\"10.1.0.0/16\"",
            "agent.toml:2: overlay: 10.1.0.0/16 and 10.0.0.0/8 overlap",
        ),
        (
            "51821",
            "0",
            "agent.toml:4: listen_port: is 0; others must know",
        ),
        (
            "203.0.113.1:",
            "10.9.9.9:",
            "agent.toml:7: map_server.endpoint: lies within",
        ),
        (
            "control_address = \"fd4c:1::a\"",
            "control_address = \"192.0.2.1\"",
            "agent.toml:9: map_server.control_address: is of another",
        ),
        (
            "listen_port",
            "mtu = 900\nlisten_port",
            "agent.toml:4: mtu: 900 is too small",
        ),
        (
            "listen_port",
            "register_s = 600\nlisten_port",
            "register_s: is 600; use 5 to 120",
        ),
        (
            "endpoint = ",
            "#endpoint = ",
            "agent.toml:8: map_server: is neither",
        ),
        ("listen_port", "ttl_min = 0\nlisten_port", "ttl_min: is 0"),
    ] {
        let text = GOOD.replacen(from, to, 1);
        let error = parse(&text).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_plain_map_server_needs_an_algorithm_and_a_key() {
    let (head, _) = GOOD.split_once("public_key").unwrap();
    let plain = "address = \"192.0.2.1\"\nalgorithm = \"sha1\"\nkey = \"password\"\n";
    let config = parse(&format!("{head}{plain}")).unwrap();
    assert!(matches!(config.map_server.access, Access::Plain { .. }));
    assert!(
        !format!("{config:?}").contains("password"),
        "secrets are never printed"
    );
    let error = parse(&format!("{head}address = \"192.0.2.1\"\n")).unwrap_err();
    assert!(error.contains("give public_key, endpoint"), "{error}");
}

#[test]
fn unknown_keys_and_bad_values_show_their_line() {
    let error = parse(&GOOD.replace("listen_port", "listn_port")).unwrap_err();
    assert!(
        error.contains("listn_port") && error.contains("line 4"),
        "{error}"
    );
    let error = parse(&GOOD.replace("hSDw", "!!!!")).unwrap_err();
    assert!(error.contains("line 6"), "{error}");
}

#[test]
fn destinations_to_be_kept_ready_lie_in_the_overlay_and_elsewhere() {
    let with = |subscribe: &str| {
        let to = format!("subscribe = [{subscribe}]\nlisten_port");
        parse(&GOOD.replacen("listen_port", &to, 1))
    };
    let config = with("\"10.0.0.7/32\", \"fd00:1::/64\"").unwrap();
    assert_eq!(config.subscribe.len(), 2);
    for (subscribe, expected) in [
        ("\"192.0.2.1/32\"", "subscribe: 192.0.2.1/32 is outside"),
        ("\"10.0.0.1/32\"", "10.0.0.1/32 lies within 10.0.0.1/32"),
    ] {
        let error = with(subscribe).unwrap_err();
        assert!(error.starts_with("agent.toml:4: subscribe: "), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    let many = vec!["\"10.0.0.7/32\""; 65].join(",");
    assert!(with(&many).unwrap_err().contains("has 65 prefixes"));
    let one_family = GOOD.replacen(", \"fd00:1::1/128\"", "", 1);
    let to = "subscribe = [\"fd00:1::/64\"]\nlisten_port";
    let error = parse(&one_family.replacen("listen_port", to, 1)).unwrap_err();
    assert!(error.contains("another address family"), "{error}");
}

#[test]
fn a_plain_map_server_takes_no_subscriptions() {
    let (head, _) = GOOD.split_once("public_key").unwrap();
    let head = head.replacen(
        "listen_port",
        "subscribe = [\"10.0.0.7/32\"]\nlisten_port",
        1,
    );
    let plain = "address = \"192.0.2.1\"\nalgorithm = \"sha1\"\nkey = \"password\"\n";
    let error = parse(&format!("{head}{plain}")).unwrap_err();
    assert!(
        error.contains("is of no use with a plain map server"),
        "{error}"
    );
}
