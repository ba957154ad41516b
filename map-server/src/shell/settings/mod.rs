//! What does the configuration file say, and does it make sense?
//!
//! [`Settings`] have no invalid value: the rest of the shell does not check again.

mod error;
mod raw;
mod xtr;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lisp_proto::{Algorithm, AuthKey, Nonce, PublicKey};
use toml::Spanned;
use wg_device::{BackendChoice, PrivateKey};

use self::error::Source;
use self::raw::{RawConfig, RawControl, RawLimits, RawPlain, RawReplyAfter};
use self::xtr::{Secret, XtrSettings};
use crate::config::{
    Config, ConfigError, ControlKeys, Options, Rate, ReplyAfter, XtrConfig, XtrName,
};

pub use self::error::SettingsError;

/// Longest hold time that makes sense: requesters repeat themselves after a second.
const REPLY_HOLD_MAX_MS: u64 = 10_000;
/// More threads would wait for each other.
const WORKERS_MAX: usize = 64;
/// Longest name of an interface in Linux, in bytes.
const INTERFACE_NAME_MAX: usize = 15;

/// A configuration file that makes sense.
#[derive(Clone, Debug)]
pub struct Settings {
    state_dir: PathBuf,
    admin_socket: Option<PathBuf>,
    options: Options,
    pub(super) control: Option<ControlSettings>,
    /// At most one address of each family.
    pub(super) plain: Vec<SocketAddr>,
    /// Threads that answer in the plain.
    pub(super) workers: NonZeroUsize,
    xtrs: Vec<XtrSettings>,
}

/// The WireGuard control tunnel.
#[derive(Clone, Debug)]
pub(super) struct ControlSettings {
    pub(super) interface: String,
    pub(super) listen_port: u16,
    pub(super) address: IpAddr,
    pub(super) data_plane: BackendChoice,
}

/// What an attacker could make use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weakness {
    /// The nonces of Map-Registers need not grow.
    NoReplayCheck,
    /// Map-Registers are authenticated with an old algorithm.
    Sha1,
    /// Map-Registers come outside the control tunnel.
    Plain,
}

