//! Is an `[[xtr]]` section complete, and what does it mean?

use std::fs;
use std::net::IpAddr;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lisp_proto::{Algorithm, EidPrefix, PublicKey, SiteId, XtrId};
use toml::Spanned;

use super::ControlSettings;
use super::error::{SettingsError, Source};
use super::raw::RawXtr;
use crate::config::XtrName;

/// Key id of derived secrets.
const DERIVED_KEY_ID: u8 = 1;

/// One xTR that may register.
#[derive(Clone, Debug)]
pub(super) struct XtrSettings {
    pub(super) name: XtrName,
    pub(super) public_key: Option<PublicKey>,
    pub(super) control_address: Option<IpAddr>,
    pub(super) xtr_id: Option<XtrId>,
    pub(super) site_id: Option<SiteId>,
    pub(super) algorithm: Algorithm,
    pub(super) key_id: u8,
    pub(super) secret: Secret,
    pub(super) replay_check: bool,
    pub(super) eid_prefixes: Vec<EidPrefix>,
    pub(super) more_specifics: bool,
    pub(super) relay: bool,
    pub(super) spans: Spans,
}

/// Where the key of Map-Registers comes from.
#[derive(Clone)]
pub(super) enum Secret {
    /// From our private key and this public key.
    Derived(PublicKey),
    /// From the configuration.
    Given(Vec<u8>),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Derived(theirs) => write!(f, "Derived({theirs})"),
            Self::Given(_) => f.write_str("Given(..)"),
        }
    }
}

/// Where things stand in the file.
#[derive(Clone, Debug)]
pub(super) struct Spans {
    pub(super) xtr: Range<usize>,
    pub(super) name: Range<usize>,
    pub(super) public_key: Range<usize>,
    pub(super) control_address: Range<usize>,
    pub(super) algorithm: Range<usize>,
    pub(super) eid_prefixes: Vec<Range<usize>>,
}

impl XtrSettings {
    /// Checks one section by itself.
    pub(super) fn check(
        source: Source<'_>,
        raw: Spanned<RawXtr>,
        control: Option<&ControlSettings>,
        has_plain: bool,
    ) -> Result<Self, SettingsError> {
        let spans = Spans::of(&raw);
        let raw = raw.into_inner();
        if raw.name.get_ref().trim().is_empty() {
            return Err(source.error(
                &spans.name,
                "the name is empty",
                "choose one: logs and the store use it",
            ));
        }
        check_way(source, &raw, &spans, control, has_plain)?;
        let public_key = raw.public_key.as_ref().map(|key| *key.get_ref());
        let secret = match (given_secret(source, &raw)?, public_key) {
            (Some(secret), _) => Secret::Given(secret),
            (None, Some(theirs)) => Secret::Derived(theirs),
            (None, None) => {
                return Err(source.error(
                    &spans.xtr,
                    "Map-Registers could not be authenticated",
                    "add public_key and control_address for an agent, or key or key_file for other gear",
                ));
            }
        };
        if raw.relay && raw.control_address.is_none() {
            return Err(source.error(
                &spans.xtr,
                "only an agent with a control tunnel can be a relay",
                "remove relay, or add public_key and control_address",
            ));
        }
        let xtr_id = identity(source, raw.xtr_id.as_ref())?.map(XtrId);
        let site_id = identity(source, raw.site_id.as_ref())?.map(SiteId);
        Ok(Self {
            name: raw.name.into_inner().into(),
            public_key,
            control_address: raw.control_address.map(Spanned::into_inner),
            xtr_id,
            site_id,
            algorithm: raw
                .algorithm
                .map_or(Algorithm::Sha256_128Hkdf, Spanned::into_inner),
            key_id: raw.key_id.unwrap_or(DERIVED_KEY_ID),
            secret,
            replay_check: raw.replay_check,
            eid_prefixes: raw
                .eid_prefixes
                .into_iter()
                .map(Spanned::into_inner)
                .collect(),
            more_specifics: raw.more_specifics,
            relay: raw.relay,
            spans,
        })
    }
}

impl Spans {
    fn of(raw: &Spanned<RawXtr>) -> Self {
        let xtr = raw.span();
        let raw = raw.get_ref();
        Self {
            name: raw.name.span(),
            public_key: raw
                .public_key
                .as_ref()
                .map_or_else(|| xtr.clone(), Spanned::span),
            control_address: raw
                .control_address
                .as_ref()
                .map_or_else(|| xtr.clone(), Spanned::span),
            algorithm: raw
                .algorithm
                .as_ref()
                .map_or_else(|| xtr.clone(), Spanned::span),
            eid_prefixes: raw.eid_prefixes.iter().map(Spanned::span).collect(),
            xtr,
        }
    }
}

