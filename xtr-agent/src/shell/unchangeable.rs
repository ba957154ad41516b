//! What of a configuration cannot change while the agent runs?

use crate::config::{Access, Config, Instance, Section};

/// The keys that differ and cannot change while the agent runs, and where they are.
pub(super) fn needs_restart(now: &Config, wanted: &Config) -> Vec<(Section, &'static str)> {
    let keys = differing(fixed(now), fixed(wanted));
    let mut keys: Vec<_> = keys.into_iter().map(|key| (Section::Whole, key)).collect();
    let mut tables = 0;
    for instance in &wanted.instances {
        let section = if is_outer(instance) {
            Section::Whole
        } else {
            tables += 1;
            Section::Instance(tables - 1)
        };
        let mut others = now.instances.iter();
        if let Some(other) = others.find(|other| other.iid == instance.iid) {
            let more = differing(fixed_of_one(other), fixed_of_one(instance));
            let more = more.into_iter().map(|key| (section, key));
            keys.extend(
                more.filter(|key| !(key.1 == "mtu" && keys.contains(&(Section::Whole, "mtu"))))
                    .collect::<Vec<_>>(),
            );
        }
    }
    keys
}

/// Whether the keys of `instance` are outside of all tables.
fn is_outer(instance: &Instance) -> bool {
    instance.key_file == "data.key"
}

/// For which address families the instance is a gateway: what forwarding needs is set at the start.
fn gateway(instance: &Instance) -> [bool; 2] {
    [true, false].map(|is_ipv4| {
        let mut prefixes = instance.eid_prefixes.iter();
        prefixes
            .any(|net| net.prefix_len() < net.max_prefix_len() && net.addr().is_ipv4() == is_ipv4)
    })
}

/// A key of the configuration, and its value as text without secrets.
type Fixed = (&'static str, String);

fn differing<const N: usize>(now: [Fixed; N], wanted: [Fixed; N]) -> Vec<&'static str> {
    let pairs = now.into_iter().zip(wanted);
    let changed = pairs.filter(|((_, now), (_, wanted))| now != wanted);
    changed.map(|((key, _), _)| key).collect()
}

/// What cannot change. A new key must be listed here, or be left out with the others that can.
fn fixed(config: &Config) -> [Fixed; 7] {
    let Config {
        ttl: _,
        register_interval: _,
        hold: _,
        state_dir,
        admin_socket,
        rlocs: _,
        data_plane,
        mtu,
        idle: _,
        max_peers: _,
        control_interface,
        map_server,
        instances: _,
    } = config;
    let is_plain = matches!(map_server.access, Access::Plain { .. });
    [
        ("state_dir", format!("{state_dir:?}")),
        ("admin_socket", format!("{admin_socket:?}")),
        // The mark of what carries tunnels is set when these are made.
        ("rlocs", format!("{}", config.has_uplinks())),
        ("data_plane", format!("{data_plane:?}")),
        ("mtu", format!("{mtu:?}")),
        ("interfaces.control", format!("{control_interface:?}")),
        // Registrations have another form.
        ("map_server", format!("{is_plain}")),
    ]
}

/// What cannot change of one instance.
fn fixed_of_one(instance: &Instance) -> [Fixed; 12] {
    let Instance {
        iid: _,
        subscribe: _,
        witnesses: _,
        overlay: _,
        eid_prefixes: _,
        is_everything,
        serves,
        nat,
        listen_port,
        mtu,
        netns,
        table,
        forward,
        shared,
        interfaces,
        key_file,
    } = instance;
    [
        ("eid_prefixes", format!("{:?}", gateway(instance))),
        ("overlay", format!("{is_everything}")),
        ("serves", format!("{serves:?}")),
        ("nat", format!("{nat:?}")),
        ("listen_port", format!("{listen_port:?}")),
        ("mtu", format!("{mtu:?}")),
        ("netns", format!("{netns:?}")),
        ("table", format!("{table}")),
        ("forward", format!("{forward:?}")),
        ("shared", format!("{shared:?}")),
        ("interfaces", format!("{interfaces:?}")),
        // Its name tells whether the instance has a table.
        ("instance_id", format!("{key_file:?}")),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::reload::adjustable;
    use super::*;

    const FILE: &str = r#"
overlay = ["10.0.0.0/8"]
eid_prefixes = ["10.0.0.1/32"]
ttl_min = 15
[map_server]
address = "192.0.2.1"
algorithm = "sha1"
key = "secret"
"#;

    const TUNNEL: &str = r#"public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
endpoint = "203.0.113.1:51820"
control_address = "192.0.2.7""#;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("agent.toml"), text).unwrap()
    }

    #[test]
    fn only_what_tunnels_would_notice_waits_for_a_restart() {
        let now = config(FILE);
        let same = config(&FILE.replace("ttl_min = 15", "ttl_min = 5\nhold_ms = 900"));
        assert_eq!(needs_restart(&now, &same), []);
        assert_ne!(
            adjustable(&same, &same.instances[0]),
            adjustable(&now, &now.instances[0])
        );
        for (from, to) in [
            ("10.0.0.1/32", "10.0.0.2/32"),
            ("10.0.0.0/8", "10.0.0.0/9"),
            ("ttl_min", "exclude = [\"10.9.0.0/16\"]\nttl_min"),
            ("ttl_min", "idle_s = 600\nttl_min"),
            ("ttl_min", "max_peers = 50\nttl_min"),
            ("ttl_min", "instance_id = 9\nttl_min"),
            ("ttl_min", "rlocs = [\"192.0.2.7\"]\nttl_min"),
            (
                "ttl_min",
                "rlocs = [{ address = \"192.0.2.7\", priority = 3 }]\nttl_min",
            ),
            ("192.0.2.1", "192.0.2.9"),
            ("secret", "another"),
        ] {
            let moved = config(&FILE.replacen(from, to, 1));
            assert_eq!(needs_restart(&now, &moved), []);
        }
        for (from, to, key) in [
            ("ttl_min", "mtu = 1380\nttl_min", "mtu"),
            ("ttl_min", "forward = true\nttl_min", "forward"),
            ("ttl_min", "listen_port = 9\nttl_min", "listen_port"),
            ("ttl_min", "table = 9\nttl_min", "table"),
            (
                "ttl_min",
                "rlocs = [{ address = \"192.0.2.7\", interface = \"eth0\" }]\nttl_min",
                "rlocs",
            ),
            (
                "algorithm = \"sha1\"\nkey = \"secret\"",
                TUNNEL,
                "map_server",
            ),
            ("10.0.0.1/32", "10.0.0.0/24", "eid_prefixes"),
        ] {
            let waiting = needs_restart(&now, &config(&FILE.replacen(from, to, 1)));
            assert_eq!(waiting, [(Section::Whole, key)]);
        }
    }

    #[test]
    fn what_cannot_change_now_is_named_with_its_line_and_nothing_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        let text = FILE.replace("ttl_min = 15", "ttl_min = 5\nmtu = 1380");
        std::fs::write(&path, text).unwrap();
        let refused = config(FILE).reload(&path, needs_restart).unwrap_err();
        let [error] = refused.as_slice() else {
            panic!("{refused:?}");
        };
        let error = error.to_string();
        let said = "agent.toml:5: mtu: has changed, and does not while the agent runs; restart to change it";
        assert!(error.ends_with(said), "{error}");
    }
}
