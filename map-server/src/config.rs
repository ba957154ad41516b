//! Who may register what, and how does the server answer?
//!
//! A [`Config`] has no invalid value: [`Config::new`] is the only way to build one, and it refuses
//! what contradicts itself. Reading the configuration file is the shell's business.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Action, Algorithm, AuthKey, EidPrefix, Nonce, PublicKey, SiteId, XtrId};
use thiserror::Error;

use crate::server::limits;

/// The configured name of an xTR, cheap to clone into events.
pub type XtrName = Arc<str>;

/// When a Map-Reply may leave, seen from the push that announces the requester to the owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyAfter {
    /// The push has been sent.
    Send,
    /// The owner has acknowledged the push, or the hold time is over.
    #[default]
    Ack,
}

/// How fast one source may ask, and how much it may ask at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Datagrams per second in the long run.
    pub per_second: u32,
    /// Datagrams at once after a silence.
    pub burst: u32,
}

/// One xTR that may register.
#[derive(Clone, Debug)]
pub struct XtrConfig {
    /// What events and the store call it.
    pub name: XtrName,
    /// Its address inside the control tunnel; absent for gear that registers in the plain.
    pub control_address: Option<IpAddr>,
    /// The only xTR-ID it may use; any if absent.
    pub xtr_id: Option<XtrId>,
    /// The only Site-ID it may use; any if absent.
    pub site_id: Option<SiteId>,
    /// Authenticates its Map-Registers and our Map-Notifies to it.
    pub auth: AuthKey,
    /// Whether the nonce of a Map-Register must exceed the one before (RFC 9301 §5.6).
    pub replay_check: bool,
    /// The EID-prefixes it may register.
    pub eid_prefixes: Vec<EidPrefix>,
    /// Whether it may register prefixes inside `eid_prefixes` as well.
    pub more_specifics: bool,
}

/// What may be chosen freely.
#[derive(Clone, Debug)]
pub struct Options {
    /// When a Map-Reply may leave.
    pub reply_after: ReplyAfter,
    /// Longest time a Map-Reply waits for an acknowledgement.
    pub reply_hold: Duration,
    /// What negative Map-Replies tell the ITR to do.
    pub negative_action: Action,
    /// How long after time zero nothing configured is denied for lack of a registration. A server
    /// that has lost the end of its store hears of every xTR within one refresh interval.
    pub quiet_period: Duration,
    /// Plain sources that get answers larger than their question without being registered.
    pub requests_from: Vec<IpNet>,
    /// Map-Requests accepted per source address.
    pub request_rate: Rate,
    /// Map-Registers and Map-Notify-Acks accepted per source address.
    pub register_rate: Rate,
    /// Lower bound of the nonces of unsolicited Map-Notifies. They must never repeat, so a server
    /// that lost its store starts above all it may have used: the time in nanoseconds will do.
    pub notify_floor: Nonce,
    /// Agents that may carry the packets of others whom NATs keep apart: they read them.
    pub relays: BTreeSet<XtrName>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reply_after: ReplyAfter::default(),
            reply_hold: limits::REPLY_HOLD,
            negative_action: Action::Drop,
            quiet_period: Duration::ZERO,
            requests_from: Vec::new(),
            request_rate: limits::REQUEST_RATE,
            register_rate: limits::REGISTER_RATE,
            notify_floor: Nonce(0),
            relays: BTreeSet::new(),
        }
    }
}

/// Who has which key in the control tunnel. Without them nobody is told where he is seen.
#[derive(Clone, Debug, Default)]
pub struct ControlKeys {
    /// Ours.
    pub own: Option<PublicKey>,
    /// Those of the agents, by their addresses inside the tunnel.
    pub agents: BTreeMap<IpAddr, PublicKey>,
}

/// A configuration without contradictions.
#[derive(Clone, Debug)]
pub struct Config {
    options: Options,
    xtrs: Vec<XtrConfig>,
    control_keys: ControlKeys,
}

impl Config {
    /// Checks that every xTR can be told from every other.
    ///
    /// # Errors
    /// Two xTRs share a name or a control address, or an EID-prefix although one of them has no
    /// control tunnel; or one has no EID-prefix.
    pub fn new(options: Options, xtrs: Vec<XtrConfig>) -> Result<Self, ConfigError> {
        let mut names = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        let mut prefixes = BTreeMap::new();
        for (xtr, config) in xtrs.iter().enumerate() {
            if config.auth.algorithm() == Algorithm::None {
                return Err(ConfigError::Unauthenticated { xtr });
            }
            if config.eid_prefixes.is_empty() {
                return Err(ConfigError::NoPrefix { xtr });
            }
            if let Some(other) = names.insert(&config.name, xtr) {
                return Err(ConfigError::Name { xtr, other });
            }
            if let Some(address) = config.control_address
                && let Some(other) = addresses.insert(address, xtr)
            {
                return Err(ConfigError::ControlAddress { xtr, other });
            }
            for (position, eid) in config.eid_prefixes.iter().enumerate() {
                let Some(other) = prefixes.insert(*eid, xtr) else {
                    continue;
                };
                // Who registers in the plain is told from others by what it registers.
                let tunnels = [xtr, other].map(|one| has_tunnel(&xtrs, one));
                if other == xtr || tunnels != [true; 2] {
                    return Err(ConfigError::Prefix {
                        xtr,
                        position,
                        other,
                    });
                }
            }
        }
        Ok(Self {
            options,
            xtrs,
            control_keys: ControlKeys::default(),
        })
    }

