//! `xtr-agent drain`: others who share its prefixes take the clients of a running agent over.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use command_line::{complain, say};
use serde::{Deserialize, Serialize};
use xtr_agent::shell::Request;

use super::{Target, ask_running};

/// How often the agent is asked how far it is.
const LOOK: Duration = Duration::from_millis(250);
/// How often that is told.
const TELL: Duration = Duration::from_secs(1);

/// What an agent answers.
#[derive(Debug, Deserialize, Serialize)]
struct Report {
    instances: Vec<Instance>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Instance {
    iid: u32,
    map_servers: usize,
    /// Map servers that have not acknowledged it yet.
    unacknowledged: usize,
    /// Those it still has tunnels to.
    peers: usize,
}

/// Runs the command; false if somebody is left after `wait`.
///
/// # Errors
/// No agent runs, or it shares nothing.
#[expect(
    clippy::disallowed_methods,
    reason = "a command waits in the operator's time"
)]
pub(crate) fn run(target: &Target, undo: bool, wait: Duration, json: bool) -> Result<bool> {
    let started = Instant::now();
    let mut told = started;
    loop {
        let answer = ask_running(target, &Request::Drain { undo })?;
        let report: Report = serde_json::from_value(answer)?;
        let left: usize = report.instances.iter().map(|it| it.peers).sum();
        let waits = report.instances.iter().any(|it| it.unacknowledged > 0);
        let done = !waits && (undo || left == 0);
        if done || started.elapsed() >= wait {
            if json {
                say(&serde_json::to_string(&report)?);
                return Ok(done);
            }
            if waits {
                bail!("{}", unheard(&report, undo));
            }
            say(&verdict(undo, left));
            return Ok(done);
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            complain("xtr-agent", &format!("{left} peers left"));
        }
        thread::sleep(LOOK);
    }
}

fn unheard(report: &Report, undo: bool) -> String {
    let silent: usize = report.instances.iter().map(|it| it.unacknowledged).sum();
    let all: usize = report.instances.iter().map(|it| it.map_servers).sum();
    let what = if undo { "may come again" } else { "are to go" };
    format!(
        "{silent} of {all} registrations that say that clients {what} are not acknowledged yet; the \
         agent goes on trying: see `xtr-agent status`"
    )
}

fn verdict(undo: bool, left: usize) -> String {
    match (undo, left) {
        (true, _) => "clients may come again".to_owned(),
        (false, 0) => {
            "drained: no peers are left; `xtr-agent stop --purge` loses nothing now".to_owned()
        }
        (false, left) => format!(
            "{left} peers are left: either nobody else shares what they use (`map-server migrations` \
             says why), or this host itself talks to them (`xtr-agent status`)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_says_what_to_do_next() {
        assert!(verdict(false, 0).contains("stop --purge"));
        assert!(verdict(false, 3).starts_with("3 peers are left"));
        assert!(verdict(true, 3).contains("come again"));
    }

    #[test]
    fn map_servers_that_have_not_heard_of_it_are_counted_over_all_instances() {
        let instance = |unacknowledged| Instance {
            iid: 0,
            map_servers: 2,
            unacknowledged,
            peers: 1,
        };
        let instances = vec![instance(1), instance(2)];
        let said = unheard(&Report { instances }, false);
        assert!(said.starts_with("3 of 4 registrations"), "{said}");
    }
}
