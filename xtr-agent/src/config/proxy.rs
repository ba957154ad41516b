//! Which values make sense for a proxy?
//!
//! What it serves need not be in its overlay: that is where its clients live, and everything else
//! takes the routes of the host, also what comes from them.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::Spanned;

use super::error::{ConfigError, Source};
use super::instance::MOST_EID_PREFIXES;
use super::raw::{NamedNat, OneOrMore, RawInstance, RawNat, Role};
use super::{Nat, Translation};

/// What the instance serves as a proxy: what it says, or else the default routes of its address
/// families; nothing when it is none.
pub(super) fn served(draft: &RawInstance) -> Vec<IpNet> {
    if !is_proxy(draft) {
        return Vec::new();
    }
    if let Some(serves) = &draft.serves {
        return serves.get_ref().clone();
    }
    let everything = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    let eids = draft.eid_prefixes.get_ref();
    let everything = everything.into_iter().filter(|all| {
        let mut eids = eids.iter();
        eids.any(|eid| all.contains(eid))
    });
    everything.collect()
}

/// What becomes of the addresses of what leaves.
pub(super) fn nat(draft: &RawInstance) -> Nat {
    let translation = match draft.nat.as_ref().map(Spanned::get_ref) {
        None | Some(RawNat::Named(NamedNat::None)) => Translation::None,
        Some(RawNat::Named(NamedNat::Masquerade)) => Translation::Masquerade,
        Some(RawNat::Fixed(fixed)) => Translation::To(match &fixed.address {
            OneOrMore::One(address) => vec![*address],
            OneOrMore::More(addresses) => addresses.clone(),
        }),
    };
    Nat {
        translation,
        uplink: draft.uplink.as_ref().map(|at| at.get_ref().clone()),
    }
}

fn is_proxy(draft: &RawInstance) -> bool {
    let role = draft.role.as_ref();
    role.is_some_and(|role| *role.get_ref() == Role::Proxy)
}

/// Checks what only proxies have.
///
/// # Errors
/// [`ConfigError::Value`] names the first value that makes no sense.
pub(super) fn check_proxy(
    source: &Source<'_>,
    draft: &RawInstance,
    has_tunnel: bool,
) -> Result<(), ConfigError> {
    check_uplink(source, draft)?;
    let Some(role) = draft.role.as_ref().filter(|_| is_proxy(draft)) else {
        let keys = [
            ("serves", draft.serves.as_ref().map(|at| at.span().start)),
            ("nat", draft.nat.as_ref().map(|at| at.span().start)),
            ("uplink", draft.uplink.as_ref().map(|at| at.span().start)),
        ];
        for (key, at) in keys {
            let Some(at) = at else { continue };
            let problem = "is for proxies".into();
            let remedy = "add `role = \"proxy\"`, or remove it";
            return Err(source.error_at(at, key, problem, remedy));
        }
        return Ok(());
    };
    if !has_tunnel {
        let problem = "cannot be a proxy with a plain map server".into();
        let remedy = "only a map server with a control tunnel tells clients its key";
        return Err(source.error(role, "role", problem, remedy));
    }
    let mut overlay = draft.overlay.get_ref().iter();
    if let Some(net) = overlay.find(|net| net.prefix_len() == 0) {
        let problem = format!("{net} would lead what a proxy passes on back into the overlay");
        let remedy = "name the prefixes in which its clients live; what it passes on is `serves`";
        return Err(source.error(&draft.overlay, "overlay", problem, remedy));
    }
    check_translation(source, draft)?;
    check_served(source, draft)
}

/// Checks the addresses that what leaves is to have.
fn check_translation(source: &Source<'_>, draft: &RawInstance) -> Result<(), ConfigError> {
    let (Some(at), Translation::To(addresses)) = (&draft.nat, nat(draft).translation) else {
        return Ok(());
    };
    let complain = |problem, remedy| Err(source.error(at, "nat", problem, remedy));
    let of_family = |v4: bool| addresses.iter().filter(move |it| it.is_ipv4() == v4);
    let most = of_family(true).count().max(of_family(false).count());
    if most != 1 {
        let problem = format!(
            "{} addresses in one family",
            if most == 0 {
                "no".into()
            } else {
                most.to_string()
            }
        );
        let remedy = "name one IPv4 address, or one IPv6 address, or one of each";
        return complain(problem, remedy);
    }
    let unusable = |it: &&IpAddr| it.is_unspecified() || it.is_loopback() || it.is_multicast();
    if let Some(address) = addresses.iter().find(unusable) {
        let problem = format!("nobody can answer to {address}");
        let remedy = "name an address that leads to this host, or is led here by hand or VRRP";
        return complain(problem, remedy);
    }
    let mut eids = draft.eid_prefixes.get_ref().iter();
    if let Some(eid) = eids.find(|eid| addresses.iter().any(|it| eid.contains(it))) {
        let problem = format!("is within {eid}, which lives here");
        let remedy = "name an address of the network on the uplink";
        return complain(problem, remedy);
    }
    Ok(())
}

/// Checks what a proxy serves.
fn check_served(source: &Source<'_>, draft: &RawInstance) -> Result<(), ConfigError> {
    let serves = served(draft);
    let eids = draft.eid_prefixes.get_ref();
    let at = draft.serves.as_ref().map(Spanned::span);
    let at = at.unwrap_or_else(|| draft.eid_prefixes.span()).start;
    let complain = |problem, remedy| Err(source.error_at(at, "serves", problem, remedy));
    if serves.is_empty() || serves.len() + eids.len() > MOST_EID_PREFIXES {
        let problem = format!("has {} prefixes", serves.len());
        return complain(
            problem,
            "name between 1 and 64, with `eid_prefixes` together",
        );
    }
    for (index, prefix) in serves.iter().enumerate() {
        let clash = |other: &&IpNet| other.contains(prefix) || prefix.contains(*other);
        if let Some(other) = serves.iter().take(index).find(clash) {
            let problem = format!("{prefix} and {other} overlap");
            return complain(problem, "keep the shorter one");
        }
        if let Some(own) = eids.iter().find(|own| own.contains(prefix)) {
            let problem = format!("{prefix} lies within {own}, which lives here");
            return complain(problem, "what lives here needs not be served: remove it");
        }
        let family = prefix.addr().is_ipv4();
        let is_host = |eid: &&IpNet| eid.prefix_len() == eid.max_prefix_len();
        let mut hosts = eids.iter().filter(is_host);
        if !hosts.any(|eid| eid.addr().is_ipv4() == family) {
            let problem = format!("{prefix} needs an address of the proxy in its family");
            let remedy = "add a /32 or /128 to `eid_prefixes`: its ICMP errors come from there";
            return complain(problem, remedy);
        }
    }
    Ok(())
}

/// An uplink is a name of an interface, and of use only where addresses are translated.
fn check_uplink(source: &Source<'_>, draft: &RawInstance) -> Result<(), ConfigError> {
    let Some(uplink) = &draft.uplink else {
        return Ok(());
    };
    let name = uplink.get_ref();
    let bad = |c: char| c == '/' || c == '"' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > 15 || name.contains(bad) {
        let problem = format!("`{name}` is not the name of an interface");
        return Err(source.error(uplink, "uplink", problem, "use one that `ip link` shows"));
    }
    if is_proxy(draft) && nat(draft).translation == Translation::None {
        let problem = "is of no use without address translation".into();
        let remedy = "add `nat = \"masquerade\"`, or remove it";
        return Err(source.error(uplink, "uplink", problem, remedy));
    }
    Ok(())
}
