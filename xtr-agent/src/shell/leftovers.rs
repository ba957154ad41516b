//! What an agent that runs no more has left on the host.

use anyhow::{Context, Result};
use wg_device::{DeviceError, MssClamp, NetNs, remove_leftover};

use super::cache_file;
use crate::config::Config;

/// Removes what an agent with this configuration left when it was killed, or stopped without
/// purging; returns the names of the interfaces that there were. Its routes go with them.
///
/// # Errors
/// An agent uses an interface, somebody else made it, or CAP_NET_ADMIN is missing.
pub fn remove_leftovers(config: &Config) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let mut remove = |netns: Option<&NetNs>, name: &String| -> Result<()> {
        if remove_leftover(netns, name)? {
            removed.push(name.clone());
        }
        Ok(())
    };
    for instance in &config.instances {
        let netns = match instance.netns.as_deref().map(NetNs::open).transpose() {
            // What was in a namespace went with it.
            Err(DeviceError::NoNamespace { .. }) => continue,
            netns => netns?,
        };
        let names = &instance.interfaces;
        remove(netns.as_ref(), &names.data)?;
        remove(netns.as_ref(), &names.miss)?;
        let clamp = MssClamp::of(&names.data);
        let removed = match &netns {
            Some(netns) => netns.run(|| clamp.remove())?,
            None => clamp.remove(),
        };
        removed.with_context(|| format!("clamp of TCP segment sizes for {}", names.data))?;
    }
    remove(None, &config.control_interface)?;
    cache_file::remove_in(&config.state_dir)
        .with_context(|| format!("state directory {}", config.state_dir.display()))?;
    Ok(removed)
}
