//! A directory of keys as one would write it today without LISP: a gRPC server that looks up who is behind an
//! address, with what the map server has, in the same table. The paper that the project began with compares
//! itself with such a one.
//!
//! The messages are written as `prost` would generate them, so nobody needs a compiler for `.proto` files:
//!
//! ```proto
//! package lispwire;
//! service Keys { rpc Lookup(LookupRequest) returns (LookupReply); }
//! ```

pub(crate) mod calls;
pub(crate) mod serve;

/// The only method.
const LOOKUP: &str = "/lispwire.Keys/Lookup";

/// Who is behind this address?
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct LookupRequest {
    /// Four bytes or sixteen.
    #[prost(bytes = "vec", tag = "1")]
    eid: Vec<u8>,
    #[prost(uint32, tag = "2")]
    iid: u32,
}

/// Everything that a tunnel to there needs.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct LookupReply {
    /// What it is said about.
    #[prost(bytes = "vec", tag = "1")]
    prefix: Vec<u8>,
    #[prost(uint32, tag = "2")]
    prefix_length: u32,
    #[prost(bytes = "vec", tag = "3")]
    public_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    endpoint: Vec<u8>,
    #[prost(uint32, tag = "5")]
    endpoint_port: u32,
    #[prost(uint32, tag = "6")]
    ttl_minutes: u32,
}
