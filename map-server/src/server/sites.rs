//! Who is enrolled, under which key, for which prefixes?

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lisp_proto::{AuthKey, EidPrefix, InstanceId, PublicKey, SiteId, XtrId};

use super::actions::Via;
use super::counters::DropReason;
use super::limits;
use super::prefix_table::PrefixTable;
use crate::config::{Config, XtrConfig, XtrName};
use crate::store_event::XtrIds;

/// Position of an xTR in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct XtrIndex(usize);

impl XtrIndex {
    /// The first of all, if there is any.
    pub(super) const MIN: Self = Self(0);
}

#[cfg(test)]
impl XtrIndex {
    /// Returns that of an xTR that nobody has configured.
    pub(super) const fn nth(position: usize) -> Self {
        Self(position)
    }
}

/// Who registers: a configured xTR, or one of several that share its entry and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Registrant {
    pub(crate) xtr: XtrIndex,
    pub(crate) ids: Option<XtrIds>,
}

impl Registrant {
    /// Returns a configured xTR, whoever registers in its name.
    pub(crate) const fn any(xtr: XtrIndex) -> Self {
        Self { xtr, ids: None }
    }
}

/// One configured xTR.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) name: XtrName,
    pub(crate) control_address: Option<IpAddr>,
    pub(crate) replay_check: bool,
    pub(crate) auth: AuthKey,
    xtr_id: Option<XtrId>,
    site_id: Option<SiteId>,
    full_tag_auth: AuthKey,
    more_specifics: bool,
}

impl Site {
    /// Whether the xTR may call itself this.
    pub(crate) fn may_be(&self, (xtr_id, site_id): XtrIds) -> bool {
        self.xtr_id.is_none_or(|only| only == xtr_id)
            && self.site_id.is_none_or(|only| only == site_id)
    }

    /// Returns the key for Map-Notifies, with tags of the length that the peer uses.
    pub(crate) const fn notify_auth(&self, full_tag: bool) -> &AuthKey {
        if full_tag {
            &self.full_tag_auth
        } else {
            &self.auth
        }
    }
}

/// All configured xTRs.
#[derive(Clone, Debug)]
pub(crate) struct Sites {
    sites: Vec<Site>,
    by_name: BTreeMap<XtrName, XtrIndex>,
    by_address: BTreeMap<IpAddr, XtrIndex>,
    by_prefix: PrefixTable<BTreeSet<XtrIndex>>,
    instances: BTreeSet<(XtrIndex, InstanceId)>,
    by_key: BTreeMap<PublicKey, XtrIndex>,
    keys: BTreeMap<XtrIndex, PublicKey>,
    /// Key of our end of the control tunnels.
    own_key: Option<PublicKey>,
    /// Those that may carry the packets of others.
    relays: BTreeSet<XtrIndex>,
}

impl Sites {
    pub(crate) fn new(config: &Config) -> Self {
        let mut sites = Self {
            sites: Vec::new(),
            by_name: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_prefix: PrefixTable::new(),
            instances: BTreeSet::new(),
            by_key: BTreeMap::new(),
            keys: BTreeMap::new(),
            own_key: config.control_keys().own,
            relays: BTreeSet::new(),
        };
        for (position, xtr) in config.xtrs().iter().enumerate() {
            sites.add(XtrIndex(position), xtr);
        }
        let relays = config.options().relays.iter();
        let relays = relays.filter_map(|name| sites.by_name(name));
        sites.relays = relays
            .filter(|xtr| sites.via(*xtr) == Via::Tunnel)
            .collect();
        for (address, key) in &config.control_keys().agents {
            if let Some(xtr) = sites.by_address.get(address) {
                sites.by_key.insert(*key, *xtr);
                sites.keys.insert(*xtr, *key);
            }
        }
        sites
    }

    fn add(&mut self, index: XtrIndex, xtr: &XtrConfig) {
        self.by_name.insert(xtr.name.clone(), index);
        if let Some(address) = xtr.control_address {
            self.by_address.insert(address, index);
        }
        for eid in &xtr.eid_prefixes {
            match self.by_prefix.exact_mut(eid) {
                Some(sharers) => {
                    sharers.insert(index);
                }
                None => {
                    self.by_prefix.insert(*eid, BTreeSet::from([index]));
                }
            }
            self.instances.insert((index, eid.iid()));
        }
        self.sites.push(Site {
            name: xtr.name.clone(),
            control_address: xtr.control_address,
            replay_check: xtr.replay_check,
            auth: xtr.auth.clone().with_tag_len(false),
            xtr_id: xtr.xtr_id,
            site_id: xtr.site_id,
            full_tag_auth: xtr.auth.clone().with_tag_len(true),
            more_specifics: xtr.more_specifics,
        });
    }

