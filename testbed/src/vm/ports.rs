//! The ways out of the guest: one virtio port for each kind of output.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;

use crate::clock::sleep;

/// What a port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// What the command writes to stdout.
    Stdout = 1,
    /// What the command writes to stderr.
    Stderr = 2,
    /// An archive of what the command left in `/out`.
    Files = 3,
    /// How the command ended, as JSON.
    Outcome = 4,
}

impl Port {
    /// Every port.
    pub(super) const ALL: [Self; 4] = [Self::Stdout, Self::Stderr, Self::Files, Self::Outcome];

    /// The port's number on its controller, from 1.
    pub(super) fn number(self) -> u8 {
        self as u8
    }

    /// Opens the port in the guest. The kernel makes its device soon after it has loaded the
    /// driver.
    pub(super) fn open(self) -> io::Result<File> {
        let path = format!("/dev/vport0p{}", self.number());
        for _ in 0..LOOKS {
            match File::options().write(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => sleep(BETWEEN_LOOKS),
                opened => return opened,
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

const LOOKS: u32 = 500;
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// Copies until the end, at once; goes on reading when nobody takes it, lest the writer waits.
///
/// Not `io::copy`: that splices, and a splice from an empty pipe to a port moves nothing
/// instead of waiting, which looks like the end.
pub(super) fn copy(mut from: impl Read, to: &mut (impl Write + ?Sized)) {
    let mut buffer = [0; 8192];
    let mut wanted = true;
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                wanted = wanted && to.write_all(bytes).and_then(|()| to.flush()).is_ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_read_to_the_end_though_nobody_takes_it() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut from = io::repeat(7).take(100_000);
        copy(&mut from, &mut Closed);
        assert_eq!(from.limit(), 0);
    }
}
