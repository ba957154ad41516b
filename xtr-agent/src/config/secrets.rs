//! Who can read what is secret: the key files, and a configuration file with a key in it.

use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::error::{ConfigError, Source};
use super::{Access, Config, Section, read};

/// Bits of a file's mode that let others than its owner in.
const OTHERS: u32 = 0o077;

impl Config {
    /// Reads and checks the file at `path`, and looks who can read its secrets and those in the state
    /// directory that exist.
    ///
    /// # Errors
    /// As [`load`](Self::load), or a file that others can read.
    pub fn check(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let config = Self::parse(path, &text)?;
        let source = Source { path, text: &text };
        if config.has_secret()
            && let Some(mode) = open_to_others(path)
        {
            let problem = format!("is a secret, and mode {mode:04o} lets others read this file");
            let remedy =
                "run `chmod 600` on it, and change the secret if somebody may have read it";
            return Err(source.error_in(Section::Whole, "map_server.key", problem, remedy));
        }
        let data = config.instances.iter().map(|one| one.key_file.as_str());
        for name in ["control.key"].into_iter().chain(data) {
            let file = config.state_dir.join(name);
            if let Some(mode) = open_to_others(&file) {
                let file = file.display();
                let problem = format!("mode {mode:04o} of {file} lets others read it");
                let remedy =
                    "run `chmod 600` on it, and make a new key if somebody may have read it";
                return Err(source.error_in(Section::Whole, "state_dir", problem, remedy));
            }
        }
        Ok(config)
    }

    /// Whether the file itself holds a secret.
    const fn has_secret(&self) -> bool {
        match self.map_server.access {
            Access::Plain { .. } => true,
            Access::Tunnel { .. } => false,
        }
    }
}

/// The mode of a file that exists, if it lets others in.
fn open_to_others(path: &Path) -> Option<u32> {
    let mode = |file: Metadata| file.permissions().mode() & 0o777;
    let mode = path.metadata().map(mode).ok()?;
    (mode & OTHERS != 0).then_some(mode)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn secrets_that_others_can_read_are_named_with_line_and_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        let write = |server: &str| {
            let text = format!(
                "overlay = [\"10.0.0.0/8\"]\neid_prefixes = [\"10.0.0.1/32\"]\nstate_dir = {:?}\n\
                 [map_server]\naddress = \"192.0.2.1\"\n{server}",
                directory.path()
            );
            fs::write(&path, text).unwrap();
        };
        let complaint = || {
            Config::check(&path)
                .map_err(|error| error.to_string())
                .err()
        };
        let mode = |file: &Path, mode| fs::set_permissions(file, Permissions::from_mode(mode));
        write("algorithm = \"sha1\"\nkey = \"password\"\n");
        mode(&path, 0o640).unwrap();
        let text = complaint().unwrap();
        assert!(
            text.contains("agent.toml:4: map_server.key: is a secret"),
            "{text}"
        );
        assert!(
            text.contains("0640") && text.contains("chmod 600"),
            "{text}"
        );
        mode(&path, 0o600).unwrap();
        assert_eq!(complaint(), None, "keys that do not exist yet are no fault");

        let public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        write(&format!(
            "public_key = \"{public_key}\"\nendpoint = \"203.0.113.1:51820\"\n\
             control_address = \"192.0.2.9\"\n"
        ));
        mode(&path, 0o644).unwrap();
        assert_eq!(complaint(), None, "nothing in it is secret");
        for name in ["control.key", "data.key"] {
            let key = directory.path().join(name);
            fs::write(&key, "").unwrap();
            mode(&key, 0o604).unwrap();
            let text = complaint().unwrap();
            assert!(
                text.contains("agent.toml:3: state_dir: mode 0604"),
                "{text}"
            );
            assert!(text.contains(name) && text.contains("chmod 600"), "{text}");
            mode(&key, 0o600).unwrap();
        }
        assert_eq!(complaint(), None);
    }
}