    pub(crate) fn site(&self, xtr: XtrIndex) -> &Site {
        #[expect(
            clippy::indexing_slicing,
            reason = "indices come from this table only, which never shrinks"
        )]
        &self.sites[xtr.0]
    }

    pub(crate) fn by_name(&self, name: &XtrName) -> Option<XtrIndex> {
        self.by_name.get(name).copied()
    }

    /// Returns the agent that owns `address` inside the control tunnel.
    pub(crate) fn enrolled(&self, via: Via, address: IpAddr) -> Option<XtrIndex> {
        match via {
            Via::Tunnel => self.by_address.get(&address).copied(),
            Via::Plain => None,
        }
    }

    /// Lists the agents that may carry the packets of others.
    pub(crate) fn relays(&self) -> impl Iterator<Item = XtrIndex> {
        self.relays.iter().copied()
    }

    /// Returns the key of an agent in the control tunnel.
    pub(crate) fn control_key(&self, xtr: XtrIndex) -> Option<PublicKey> {
        self.keys.get(&xtr).copied()
    }

    /// Returns the agent that has this key in the control tunnel.
    pub(crate) fn of_control_key(&self, key: &PublicKey) -> Option<XtrIndex> {
        self.by_key.get(key).copied()
    }

    /// Whether somebody has this key in the control tunnel, be it us.
    pub(crate) fn is_of_the_tunnel(&self, key: &PublicKey) -> bool {
        self.own_key.as_ref() == Some(key) || self.by_key.contains_key(key)
    }

    /// Returns the xTR without a control tunnel that may register `eid` or something around it.
    ///
    /// # Errors
    /// There is none, or it is enrolled and must use its tunnel.
    pub(crate) fn plain_by_prefix(&self, eid: &EidPrefix) -> Result<XtrIndex, DropReason> {
        let owned = self.by_prefix.longest_match(eid);
        let xtr = owned.and_then(|(_, owners)| owners.first());
        let xtr = xtr.ok_or(DropReason::ForeignPrefix)?;
        if self.site(*xtr).control_address.is_some() {
            return Err(DropReason::UnknownSource);
        }
        Ok(*xtr)
    }

    /// Whether `xtr` may register `eid`. The longest configured prefix decides alone, so that an
    /// xTR never registers inside a prefix that is set aside for another one.
    pub(crate) fn may_register(&self, xtr: XtrIndex, eid: &EidPrefix) -> bool {
        let owned = self.by_prefix.longest_match(eid);
        owned.is_some_and(|(prefix, owners)| {
            owners.contains(&xtr) && (prefix == *eid || self.site(xtr).more_specifics)
        })
    }

    /// Whether several xTRs may register `eid`.
    pub(crate) fn may_share(&self, eid: &EidPrefix) -> bool {
        let owned = self.by_prefix.longest_match(eid);
        owned.is_some_and(|(_, owners)| owners.len() > 1)
    }

    /// Whether `xtr` is part of an instance: some prefix of it is configured for the xTR.
    pub(crate) fn is_in(&self, xtr: XtrIndex, iid: InstanceId) -> bool {
        self.instances.contains(&(xtr, iid))
    }

    /// Lists the configured prefixes that end the reach of what surrounds them: nothing around
    /// them is configured, or it belongs to others.
    pub(crate) fn boundaries(&self) -> impl Iterator<Item = EidPrefix> {
        self.by_prefix.iter().filter_map(|(eid, owners)| {
            let around = self
                .by_prefix
                .covering(&eid)
                .filter(|(other, _)| *other != eid)
                .last();
            around
                .is_none_or(|(_, others)| others != owners)
                .then_some(eid)
        })
    }

    /// Returns which way the Map-Registers of `xtr` come.
    pub(crate) fn via(&self, xtr: XtrIndex) -> Via {
        match self.site(xtr).control_address {
            Some(_) => Via::Tunnel,
            None => Via::Plain,
        }
    }

    /// Returns where an agent listens that has not registered yet.
    pub(crate) fn default_contact(&self, xtr: XtrIndex) -> Option<SocketAddr> {
        let address = self.site(xtr).control_address?;
        Some(SocketAddr::new(address, limits::CONTROL_PORT))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Options;
    use lisp_proto::Algorithm;

    #[test]
    fn the_longest_configured_prefix_decides_who_may_register() {
        let sites = sites();
        let (wide, narrow) = (XtrIndex(0), XtrIndex(1));
        assert!(sites.may_register(wide, &eid("10.0.0.0/8")));
        assert!(
            sites.may_register(wide, &eid("10.2.0.0/16")),
            "more-specifics are allowed"
        );
        assert!(
            !sites.may_register(wide, &eid("10.1.0.0/16")),
            "set aside for another xTR"
        );
        assert!(!sites.may_register(wide, &eid("10.1.2.3")));
        assert!(sites.may_register(narrow, &eid("10.1.0.0/16")));
        assert!(
            !sites.may_register(narrow, &eid("10.1.2.0/24")),
            "more-specifics are not allowed"
        );
        assert!(
            !sites.may_register(wide, &eid("0.0.0.0/0")),
            "wider than configured"
        );
        assert!(
            !sites.may_register(wide, &eid("[1]10.0.0.0/8")),
            "another instance-id"
        );
    }

    #[test]
    fn agents_are_known_by_their_address_in_the_tunnel_only() {
        let sites = sites();
        let address = "fd00::b".parse().unwrap();
        assert_eq!(sites.enrolled(Via::Tunnel, address), Some(XtrIndex(1)));
        assert_eq!(sites.enrolled(Via::Plain, address), None);
        assert_eq!(sites.plain_by_prefix(&eid("10.2.0.1")), Ok(XtrIndex(0)));
        assert_eq!(
            sites.plain_by_prefix(&eid("10.1.0.1")),
            Err(DropReason::UnknownSource)
        );
        assert_eq!(
            sites.plain_by_prefix(&eid("11.0.0.1")),
            Err(DropReason::ForeignPrefix)
        );
    }

    #[test]
    fn all_that_list_a_prefix_may_register_it() {
        let xtr = |name: &str, prefixes: &[&str]| XtrConfig {
            name: name.into(),
            control_address: Some(format!("fd00::{name}").parse().unwrap()),
            xtr_id: None,
            site_id: None,
            auth: AuthKey::new(1, Algorithm::Sha256_128, b"secret"),
            replay_check: true,
            eid_prefixes: prefixes.iter().map(|prefix| eid(prefix)).collect(),
            more_specifics: false,
        };
        let (a, b) = (xtr("a", &["0.0.0.0/0"]), xtr("b", &["0.0.0.0/0"]));
        let c = xtr("c", &["10.0.0.0/8"]);
        let config = Config::new(Options::default(), vec![a, b, c]).unwrap();
        let sites = Sites::new(&config);
        let default = eid("0.0.0.0/0");
        let may = [0, 1, 2].map(|xtr| sites.may_register(XtrIndex(xtr), &default));
        assert_eq!(may, [true, true, false]);
        let shared = [default, eid("10.0.0.0/8"), eid("10.1.0.0/16")];
        let shared = shared.map(|eid| sites.may_share(&eid));
        assert_eq!(shared, [true, false, false]);
        let boundaries: Vec<_> = sites.boundaries().collect();
        assert_eq!(boundaries, [default, eid("10.0.0.0/8")]);
    }

    #[test]
    fn a_prefix_inside_another_of_the_same_xtr_is_no_boundary() {
        let boundaries: Vec<_> = sites().boundaries().collect();
        assert_eq!(boundaries, [eid("10.0.0.0/8"), eid("10.1.0.0/16")]);
    }

    pub(in crate::server) fn xtr(position: usize) -> XtrIndex {
        XtrIndex(position)
    }

    fn sites() -> Sites {
        let xtr = |name: &str, control_address: Option<&str>, prefixes: &[&str], more_specifics| {
            XtrConfig {
                name: name.into(),
                control_address: control_address.map(|address| address.parse().unwrap()),
                xtr_id: None,
                site_id: None,
                auth: AuthKey::new(1, Algorithm::Sha256_128, b"secret"),
                replay_check: true,
                eid_prefixes: prefixes.iter().map(|prefix| eid(prefix)).collect(),
                more_specifics,
            }
        };
        let wide = xtr("wide", None, &["10.0.0.0/8", "10.3.0.0/16"], true);
        let narrow = xtr("narrow", Some("fd00::b"), &["10.1.0.0/16"], false);
        Sites::new(&Config::new(Options::default(), vec![wide, narrow]).unwrap())
    }

    fn eid(text: &str) -> EidPrefix {
        text.parse().unwrap()
    }
}
