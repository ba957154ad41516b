//! Kernel modules: which ones the guest loads, and in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::VmError;
use crate::error::Doing;

/// What the guest loads, with everything these depend on.
pub(super) const WANTED: [&str; 26] = [
    // The ports to the host.
    "virtio_pci",
    "virtio_console",
    // Interfaces.
    "wireguard",
    "veth",
    "tun",
    "bridge",
    "dummy",
    // Impairments of links, what keeps packets waiting, and what redirects them.
    "sch_netem",
    "sch_tbf",
    "sch_ingress",
    "sch_plug",
    "cls_matchall",
    "act_mirred",
    "act_gact",
    // Packet filters and address translation.
    "nf_tables",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nft_ct",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_limit",
    "nft_reject_inet",
    "nft_fib_inet",
];

/// A module as it is put into the guest.
pub(super) struct Module {
    /// Its name, with underscores.
    pub(super) name: String,
    /// The uncompressed ELF object.
    pub(super) object: Vec<u8>,
}

/// The [`WANTED`] modules and what they depend on, in load order.
///
/// `root` is the unpacked package `package`; `busybox` uncompresses modules.
pub(super) fn in_load_order(
    root: &Path,
    package: &str,
    busybox: &Path,
) -> Result<Vec<Module>, VmError> {
    let files = index(&root.join("lib/modules")).doing("list", "kernel modules")?;
    let mut order = Order {
        files,
        busybox,
        package,
        seen: BTreeSet::new(),
        modules: Vec::new(),
    };
    for name in WANTED {
        order.add(name)?;
    }
    Ok(order.modules)
}

struct Order<'a> {
    files: BTreeMap<String, PathBuf>,
    busybox: &'a Path,
    package: &'a str,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Order<'_> {
    /// Adds a module after those it depends on.
    fn add(&mut self, name: &str) -> Result<(), VmError> {
        let name = name.replace('-', "_");
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let path = self.files.get(&name).ok_or_else(|| VmError::NoModule {
            package: self.package.to_owned(),
            module: name.clone(),
        })?;
        let object = read(path, self.busybox).doing("read", path.display())?;
        for dependency in dependencies(&object) {
            self.add(&dependency)?;
        }
        self.modules.push(Module { name, object });
        Ok(())
    }
}

/// All modules below `directory`, by name.
fn index(directory: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
                files.insert(name.replace('-', "_"), entry.path());
            }
        }
    }
    Ok(files)
}

fn read(path: &Path, busybox: &Path) -> io::Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path);
    }
    let output = Command::new(busybox).arg("xzcat").arg(path).output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(io::Error::other(
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

/// What a module says it depends on: the NUL-terminated `depends=` of its `.modinfo` section.
fn dependencies(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = object.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = object.get(start + KEY.len()..).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = value
        .split(|byte| *byte == b',')
        .filter(|name| !name.is_empty());
    names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let object = b"\x7fELF..\0license=GPL\0depends=udp_tunnel,libchacha-x\0retpoline=Y\0";
        assert_eq!(dependencies(object), ["udp_tunnel", "libchacha-x"]);
        assert!(dependencies(b"\0depends=\0intree=Y\0").is_empty());
        assert!(dependencies(b"nothing here").is_empty());
    }

    #[test]
    fn what_is_depended_on_comes_first_and_once() {
        let root = tempfile::tempdir().unwrap();
        let modules = root.path().join("lib/modules/6.1/kernel");
        fs::create_dir_all(&modules).unwrap();
        let module = |name: &str, depends: &str| {
            fs::write(modules.join(name), format!("ELF\0depends={depends}\0")).unwrap();
        };
        module("lib-low.ko", "");
        module("middle.ko", "lib-low");
        for name in WANTED {
            module(&format!("{name}.ko"), "middle,lib-low");
        }
        let order = in_load_order(root.path(), "package", Path::new("busybox")).unwrap();
        let names: Vec<_> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(&names[..3], ["lib_low", "middle", "virtio_pci"]);
        assert_eq!(names.len(), WANTED.len() + 2);
        fs::remove_file(modules.join("lib-low.ko")).unwrap();
        let missing = in_load_order(root.path(), "package", Path::new("busybox"));
        assert!(matches!(missing, Err(VmError::NoModule { module, .. }) if module == "lib_low"));
    }
}
