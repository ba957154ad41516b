//! SIGHUP: what changed in the configuration file takes effect, where no tunnel would notice.

use std::collections::BTreeSet;

use anyhow::Result;
use tracing::{info, warn};

use super::Shell;
use crate::agent::Adjustable;
use crate::config::{Config, Instance};

impl Shell {
    /// Reads the configuration file again. One that cannot be run changes nothing.
    pub(super) async fn reload(&mut self) -> Result<()> {
        let wanted = match Config::load(&self.config_path) {
            Ok(wanted) => wanted,
            Err(error) => {
                warn!(event = "reload_failed", %error, "going on with what was read before");
                return Ok(());
            }
        };
        let waiting = needs_restart(&self.config, &wanted);
        for key in &waiting {
            warn!(
                event = "reload_partial",
                key, "takes effect with the next start"
            );
        }
        for overlay in &mut self.overlays {
            let iid = overlay.iid;
            let mut instances = wanted.instances.iter();
            let Some(instance) = instances.find(|instance| instance.iid == iid) else {
                continue;
            };
            let settings = adjustable(&wanted, instance);
            overlay.reconfigure(&mut self.shared, settings).await?;
        }
        info!(event = "reloaded", path = %self.config_path.display());
        if waiting.is_empty() {
            self.config = wanted;
        }
        Ok(())
    }
}

fn adjustable(config: &Config, instance: &Instance) -> Adjustable {
    Adjustable {
        ttl: config.ttl,
        register_interval: config.register_interval,
        hold: config.hold,
        subscriptions: instance.subscribe.clone(),
    }
}

/// The keys that differ and cannot change while the agent runs.
fn needs_restart(now: &Config, wanted: &Config) -> Vec<&'static str> {
    let mut keys = differing(fixed(now), fixed(wanted));
    for instance in &now.instances {
        let mut others = wanted.instances.iter();
        if let Some(other) = others.find(|other| other.iid == instance.iid) {
            let more = differing(fixed_of_one(instance), fixed_of_one(other));
            keys.extend(more);
        }
    }
    let mut named = BTreeSet::new();
    keys.retain(|key| named.insert(*key));
    keys
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
        ("instance_id", format!("{iids:?}")),
    ]
}

/// What cannot change of one instance.
fn fixed_of_one(instance: &Instance) -> [Fixed; 9] {
    let Instance {
        iid: _,
        subscribe: _,
        overlay,
        eid_prefixes,
        listen_port,
        mtu,
        netns,
        table,
        forward,
        interfaces,
        key_file,
    } = instance;
    [
        ("overlay or exclude", format!("{overlay:?}")),
        ("eid_prefixes", format!("{eid_prefixes:?}")),
        ("listen_port", format!("{listen_port:?}")),
        ("mtu", format!("{mtu:?}")),
        ("netns", format!("{netns:?}")),
        ("table", format!("{table}")),
        ("forward", format!("{forward:?}")),
        ("interfaces", format!("{interfaces:?}")),
        // Its name tells whether the instance has a table.
        ("[[instance]]", format!("{key_file:?}")),
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
        assert_eq!(needs_restart(&now, &same), [""; 0]);
        assert_ne!(
            adjustable(&same, &same.instances[0]),
            adjustable(&now, &now.instances[0])
        );
        for (from, to, key) in [
            ("ttl_min", "mtu = 1380\nttl_min", "mtu"),
            ("ttl_min", "idle_s = 600\nttl_min", "idle_s"),
            ("ttl_min", "max_peers = 50\nttl_min", "max_peers"),
            ("ttl_min", "forward = true\nttl_min", "forward"),
            ("ttl_min", "listen_port = 9\nttl_min", "listen_port"),
            ("ttl_min", "table = 9\nttl_min", "table"),
            ("ttl_min", "instance_id = 9\nttl_min", "instance_id"),
            (
                "ttl_min",
                "exclude = [\"10.9.0.0/16\"]\nttl_min",
                "overlay or exclude",
            ),
            ("192.0.2.1", "192.0.2.9", "map_server"),
            ("10.0.0.1/32", "10.0.0.2/32", "eid_prefixes"),
        ] {
            let waiting = needs_restart(&now, &config(&FILE.replacen(from, to, 1)));
            assert_eq!(waiting, [key]);
        }
    }
}
