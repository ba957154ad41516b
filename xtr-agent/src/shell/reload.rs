//! SIGHUP: what changed in the configuration file takes effect, where no tunnel would notice.

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
    let [now, wanted] = [now, wanted].map(fixed);
    let pairs = now.into_iter().zip(wanted);
    let changed = pairs.filter(|((_, now), (_, wanted))| now != wanted);
    changed.map(|((key, _), _)| key).collect()
}

/// What cannot change, as text. Secrets are not in it.
fn fixed(config: &Config) -> [(&'static str, String); 8] {
    let instances = config.instances.iter().cloned().map(|instance| Instance {
        subscribe: Vec::new(),
        ..instance
    });
    let instances: Vec<_> = instances.collect();
    [
        ("state_dir", format!("{:?}", config.state_dir)),
        ("admin_socket", format!("{:?}", config.admin_socket)),
        ("rlocs", format!("{:?}", config.rlocs)),
        ("data_plane", format!("{:?}", config.data_plane)),
        ("mtu", format!("{:?}", config.mtu)),
        ("interfaces.control", config.control_interface.clone()),
        ("map_server", format!("{:?}", config.map_server)),
        (
            "overlay, eid_prefixes, listen_port or interfaces",
            format!("{instances:?}"),
        ),
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
            ("192.0.2.1", "192.0.2.9", "map_server"),
            ("10.0.0.1/32", "10.0.0.2/32", "eid_prefixes"),
        ] {
            let waiting = needs_restart(&now, &config(&FILE.replacen(from, to, 1)));
            assert!(
                waiting.iter().any(|named| named.contains(key)),
                "{waiting:?}"
            );
        }
    }
}
