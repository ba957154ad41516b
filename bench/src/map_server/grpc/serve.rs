//! The server: `tonic` as it is, and the map server's table behind it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use ipnet::IpNet;
use lisp_proto::{EidPrefix, InstanceId, PublicKey, Record, Rloc, Ttl};
use map_server::PrefixTable;
use tokio::runtime::Builder;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::super::data::Plan;
use super::{LOOKUP, LookupReply, LookupRequest};

/// Answers lookups of keys by gRPC.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    #[arg(long)]
    listen: SocketAddr,
    /// Which mappings it has, as JSON.
    #[arg(long)]
    plan: String,
    #[arg(long)]
    mappings: u32,
}

/// Runs the process until it is killed.
///
/// # Errors
///
/// When it cannot listen.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // Who connects while it fills the table waits.
    let listener = TcpListener::bind(args.listen).context("listen")?;
    listener.set_nonblocking(true)?;
    let plan = serde_json::from_str(&args.plan).context("read the plan")?;
    let keys = Keys(Arc::new(filled(plan, args.mappings)));
    // It has one core, as the map server: a thread more would only be in the way.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        // Without a router, which this one service does not need: it would only cost time.
        Server::builder()
            .serve_with_incoming(keys, incoming)
            .await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// What is known of a prefix.
struct Known {
    key: PublicKey,
    endpoint: SocketAddr,
    ttl: Ttl,
}

type Table = PrefixTable<Known>;

fn filled(plan: Plan, mappings: u32) -> Table {
    let mut table = Table::default();
    for n in 0..mappings {
        let record = plan.record(n, 0, true);
        if let Some(known) = known(&record) {
            table.insert(record.eid, known);
        }
    }
    table
}

fn known(record: &Record) -> Option<Known> {
    match record.locators.first()?.rloc {
        Rloc::WireGuard { endpoint, key } => Some(Known {
            key,
            endpoint,
            ttl: record.ttl,
        }),
        Rloc::Plain(_) => None,
    }
}

/// The service, with what generated code would do: it finds the method, and reads and writes its messages.
#[derive(Clone)]
struct Keys(Arc<Table>);

impl Service<http::Request<Body>> for Keys {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != LOOKUP {
            let refusal = Status::unimplemented("no such method").into_http();
            return Box::pin(ready(Ok(refusal)));
        }
        let lookup = Lookup(Arc::clone(&self.0));
        Box::pin(async move {
            Ok(Grpc::new(ProstCodec::default())
                .unary(lookup, request)
                .await)
        })
    }
}

/// The method.
struct Lookup(Arc<Table>);

impl UnaryService<LookupRequest> for Lookup {
    type Response = LookupReply;
    type Future = Ready<Result<Response<LookupReply>, Status>>;

    fn call(&mut self, request: Request<LookupRequest>) -> Self::Future {
        ready(answer(&self.0, request.get_ref()).map(Response::new))
    }
}

/// Says who is behind an address.
fn answer(table: &Table, request: &LookupRequest) -> Result<LookupReply, Status> {
    let no_address = || Status::invalid_argument("an address has 4 bytes or 16");
    let address = address(&request.eid).ok_or_else(no_address)?;
    let eid = EidPrefix::host(InstanceId(request.iid), address);
    let nobody = || Status::not_found("nobody has registered it");
    let (prefix, known) = table.longest_match(&eid).ok_or_else(nobody)?;
    Ok(LookupReply {
        prefix: octets(prefix.net().addr()),
        prefix_length: prefix.net().prefix_len().into(),
        public_key: known.key.0.to_vec(),
        endpoint: octets(known.endpoint.ip()),
        endpoint_port: known.endpoint.port().into(),
        ttl_minutes: known.ttl.minutes(),
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| Some(<[u8; 16]>::try_from(bytes).ok()?.into()))
}

/// The bytes of an address.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Whether `reply` is about a prefix around `asked`, and has a key.
pub(super) fn is_about(reply: &LookupReply, asked: &EidPrefix) -> bool {
    let net = address(&reply.prefix).and_then(|address| {
        let length = u8::try_from(reply.prefix_length).ok()?;
        IpNet::new(address, length).ok()
    });
    reply.public_key.len() == 32
        && net.is_some_and(|net| EidPrefix::new(asked.iid(), net).covers(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(asked: &EidPrefix) -> LookupRequest {
        LookupRequest {
            eid: octets(asked.net().addr()),
            iid: asked.iid().0,
        }
    }

    #[test]
    fn every_mapping_is_found_with_its_key_and_endpoint_and_no_other() {
        let table = filled(Plan::Mixed, 1_000);
        for n in 0..1_000 {
            let (record, asked) = (Plan::Mixed.record(n, 0, true), Plan::Mixed.host(n));
            let reply = answer(&table, &request(&asked)).unwrap();
            assert!(is_about(&reply, &asked), "{asked}");
            let Rloc::WireGuard { endpoint, key } = record.locators[0].rloc else {
                panic!("no key");
            };
            assert_eq!(reply.public_key, key.0);
            assert_eq!(reply.endpoint, octets(endpoint.ip()));
            assert_eq!(reply.endpoint_port, u32::from(endpoint.port()));
            assert_eq!(reply.ttl_minutes, record.ttl.minutes());
            let other = EidPrefix::host(InstanceId(8), asked.net().addr());
            assert!(answer(&table, &request(&other)).is_err());
        }
    }

    #[test]
    fn a_reply_about_something_else_is_none() {
        let table = filled(Plan::Hosts4, 2);
        let [first, second] = [0, 1].map(|n| Plan::Hosts4.host(n));
        let reply = answer(&table, &request(&first)).unwrap();
        assert!(is_about(&reply, &first));
        assert!(!is_about(&reply, &second));
        let keyless = LookupReply {
            public_key: Vec::new(),
            ..reply
        };
        assert!(!is_about(&keyless, &first));
    }
}
