//! Rounds in which limit and subjects take turns.

use anyhow::Result;
use command_line::say;

use super::data::Plan;
use super::load::{Ask, Outcome, Register};
use super::servers::Server;
use super::{FEW, Part, Run};

/// Map-Registers per round where their cost is measured.
const REGISTERS: u32 = 50_000;
/// Records of a Map-Register of one who refreshes many mappings: some 2,500 bytes, as agents with many prefixes send.
const TOGETHER: u32 = 32;
/// Questions per second where answer times are measured; the first is the one that is compared.
pub(super) const RATES: [u64; 4] = [5_000, 20_000, 50_000, 100_000];
/// The highest of them for the gRPC server: it has to keep up with questions that do not wait for it.
const GRPC_RATE: u64 = 20_000;

/// All servers that take turns.
struct Servers {
    echo: Server,
    few: Server,
    many: Server,
    /// Has few mappings and two threads.
    wide: Server,
    /// Speaks gRPC, and has as many mappings as `many`.
    grpc: Option<Server>,
}

impl Run {
    /// Measures requests and registrations.
    pub(super) fn requests(&mut self) -> Result<()> {
        let servers = self.servers()?;
        let many = self.mappings;
        for round in 0..self.rounds {
            say(&format!("round {} of {}", round + 1, self.rounds));
            // What was registered before may still be written down.
            servers.many.rest()?;
            for (subject, server, mappings) in [
                ("echo", &servers.echo, FEW),
                ("few", &servers.few, FEW),
                ("many", &servers.many, many),
                ("two_workers", &servers.wide, FEW),
            ] {
                self.ask(subject, server, (Plan::Mixed, mappings), None)?;
            }
            if let Some(grpc) = &servers.grpc {
                self.ask("grpc", grpc, (Plan::Mixed, many), None)?;
            }
            for rate in RATES {
                for (subject, server, mappings) in [
                    ("echo", &servers.echo, FEW),
                    ("few", &servers.few, FEW),
                    ("many", &servers.many, many),
                ] {
                    self.ask(subject, server, (Plan::Mixed, mappings), Some(rate))?;
                }
                if let Some(grpc) = servers.grpc.as_ref().filter(|_| rate <= GRPC_RATE) {
                    self.ask("grpc", grpc, (Plan::Mixed, many), Some(rate))?;
                }
            }
            let changes = u16::try_from(round)? + 1;
            for (subject, server, per_message) in [
                ("echo", &servers.echo, 1),
                ("changed", &servers.many, 1),
                ("refreshed", &servers.many, 1),
                ("refreshed_together", &servers.many, TOGETHER),
            ] {
                self.registers(subject, server, (changes, per_message))?;
            }
        }
        if self.wants(Part::Storm) {
            self.storm(&servers.many)?;
        }
        Ok(())
    }

    /// Starts all servers and fills them.
    fn servers(&mut self) -> Result<Servers> {
        let (few, wide) = (self.site.map_server(1)?, self.site.map_server(2)?);
        self.fill(&few, Plan::Mixed, FEW, false)?;
        self.fill(&wide, Plan::Mixed, FEW, false)?;
        // How long answers are decides how much the limit has to send.
        let reply = self.trial(&few, (Plan::Mixed, FEW))?;
        let one_by_one = self.register(Plan::Mixed, FEW);
        let notify = self.site.load(&few, None, Some(one_by_one))?.registered;
        let [reply, notify] = [reply, notify].map(|outcome| outcome.reply_len());
        let echo = self.site.echo(reply, notify)?;
        let many = self.site.map_server(1)?;
        self.grow(&echo, &many)?;
        let grpc = self.grpc(Plan::Mixed, self.mappings)?;
        Ok(Servers {
            echo,
            few,
            many,
            wide,
            grpc,
        })
    }

    /// Starts the gRPC server, if it is wanted.
    pub(super) fn grpc(&mut self, plan: Plan, mappings: u32) -> Result<Option<Server>> {
        if !self.wants(Part::Grpc) {
            return Ok(None);
        }
        say(&format!("gRPC server with {mappings} mappings"));
        self.site.grpc(plan, mappings).map(Some)
    }

    /// Asks for a short while, without taking note of it.
    pub(super) fn trial(&self, server: &Server, (plan, mappings): (Plan, u32)) -> Result<Outcome> {
        let ask = Ask {
            plan,
            mappings,
            milliseconds: 100,
            rate: None,
            checked: true,
        };
        Ok(self.site.load(server, Some(ask), None)?.asked)
    }

    /// Fills a server step by step, and looks at each step how long answers take.
    fn grow(&mut self, echo: &Server, server: &Server) -> Result<()> {
        let mut sizes: Vec<_> = (0..4).map(|step| FEW * 10_u32.pow(step)).collect();
        sizes.retain(|size| *size < self.mappings);
        sizes.push(self.mappings);
        for size in sizes {
            say(&format!("{size} mappings"));
            self.fill(server, Plan::Mixed, size, false)?;
            let plan = (Plan::Mixed, size);
            for rate in [None, Some(RATES[0])] {
                self.ask("echo_growing", echo, (Plan::Mixed, FEW), rate)?;
                self.ask("growing", server, plan, rate)?;
            }
        }
        Ok(())
    }

    /// Registers mappings that have changed so often, so many per message.
    fn registers(
        &mut self,
        subject: &str,
        server: &Server,
        (changes, per_message): (u16, u32),
    ) -> Result<()> {
        let register = Register {
            changes,
            per_message,
            ..self.register(Plan::Mixed, REGISTERS.min(self.mappings))
        };
        let (outcomes, cpu_us) = self.costs(server, None, Some(register))?;
        let mappings = outcomes.registered.answered * u64::from(per_message);
        let each = cpu_us / mappings as f64;
        self.report.note("register_us", subject, each);
        Ok(())
    }
}
