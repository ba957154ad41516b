//! What an agent that runs no more has left on the host.

use anyhow::{Context, Result};
use wg_device::{MssClamp, remove_leftover};

use super::cache_file;
use crate::config::Config;

/// Removes what an agent with this configuration left when it was killed, or stopped without
/// purging; returns the names of the interfaces that there were. Its routes go with them.
///
/// # Errors
/// An agent uses an interface, somebody else made it, or CAP_NET_ADMIN is missing.
pub fn remove_leftovers(config: &Config) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let own = config.instances.iter().map(|instance| &instance.interfaces);
    let own = own.flat_map(|names| [&names.data, &names.miss]);
    for name in own.chain([&config.control_interface]) {
        if remove_leftover(name)? {
            removed.push(name.clone());
        }
    }
    for instance in &config.instances {
        let name = &instance.interfaces.data;
        MssClamp::of(name)
            .remove()
            .with_context(|| format!("clamp of TCP segment sizes for {name}"))?;
    }
    cache_file::remove_in(&config.state_dir)
        .with_context(|| format!("state directory {}", config.state_dir.display()))?;
    Ok(removed)
}
