//! The archive format of the kernel's initramfs ("newc"), written and read.
//!
//! A header of 110 ASCII bytes, a name and the contents, each padded to four bytes; see the
//! kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`. Archives can be
//! put one after the other.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

const MAGIC: &[u8; 6] = b"070701";
const END: &str = "TRAILER!!!";
const HEADER_LEN: usize = 110;
const TYPE_MASK: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Writes an archive. Directories are added when something is put into them.
pub(super) struct Writer<W> {
    out: W,
    inode: u32,
    directories: BTreeSet<PathBuf>,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            directories: BTreeSet::new(),
        }
    }

    /// Adds a directory, and those above it, unless they are there.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<()> {
        let path = relative(path);
        let missing: Vec<_> = path
            .ancestors()
            .take_while(|path| !self.directories.contains(*path))
            .collect();
        for directory in missing
            .into_iter()
            .rev()
            .filter(|path| !path.as_os_str().is_empty())
        {
            self.directories.insert(directory.to_owned());
            self.header(directory, DIRECTORY | 0o755, 0, (0, 0))?;
        }
        Ok(())
    }

    /// Adds a file with the given permissions.
    pub(super) fn file(&mut self, path: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | mode, contents)
    }

    /// Adds a symbolic link to `target`.
    pub(super) fn symlink(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, target.as_os_str().as_bytes())
    }

    /// Adds a character device with the given major and minor number.
    pub(super) fn device(&mut self, path: &Path, number: (u32, u32)) -> io::Result<()> {
        self.parent(path)?;
        self.header(relative(path), CHARACTER_DEVICE | 0o600, 0, number)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.header(Path::new(END), 0, 0, (0, 0))?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.parent(path)?;
        let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
        self.header(relative(path), mode, size, (0, 0))?;
        self.out.write_all(contents)?;
        self.pad(contents.len())
    }

    fn parent(&mut self, path: &Path) -> io::Result<()> {
        path.parent()
            .map_or(Ok(()), |parent| self.directory(parent))
    }

    fn header(&mut self, name: &Path, mode: u32, size: u32, device: (u32, u32)) -> io::Result<()> {
        let name = name.as_os_str().as_bytes();
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        self.inode += 1;
        self.out.write_all(MAGIC)?;
        // inode, mode, uid, gid, links, mtime, size, device, special device, name size, checksum
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name)?;
        self.out.write_all(&[0])?;
        self.pad(HEADER_LEN + name.len() + 1)
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        let zeros = padding(written);
        self.out.write_all([0; 3].get(..zeros).unwrap_or_default())
    }
}

/// Adds the directories and files below `root`.
pub(super) fn archive_tree<W: Write>(archive: &mut Writer<W>, root: &Path) -> io::Result<()> {
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        archive.directory(&directory)?;
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let name = directory.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(name);
            } else if kind.is_file() {
                let mode = entry.metadata()?.permissions().mode() & 0o7777;
                archive.file(&name, mode, &fs::read(entry.path())?)?;
            }
        }
    }
    Ok(())
}

/// Unpacks an archive of directories and files below `root`.
pub(super) fn unpack(mut archive: impl Read, root: &Path) -> io::Result<()> {
    loop {
        let (mode, size, name) = read_header(&mut archive)?;
        if name == Path::new(END) {
            return Ok(());
        }
        // An entry must not land elsewhere.
        if !name
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(invalid("a name that leaves the archive"));
        }
        let path = root.join(&name);
        let mut contents = archive.by_ref().take(u64::from(size));
        match mode & TYPE_MASK {
            DIRECTORY => fs::create_dir_all(&path)?,
            REGULAR => {
                let copied = io::copy(&mut contents, &mut File::create(&path)?)?;
                if copied != u64::from(size) {
                    return Err(invalid("cut short"));
                }
                fs::set_permissions(&path, Permissions::from_mode(mode & 0o777))?;
            }
            _ => return Err(invalid("an entry of another kind")),
        }
        skip_padding(
            &mut archive,
            usize::try_from(size).map_err(io::Error::other)?,
        )?;
    }
}

