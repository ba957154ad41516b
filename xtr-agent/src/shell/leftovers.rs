//! What an agent that runs no more has left on the host.

use anyhow::{Context, Result};
use wg_device::{DeviceError, NetNs, OverlayRules, remove_leftover};

use super::cache_file;
use super::forwarding::{self, Forwarding};
use super::uplinks;
use crate::config::Config;

/// Removes what an agent with this configuration left when it was killed, or stopped without
/// purging; returns the names of the interfaces that there were. Their routes go with them, and
/// what was set for forwarding; what of that cannot be undone is logged.
///
/// # Errors
/// An agent uses an interface, somebody else made it, or CAP_NET_ADMIN is missing.
pub fn remove_leftovers(config: &Config) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let mut open = Vec::new();
    let mut remove = |netns: Option<&NetNs>, name: &String| -> Result<()> {
        if remove_leftover(netns, name)? {
            removed.push(name.clone());
        }
        Ok(())
    };
    for instance in &config.instances {
        let netns = match instance.netns.as_deref().map(NetNs::open).transpose() {
            // What was in a namespace went with it.
            Err(DeviceError::NoNamespace { .. }) => {
                forwarding::forget(instance, &config.state_dir);
                continue;
            }
            netns => netns?,
        };
        let names = &instance.interfaces;
        remove(netns.as_ref(), &names.data)?;
        remove(netns.as_ref(), &names.miss)?;
        open.push((instance, netns));
    }
    remove(None, &config.control_interface)?;
    if config.instances.iter().any(|it| it.is_everything) {
        OverlayRules::remove_leftover()?;
    }
    uplinks::remove_left(config)?;
    cache_file::remove_in(&config.state_dir)
        .with_context(|| format!("state directory {}", config.state_dir.display()))?;
    // Last: the host forwards for nobody any more.
    forwarding::undo_strays(&config.instances, &config.state_dir);
    for (instance, netns) in open {
        Forwarding::undo_leftover(instance, netns, &config.state_dir);
    }
    Ok(removed)
}
