//! May this host forward packets for the networks behind it and for the clients of a proxy, and what
//! becomes of them on the way?

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use ipnet::IpNet;
use tracing::{info, warn};
use wg_device::{ForwardRules, Forwarded, NetNs, SourceNat};

use crate::config::{Instance, Nat, Translation};

/// What the names of notes begin with; the instance-id follows.
const NOTE: &str = "forwarding-";

/// The switches of a network namespace, for IPv4 and IPv6, as `sysctl` names them.
const SETTINGS: [&str; 2] = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];

/// What a note says of its instance, for when the configuration does not name that any more.
#[derive(Debug, Default)]
struct Owner {
    netns: Option<String>,
    data: Option<String>,
}

impl Owner {
    fn of(instance: &Instance) -> Self {
        Self {
            netns: instance.netns.clone(),
            data: Some(instance.interfaces.data.clone()),
        }
    }
}

/// What was set for one instance; undone when this is dropped, unless it is to stay.
#[derive(Debug)]
pub(super) struct Forwarding {
    netns: Option<NetNs>,
    switched_on: BTreeSet<&'static str>,
    /// Remembers what was switched on, for a next run that follows without an end of this one.
    note: PathBuf,
    owner: Owner,
    /// Where this host forwards.
    rules: Option<ForwardRules>,
    stays: AtomicBool,
}

impl Forwarding {
    /// Looks whether the kernel forwards for the prefixes of `instance` that are networks. Where it
    /// does not, switches that on if the configuration allows, and otherwise says so.
    ///
    /// # Errors
    /// A switch cannot be set.
    pub(super) fn prepare(
        instance: &Instance,
        netns: Option<NetNs>,
        state_dir: &Path,
    ) -> Result<Self> {
        let note = note_of(instance, state_dir);
        let switched_on = noted(&note);
        // Tunnels of an earlier run may be there: an error from here on must not cut them off.
        let stays = !switched_on.is_empty();
        let mut made = Self {
            netns,
            switched_on,
            note,
            owner: Owner::of(instance),
            rules: None,
            stays: AtomicBool::new(stays),
        };
        if forwarded(instance).next().is_some() {
            made.set_rules(instance)?;
            made.write_note()
                .with_context(|| format!("writing {}", made.note.display()))?;
        }
        for (setting, is_ipv4) in SETTINGS.into_iter().zip([true, false]) {
            let mut networks = forwarded(instance);
            let Some(network) = networks.find(|net| net.addr().is_ipv4() == is_ipv4) else {
                continue;
            };
            let is_host = |net: &&IpNet| !is_network(net) && net.addr().is_ipv4() == is_ipv4;
            if !instance.eid_prefixes.iter().any(|net| is_host(&net)) {
                let remedy = "give it one in `eid_prefixes`, as a /32 or /128";
                info!(event = "no_address_of_its_own", %network, remedy);
            }
            match made.read(setting) {
                Ok(value) if value != "0" => continue,
                Ok(_) if instance.forward => {
                    made.switched_on.insert(setting);
                    made.write_note()
                        .with_context(|| format!("writing {}", made.note.display()))?;
                    made.write(setting, "1")
                        .with_context(|| format!("setting {setting}=1"))?;
                    info!(event = "forwarding", setting);
                }
                Ok(_) => {
                    let remedy = format!("set `forward = true`, or run `sysctl {setting}=1`");
                    warn!(event = "not_forwarding", setting, %network, remedy);
                }
                Err(error) => warn!(event = "not_forwarding", setting, %network, %error),
            }
        }
        Ok(made)
    }

    /// Undoes what a run left that is no more. What cannot be undone is logged.
    pub(super) fn undo_leftover(instance: &Instance, netns: Option<NetNs>, state_dir: &Path) {
        let note = note_of(instance, state_dir);
        let forwards = forwarded(instance).next().is_some();
        let left = Self {
            netns,
            switched_on: noted(&note),
            note,
            owner: Owner::of(instance),
            rules: forwards.then(|| ForwardRules::of(&instance.interfaces.data)),
            stays: AtomicBool::new(false),
        };
        left.remove();
    }

    /// The network namespace of the instance; `None`: that of the agent.
    pub(super) fn netns(&self) -> Option<&NetNs> {
        self.netns.as_ref()
    }

