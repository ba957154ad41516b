//! The load generator of the gRPC server: a process of its own, with many calls open over a few connections.
//!
//! It speaks HTTP/2 by `h2` alone, which takes it less than `tonic` takes the server, and never sleeps: what is
//! measured is the server. Without a rate the loop is closed, each of so many callers asks as soon as it is
//! answered; with one it is open, a call begins when it is due whatever has become of earlier ones, and is
//! timed from then.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use clap::Args as ClapArgs;
use command_line::say;
use h2::client::SendRequest;
use lisp_proto::EidPrefix;
use prost::Message as _;
use testbed::monotonic_ns;
use tokio::net::TcpSocket;
use tokio::runtime::Builder;
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;
use tonic::codegen::http::{HeaderMap, Request};

use super::super::load::{Ask, Job, Latency, Outcome, Outcomes};
use super::serve::octets;
use super::{LOOKUP, LookupReply, LookupRequest, serve};

/// Connections.
const CONNECTIONS: usize = 8;
/// Calls that wait for answers where there is no rate, as many as the map server's generator has questions.
const CALLERS: u64 = 512;
/// What may be on its way to us, in bytes: it is never what calls wait for.
const STREAM_ROOM: u32 = 1 << 20;
const CONNECTION_ROOM: u32 = 1 << 30;
/// Before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// What has not been answered by then never will be.
const LOST: Duration = Duration::from_millis(500);
const SECOND_NS: u64 = 1_000_000_000;

/// Runs one job, told as JSON, and prints what has become of it as JSON.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    job: String,
}

/// Runs the process.
///
/// # Errors
///
/// When the server cannot be reached, or ends a connection.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let job: Job = serde_json::from_str(&args.job).context("read the job")?;
    let ask = job.ask.clone().context("there is nothing to ask")?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(calls(&job, ask))?;
    let outcomes = Outcomes {
        asked,
        ..Outcomes::default()
    };
    say(&serde_json::to_string(&outcomes)?);
    Ok(ExitCode::SUCCESS)
}

/// What one caller has seen.
#[derive(Default)]
struct Seen {
    answered: u64,
    wrong: u64,
    request_bytes: u64,
    reply_bytes: u64,
    latencies_us: Vec<f64>,
}

/// What all callers need.
struct Common {
    ask: Ask,
    connections: Vec<SendRequest<Bytes>>,
    uri: String,
    /// When it began, in nanoseconds.
    start: u64,
}

async fn calls(job: &Job, ask: Ask) -> Result<Outcome> {
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        connections.push(connect(SocketAddr::new(job.client, 0), job.server).await?);
    }
    let common = Arc::new(Common {
        ask,
        connections,
        uri: format!("http://{}{LOOKUP}", job.server),
        start: monotonic_ns(),
    });
    let mut callers = JoinSet::new();
    let sent = match common.ask.rate {
        Some(rate) => open_loop(&common, rate, &mut callers).await?,
        None => closed_loop(&common, &mut callers).await,
    };
    let seconds = common.now() as f64 / 1e9;
    let mut outcome = Outcome {
        seconds,
        ..Outcome::default()
    };
    let mut latencies_us = Vec::new();
    while let Ok(Some(seen)) = timeout(LOST, callers.join_next()).await {
        let seen = seen.context("a caller")??;
        outcome.answered += seen.answered;
        outcome.wrong += seen.wrong;
        outcome.request_bytes += seen.request_bytes;
        outcome.reply_bytes += seen.reply_bytes;
        latencies_us.extend(seen.latencies_us);
    }
    // In a closed loop only who never was answered does not come back.
    let waiting = u64::try_from(callers.len())?;
    outcome.sent = sent.unwrap_or(outcome.answered + waiting);
    outcome.lost = outcome.sent - outcome.answered;
    outcome.latency_us = Latency::of(latencies_us);
    Ok(outcome)
}

