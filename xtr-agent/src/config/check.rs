//! Which values make sense, alone and together.

use std::net::IpAddr;

use ipnet::IpNet;
use toml::Spanned;

use crate::agent::limits;

use super::Interfaces;
use super::error::{ConfigError, Source};
use super::raw::RawConfig;

/// Smallest MTU that carries IPv6 (RFC 8200 5).
const SMALLEST_MTU: u16 = 1280;
/// Most prefixes that fit one Map-Register with room to spare.
const MOST_EID_PREFIXES: usize = 64;
/// Most destinations that are kept ready.
const MOST_SUBSCRIPTIONS: usize = 64;

/// Checks everything that the types do not say.
///
/// # Errors
/// [`ConfigError::Value`] names the first value that makes no sense.
pub(super) fn all(source: &Source<'_>, raw: &RawConfig) -> Result<(), ConfigError> {
    check_prefixes(source, raw)?;
    check_subscriptions(source, raw)?;
    check_addresses(source, raw)?;
    check_numbers(source, raw)?;
    match &raw.interfaces {
        Some(interfaces) => check_interfaces(source, interfaces),
        None => Ok(()),
    }
}

fn check_prefixes(source: &Source<'_>, raw: &RawConfig) -> Result<(), ConfigError> {
    let overlay = raw.overlay.get_ref();
    if overlay.is_empty() {
        return Err(source.error(
            &raw.overlay,
            "overlay",
            "is empty".into(),
            "name the prefixes whose destinations shall be looked up",
        ));
    }
    let eids = raw.eid_prefixes.get_ref();
    if eids.is_empty() || eids.len() > MOST_EID_PREFIXES {
        return Err(source.error(
            &raw.eid_prefixes,
            "eid_prefixes",
            format!("has {} prefixes", eids.len()),
            "name between 1 and 64 prefixes that live here",
        ));
    }
    for (index, prefix) in overlay.iter().enumerate() {
        let others = overlay.iter().take(index);
        let clash = |other: &&IpNet| other.contains(prefix) || prefix.contains(*other);
        if let Some(other) = others.clone().find(clash) {
            return Err(source.error(
                &raw.overlay,
                "overlay",
                format!("{prefix} and {other} overlap"),
                "keep the shorter one",
            ));
        }
    }
    for eid in eids {
        if !overlay.iter().any(|net| net.contains(eid)) {
            return Err(source.error(
                &raw.eid_prefixes,
                "eid_prefixes",
                format!("{eid} is outside the overlay"),
                "add it to `overlay`, or correct it",
            ));
        }
    }
    Ok(())
}

fn check_subscriptions(source: &Source<'_>, raw: &RawConfig) -> Result<(), ConfigError> {
    let Some(subscribe) = &raw.subscribe else {
        return Ok(());
    };
    let complain = |problem, remedy| Err(source.error(subscribe, "subscribe", problem, remedy));
    let prefixes = subscribe.get_ref();
    if prefixes.len() > MOST_SUBSCRIPTIONS {
        let problem = format!("has {} prefixes", prefixes.len());
        return complain(problem, "name at most 64 that must be ready at any time");
    }
    if !prefixes.is_empty() && raw.map_server.public_key.is_none() {
        let remedy = "only a map server with a control tunnel knows who subscribes";
        return complain("is of no use with a plain map server".into(), remedy);
    }
    let eids = raw.eid_prefixes.get_ref();
    for prefix in prefixes {
        let overlay = raw.overlay.get_ref();
        if !overlay.iter().any(|net| net.contains(prefix)) {
            let problem = format!("{prefix} is outside the overlay");
            return complain(problem, "add it to `overlay`, or correct it");
        }
        if let Some(own) = eids.iter().find(|own| own.contains(prefix)) {
            let problem = format!("{prefix} lies within {own}, which lives here");
            return complain(problem, "name destinations elsewhere");
        }
        let family = prefix.addr().is_ipv4();
        if !eids.iter().any(|own| own.addr().is_ipv4() == family) {
            let problem = format!("{prefix} is of another address family than all `eid_prefixes`");
            return complain(problem, "nothing here could talk to it: remove it");
        }
    }
    Ok(())
}

fn check_addresses(source: &Source<'_>, raw: &RawConfig) -> Result<(), ConfigError> {
    let overlay = raw.overlay.get_ref();
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
        if server.address.get_ref().is_ipv4() != at.get_ref().is_ipv4() {
            return Err(source.error(
                at,
                key,
                "is of another address family than map_server.address".into(),
                "use two IPv4 or two IPv6 addresses",
            ));
        }
    }
    if let Some(rlocs) = &raw.rlocs {
        for rloc in rlocs.get_ref() {
            if let Some(net) = inside(*rloc) {
                let problem = format!("{rloc} lies within the overlay {net}");
                return Err(source.error(rlocs, "rlocs", problem, remedy));
            }
        }
    }
    Ok(())
}

fn check_numbers(source: &Source<'_>, raw: &RawConfig) -> Result<(), ConfigError> {
    if let Some(port) = raw.listen_port.as_ref().filter(|port| *port.get_ref() == 0) {
        let remedy = "others must know the port: choose one from 1 to 65535";
        return Err(source.error(port, "listen_port", "is 0".into(), remedy));
    }
    if let Some(mtu) = raw.mtu.as_ref().filter(|mtu| *mtu.get_ref() < SMALLEST_MTU) {
        let problem = format!("{} is too small for IPv6", mtu.get_ref());
        return Err(source.error(mtu, "mtu", problem, "use at least 1280"));
    }
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

fn check_interfaces(
    source: &Source<'_>,
    interfaces: &Spanned<Interfaces>,
) -> Result<(), ConfigError> {
    let names = interfaces.get_ref();
    let all = [&names.data, &names.control, &names.miss];
    for (index, name) in all.iter().enumerate() {
        let bad = name.is_empty() || name.len() > 15 || name.contains(['/', ' ']);
        if bad || all.iter().skip(index + 1).any(|other| other == name) {
            return Err(source.error(
                interfaces,
                "interfaces",
                format!("`{name}` is not a usable name"),
                "use three different names of 1 to 15 characters",
            ));
        }
    }
    Ok(())
}