impl Settings {
    /// Reads the configuration file at `path`, and the key files it names.
    ///
    /// # Errors
    /// Names file, line and key of what is wrong, and what to do about it.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = fs::read_to_string(path).map_err(|source| SettingsError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(Source { path, text: &text })
    }

    fn parse(source: Source<'_>) -> Result<Self, SettingsError> {
        let raw: RawConfig = toml::from_str(source.text).map_err(|error| source.syntax(&error))?;
        if raw.control.is_none() && raw.plain.is_none() {
            return Err(source.error(
                &(0..0),
                "there is nothing to listen on",
                "add a [control] section for WireGuard agents, or a [plain] section for other LISP gear",
            ));
        }
        let options = options(source, &raw)?;
        let workers = check_workers(source, raw.workers)?;
        let control = raw
            .control
            .map(|control| check_control(source, control))
            .transpose()?;
        let plain = raw
            .plain
            .map(|plain| check_listen(source, plain))
            .transpose()?
            .unwrap_or_default();
        let mut xtrs = Vec::with_capacity(raw.xtr.len());
        let mut names_by_key: BTreeMap<PublicKey, XtrName> = BTreeMap::new();
        for xtr in raw.xtr {
            let xtr = XtrSettings::check(source, xtr, control.as_ref(), !plain.is_empty())?;
            let first = xtr.public_key.and_then(|key| {
                let name = Arc::clone(&xtr.name);
                names_by_key.insert(key, name)
            });
            if let Some(first) = first {
                return Err(source.error(
                    &xtr.spans.public_key,
                    format_args!("xTR {first} has the same public key"),
                    "give every xTR a control key of its own: `xtr-agent pubkey` prints it",
                ));
            }
            xtrs.push(xtr);
        }
        let settings = Self {
            state_dir: raw.state_dir,
            admin_socket: raw.admin_socket,
            options,
            control,
            plain,
            workers,
            xtrs,
        };
        // Derived secrets do not matter to the checks.
        let config = settings.build(Nonce(0), |_| [0; 32]);
        config.map_err(|error| settings.explain(source, error))?;
        Ok(settings)
    }

    /// Whether there is a control tunnel.
    #[must_use]
    pub const fn has_tunnel(&self) -> bool {
        self.control.is_some()
    }

    /// Returns the directory of the private key and the stored registrations.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Returns where a running server listens for the commands of its operator.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        let given = self.admin_socket.clone();
        given.unwrap_or_else(|| self.state_dir.join("admin.sock"))
    }

    /// Returns the file of the control tunnel's private key.
    #[must_use]
    pub fn control_key_file(&self) -> PathBuf {
        self.state_dir.join("control.key")
    }

    /// Returns the names, keys and addresses of the agents that use the control tunnel.
    pub(super) fn enrolled(&self) -> impl Iterator<Item = (&str, PublicKey, IpAddr)> {
        self.xtrs
            .iter()
            .filter_map(|xtr| Some((&*xtr.name, xtr.public_key?, xtr.control_address?)))
    }

    /// Returns who has which key in the control tunnel, of which we have `private_key`.
    pub(super) fn control_keys(&self, private_key: &PrivateKey) -> ControlKeys {
        let agents = self.enrolled().map(|(_, key, address)| (address, key));
        ControlKeys {
            own: Some(private_key.public()),
            agents: agents.collect(),
        }
    }

    /// Lists what an attacker could make use of, xTR by xTR.
    pub(super) fn weaknesses(&self) -> impl Iterator<Item = (&str, Weakness)> {
        self.xtrs.iter().flat_map(|xtr| {
            let replayable = (!xtr.replay_check).then_some(Weakness::NoReplayCheck);
            let sha1 = (xtr.algorithm == Algorithm::Sha1_96).then_some(Weakness::Sha1);
            let plain = xtr.control_address.is_none().then_some(Weakness::Plain);
            let found = [replayable, sha1, plain].into_iter().flatten();
            found.map(|weakness| (&*xtr.name, weakness))
        })
    }

    /// Returns what the state machine needs. `private_key` is that of the control tunnel, and the
    /// nonces of unsolicited Map-Notifies begin above `notify_floor`.
    ///
    /// # Errors
    /// None: they were found when the settings were read.
    pub(super) fn config(
        &self,
        private_key: &PrivateKey,
        notify_floor: Nonce,
    ) -> Result<Config, ConfigError> {
        self.build(notify_floor, |theirs| {
            private_key.map_register_secret(theirs)
        })
    }

    fn build(
        &self,
        notify_floor: Nonce,
        derive: impl Fn(&PublicKey) -> [u8; 32],
    ) -> Result<Config, ConfigError> {
        let relays = self.xtrs.iter().filter(|xtr| xtr.relay);
        let options = Options {
            notify_floor,
            relays: relays.map(|xtr| xtr.name.clone()).collect(),
            ..self.options.clone()
        };
        let xtrs = self.xtrs.iter().map(|xtr| XtrConfig {
            name: xtr.name.clone(),
            control_address: xtr.control_address,
            xtr_id: xtr.xtr_id,
            site_id: xtr.site_id,
            auth: match &xtr.secret {
                Secret::Derived(theirs) => AuthKey::new(xtr.key_id, xtr.algorithm, &derive(theirs)),
                Secret::Given(secret) => AuthKey::new(xtr.key_id, xtr.algorithm, secret),
            },
            replay_check: xtr.replay_check,
            eid_prefixes: xtr.eid_prefixes.clone(),
            more_specifics: xtr.more_specifics,
        });
        Config::new(options, xtrs.collect())
    }

    /// Finds the place of an error that only the whole configuration shows.
    fn explain(&self, source: Source<'_>, error: ConfigError) -> SettingsError {
        let name = |xtr: usize| self.xtrs.get(xtr).map_or("", |xtr| &*xtr.name);
        let (xtr, other) = match error {
            ConfigError::Unauthenticated { xtr } | ConfigError::NoPrefix { xtr } => (xtr, xtr),
            ConfigError::Name { xtr, other }
            | ConfigError::ControlAddress { xtr, other }
            | ConfigError::Prefix { xtr, other, .. } => (xtr, other),
        };
        let Some(spans) = self.xtrs.get(xtr).map(|xtr| &xtr.spans) else {
            return source.error(&(0..0), error, "correct the [[xtr]] sections");
        };
        let other = name(other);
        match error {
            ConfigError::Unauthenticated { .. } => source.error(
                &spans.algorithm,
                error,
                "use sha256-hkdf, or sha256 or sha1 for old gear",
            ),
            ConfigError::NoPrefix { .. } => source.error(
                &spans.xtr,
                error,
                "list at least one prefix in eid_prefixes",
            ),
            ConfigError::Name { .. } => source.error(&spans.name, error, "choose another name"),
            ConfigError::ControlAddress { .. } => source.error(
                &spans.control_address,
                format_args!("xTR {other} has the same control address"),
                "choose a free address of the control network",
            ),
            ConfigError::Prefix { position, .. } => source.error(
                spans.eid_prefixes.get(position).unwrap_or(&spans.xtr),
                format_args!("xTR {other} has the same EID-prefix"),
                "list every prefix once; only xTRs with a control tunnel may share one",
            ),
        }
    }
}