/// Checks that the xTR can reach us: through the control tunnel, or in the plain.
fn check_way(
    source: Source<'_>,
    raw: &RawXtr,
    spans: &Spans,
    control: Option<&ControlSettings>,
    has_plain: bool,
) -> Result<(), SettingsError> {
    let (key, address) = match (&raw.public_key, &raw.control_address) {
        (Some(key), Some(address)) => (key, address),
        (Some(key), None) => {
            return Err(source.error(
                &key.span(),
                "an xTR with a public key needs an address in the control tunnel",
                "add control_address, the one in the agent's own configuration",
            ));
        }
        (None, Some(address)) => {
            return Err(source.error(
                &address.span(),
                "an xTR in the control tunnel needs a public key",
                "add public_key: `xtr-agent pubkey` prints it in the line `control`",
            ));
        }
        (None, None) if has_plain => return Ok(()),
        (None, None) => {
            return Err(source.error(
                &spans.xtr,
                "an xTR without a public key registers in the plain, and there is no [plain] section",
                "add a [plain] section, or public_key and control_address",
            ));
        }
    };
    let Some(control) = control else {
        return Err(source.error(
            &key.span(),
            "there is no control tunnel for this key",
            "add a [control] section with the server's own address in the tunnel",
        ));
    };
    if *address.get_ref() == control.address {
        return Err(source.error(
            &address.span(),
            "this is the server's own control address",
            "choose a free address of the control network",
        ));
    }
    if address.get_ref().is_ipv4() != control.address.is_ipv4() {
        return Err(source.error(
            &address.span(),
            format_args!(
                "not of the family of the server's control address {}",
                control.address
            ),
            "use IPv4 for all control addresses, or IPv6",
        ));
    }
    Ok(())
}

/// Reads an xTR-ID or Site-ID of `N` bytes in hexadecimal.
fn identity<const N: usize>(
    source: Source<'_>,
    text: Option<&Spanned<String>>,
) -> Result<Option<[u8; N]>, SettingsError> {
    let Some(text) = text else {
        return Ok(None);
    };
    let digits = text.get_ref();
    let id = from_hex(digits).ok_or_else(|| {
        source.error(
            &text.span(),
            format_args!("\"{digits}\" is no identity of {N} bytes"),
            format_args!("write {} hexadecimal digits", 2 * N),
        )
    })?;
    Ok(Some(id))
}

fn from_hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if digits.len() != 2 * N || !is_hex {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// Returns the secret that the section gives, by itself or in a file.
fn given_secret(source: Source<'_>, raw: &RawXtr) -> Result<Option<Vec<u8>>, SettingsError> {
    let (secret, span) = match (&raw.key, &raw.key_file) {
        (Some(key), Some(_)) => {
            return Err(source.error(
                &key.span(),
                "there is a key_file as well",
                "keep one of the two",
            ));
        }
        (Some(key), None) => (key.get_ref().clone().into_bytes(), key.span()),
        (None, Some(file)) => (read_key(source, file)?, file.span()),
        (None, None) => return Ok(None),
    };
    if secret.is_empty() {
        return Err(source.error(
            &span,
            "the key is empty",
            "choose a long random one, the same at the xTR",
        ));
    }
    Ok(Some(secret))
}

/// Reads a key file that nobody else may read; a line end after the key does not belong to it.
fn read_key(
    source: Source<'_>,
    file: &Spanned<std::path::PathBuf>,
) -> Result<Vec<u8>, SettingsError> {
    let directory = source.path.parent().unwrap_or_else(|| Path::new("."));
    let path = directory.join(file.get_ref());
    let shown = path.display();
    let unreadable = |error| {
        source.error(
            &file.span(),
            format_args!("{shown}: {error}"),
            "name an existing file",
        )
    };
    let mode = fs::metadata(&path)
        .map_err(unreadable)?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        return Err(source.error(
            &file.span(),
            format_args!("{shown}: mode {:04o} lets others read it", mode & 0o7777),
            format_args!("run `chmod 600 {shown}`"),
        ));
    }
    let mut secret = fs::read(&path).map_err(unreadable)?;
    while secret
        .last()
        .is_some_and(|byte| matches!(byte, b'\n' | b'\r'))
    {
        secret.pop();
    }
    Ok(secret)
}
