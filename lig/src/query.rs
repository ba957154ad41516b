//! One question and its answer, without IO.

use std::net::{IpAddr, SocketAddr};

use lisp_proto::{
    DecodeError, EidPrefix, EncodeError, InstanceId, Message, Nonce, RecordView, RequestFlags,
    RequestParams, RequestedEid, decode, encode_ecm, encode_map_request,
};

/// The port of a WireGuard locator that does not say one.
const DEFAULT_PORT: u16 = 51820;

/// What to ask, and of whom.
#[derive(Clone, Debug)]
pub struct Query {
    /// The EID-prefix in question.
    pub eid: EidPrefix,
    /// The map server or map resolver.
    pub server: SocketAddr,
    /// Our address and port, where the answer is to go.
    pub local: SocketAddr,
    /// The EID to ask on behalf of.
    pub source: Option<IpAddr>,
    /// Whether to wrap the request in an Encapsulated Control Message
    /// (RFC 9301 5.8), as map resolvers of other makes want it.
    pub encapsulate: bool,
    /// Tells our answer from others.
    pub nonce: Nonce,
}

/// An answer to our question.
#[derive(Debug)]
pub struct Answer<'a> {
    /// Its records, as they are on the wire.
    pub records: Vec<RecordView<'a>>,
}

impl Query {
    /// The datagram that asks.
    ///
    /// # Errors
    /// When the question does not fit the wire format.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let source = self.source.map(|addr| (self.eid.iid(), addr));
        let params = RequestParams {
            flags: RequestFlags::default(),
            nonce: self.nonce,
            source_eid: source,
            itr_rlocs: &[self.local.ip()],
            eids: &[RequestedEid {
                subscribe: false,
                eid: self.eid,
            }],
            source_record: None,
            gap: None,
            ids: None,
        };
        let mut request = Vec::new();
        encode_map_request(&params, &mut request)?;
        if !self.encapsulate {
            return Ok(request);
        }
        let mut message = Vec::new();
        let eid = self.eid.net().addr();
        // The inner source must be of the EID's family: ours, or none.
        let inner = match self.source {
            Some(source) => source,
            None if self.local.is_ipv4() == eid.is_ipv4() => self.local.ip(),
            None => unspecified_like(eid),
        };
        let from = SocketAddr::new(inner, self.local.port());
        let to = SocketAddr::new(eid, self.server.port());
        encode_ecm(from, to, &request, &mut message)?;
        Ok(message)
    }

    /// Reads a datagram; `None` when it does not answer this question.
    ///
    /// # Errors
    /// When the datagram is not a LISP message.
    pub fn answer<'a>(&self, datagram: &'a [u8]) -> Result<Option<Answer<'a>>, DecodeError> {
        Ok(match decode(datagram)? {
            Message::MapReply(reply) if reply.nonce == self.nonce => Some(Answer {
                records: reply.records().collect(),
            }),
            Message::MapReply(_)
            | Message::MapRequest(_)
            | Message::MapRegister(_)
            | Message::MapNotify(_)
            | Message::MapNotifyAck(_)
            | Message::MapReferral(_)
            | Message::InfoRequest(_)
            | Message::Ecm(_) => None,
        })
    }
}

impl Answer<'_> {
    /// Whether somebody serves the EID.
    #[must_use]
    pub fn found(&self) -> bool {
        self.records
            .iter()
            .any(|record| record.locators().next().is_some())
    }
}

/// Where WireGuard listens when a locator names no port.
#[must_use]
pub fn default_port() -> u16 {
    DEFAULT_PORT
}

/// Parses an EID or EID-prefix; `iid` applies where the text names none.
///
/// # Errors
/// When `text` is neither an address nor a prefix.
pub fn parse_eid(text: &str, iid: u32) -> Result<EidPrefix, lisp_proto::ParseError> {
    let eid: EidPrefix = text.parse()?;
    Ok(if eid.iid() == InstanceId(0) {
        EidPrefix::new(InstanceId(iid), eid.net())
    } else {
        eid
    })
}

fn unspecified_like(addr: IpAddr) -> IpAddr {
    if addr.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    }
}

#[cfg(test)]
mod tests {
    use lisp_proto::{Action, Record, ReplyParams, Ttl, encode_map_reply};

    use super::*;

    fn query(encapsulate: bool) -> Query {
        Query {
            eid: parse_eid("10.0.0.2", 7).unwrap(),
            server: "192.0.2.1:4342".parse().unwrap(),
            local: "192.0.2.9:5000".parse().unwrap(),
            source: None,
            encapsulate,
            nonce: Nonce(42),
        }
    }

    #[test]
    fn a_question_names_the_eid_its_instance_and_where_to_answer() {
        let bytes = query(false).encode().unwrap();
        let Message::MapRequest(request) = decode(&bytes).unwrap() else {
            panic!("not a Map-Request");
        };
        assert_eq!(request.nonce, Nonce(42));
        assert_eq!(
            request.eids().next().unwrap().eid.to_string(),
            "[7]10.0.0.2/32"
        );
        assert_eq!(
            request.itr_rlocs().next().unwrap().ip(),
            Some("192.0.2.9".parse().unwrap())
        );
    }

    #[test]
    fn an_encapsulated_question_is_addressed_to_the_eid() {
        let bytes = query(true).encode().unwrap();
        let Message::Ecm(ecm) = decode(&bytes).unwrap() else {
            panic!("not an ECM");
        };
        assert_eq!(ecm.source, "192.0.2.9:5000".parse().unwrap());
        assert_eq!(ecm.destination, "10.0.0.2:4342".parse().unwrap());
        assert!(matches!(decode(ecm.message), Ok(Message::MapRequest(_))));
    }

    #[test]
    fn only_the_answer_with_our_nonce_counts() {
        let record = Record {
            eid: parse_eid("10.0.0.0/8", 7).unwrap(),
            ttl: Ttl::from_minutes(15),
            action: Action::Drop,
            authoritative: false,
            locators: Vec::new(),
        };
        for (nonce, ours) in [(42, true), (43, false)] {
            let mut bytes = Vec::new();
            let params = ReplyParams {
                probe: false,
                echo_nonce: false,
                nonce: Nonce(nonce),
                records: std::slice::from_ref(&record),
            };
            encode_map_reply(&params, &mut bytes).unwrap();
            let answer = query(false).answer(&bytes).unwrap();
            assert_eq!(answer.is_some(), ours);
            assert!(answer.is_none_or(|answer| !answer.found()));
        }
        assert!(query(false).answer(b"junk").is_err());
    }
}