fn options(source: Source<'_>, raw: &RawConfig) -> Result<Options, SettingsError> {
    let defaults = Options::default();
    let reply_hold = match &raw.reply_hold_ms {
        Some(hold) if *hold.get_ref() > REPLY_HOLD_MAX_MS => {
            return Err(source.error(
                &hold.span(),
                format_args!("{} ms is too long", hold.get_ref()),
                format_args!(
                    "choose at most {REPLY_HOLD_MAX_MS}: requesters repeat themselves after 1000 ms"
                ),
            ));
        }
        Some(hold) => Duration::from_millis(*hold.get_ref()),
        None => defaults.reply_hold,
    };
    let RawLimits {
        requests_per_s,
        request_burst,
        registers_per_s,
        register_burst,
    } = &raw.limits;
    Ok(Options {
        reply_after: match raw.reply_after {
            RawReplyAfter::Send => ReplyAfter::Send,
            RawReplyAfter::Ack => ReplyAfter::Ack,
        },
        reply_hold,
        negative_action: raw.negative_action.unwrap_or(defaults.negative_action),
        requests_from: raw
            .plain
            .as_ref()
            .map(|plain| plain.requests_from.clone())
            .unwrap_or_default(),
        request_rate: rate(
            source,
            requests_per_s.as_ref(),
            request_burst.as_ref(),
            defaults.request_rate,
        )?,
        register_rate: rate(
            source,
            registers_per_s.as_ref(),
            register_burst.as_ref(),
            defaults.register_rate,
        )?,
        quiet_period: defaults.quiet_period,
        notify_floor: defaults.notify_floor,
        relays: defaults.relays,
    })
}

fn rate(
    source: Source<'_>,
    per_second: Option<&Spanned<u32>>,
    burst: Option<&Spanned<u32>>,
    default: Rate,
) -> Result<Rate, SettingsError> {
    let positive = |value: Option<&Spanned<u32>>, default: u32| match value {
        Some(value) if *value.get_ref() == 0 => Err(source.error(
            &value.span(),
            "0 would silence every source",
            "choose at least 1",
        )),
        Some(value) => Ok(*value.get_ref()),
        None => Ok(default),
    };
    Ok(Rate {
        per_second: positive(per_second, default.per_second)?,
        burst: positive(burst, default.burst)?,
    })
}

fn check_workers(
    source: Source<'_>,
    workers: Option<Spanned<usize>>,
) -> Result<NonZeroUsize, SettingsError> {
    let Some(workers) = workers else {
        return Ok(NonZeroUsize::MIN);
    };
    let count = NonZeroUsize::new(*workers.get_ref());
    let count = count.filter(|count| count.get() <= WORKERS_MAX);
    count.ok_or_else(|| {
        source.error(
            &workers.span(),
            format_args!("{} threads are no sensible number", workers.get_ref()),
            format_args!("choose 1 to {WORKERS_MAX}, at most the number of cores"),
        )
    })
}

fn check_control(
    source: Source<'_>,
    control: Spanned<RawControl>,
) -> Result<ControlSettings, SettingsError> {
    let control = control.into_inner();
    let name = control.interface.get_ref();
    if name.is_empty() || name.len() > INTERFACE_NAME_MAX || name.contains(['/', ' ']) {
        return Err(source.error(
            &control.interface.span(),
            format_args!("{name:?} is no interface name"),
            "choose 1 to 15 characters without spaces and slashes",
        ));
    }
    if *control.listen_port.get_ref() == 0 {
        return Err(source.error(
            &control.listen_port.span(),
            "agents could not know a port that changes",
            "choose a fixed port such as 51820",
        ));
    }
    Ok(ControlSettings {
        interface: control.interface.into_inner(),
        listen_port: control.listen_port.into_inner(),
        address: control.address,
        data_plane: control.data_plane,
    })
}

/// Checks that there is one socket per family, so that it is clear from where to answer.
fn check_listen(source: Source<'_>, plain: RawPlain) -> Result<Vec<SocketAddr>, SettingsError> {
    let mut listen: Vec<SocketAddr> = Vec::new();
    for address in plain.listen {
        if listen
            .iter()
            .any(|other| other.is_ipv4() == address.get_ref().is_ipv4())
        {
            return Err(source.error(
                &address.span(),
                "a second address of the same family",
                "listen on one IPv4 and one IPv6 address; 0.0.0.0 and [::] take all",
            ));
        }
        listen.push(address.into_inner());
    }
    Ok(listen)
}

#[cfg(test)]
mod tests;
