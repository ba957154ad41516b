//! SIGHUP: what changed in the configuration file takes effect, where no tunnel would notice.

use anyhow::Result;
use tracing::{info, warn};

use super::Shell;
use crate::agent::Adjustable;
use crate::config::{Config, Instance, Section};

impl Shell {
    /// Reads the configuration file again. One that cannot be run, or that changes what cannot change
    /// now, changes nothing.
    pub(super) async fn reload(&mut self) -> Result<()> {
        let wanted = match self.config.reload(&self.config_path, needs_restart) {
            Ok(wanted) => wanted,
            Err(errors) => {
                for error in errors {
                    warn!(event = "reload_failed", %error, "going on with what was read before");
                }
                return Ok(());
            }
        };
        for overlay in &mut self.overlays {
            let iid = overlay.iid;
            let mut instances = wanted.instances.iter();
            let Some(instance) = instances.find(|instance| instance.iid == iid) else {
                continue;
            };
            let settings = adjustable(&wanted, instance);
            overlay
                .reconfigure(&mut self.shared, settings, instance)
                .await?;
        }
        info!(event = "reloaded", path = %self.config_path.display());
        self.config = wanted;
        Ok(())
    }
}

fn adjustable(config: &Config, instance: &Instance) -> Adjustable {
    Adjustable {
        ttl: config.ttl,
        register_interval: config.register_interval,
        hold: config.hold,
        subscriptions: instance.subscribe.clone(),
        eid_prefixes: instance.eid_prefixes.clone(),
        overlay: instance.overlay.clone(),
    }
}

/// The keys that differ and cannot change while the agent runs, and where they are.
fn needs_restart(now: &Config, wanted: &Config) -> Vec<(Section, &'static str)> {
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
fn fixed(config: &Config) -> [Fixed; 10] {
    let Config {
        ttl: _,
        register_interval: _,
        hold: _,
        state_dir,
        admin_socket,
        rlocs,
        data_plane,
        mtu,
        idle,
        max_peers,
        control_interface,
        map_server,
        instances,
    } = config;
    let iids: Vec<_> = instances.iter().map(|instance| instance.iid).collect();
    [
        ("state_dir", format!("{state_dir:?}")),
        ("admin_socket", format!("{admin_socket:?}")),
        ("rlocs", format!("{rlocs:?}")),
        ("data_plane", format!("{data_plane:?}")),
        ("mtu", format!("{mtu:?}")),
        ("idle_s", format!("{idle:?}")),
        ("max_peers", format!("{max_peers:?}")),
        ("interfaces.control", format!("{control_interface:?}")),
        ("map_server", format!("{map_server:?}")),
        ("instance", format!("{iids:?}")),
    ]
}

/// What cannot change of one instance.
fn fixed_of_one(instance: &Instance) -> [Fixed; 12] {
    let Instance {
        iid: _,
        subscribe: _,
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
        ] {
            let moved = config(&FILE.replacen(from, to, 1));
            assert_eq!(needs_restart(&now, &moved), []);
        }
        for (from, to, key) in [
            ("ttl_min", "mtu = 1380\nttl_min", "mtu"),
            ("ttl_min", "idle_s = 600\nttl_min", "idle_s"),
            ("ttl_min", "max_peers = 50\nttl_min", "max_peers"),
            ("ttl_min", "forward = true\nttl_min", "forward"),
            ("ttl_min", "listen_port = 9\nttl_min", "listen_port"),
            ("ttl_min", "table = 9\nttl_min", "table"),
            ("ttl_min", "instance_id = 9\nttl_min", "instance"),
            ("192.0.2.1", "192.0.2.9", "map_server"),
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
        let text = FILE.replace("ttl_min = 15", "ttl_min = 5\nidle_s = 600");
        std::fs::write(&path, text).unwrap();
        let refused = config(FILE).reload(&path, needs_restart).unwrap_err();
        let [error] = refused.as_slice() else {
            panic!("{refused:?}");
        };
        let error = error.to_string();
        let said = "agent.toml:5: idle_s: has changed, and does not while the agent runs; restart to change it";
        assert!(error.ends_with(said), "{error}");
    }
}