    /// From now on everything is left as it is for the next run.
    pub(super) fn stay(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    /// Undoes all, whether it was to stay or not.
    pub(super) fn remove(self) {
        self.stays.store(false, Ordering::Relaxed);
    }

    /// Limits the segments of TCP connections that are forwarded, and gives what leaves by an uplink an
    /// address there.
    ///
    /// # Errors
    /// Addresses cannot be translated: the answers would not come back.
    fn set_rules(&mut self, instance: &Instance) -> Result<()> {
        let names = &instance.interfaces;
        let rules = ForwardRules::of(&names.data);
        let own = instance.eid_prefixes.iter();
        let own: Vec<IpNet> = own.filter(|net| is_network(net)).copied().collect();
        let Nat {
            translation,
            uplink,
        } = &instance.nat;
        let to = match translation {
            Translation::None => None,
            Translation::Masquerade => Some(wg_device::Translation::Masquerade),
            Translation::To(addresses) => Some(wg_device::Translation::To(addresses)),
        };
        let forwarded = Forwarded {
            data: &names.data,
            miss: &names.miss,
            mtu: instance.mtu,
            nat: to.map(|translation| SourceNat {
                translation,
                uplink: uplink.as_deref(),
                except: &own,
            }),
        };
        let set = self.inside(|| rules.set(&forwarded));
        self.rules = Some(rules);
        match set {
            Err(error) if to.is_some() => {
                let remedy = "install nftables, or leave `nat` out and give the hosts on the uplink routes to the clients";
                Err(error).with_context(|| format!("no address translation; {remedy}"))
            }
            Err(error) => {
                let remedy = format!(
                    "install nftables, or set the MTU of the hosts behind this one to {}",
                    instance.mtu
                );
                warn!(event = "not_clamped", %error, remedy);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn write_note(&self) -> io::Result<()> {
        let settings = self.switched_on.iter().copied();
        let lines: Vec<String> = std::iter::once(boot())
            .chain(settings.map(str::to_owned))
            .chain(self.owner.netns.iter().map(|name| format!("netns {name}")))
            .chain(self.owner.data.iter().map(|name| format!("data {name}")))
            .collect();
        fs::write(&self.note, lines.join("\n"))
    }

    fn read(&self, setting: &str) -> io::Result<String> {
        let path = path(setting);
        let value = self.inside(|| fs::read_to_string(&path))?;
        Ok(value.trim().to_owned())
    }

    fn write(&self, setting: &str, value: &str) -> io::Result<()> {
        let path = path(setting);
        self.inside(|| fs::write(&path, value))
    }

    /// What a thread sees of the switches depends on its network namespace.
    fn inside<T: Send>(&self, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match &self.netns {
            Some(netns) => netns.run(body).map_err(io::Error::other)?,
            None => body(),
        }
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        if *self.stays.get_mut() {
            return;
        }
        for setting in &self.switched_on {
            if let Err(error) = self.write(setting, "0") {
                warn!(setting, %error, "not switched off again");
            }
        }
        remove_note(&self.note);
        if let Some(rules) = &self.rules
            && let Err(error) = self.inside(|| rules.remove())
        {
            warn!(%error, "what is forwarded is still changed by nftables");
        }
    }
}

/// Undoes what was switched on for instances that are not in the configuration any more, and did not
/// say so at their end. What cannot be undone is logged.
pub(super) fn undo_strays(instances: &[Instance], state_dir: &Path) {
    let files = fs::read_dir(state_dir).into_iter().flatten().flatten();
    for note in files.map(|file| file.path()) {
        let name = note.file_name().and_then(|name| name.to_str());
        let iid = name.and_then(|name| name.strip_prefix(NOTE)?.parse::<u32>().ok());
        let is_stray = |iid| instances.iter().all(|instance| instance.iid.0 != iid);
        if !iid.is_some_and(is_stray) {
            continue;
        }
        let of = owner(&note);
        let netns = match of.netns.as_deref().map(NetNs::open).transpose() {
            Ok(netns) => netns,
            Err(error) => {
                // What was in a namespace went with it.
                warn!(path = %note.display(), %error, "what it names is not undone");
                remove_note(&note);
                continue;
            }
        };
        let left = Forwarding {
            netns,
            switched_on: noted(&note),
            note,
            owner: Owner::default(),
            rules: of.data.as_deref().map(ForwardRules::of),
            stays: AtomicBool::new(false),
        };
        left.remove();
    }
}

/// Whose note this is.
fn owner(note: &Path) -> Owner {
    let text = fs::read_to_string(note).unwrap_or_default();
    let said = |key: &str| {
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.map(str::to_owned)
    };
    Owner {
        netns: said("netns"),
        data: said("data"),
    }
}

/// Forgets what was switched on for `instance`: its namespace is gone.
pub(super) fn forget(instance: &Instance, state_dir: &Path) {
    remove_note(&note_of(instance, state_dir));
}

fn note_of(instance: &Instance, state_dir: &Path) -> PathBuf {
    state_dir.join(format!("{NOTE}{}", instance.iid.0))
}

/// Removes the note, if there is one.
pub(super) fn remove_note(note: &Path) {
    if let Err(error) = fs::remove_file(note)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %note.display(), %error, "not removed");
    }
}

/// What an earlier run has switched on since this host was started.
fn noted(note: &Path) -> BTreeSet<&'static str> {
    let text = fs::read_to_string(note).unwrap_or_default();
    let mut lines = text.lines();
    let is_of_now = lines.next().is_some_and(|line| line == boot());
    let named: Vec<&str> = lines.filter(|_| is_of_now).collect();
    let ours = SETTINGS
        .into_iter()
        .filter(|setting| named.contains(setting));
    ours.collect()
}

/// Names this run of the kernel.
pub(super) fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn path(setting: &str) -> String {
    format!("/proc/sys/{}", setting.replace('.', "/"))
}

/// What this host forwards for: networks behind it, and what it serves.
fn forwarded(instance: &Instance) -> impl Iterator<Item = &IpNet> {
    let networks = instance.eid_prefixes.iter().filter(|net| is_network(net));
    networks.chain(&instance.serves)
}

/// Whether other hosts may have addresses in `prefix`.
fn is_network(prefix: &IpNet) -> bool {
    prefix.prefix_len() < prefix.max_prefix_len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn instance() -> Instance {
        let text = "overlay = [\"10.0.0.0/8\"]\neid_prefixes = [\"10.0.0.1/32\"]\n\
                    [map_server]\naddress = \"192.0.2.1\"\nalgorithm = \"sha1\"\nkey = \"secret\"\n";
        let config = Config::parse(Path::new("agent.toml"), text).unwrap();
        config.instances.into_iter().next().unwrap()
    }

    #[test]
    fn a_start_that_fails_leaves_what_an_earlier_run_switched_on() {
        let directory = tempfile::tempdir().unwrap();
        let prepare = || Forwarding::prepare(&instance(), None, directory.path()).unwrap();
        let stays = |forwarding: &Forwarding| forwarding.stays.load(Ordering::Relaxed);
        assert!(!stays(&prepare()), "there was none");
        let note = note_of(&instance(), directory.path());
        fs::write(&note, format!("{}\n{}", boot(), SETTINGS[0])).unwrap();
        let forwarding = prepare();
        assert!(stays(&forwarding));
        // Whatever came of it: a test switches nothing off.
        forwarding.stay();
        drop(forwarding);
        assert_eq!(noted(&note), BTreeSet::from([SETTINGS[0]]));
    }

    #[test]
    fn a_note_of_another_run_of_the_kernel_goes_with_what_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let note = note_of(&instance(), directory.path());
        fs::write(&note, format!("another\n{}", SETTINGS[0])).unwrap();
        Forwarding::undo_leftover(&instance(), None, directory.path());
        assert!(!note.exists());
        Forwarding::undo_leftover(&instance(), None, directory.path());
    }

