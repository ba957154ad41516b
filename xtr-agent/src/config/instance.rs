//! Which values make sense for one instance, and beside others?

use ipnet::IpNet;
use lisp_proto::InstanceId;
use toml::Spanned;
use wg_device::{MAIN_TABLE, OVERLAY_TABLE};

use super::check::{check_mtu, outside};
use super::error::{ConfigError, Source};
use super::proxy::{check_proxy, nat, served};
use super::raw::{RawConfig, RawInstance};
use super::without::without;
use super::{Instance, Interfaces};

/// Most overlays of one agent.
const MOST_INSTANCES: usize = 64;
/// Most prefixes that fit one Map-Register with room to spare.
pub(super) const MOST_EID_PREFIXES: usize = 64;
/// Most excluded prefixes: each makes up to 32 routes out of one, 128 with IPv6.
const MOST_EXCLUDED: usize = 16;
/// Most addresses that tell whether proxies lead anywhere.
const MOST_WITNESSES: usize = 8;
/// Most destinations that are kept ready.
const MOST_SUBSCRIPTIONS: usize = 64;

/// The instances as they are written.
pub(super) struct Drafts {
    /// The one whose keys are outside of all tables.
    pub(super) outer: Option<RawInstance>,
    /// Those that have a table.
    pub(super) tables: Vec<RawInstance>,
    /// MTU of those that do not say their own, bytes.
    pub(super) mtu: u16,
}

impl Drafts {
    /// Checks all instances, each alone and beside the others.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the first value that makes no sense.
    pub(super) fn checked(
        self,
        source: &Source<'_>,
        raw: &RawConfig,
    ) -> Result<Vec<Instance>, ConfigError> {
        let outer = self.outer.into_iter().map(|draft| (draft, true));
        let tables = self.tables.into_iter().map(|draft| (draft, false));
        let mut instances: Vec<Instance> = Vec::new();
        for (draft, is_outer) in outer.chain(tables) {
            let has_tunnel = raw.map_server.public_key.is_some();
            if !has_tunnel && !instances.is_empty() {
                // Without xTR-IDs their nonces would be one row.
                let problem = "is a second instance with a plain map server".into();
                let remedy = "use a map server with a control tunnel, or an agent for each";
                return Err(source.error(&draft.instance_id, "instance_id", problem, remedy));
            }
            check_prefixes(source, &draft)?;
            check_proxy(source, &draft, has_tunnel)?;
            check_subscriptions(source, &draft, has_tunnel)?;
            check_witnesses(source, &draft)?;
            check_excluded(source, &draft)?;
            check_table(source, &draft)?;
            check_mtu(source, draft.mtu.as_ref())?;
            if draft.netns.is_none() && draft.table.is_none() && !is_everything(&draft) {
                outside(source, raw, draft.overlay.get_ref())?;
            }
            let instance = finished(&draft, is_outer, self.mtu);
            // The control interface is in the namespace of the agent.
            let control = draft.netns.is_none().then(|| raw.control_interface());
            check_names(source, &draft, &instance, control)?;
            check_beside(source, &draft, &instance, &instances)?;
            instances.push(instance);
        }
        Ok(instances)
    }
}

/// The instance that `draft` describes; `is_outer` when its keys are outside of all tables.
fn finished(draft: &RawInstance, is_outer: bool, mtu: u16) -> Instance {
    let iid = *draft.instance_id.get_ref();
    // Names of an only instance do not depend on its instance-id.
    let suffix = if is_outer { 0 } else { iid };
    let names = draft.interfaces.as_ref().map(Spanned::get_ref);
    let name = |given: Option<&String>, prefix: &str| {
        given.map_or_else(|| format!("{prefix}{suffix}"), Clone::clone)
    };
    let serves = truncated(&served(draft));
    let is_proxy = !serves.is_empty();
    let is_everything = is_everything(draft);
    let table = if is_everything {
        OVERLAY_TABLE
    } else {
        MAIN_TABLE
    };
    Instance {
        iid: InstanceId(iid),
        overlay: without(&truncated(draft.overlay.get_ref()), &excluded(draft)),
        eid_prefixes: truncated(draft.eid_prefixes.get_ref()),
        listen_port: draft.listen_port.as_ref().map_or(51820, |at| *at.get_ref()),
        mtu: draft.mtu.as_ref().map_or(mtu, |mtu| *mtu.get_ref()),
        subscribe: draft
            .subscribe
            .as_ref()
            .map_or_else(Vec::new, |prefixes| truncated(prefixes.get_ref())),
        witnesses: draft
            .witnesses
            .as_ref()
            .map_or_else(Vec::new, |witnesses| witnesses.get_ref().clone()),
        netns: draft.netns.as_ref().map(|netns| netns.get_ref().clone()),
        table: draft.table.as_ref().map_or(table, |at| *at.get_ref()),
        is_everything,
        serves,
        nat: nat(draft),
        forward: draft.forward.as_ref().map_or(is_proxy, |at| *at.get_ref()),
        shared: draft.shared.as_ref().map_or(is_proxy, |at| *at.get_ref()),
        interfaces: Interfaces {
            data: name(names.and_then(|names| names.data.as_ref()), "lisp"),
            miss: name(names.and_then(|names| names.miss.as_ref()), "lispm"),
        },
        key_file: if is_outer {
            "data.key".into()
        } else {
            format!("data-{iid}.key")
        },
    }
}

