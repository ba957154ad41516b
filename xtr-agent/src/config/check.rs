//! Which values make sense for the agent as a whole.

use std::net::IpAddr;

use ipnet::IpNet;
use toml::Spanned;

use crate::agent::limits;

use super::error::{ConfigError, Source};
use super::raw::RawConfig;

/// Smallest MTU that carries IPv6 (RFC 8200 5).
const SMALLEST_MTU: u16 = 1280;

/// Checks everything that the types do not say, but for the instances.
///
/// # Errors
/// [`ConfigError::Value`] names the first value that makes no sense.
pub(super) fn all(source: &Source<'_>, raw: &RawConfig) -> Result<(), ConfigError> {
    check_addresses(source, raw)?;
    check_numbers(source, raw)
}

fn check_addresses(source: &Source<'_>, raw: &RawConfig) -> Result<(), ConfigError> {
    let server = &raw.map_server;
    if let Some(at) = &server.control_address
        && server.address.get_ref().is_ipv4() != at.get_ref().is_ipv4()
    {
        return Err(source.error(
            at,
            "map_server.control_address",
            "is of another address family than map_server.address".into(),
            "use two IPv4 or two IPv6 addresses",
        ));
    }
    Ok(())
}

/// Checks that no address which is to be reached by other ways lies within `overlay`.
///
/// # Errors
/// [`ConfigError::Value`] names the first that does.
pub(super) fn outside(
    source: &Source<'_>,
    raw: &RawConfig,
    overlay: &[IpNet],
) -> Result<(), ConfigError> {
    let inside = |addr: IpAddr| overlay.iter().find(|net| net.contains(&addr));
    let remedy = "an address that carries the tunnels cannot be reached through them";
    let server = &raw.map_server;
    if let Some(endpoint) = &server.endpoint
        && let Some(net) = inside(endpoint.get_ref().ip())
    {
        let problem = format!("lies within the overlay {net}");
        return Err(source.error(endpoint, "map_server.endpoint", problem, remedy));
    }
    for (at, key) in [
        (Some(&server.address), "map_server.address"),
        (
            server.control_address.as_ref(),
            "map_server.control_address",
        ),
    ] {
        let Some(at) = at else { continue };
        if let Some(net) = inside(*at.get_ref()) {
            let problem = format!("lies within the overlay {net}");
            return Err(source.error(at, key, problem, "use a prefix apart from the overlay"));
        }
    }
    if let Some(rlocs) = &raw.rlocs {
        for rloc in rlocs.get_ref() {
            let address = rloc.get_ref().address();
            if let Some(net) = inside(address) {
                let problem = format!("{address} lies within the overlay {net}");
                return Err(source.error(rloc, "rlocs", problem, remedy));
            }
        }
    }
    Ok(())
}

fn check_numbers(source: &Source<'_>, raw: &RawConfig) -> Result<(), ConfigError> {
    check_mtu(source, raw.mtu.as_ref())?;
    if let Some(ttl) = raw
        .ttl_min
        .as_ref()
        .filter(|ttl| matches!(*ttl.get_ref(), 0 | u32::MAX))
    {
        let remedy = "give minutes from 1; 0 would withdraw the mapping";
        return Err(source.error(ttl, "ttl_min", format!("is {}", ttl.get_ref()), remedy));
    }
    let range = |value: &Option<Spanned<u64>>, key, low: u64, high: u64, remedy| match value {
        Some(at) if !(low..=high).contains(at.get_ref()) => {
            Err(source.error(at, key, format!("is {}", at.get_ref()), remedy))
        }
        Some(_) | None => Ok(()),
    };
    range(
        &raw.register_s,
        "register_s",
        5,
        120,
        "use 5 to 120 seconds: a registration expires after 180",
    )?;
    range(
        &raw.hold_ms,
        "hold_ms",
        100,
        30_000,
        "use 100 to 30000 milliseconds",
    )?;
    range(
        &raw.idle_s,
        "idle_s",
        limits::IDLE_MIN.as_secs(),
        7 * 86_400,
        "use 300 to 604800 seconds: the far end must notice first",
    )?;
    range(
        &raw.max_peers,
        "max_peers",
        16,
        1 << 20,
        "use 16 to 1048576, which is what the kernel takes",
    )
}

/// Checks an MTU.
///
/// # Errors
/// [`ConfigError::Value`] when IPv6 does not fit.
pub(super) fn check_mtu(
    source: &Source<'_>,
    mtu: Option<&Spanned<u16>>,
) -> Result<(), ConfigError> {
    let Some(mtu) = mtu.filter(|mtu| *mtu.get_ref() < SMALLEST_MTU) else {
        return Ok(());
    };
    let problem = format!("{} is too small for IPv6", mtu.get_ref());
    Err(source.error(mtu, "mtu", problem, "use at least 1280"))
}