    #[test]
    fn the_note_of_an_instance_that_is_configured_no_more_goes_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["forwarding-0", "forwarding-7", "forwarding-x", "data-7.key"] {
            fs::write(at(name), "another run of the kernel\n").unwrap();
        }
        undo_strays(&[instance()], directory.path());
        assert!(!at("forwarding-7").exists());
        for name in ["forwarding-0", "forwarding-x", "data-7.key"] {
            assert!(at(name).exists(), "{name}");
        }
    }

    #[test]
    fn what_an_earlier_run_switched_on_is_known_until_the_host_is_started_anew() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("forwarding-0");
        assert_eq!(noted(&note), BTreeSet::new());
        let forwarding = Forwarding {
            netns: None,
            switched_on: BTreeSet::from([SETTINGS[1]]),
            note: note.clone(),
            owner: Owner {
                netns: Some("green".into()),
                data: Some("lisp7".into()),
            },
            rules: None,
            stays: AtomicBool::new(true),
        };
        forwarding.write_note().unwrap();
        drop(forwarding);
        assert_eq!(noted(&note), BTreeSet::from([SETTINGS[1]]));
        let of = owner(&note);
        assert_eq!(of.netns.as_deref(), Some("green"));
        assert_eq!(of.data.as_deref(), Some("lisp7"));
        let text = fs::read_to_string(&note).unwrap();
        fs::write(&note, text.replacen(&boot(), "another", 1)).unwrap();
        assert_eq!(noted(&note), BTreeSet::new());
    }
}
