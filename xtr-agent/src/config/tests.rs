//! What is accepted, and what complaints say.

use super::*;

mod proxy;

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
    assert_eq!(config.instances[0].interfaces.data, "lisp0");
    assert_eq!((config.mtu, config.instances[0].mtu), (1420, 1420));
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
fn a_value_with_a_unit_is_told_which_unit_its_key_has() {
    for (line, unit) in [
        ("hold_ms = \"3s\"", "milliseconds"),
        ("hold_ms = 3s", "milliseconds"),
        ("hold_ms = 0.5", "milliseconds"),
        ("register_s = \"1m\"", "seconds"),
        ("ttl_min = \"15min\"", "minutes"),
    ] {
        let text = GOOD.replacen("listen_port", &format!("{line}\nlisten_port"), 1);
        let error = parse(&text).unwrap_err();
        let remedy = format!("use a plain number of {unit}");
        assert!(
            error.contains("line 4") && error.ends_with(&remedy),
            "{error}"
        );
    }
}

#[test]
fn destinations_to_be_kept_ready_lie_in_the_overlay_and_elsewhere() {
    let with = |subscribe: &str| {
        let to = format!("subscribe = [{subscribe}]\nlisten_port");
        parse(&GOOD.replacen("listen_port", &to, 1))
    };
    let config = with("\"10.0.0.7/32\", \"fd00:1::/64\"").unwrap();
    assert_eq!(config.instances[0].subscribe.len(), 2);
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
fn prefixes_are_shared_with_others_where_the_file_says_so() {
    let shared = |text: &str| parse(text).map(|config| config.instances[0].shared);
    assert_eq!(shared(GOOD), Ok(false));
    let text = GOOD.replacen("listen_port", "shared = true\nlisten_port", 1);
    assert_eq!(shared(&text), Ok(true));
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

/// A second instance with other prefixes.
const SECOND: &str = r#"
[[instance]]
instance_id = 7
overlay = ["10.0.0.0/8"]
eid_prefixes = ["10.0.0.1/32"]
listen_port = 51827
subscribe = ["10.0.0.9/32"]
"#;

#[test]
fn further_instances_have_tables_and_names_of_their_own() {
    let second = SECOND
        .replace("10.0.0.", "10.8.0.")
        .replace("10.8.0.0/8", "11.0.0.0/8");
    let second = second.replace("10.8.", "11.8.");
    let config = parse(&format!("{GOOD}{second}")).unwrap();
    let [first, second] = config.instances.as_slice() else {
        panic!("{:?}", config.instances);
    };
    assert_eq!((first.iid.0, second.iid.0), (0, 7));
    assert_eq!(
        (first.key_file.as_str(), second.key_file.as_str()),
        ("data.key", "data-7.key")
    );
    assert_eq!(second.interfaces.data, "lisp7");
    assert_eq!(second.interfaces.miss, "lispm7");
    assert_eq!((second.listen_port, second.mtu), (51827, 1420));
    assert_eq!(second.subscribe.len(), 1);
}

#[test]
fn a_file_with_tables_needs_no_other_instance() {
    let (_, server) = GOOD.split_once("[map_server]").unwrap();
    let config = parse(&format!("{SECOND}[map_server]{server}")).unwrap();
    assert_eq!(config.instances.len(), 1);
    assert_eq!(config.instances[0].key_file, "data-7.key");
    let error = parse(&format!("[map_server]{server}")).unwrap_err();
    assert!(error.contains("overlay: is missing; give both"), "{error}");
    let error = parse(&format!("listen_port = 9\n{SECOND}[map_server]{server}")).unwrap_err();
    assert!(
        error.starts_with("agent.toml:1: overlay: is missing"),
        "{error}"
    );
}

#[test]
fn instances_that_get_into_each_others_way_are_refused() {
    let apart = SECOND.replace("10.0.0.", "11.0.0.");
    for (from, to, expected) in [
        (
            "= 7",
            "= 0",
            "agent.toml:12: instance_id: 0 is that of another instance",
        ),
        (
            "51827",
            "51821",
            "agent.toml:15: listen_port: 51821 is that of another",
        ),
        (
            "\"11.0.0.0/8\"",
            "\"10.0.0.0/6\"",
            "agent.toml:13: overlay: 8.0.0.0/6 overlaps",
        ),
        (
            "instance_id",
            "interfaces.data = \"lisp0\"\ninstance_id",
            "`lisp0` is an interface of",
        ),
        (
            "instance_id",
            "interfaces.data = \"lispm7\"\ninstance_id",
            "`lispm7` is not a usable",
        ),
        ("instance_id", "hold_ms = 5\ninstance_id", "hold_ms"),
    ] {
        let second = apart.replacen(from, to, 1);
        let error = parse(&format!("{GOOD}{second}")).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_plain_map_server_takes_one_instance_only() {
    let (head, _) = GOOD.split_once("[map_server]").unwrap();
    let plain = "[map_server]\naddress = \"192.0.2.1\"\nalgorithm = \"sha1\"\nkey = \"password\"\n";
    let second = SECOND.replacen("subscribe", "netns = \"green\" #", 1);
    let error = parse(&format!("{head}{plain}{second}")).unwrap_err();
    assert!(error.contains("a second instance with a plain"), "{error}");
}

#[test]
fn instances_in_namespaces_of_their_own_may_have_the_same_addresses_and_names() {
    let second = SECOND.replace("[[instance]]", "[[instance]]\nnetns = \"green\"");
    let third = SECOND
        .replace(
            "[[instance]]",
            "[[instance]]\nnetns = \"blue\"\ninterfaces.data = \"lisp0\"",
        )
        .replace("= 7", "= 8")
        .replace("51827", "51828");
    let config = parse(&format!("{GOOD}{second}{third}")).unwrap();
    let netns: Vec<_> = config
        .instances
        .iter()
        .map(|one| one.netns.as_deref())
        .collect();
    assert_eq!(netns, [None, Some("green"), Some("blue")]);
    let same = third.replace("blue", "green");
    let error = parse(&format!("{GOOD}{second}{same}")).unwrap_err();
    assert!(
        error.contains("overlay: 10.0.0.0/8 overlaps with"),
        "{error}"
    );
    let error = parse(&format!("{GOOD}{}", second.replace("green", "a/b"))).unwrap_err();
    assert!(error.contains("netns: `a/b` is not the name"), "{error}");
}

#[test]
fn instances_with_tables_of_their_own_may_have_the_same_destinations_but_not_the_same_addresses() {
    let second = SECOND.replace("[[instance]]", "[[instance]]\ntable = 1007");
    let other = second.replace("\"10.0.0.1/32\"", "\"10.0.0.7/32\"");
    let config = parse(&format!("{GOOD}{other}")).unwrap();
    let tables: Vec<_> = config.instances.iter().map(|one| one.table).collect();
    assert_eq!(tables, [254, 1007]);
    let error = parse(&format!("{GOOD}{second}")).unwrap_err();
    assert!(
        error.contains("eid_prefixes: 10.0.0.1/32 lives here in instance 0 too"),
        "{error}"
    );
    let error = parse(&format!("{GOOD}{}", other.replace("1007", "254"))).unwrap_err();
    assert!(error.contains("table: is 254, a table of the"), "{error}");
}

#[test]
fn what_is_excluded_is_no_part_of_the_overlay() {
    let with = |exclude: &str| {
        let to = format!("exclude = [{exclude}]\nsubscribe = [\"10.7.0.1/32\"]\nlisten_port");
        parse(&GOOD.replacen("listen_port", &to, 1))
    };
    let config = with("\"10.9.0.0/16\"").unwrap();
    let overlay = &config.instances[0].overlay;
    assert_eq!(overlay.len(), 9);
    let excluded: IpNet = "10.9.0.0/16".parse().unwrap();
    assert!(
        !overlay
            .iter()
            .any(|net| net.contains(&excluded) || excluded.contains(net))
    );
    for (exclude, expected) in [
        (
            "\"192.0.2.0/24\"",
            "agent.toml:4: exclude: 192.0.2.0/24 is outside the overlay",
        ),
        (
            "\"10.0.0.0/24\"",
            "10.0.0.0/24 overlaps with 10.0.0.1/32, which lives here",
        ),
        (
            "\"10.7.0.0/16\"",
            "10.7.0.0/16 contains 10.7.0.1/32, which is to be kept ready",
        ),
    ] {
        let error = with(exclude).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_idle_time_is_no_shorter_than_what_the_far_end_needs_to_notice() {
    let with =
        |line: &str| parse(&GOOD.replacen("listen_port", &format!("{line}\nlisten_port"), 1));
    let config = with("idle_s = 900\nmax_peers = 50000").unwrap();
    assert_eq!((config.idle.as_secs(), config.max_peers), (900, 50_000));
    for (line, expected) in [
        ("idle_s = 180", "idle_s: is 180; use 300 to 604800 seconds"),
        ("max_peers = 3", "max_peers: is 3; use 16 to 1048576"),
    ] {
        let error = with(line).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_overlay_that_is_everything_has_a_table_of_its_own_and_marks_its_tunnels() {
    let everything = GOOD.replacen("10.0.0.0/8", "0.0.0.0/0", 1);
    let config = parse(&everything).unwrap();
    let instance = &config.instances[0];
    assert!(instance.is_everything);
    assert_eq!((instance.table, config.mark()), (4_342, 4_342));
    let own = everything.replacen("listen_port", "table = 9\nlisten_port", 1);
    let config = parse(&own).unwrap();
    assert_eq!((config.instances[0].table, config.mark()), (9, 0));
    let other = GOOD.replacen("10.0.0.0/8", "0.0.0.0/1", 1);
    assert_eq!(parse(&other).unwrap().mark(), 0);
    let six = SECOND.replacen("10.0.0.0/8", "::/0", 1);
    let six = six.replacen("10.0.0.1/32", "fd00:9::1/128", 1);
    let six = six.replacen("10.0.0.9/32", "fd00:9::9/128", 1);
    let only_v4 = everything.replacen(", \"fd00:1::/48\"", "", 1);
    let only_v4 = only_v4.replacen(", \"fd00:1::1/128\"", "", 1);
    let error = parse(&format!("{only_v4}{six}")).unwrap_err();
    assert!(error.contains("has a default route, as that of"), "{error}");
}
