//! Open Overlay Router with the same addresses, in turn with ours, the echo server and the gRPC server.

use std::process::{Command, Stdio};

use anyhow::Result;
use command_line::say;

use super::data::{Dialect, Plan};
use super::load::Register;
use super::{FEW, Run};

/// It takes long to register more.
const MOST: u32 = 1_000_000;
/// Map-Registers that wait for their acknowledgement: its socket has no more room.
const WINDOW: u32 = 64;

impl Run {
    /// Compares ours with it, at two sizes.
    pub(super) fn peer(&mut self) -> Result<()> {
        if !is_installed() {
            say(
                "Open Overlay Router is not installed (apt-get install openoverlayrouter): skipped",
            );
            return Ok(());
        }
        let ours = self.site.map_server(1)?;
        let oor = self.site.oor()?;
        for (size, count) in [("few", FEW), ("many", self.mappings.min(MOST))] {
            say(&format!("Open Overlay Router with {count} mappings"));
            self.fill(&ours, Plan::Hosts4, count, false)?;
            let before = oor.usage()?.resident;
            let register = Register {
                keyed: false,
                dialect: Dialect::Oor,
                window: WINDOW,
                ..self.register(Plan::Hosts4, count)
            };
            let registered = self.site.load(&oor, None, Some(register))?.registered;
            let grown = oor.usage()?.resident.saturating_sub(before) as f64;
            if size == "many" {
                let report = &mut self.report;
                report.note("bytes_per_mapping", "oor", grown / f64::from(count));
                report.note(
                    "registered_per_s",
                    "oor",
                    f64::from(count) / registered.seconds,
                );
            }
            let plan = (Plan::Hosts4, count);
            let one_by_one = self.register(Plan::Hosts4, count);
            let registered = self.site.load(&ours, None, Some(one_by_one))?.registered;
            if size == "many" {
                let per_s = f64::from(count) / registered.seconds;
                self.report.note("registered_per_s", "ours", per_s);
            }
            let reply = self.trial(&oor, plan)?;
            let echo = self.site.echo(reply.reply_len(), 0)?;
            let grpc = self.grpc(Plan::Hosts4, count)?;
            for _ in 0..self.rounds {
                self.ask(&format!("echo_oor_{size}"), &echo, plan, None)?;
                self.ask(&format!("ours_{size}"), &ours, plan, None)?;
                self.ask(&format!("oor_{size}"), &oor, plan, None)?;
                if let Some(grpc) = &grpc {
                    self.ask(&format!("grpc_{size}"), grpc, plan, None)?;
                }
            }
        }
        Ok(())
    }
}

fn is_installed() -> bool {
    let mut command = Command::new("oor");
    command.arg("--version");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok()
}
