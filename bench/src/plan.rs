//! What all measurements of whole networks are told, and what becomes of their reports.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use command_line::say;
use serde::{Deserialize, Serialize};

use crate::guest;

/// On what to measure, and where to leave the report.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Plan {
    /// Which data planes; the kernel's is measured in an emulated guest where this machine has none
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["embedded", "kernel"])]
    data_plane: Vec<DataPlane>,
    /// Directory for the report, in JSON
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Leaves the report to whoever runs the guest
    #[arg(long, hide = true)]
    in_guest: bool,
}

/// A data plane to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DataPlane {
    /// WireGuard inside the agent.
    Embedded,
    /// The kernel's WireGuard.
    Kernel,
}

impl DataPlane {
    /// As the testbed calls it; `None` if it can be measured in a guest only.
    fn here(self, in_guest: bool) -> Option<testbed::DataPlane> {
        match self {
            Self::Embedded => Some(testbed::DataPlane::Embedded),
            Self::Kernel => {
                (in_guest || guest::has_kernel_wireguard()).then_some(testbed::DataPlane::Kernel)
            }
        }
    }
}

impl Plan {
    /// Measures all data planes, each on this kernel or in a guest, and returns what was measured.
    ///
    /// # Errors
    ///
    /// When measuring fails, or no data plane could be measured.
    pub(crate) fn measure<M>(
        &self,
        mut here: impl FnMut(testbed::DataPlane) -> Result<Vec<M>>,
        in_guest: impl Fn(&Path) -> Result<Vec<M>>,
    ) -> Result<Vec<M>> {
        let out = &self.out;
        fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
        let mut measured = Vec::new();
        for plane in &self.data_plane {
            measured.extend(match plane.here(self.in_guest) {
                Some(plane) => here(plane)?,
                None => in_guest(out)?,
            });
        }
        ensure!(!measured.is_empty(), "no data plane could be measured");
        Ok(measured)
    }

    /// Writes `report` into `file`, and prints it.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn finish(
        &self,
        report: &(impl Serialize + Display),
        file: &str,
    ) -> Result<ExitCode> {
        let path = self.out.join(file);
        let mut text = serde_json::to_string_pretty(report)?;
        text.push('\n');
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        if !self.in_guest {
            say(&report.to_string());
            say(&format!("written to {}", path.display()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Everything that was measured, of each data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report<P> {
    /// By name, the worst of all data planes.
    pub(crate) ratios: BTreeMap<String, f64>,
    /// Each data plane by itself.
    pub(crate) planes: Vec<P>,
}

/// A figure by name, and how to read it off what was measured of one data plane.
pub(crate) type Value<'a, P> = (&'a str, fn(&P) -> f64);

impl<P> Report<P> {
    /// What was measured of `planes`, and the figures that sum it up, by name.
    pub(crate) fn new<const N: usize>(ratios: [(&str, f64); N], planes: Vec<P>) -> Self {
        let ratios = ratios.map(|(name, value)| (name.to_owned(), value));
        Self {
            ratios: ratios.into(),
            planes,
        }
    }

    /// The same, where each figure is the greatest among the data planes.
    pub(crate) fn of_greatest<const N: usize>(values: [Value<'_, P>; N], planes: Vec<P>) -> Self {
        let greatest = |value: fn(&P) -> f64| planes.iter().map(value).fold(0.0, f64::max);
        let ratios = values.map(|(name, value)| (name, greatest(value)));
        Self::new(ratios, planes)
    }
}

impl<P: Display> Display for Report<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_report(f, &self.planes, &self.ratios)
    }
}

/// Writes what was measured, and the ratios below it.
pub(crate) fn write_report(
    f: &mut fmt::Formatter<'_>,
    measured: &[impl Display],
    ratios: &BTreeMap<String, f64>,
) -> fmt::Result {
    for one in measured {
        writeln!(f, "{one}")?;
    }
    for (name, value) in ratios {
        writeln!(f, "  {name:<36}{value:>10.3}")?;
    }
    Ok(())
}
