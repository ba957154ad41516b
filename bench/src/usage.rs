//! What a running process uses.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// What a process has used by now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Time that its threads ran, all together.
    pub(crate) cpu: Duration,
    /// Memory that it holds, bytes.
    pub(crate) resident: u64,
}

impl Usage {
    /// Reads it.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let mut nanoseconds = 0;
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("read {tasks}"))? {
            // A thread that has ended meanwhile has no file any more.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let first = text.split(' ').next();
            nanoseconds += first.map_or(Ok(0), str::parse::<u64>).unwrap_or(0);
        }
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let mut lines = status.lines();
        let resident = lines.find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = resident.and_then(|line| line.trim().strip_suffix(" kB"));
        let kibibytes = kibibytes.and_then(|text| text.parse::<u64>().ok());
        Ok(Self {
            cpu: Duration::from_nanos(nanoseconds),
            resident: kibibytes.with_context(|| format!("no VmRSS in {path}"))? * 1_024,
        })
    }

    pub(crate) fn mib(&self) -> f64 {
        self.resident as f64 / f64::from(1 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.cpu > Duration::ZERO && usage.mib() > 0.5, "{usage:?}");
    }
}