/// Whether an overlay has a default route in it that packets of the tunnels would take too: those of
/// other namespaces do not see it, and into another table only rules of the operator lead.
fn is_everything(draft: &RawInstance) -> bool {
    let mut overlay = draft.overlay.get_ref().iter();
    draft.netns.is_none() && draft.table.is_none() && overlay.any(|net| net.prefix_len() == 0)
}

fn check_prefixes(source: &Source<'_>, raw: &RawInstance) -> Result<(), ConfigError> {
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

fn check_subscriptions(
    source: &Source<'_>,
    raw: &RawInstance,
    has_tunnel: bool,
) -> Result<(), ConfigError> {
    let Some(subscribe) = &raw.subscribe else {
        return Ok(());
    };
    let complain = |problem, remedy| Err(source.error(subscribe, "subscribe", problem, remedy));
    let prefixes = subscribe.get_ref();
    if prefixes.len() > MOST_SUBSCRIPTIONS {
        let problem = format!("has {} prefixes", prefixes.len());
        return complain(problem, "name at most 64 that must be ready at any time");
    }
    if !prefixes.is_empty() && !has_tunnel {
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

fn check_names(
    source: &Source<'_>,
    draft: &RawInstance,
    instance: &Instance,
    control: Option<&str>,
) -> Result<(), ConfigError> {
    let at = names_at(draft);
    let Interfaces { data, miss } = &instance.interfaces;
    let all = [Some(data.as_str()), Some(miss.as_str()), control];
    let all: Vec<_> = all.into_iter().flatten().collect();
    for (index, name) in all.iter().enumerate() {
        let bad = name.is_empty() || name.len() > 15 || name.contains(['/', ' ']);
        if bad || all.iter().skip(index + 1).any(|other| other == name) {
            return Err(source.error_at(
                at,
                "interfaces",
                format!("`{name}` is not a usable name"),
                "use three different names of 1 to 15 characters",
            ));
        }
    }
    let Some(netns) = &draft.netns else {
        return Ok(());
    };
    if netns.get_ref().is_empty() || netns.get_ref().contains(['/', ' ']) {
        let problem = format!("`{}` is not the name of a namespace", netns.get_ref());
        let remedy = "use a name that `ip netns list` shows";
        return Err(source.error(netns, "netns", problem, remedy));
    }
    Ok(())
}

/// Witnesses are destinations elsewhere.
fn check_witnesses(source: &Source<'_>, raw: &RawInstance) -> Result<(), ConfigError> {
    let Some(witnesses) = &raw.witnesses else {
        return Ok(());
    };
    let complain = |problem, remedy| Err(source.error(witnesses, "witnesses", problem, remedy));
    let addresses = witnesses.get_ref();
    if addresses.len() > MOST_WITNESSES {
        let problem = format!("has {} addresses", addresses.len());
        return complain(
            problem,
            "name at most 8, one or two for each set of proxies",
        );
    }
    for address in addresses {
        let mut overlay = raw.overlay.get_ref().iter();
        if !overlay.any(|net| net.contains(address)) {
            let problem = format!("{address} is outside the overlay");
            return complain(problem, "name addresses that are reached through proxies");
        }
        let mut eids = raw.eid_prefixes.get_ref().iter();
        if let Some(own) = eids.find(|own| own.contains(address)) {
            let problem = format!("{address} lies within {own}, which lives here");
            return complain(problem, "name addresses beyond the proxies");
        }
    }
    Ok(())
}

/// What is excluded lies in the overlay, and apart from what lives here or is kept ready.
fn check_excluded(source: &Source<'_>, draft: &RawInstance) -> Result<(), ConfigError> {
    let Some(exclude) = &draft.exclude else {
        return Ok(());
    };
    let complain = |problem, remedy| Err(source.error(exclude, "exclude", problem, remedy));
    let prefixes = exclude.get_ref();
    if prefixes.len() > MOST_EXCLUDED {
        let problem = format!("has {} prefixes", prefixes.len());
        return complain(problem, "name at most 16, or make `overlay` smaller");
    }
    let eids = draft.eid_prefixes.get_ref();
    for prefix in prefixes {
        let overlaps = |net: &&IpNet| net.contains(prefix) || prefix.contains(*net);
        if !draft
            .overlay
            .get_ref()
            .iter()
            .any(|net| net.contains(prefix))
        {
            let problem = format!("{prefix} is outside the overlay");
            return complain(problem, "what is outside is left alone anyway: remove it");
        }
        if let Some(own) = eids.iter().find(overlaps) {
            let problem = format!("{prefix} overlaps with {own}, which lives here");
            return complain(problem, "name destinations elsewhere");
        }
        let subscribe = draft.subscribe.iter().flat_map(Spanned::get_ref);
        let mut within = subscribe.filter(|to| prefix.contains(*to));
        if let Some(to) = within.next() {
            let problem = format!("{prefix} contains {to}, which is to be kept ready");
            return complain(problem, "remove it here or from `subscribe`");
        }
    }
    if without(draft.overlay.get_ref(), prefixes).is_empty() {
        return complain("leaves nothing of the overlay".into(), "exclude less");
    }
    Ok(())
}

/// A table of its own is none that the kernel fills.
fn check_table(source: &Source<'_>, draft: &RawInstance) -> Result<(), ConfigError> {
    let Some(table) = &draft.table else {
        return Ok(());
    };
    let number = *table.get_ref();
    if !matches!(number, 0 | 253..=255) {
        return Ok(());
    }
    let problem = format!("is {number}, a table of the system");
    let remedy = "use a number of your own, or leave it out for the main table";
    Err(source.error(table, "table", problem, remedy))
}

fn excluded(draft: &RawInstance) -> Vec<IpNet> {
    let exclude = draft.exclude.as_ref();
    exclude.map_or_else(Vec::new, |prefixes| truncated(prefixes.get_ref()))
}

/// Where the names of the interfaces of `draft` are, or would be.
fn names_at(draft: &RawInstance) -> usize {
    let names = draft.interfaces.as_ref().map(Spanned::span);
    names.unwrap_or_else(|| draft.instance_id.span()).start
}

/// What must differ from one instance to the other?
fn check_beside(
    source: &Source<'_>,
    draft: &RawInstance,
    instance: &Instance,
    others: &[Instance],
) -> Result<(), ConfigError> {
    let at = draft.instance_id.span().start;
    if others.len() >= MOST_INSTANCES {
        let problem = format!("is that of an instance after the {MOST_INSTANCES}th");
        return Err(source.error_at(at, "instance_id", problem, "run another agent for it"));
    }
    let port_at = draft.listen_port.as_ref().map(Spanned::span);
    let port_at = port_at.map_or(at, |span| span.start);
    if instance.listen_port == 0 {
        let remedy = "others must know the port: choose one from 1 to 65535";
        return Err(source.error_at(port_at, "listen_port", "is 0".into(), remedy));
    }
    for other in others {
        if other.iid == instance.iid {
            let problem = format!("{} is that of another instance", instance.iid.0);
            let remedy = "give each instance its own";
            return Err(source.error_at(at, "instance_id", problem, remedy));
        }
        if other.listen_port == instance.listen_port {
            let problem = format!("{} is that of another instance", instance.listen_port);
            let remedy = "give each instance its own UDP port";
            return Err(source.error_at(port_at, "listen_port", problem, remedy));
        }
        if other.netns != instance.netns {
            continue;
        }
        let Interfaces { data, miss } = &instance.interfaces;
        let taken = [&other.interfaces.data, &other.interfaces.miss];
        if let Some(name) = [data, miss].into_iter().find(|name| taken.contains(name)) {
            let problem = format!("`{name}` is an interface of another instance");
            let remedy = "give each instance its own names";
            return Err(source.error_at(names_at(draft), "interfaces", problem, remedy));
        }
        check_apart(source, draft, instance, other)?;
    }
    Ok(())
}

/// Two instances that share a network namespace must not share addresses, which belong to all
/// tables; two that share a table must not share destinations.
fn check_apart(
    source: &Source<'_>,
    draft: &RawInstance,
    instance: &Instance,
    other: &Instance,
) -> Result<(), ConfigError> {
    let overlaps = |net: &IpNet, there: &[IpNet]| {
        let mut there = there.iter();
        there.any(|there| there.contains(net) || net.contains(there))
    };
    if instance.is_everything && other.is_everything {
        let problem = format!("has a default route, as that of instance {}", other.iid.0);
        let remedy = "one instance of a namespace can have all: use a `table` or a `netns`";
        return Err(source.error(&draft.overlay, "overlay", problem, remedy));
    }
    let clash = |net: &&IpNet| overlaps(net, &other.overlay);
    let mut same_table = instance.overlay.iter();
    let same_table = same_table.find(|net| instance.table == other.table && clash(net));
    if let Some(net) = same_table {
        let problem = format!(
            "{net} overlaps with the overlay of instance {}",
            other.iid.0
        );
        let remedy =
            "packets there could belong to either: use other prefixes, a `table` or a `netns`";
        return Err(source.error(&draft.overlay, "overlay", problem, remedy));
    }
    let mut own = instance.eid_prefixes.iter();
    if let Some(net) = own.find(|net| overlaps(net, &other.eid_prefixes)) {
        let problem = format!("{net} lives here in instance {} too", other.iid.0);
        let remedy = "an address is in one instance of a namespace only: use a `netns`";
        return Err(source.error(&draft.eid_prefixes, "eid_prefixes", problem, remedy));
    }
    Ok(())
}

fn truncated(prefixes: &[IpNet]) -> Vec<IpNet> {
    prefixes.iter().map(IpNet::trunc).collect()
}
