//! Where the programs of this project are, built when they are not.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::clock::wall_ns;
use crate::error::{Doing, TestbedError};

/// The packages whose programs run in a testbed; each has one, of the same name.
const PACKAGES: [&str; 3] = ["map-server", "xtr-agent", "lig"];
/// What those programs are made from, below the workspace.
const SOURCES: [&str; 6] = [
    "Cargo.toml",
    "lisp-proto/src",
    "map-server/src",
    "xtr-agent/src",
    "xtr-agent/device/src",
    "lig/src",
];
/// Lines of cargo's output that an error shows.
const TAIL_LINES: usize = 30;

/// The programs of this project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// The map server.
    pub map_server: PathBuf,
    /// The agent.
    pub xtr_agent: PathBuf,
    /// The query tool.
    pub lig: PathBuf,
}

impl Binaries {
    /// Finds the programs next to the running one: in `target/<profile>` when cargo built it.
    ///
    /// # Errors
    ///
    /// When one is missing; the error says which command builds it.
    pub fn find() -> Result<Self, TestbedError> {
        let directory = directory()?;
        let path = |program: &'static str| {
            let path = directory.join(program);
            let command = build_command(&directory);
            if path.is_file() {
                Ok(path)
            } else {
                Err(TestbedError::NoBinary { program, command })
            }
        };
        let [map_server, xtr_agent, lig] = PACKAGES;
        Ok(Self {
            map_server: path(map_server)?,
            xtr_agent: path(xtr_agent)?,
            lig: path(lig)?,
        })
    }

    /// Builds the programs when one is missing or older than its sources, then finds them.
    ///
    /// `announce` is called with the command before it runs. Without the sources, as on another
    /// machine, this only finds. It looks once per process; several processes may do this at
    /// once, cargo takes turns.
    ///
    /// # Errors
    ///
    /// When they do not build.
    pub fn up_to_date(announce: impl FnOnce(&str)) -> Result<Self, TestbedError> {
        static FOUND: Mutex<Option<Binaries>> = Mutex::new(None);
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(binaries) = &*found {
            return Ok(binaries.clone());
        }
        let workspace = workspace();
        let fresh = Self::find().is_ok_and(|binaries| binaries.are_newer_than(workspace));
        if !fresh && workspace.join("Cargo.toml").is_file() {
            let command = build_command(&directory()?);
            announce(&command);
            build(workspace, &command)?;
            // Cargo leaves alone what its own records call fresh, whatever the times say.
            Self::find()?.mark_as_built()?;
        }
        let binaries = Self::find()?;
        Ok(found.insert(binaries).clone())
    }

    /// Makes them newer than their sources.
    fn mark_as_built(&self) -> Result<(), TestbedError> {
        for path in [&self.map_server, &self.xtr_agent, &self.lig] {
            let file = File::open(path).doing("open", path.display())?;
            file.set_modified(now()).doing("touch", path.display())?;
        }
        Ok(())
    }

    fn are_newer_than(&self, workspace: &Path) -> bool {
        let sources = SOURCES
            .iter()
            .filter_map(|source| newest(&workspace.join(source)))
            .max();
        let binaries = [&self.map_server, &self.xtr_agent, &self.lig];
        let oldest = binaries
            .into_iter()
            .map(|path| newest(path))
            .min()
            .flatten();
        // Equal when there is neither: nothing to compare with.
        oldest >= sources
    }
}

/// The directory of the running program; tests lie one deeper.
fn directory() -> Result<PathBuf, TestbedError> {
    let program = std::env::current_exe().doing("find", "the running program")?;
    let directory = program.parent().unwrap_or_else(|| Path::new("/"));
    let deeper = ["deps", "examples"].map(OsStr::new);
    let is_deeper = directory
        .file_name()
        .is_some_and(|name| deeper.contains(&name));
    let outer = directory.parent().filter(|_| is_deeper);
    Ok(outer.unwrap_or(directory).to_owned())
}

fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// The command that builds the programs in the profile whose directory this is.
fn build_command(directory: &Path) -> String {
    let profile = match directory.file_name().and_then(OsStr::to_str) {
        None | Some("debug") => String::new(),
        Some("release") => " --release".into(),
        Some(other) => format!(" --profile {other}"),
    };
    format!("cargo build{profile} -p {}", PACKAGES.join(" -p "))
}

fn build(workspace: &Path, command: &str) -> Result<(), TestbedError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(command.split(' ').skip(1))
        .current_dir(workspace)
        // Of a cargo that may have started us: its job slots are not ours to take.
        .env_remove("MAKEFLAGS")
        .env_remove("CARGO_MAKEFLAGS")
        .output()
        .doing("run", command)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<_> = text.lines().collect();
    let tail = lines
        .get(lines.len().saturating_sub(TAIL_LINES)..)
        .unwrap_or_default();
    Err(TestbedError::Build {
        command: command.into(),
        output: tail.join("\n"),
    })
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(wall_ns())
}

/// When the newest file below `path` was changed.
fn newest(path: &Path) -> Option<SystemTime> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.is_dir() {
        return metadata.modified().ok();
    }
    let entries = fs::read_dir(path).ok()?;
    entries
        .filter_map(|entry| newest(&entry.ok()?.path()))
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_command_follows_the_profile() {
        let build = |directory| build_command(Path::new(directory));
        assert_eq!(
            build("/x/target/debug"),
            "cargo build -p map-server -p xtr-agent -p lig"
        );
        assert!(build("/x/target/release").starts_with("cargo build --release -p"));
        assert!(build("/x/target/bench").starts_with("cargo build --profile bench -p"));
    }

    #[test]
    fn what_was_built_just_now_is_newer_than_its_sources() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(name);
            File::create(&path).unwrap();
            path
        };
        let binaries = Binaries {
            map_server: file("map-server"),
            xtr_agent: file("xtr-agent"),
            lig: file("lig"),
        };
        let early = now() - Duration::from_secs(60);
        File::open(&binaries.lig)
            .and_then(|file| file.set_modified(early))
            .unwrap();
        file("Cargo.toml");
        assert!(!binaries.are_newer_than(directory.path()));
        binaries.mark_as_built().unwrap();
        assert!(binaries.are_newer_than(directory.path()));
    }

    #[test]
    fn tests_find_the_directory_above_their_own() {
        assert_ne!(directory().unwrap().file_name(), Some(OsStr::new("deps")));
    }
}