/// Begins calls when they are due; returns how many.
async fn open_loop(
    common: &Arc<Common>,
    rate: u64,
    callers: &mut JoinSet<Result<Seen>>,
) -> Result<Option<u64>> {
    let interval = SECOND_NS / rate.max(1);
    let (mut sent, mut random) = (0, Random::new(1));
    loop {
        let now = common.now();
        if now >= common.end() {
            return Ok(Some(sent));
        }
        while sent <= now / interval {
            let common = Arc::clone(common);
            let (due, number, connection) = (sent * interval, random.draw(), sent);
            callers.spawn(async move {
                let mut seen = Seen::default();
                common.call(connection, number, &mut seen).await?;
                let taken = common.now().saturating_sub(due);
                seen.latencies_us.push(taken as f64 / 1e3);
                Ok(seen)
            });
            sent += 1;
        }
        yield_now().await;
    }
}

/// Lets so many callers ask until the time is over.
async fn closed_loop(common: &Arc<Common>, callers: &mut JoinSet<Result<Seen>>) -> Option<u64> {
    for caller in 0..CALLERS {
        let common = Arc::clone(common);
        callers.spawn(async move {
            let (mut seen, mut random) = (Seen::default(), Random::new(caller + 1));
            while common.now() < common.end() {
                common.call(caller, random.draw(), &mut seen).await?;
            }
            Ok(seen)
        });
    }
    // Who never sleeps need not be woken, which would be the server's work.
    while common.now() < common.end() {
        yield_now().await;
    }
    None
}

impl Common {
    /// Nanoseconds since it began.
    fn now(&self) -> u64 {
        monotonic_ns() - self.start
    }

    const fn end(&self) -> u64 {
        self.ask.milliseconds * 1_000_000
    }

    /// Asks for the mapping that `random` chooses, over one of the connections.
    async fn call(&self, connection: u64, random: u64, seen: &mut Seen) -> Result<()> {
        let at = usize::try_from(connection)? % self.connections.len();
        let connection = self.connections.get(at).context("no such connection")?;
        let mapping = u32::try_from(random % u64::from(self.ask.mappings.max(1)))?;
        let asked = self.ask.plan.host(mapping);
        let message = framed(&asked);
        seen.request_bytes += u64::try_from(message.len())?;
        let reply = unary(connection.clone(), &self.uri, message).await?;
        seen.answered += 1;
        seen.reply_bytes += u64::try_from(reply.len())?;
        let message = reply.get(PREFIX..).map(LookupReply::decode);
        let is_right = matches!(message, Some(Ok(reply)) if serve::is_about(&reply, &asked));
        seen.wrong += u64::from(!is_right);
        Ok(())
    }
}

async fn connect(from: SocketAddr, server: SocketAddr) -> Result<SendRequest<Bytes>> {
    let socket = match from {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.bind(from)?;
    let stream = socket.connect(server).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_ROOM)
        .initial_connection_window_size(CONNECTION_ROOM)
        .handshake(stream)
        .await
        .context("begin to speak HTTP/2")?;
    // What ends a connection is what its calls report.
    tokio::spawn(async move { drop(connection.await) });
    Ok(requests)
}

/// A question about `asked`, as gRPC sends it.
fn framed(asked: &EidPrefix) -> Bytes {
    let request = LookupRequest {
        eid: octets(asked.net().addr()),
        iid: asked.iid().0,
    };
    let length = request.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    out.put(request.encode_to_vec().as_slice());
    out.freeze()
}

/// Makes one call; returns what comes back, as gRPC sends it.
async fn unary(requests: SendRequest<Bytes>, uri: &str, message: Bytes) -> Result<BytesMut> {
    let mut requests = requests.ready().await?;
    let request = Request::post(uri)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(())?;
    let (response, mut body) = requests.send_request(request, false)?;
    body.send_data(message, true)?;
    let response = response.await?;
    let is_refused = response.headers().contains_key("grpc-status");
    ensure!(!is_refused, "refused: {:?}", response.headers());
    let mut body = response.into_body();
    let mut reply = BytesMut::new();
    while let Some(some) = body.data().await {
        let some = some?;
        body.flow_control().release_capacity(some.len())?;
        reply.extend_from_slice(&some);
    }
    match body.trailers().await? {
        Some(trailers) if is_ok(&trailers) => Ok(reply),
        other => bail!("a call has ended with {other:?}"),
    }
}

fn is_ok(trailers: &HeaderMap) -> bool {
    trailers.get("grpc-status").is_some_and(|code| code == "0")
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    const fn new(seed: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed))
    }

    const fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }
}