/// The mode, size and name of the next entry.
fn read_header(archive: &mut impl Read) -> io::Result<(u32, u32, PathBuf)> {
    let mut magic = [0; 6];
    archive.read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Err(invalid("no header"));
    }
    let mut fields = [0; 13];
    for field in &mut fields {
        let mut digits = [0; 8];
        archive.read_exact(&mut digits)?;
        let digits = std::str::from_utf8(&digits).map_err(io::Error::other)?;
        *field = u32::from_str_radix(digits, 16).map_err(io::Error::other)?;
    }
    let [_, mode, _, _, _, _, size, _, _, _, _, name_size, _] = fields;
    let name_size = usize::try_from(name_size).map_err(io::Error::other)?;
    if !(1..=4096).contains(&name_size) {
        return Err(invalid("a name too long"));
    }
    let mut name = vec![0; name_size];
    archive.read_exact(&mut name)?;
    skip_padding(archive, HEADER_LEN + name_size)?;
    name.pop();
    Ok((
        mode,
        size,
        PathBuf::from(std::ffi::OsStr::from_bytes(&name)),
    ))
}

fn skip_padding(archive: &mut impl Read, read: usize) -> io::Result<()> {
    let mut zeros = [0; 3];
    archive.read_exact(zeros.get_mut(..padding(read)).unwrap_or_default())
}

/// How many bytes are missing to a multiple of four.
fn padding(written: usize) -> usize {
    written.wrapping_neg() % 4
}

/// Names in an archive have no leading slash.
fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_archived_comes_back() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("a/empty")).unwrap();
        fs::write(from.path().join("a/odd"), b"12345").unwrap();
        fs::write(from.path().join("run"), b"").unwrap();
        fs::set_permissions(from.path().join("run"), Permissions::from_mode(0o755)).unwrap();

        let mut archive = Writer::new(Vec::new());
        archive_tree(&mut archive, from.path()).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        unpack(bytes.as_slice(), to.path()).unwrap();

        assert!(to.path().join("a/empty").is_dir());
        assert_eq!(fs::read(to.path().join("a/odd")).unwrap(), b"12345");
        let mode = fs::metadata(to.path().join("run"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn parents_come_before_what_is_in_them_and_only_once() {
        let mut archive = Writer::new(Vec::new());
        archive
            .file(Path::new("/usr/bin/one"), 0o755, b"1")
            .unwrap();
        archive
            .file(Path::new("/usr/bin/two"), 0o755, b"2")
            .unwrap();
        let bytes = archive.finish().unwrap();
        let mut rest = bytes.as_slice();
        let names: Vec<_> = std::iter::from_fn(|| {
            let (_, size, name) = read_header(&mut rest).ok()?;
            let size = usize::try_from(size).unwrap();
            rest = &rest[size + padding(size)..];
            Some(name)
        })
        .collect();
        let expected = ["usr", "usr/bin", "usr/bin/one", "usr/bin/two", END];
        assert_eq!(names, expected.map(PathBuf::from));
    }

    #[test]
    fn a_name_that_climbs_out_is_refused() {
        let to = tempfile::tempdir().unwrap();
        let mut archive = Writer::new(Vec::new());
        archive
            .header(Path::new("../evil"), REGULAR | 0o644, 0, (0, 0))
            .unwrap();
        let bytes = archive.finish().unwrap();
        assert!(unpack(bytes.as_slice(), to.path()).is_err());
    }

    #[test]
    fn a_link_is_refused() {
        let to = tempfile::tempdir().unwrap();
        let mut archive = Writer::new(Vec::new());
        archive
            .symlink(Path::new("elsewhere"), Path::new("/etc"))
            .unwrap();
        let bytes = archive.finish().unwrap();
        assert!(unpack(bytes.as_slice(), to.path()).is_err());
    }

    #[test]
    fn a_truncated_archive_is_an_error() {
        let to = tempfile::tempdir().unwrap();
        let mut archive = Writer::new(Vec::new());
        archive.file(Path::new("file"), 0o644, &[7; 1000]).unwrap();
        let bytes = archive.finish().unwrap();
        assert!(unpack(&bytes[..500], to.path()).is_err());
    }
}