    /// Says who has which key in the control tunnel.
    #[must_use]
    pub fn with_control_keys(mut self, control_keys: ControlKeys) -> Self {
        self.control_keys = control_keys;
        self
    }

    /// Sets [`Options::quiet_period`], which depends on what an earlier run has left behind.
    #[must_use]
    pub const fn with_quiet_period(mut self, quiet_period: Duration) -> Self {
        self.options.quiet_period = quiet_period;
        self
    }

    /// Returns what may be chosen freely.
    #[must_use]
    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// Returns who has which key in the control tunnel.
    #[must_use]
    pub const fn control_keys(&self) -> &ControlKeys {
        &self.control_keys
    }

    /// Returns the xTRs that may register, in the order of the file.
    #[must_use]
    pub fn xtrs(&self) -> &[XtrConfig] {
        &self.xtrs
    }
}

fn has_tunnel(xtrs: &[XtrConfig], xtr: usize) -> bool {
    let xtr = xtrs.get(xtr);
    xtr.is_some_and(|xtr| xtr.control_address.is_some())
}

/// Why two `[[xtr]]` entries cannot live together; positions count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Anybody could register in the name of the xTR.
    #[error("Map-Registers without authentication are not accepted")]
    Unauthenticated {
        /// The entry at fault.
        xtr: usize,
    },
    /// An xTR may register nothing.
    #[error("it has no EID-prefix")]
    NoPrefix {
        /// The entry at fault.
        xtr: usize,
    },
    /// Two xTRs have the same name.
    #[error("another xTR has the same name")]
    Name {
        /// The later entry.
        xtr: usize,
        /// The earlier entry.
        other: usize,
    },
    /// Two xTRs have the same address in the control tunnel.
    #[error("another xTR has the same control address")]
    ControlAddress {
        /// The later entry.
        xtr: usize,
        /// The earlier entry.
        other: usize,
    },
    /// Two xTRs of which one has no control tunnel, or one twice, may register the very same prefix.
    #[error("the same EID-prefix is listed twice")]
    Prefix {
        /// The later entry.
        xtr: usize,
        /// Position of the prefix in the later entry's list.
        position: usize,
        /// The earlier entry.
        other: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_prefixes_of_two_xtrs_are_accepted() {
        let xtrs = vec![
            xtr("a", Some("fd00::a"), &["10.0.0.0/8"]),
            xtr("b", None, &["10.1.0.0/16"]),
        ];
        assert!(Config::new(Options::default(), xtrs).is_ok());
    }

    #[test]
    fn two_xtrs_list_the_same_prefix_only_if_both_have_a_control_tunnel() {
        for (a, b, shared) in [
            (None, None, false),
            (Some("fd00::a"), None, false),
            (None, Some("fd00::b"), false),
            (Some("fd00::a"), Some("fd00::b"), true),
        ] {
            let xtrs = vec![
                xtr("a", a, &["10.0.0.0/8"]),
                xtr("b", b, &["11.0.0.0/8", "10.0.0.0/8"]),
            ];
            let refused = ConfigError::Prefix {
                xtr: 1,
                position: 1,
                other: 0,
            };
            let checked = Config::new(Options::default(), xtrs).map(drop);
            assert_eq!(checked, if shared { Ok(()) } else { Err(refused) });
        }
    }

    #[test]
    fn one_xtr_lists_a_prefix_once() {
        let twice = xtr("a", Some("fd00::a"), &["10.0.0.0/8", "10.0.0.0/8"]);
        assert!(Config::new(Options::default(), vec![twice]).is_err());
    }

    #[test]
    fn names_and_control_addresses_are_unique() {
        let name = vec![
            xtr("a", None, &["10.0.0.0/8"]),
            xtr("a", None, &["11.0.0.0/8"]),
        ];
        let error = Config::new(Options::default(), name).unwrap_err();
        assert_eq!(error, ConfigError::Name { xtr: 1, other: 0 });
        let address = vec![
            xtr("a", Some("fd00::a"), &["10.0.0.0/8"]),
            xtr("b", Some("fd00::a"), &["11.0.0.0/8"]),
        ];
        let error = Config::new(Options::default(), address).unwrap_err();
        assert_eq!(error, ConfigError::ControlAddress { xtr: 1, other: 0 });
    }

    #[test]
    fn an_xtr_without_authentication_is_refused() {
        let mut open = xtr("a", None, &["10.0.0.0/8"]);
        open.auth = AuthKey::new(0, Algorithm::None, b"");
        let error = Config::new(Options::default(), vec![open]).unwrap_err();
        assert_eq!(error, ConfigError::Unauthenticated { xtr: 0 });
    }

    #[test]
    fn an_xtr_without_prefixes_is_refused() {
        let error = Config::new(Options::default(), vec![xtr("a", None, &[])]).unwrap_err();
        assert_eq!(error, ConfigError::NoPrefix { xtr: 0 });
    }

    fn xtr(name: &str, control_address: Option<&str>, eid_prefixes: &[&str]) -> XtrConfig {
        XtrConfig {
            name: name.into(),
            control_address: control_address.map(|address| address.parse().unwrap()),
            xtr_id: None,
            site_id: None,
            auth: AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"secret"),
            replay_check: true,
            eid_prefixes: eid_prefixes
                .iter()
                .map(|eid| eid.parse().unwrap())
                .collect(),
            more_specifics: false,
        }
    }
}
