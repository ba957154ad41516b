//! `lig`: asks a LISP mapping system from a shell.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use command_line::{EXIT_USAGE, arguments, complain, say};
use lig::print::Report;
use lig::query::{Query, parse_eid};
use lisp_proto::Nonce;
use rand::TryRngCore;
use rand::rngs::OsRng;

const LIG: &str = "lig";
const EXIT_NEGATIVE: u8 = 1;
const EXIT_NO_ANSWER: u8 = 2;
/// UDP port of the LISP control plane (RFC 9301 5).
const LISP_CONTROL_PORT: u16 = 4342;

/// Asks a map server which endpoint and key serve an EID.
///
/// Exit codes: 0 found, 1 negative answer, 2 no answer, 64 usage.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The EID or EID-prefix to ask for, such as 10.0.0.2 or [7]10.0.0.0/8.
    eid: String,
    /// The map server: an address, or address:port.
    #[arg(long, short, value_parser = parse_server)]
    server: SocketAddr,
    /// Instance-id of the EID.
    #[arg(long, short, default_value_t = 0)]
    instance_id: u32,
    /// Wraps the request in an Encapsulated Control Message, as other makes of
    /// map resolver want it.
    #[arg(long, short)]
    ecm: bool,
    /// The EID to ask on behalf of.
    #[arg(long)]
    source: Option<IpAddr>,
    /// Local UDP port; some map resolvers answer to 4342 only.
    #[arg(long, short, default_value_t = 0)]
    port: u16,
    /// Milliseconds to wait for an answer to each request.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout_ms: u64,
    /// Requests to send before giving up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: u32,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

fn parse_server(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .or_else(|_| {
            text.parse()
                .map(|addr| SocketAddr::new(addr, LISP_CONTROL_PORT))
        })
        .map_err(|_| "give an address such as 192.0.2.1 or [2001:db8::1]:4342".into())
}

fn main() -> ExitCode {
    let arguments: Arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let eid = match parse_eid(&arguments.eid, arguments.instance_id) {
        Ok(eid) => eid,
        Err(error) => {
            complain(LIG, &format!("{}: {error}", arguments.eid));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match ask(&arguments, eid) {
        Ok(Some(true)) => ExitCode::SUCCESS,
        Ok(Some(false)) => ExitCode::from(EXIT_NEGATIVE),
        Ok(None) => {
            let Arguments {
                server,
                tries,
                timeout_ms,
                ..
            } = arguments;
            complain(
                LIG,
                &format!(
                    "no answer from {server} to {tries} requests of {timeout_ms} ms each; \
                 is it up, may you ask it, and does it want --ecm?"
                ),
            );
            ExitCode::from(EXIT_NO_ANSWER)
        }
        Err(error) => {
            complain(LIG, &format!("{error:#}"));
            ExitCode::from(EXIT_NO_ANSWER)
        }
    }
}

/// Asks and prints; `Some(found)` when somebody answered.
#[expect(
    clippy::disallowed_methods,
    reason = "lig measures how long the answer took"
)]
fn ask(arguments: &Arguments, eid: lisp_proto::EidPrefix) -> Result<Option<bool>> {
    let server = arguments.server;
    let any: IpAddr = if server.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    // A connected socket knows our address towards the server, but would not
    // hear an answer from another of the server's addresses.
    let probe = UdpSocket::bind(SocketAddr::new(any, 0))?;
    probe
        .connect(server)
        .with_context(|| format!("no route to {server}"))?;
    let ours = probe.local_addr()?.ip();
    let socket = UdpSocket::bind(SocketAddr::new(any, arguments.port))
        .with_context(|| format!("UDP port {} is not free", arguments.port))?;
    let query = Query {
        eid,
        server,
        local: SocketAddr::new(ours, socket.local_addr()?.port()),
        source: arguments.source,
        encapsulate: arguments.ecm,
        nonce: Nonce(OsRng.try_next_u64().context("no randomness")?),
    };
    let request = query.encode()?;
    let mut datagram = vec![0; 65_535];
    for tries in 1..=arguments.tries {
        let asked = Instant::now();
        socket
            .send_to(&request, server)
            .with_context(|| format!("sending to {server}"))?;
        let wait = Duration::from_millis(arguments.timeout_ms);
        while let Some(left) = wait
            .checked_sub(asked.elapsed())
            .filter(|left| !left.is_zero())
        {
            socket.set_read_timeout(Some(left))?;
            let Ok((length, from)) = socket.recv_from(&mut datagram) else {
                break;
            };
            let elapsed = asked.elapsed();
            let bytes = datagram.get(..length).unwrap_or_default();
            if let Ok(Some(answer)) = query.answer(bytes) {
                let found = answer.found();
                let report = Report {
                    eid,
                    server: from,
                    elapsed,
                    tries,
                    answer,
                };
                if arguments.json {
                    say(&report.json().to_string());
                } else {
                    say(report.text().trim_end());
                }
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}
