//! What a message says, in the neutral form of the vectors.

use lisp_proto::{
    Address, AuthView, Ecm, ExplicitPath, Info, Lcaf, LocatorView, MapNotify, MapReferral,
    MapRegister, MapReply, MapRequest, Message, NatTraversal, RecordView, SiteId, XtrId, decode,
};
use serde_json::{Map, Value, json};

/// Renders a message; an encapsulated one as well, which must be readable.
pub(crate) fn message(message: &Message<'_>) -> Value {
    match message {
        Message::MapRequest(request) => map_request(request),
        Message::MapReply(reply) => map_reply(reply),
        Message::MapRegister(register) => map_register(register),
        Message::MapNotify(notify) => map_notify("map-notify", notify),
        Message::MapNotifyAck(notify) => map_notify("map-notify-ack", notify),
        Message::MapReferral(referral) => map_referral(referral),
        Message::InfoRequest(info) => info_request(info),
        Message::Ecm(message) => ecm(message),
    }
}

fn map_request(request: &MapRequest<'_>) -> Value {
    let flags = request.flags;
    let requested = request.eid_addresses().map(|requested| {
        json!({
            "N": requested.subscribe,
            "mask_len": requested.mask_len,
            "eid": address(&requested.address),
        })
    });
    let requested: Vec<Value> = requested.collect();
    let itr_rlocs: Vec<Value> = request.itr_rlocs().map(|item| address(&item)).collect();
    let mut out = json!({
        "type": "map-request",
        "flags": {
            "A": flags.authoritative,
            "M": request.source_record().is_some(),
            "P": flags.probe,
            "S": flags.smr,
            "p": flags.pitr,
            "s": flags.smr_invoked,
            "I": request.ids.is_some(),
            "L": flags.local_in_rloc_set,
            "D": flags.no_reply,
        },
        "irc": itr_rlocs.len() - 1,
        "record_count": requested.len(),
        "nonce": request.nonce.to_string(),
        "source_eid": address(&request.source_address()),
        "itr_rlocs": itr_rlocs,
        "records": requested,
    });
    if let Some(own) = request.source_record() {
        extend(&mut out, json!({ "map_reply_record": record(&own) }));
    }
    extend(&mut out, ids(request.ids));
    out
}

fn map_reply(reply: &MapReply<'_>) -> Value {
    let mut out = json!({
        "type": "map-reply",
        "flags": { "P": reply.probe, "E": reply.echo_nonce, "S": reply.security },
        "nonce": reply.nonce.to_string(),
    });
    extend(&mut out, records(reply.records()));
    out
}

fn map_register(register: &MapRegister<'_>) -> Value {
    let flags = register.flags;
    let mut out = json!({
        "type": "map-register",
        "flags": {
            "P": flags.proxy_reply,
            "S": flags.security,
            "I": register.ids.is_some(),
            "E": flags.echo_notify,
            "T": flags.use_ttl,
            "a": flags.merge,
            "M": flags.want_notify,
        },
        "nonce": register.nonce.to_string(),
    });
    extend(&mut out, auth(&register.auth));
    extend(&mut out, records(register.records()));
    extend(&mut out, ids(register.ids));
    out
}

fn map_notify(kind: &str, notify: &MapNotify<'_>) -> Value {
    let mut out = json!({ "type": kind, "nonce": notify.nonce.to_string() });
    extend(&mut out, auth(&notify.auth));
    extend(&mut out, records(notify.records()));
    extend(&mut out, ids(notify.ids));
    out
}

fn map_referral(referral: &MapReferral<'_>) -> Value {
    let records = referral.records().map(|item| {
        let mut out = record(&item);
        // Signed ones are not read.
        let own = json!({ "incomplete": item.incomplete(), "sig_count": 0 });
        extend(&mut out, own);
        out
    });
    let records: Vec<Value> = records.collect();
    json!({
        "type": "map-referral",
        "nonce": referral.nonce.to_string(),
        "record_count": records.len(),
        "records": records,
    })
}

fn info_request(info: &Info<'_>) -> Value {
    let mut out = json!({
        "type": "info",
        "flags": { "R": info.reply },
        "nonce": info.nonce.to_string(),
        "ttl": info.ttl.minutes(),
        "mask_len": info.mask_len,
        "eid": address(&info.eid_address()),
        "info": address(&info.info_address()),
    });
    extend(&mut out, auth(&info.auth));
    out
}

fn ecm(ecm: &Ecm<'_>) -> Value {
    let udp_len = 8 + ecm.message.len();
    let mut ip = json!({
        "src": ecm.source.ip(),
        "dst": ecm.destination.ip(),
        "protocol": 17,
    });
    extend(
        &mut ip,
        match ecm.source.is_ipv4() {
            true => json!({ "version": 4, "total_length": 20 + udp_len }),
            false => json!({ "version": 6, "payload_length": udp_len }),
        },
    );
    json!({
        "type": "ecm",
        "flags": { "S": false, "D": ecm.ddt, "E": ecm.to_etr, "M": ecm.to_map_server },
        "ip": ip,
        "udp": {
            "sport": ecm.source.port(),
            "dport": ecm.destination.port(),
            "length": udp_len,
            "checksum": format!("{:#06x}", ecm.checksum),
        },
        "message": message(&decode(ecm.message).unwrap()),
    })
}

fn auth(auth: &AuthView<'_>) -> Value {
    json!({
        "key_id": auth.key_id,
        "algorithm_id": auth.algorithm_id,
        "auth_len": auth.tag.len(),
        "auth_data": hex(auth.tag),
    })
}

fn ids(ids: Option<(XtrId, SiteId)>) -> Value {
    match ids {
        Some((xtr, site)) => json!({ "xtr_id": xtr.to_string(), "site_id": site.to_string() }),
        None => json!({}),
    }
}

fn records<'a>(records: impl Iterator<Item = RecordView<'a>>) -> Value {
    let records: Vec<Value> = records.map(|item| record(&item)).collect();
    json!({ "record_count": records.len(), "records": records })
}

fn record(record: &RecordView<'_>) -> Value {
    let locators: Vec<Value> = record.locators().map(|item| locator(&item)).collect();
    json!({
        "ttl": record.ttl().minutes(),
        "locator_count": record.locator_count(),
        "mask_len": record.mask_len(),
        "act": record.action().to_string(),
        "A": record.authoritative(),
        "map_version": record.map_version(),
        "eid": address(&record.eid_address()),
        "locators": locators,
    })
}

fn locator(locator: &LocatorView<'_>) -> Value {
    json!({
        "priority": locator.priority,
        "weight": locator.weight,
        "m_priority": locator.multicast_priority,
        "m_weight": locator.multicast_weight,
        "L": locator.local,
        "p": locator.probed,
        "R": locator.reachable,
        "rloc": address(&locator.address()),
    })
}

fn address(address: &Address<'_>) -> Value {
    match address {
        Address::None => json!({ "afi": 0 }),
        Address::Ip(ip) => json!({ "afi": if ip.is_ipv4() { 1 } else { 2 }, "addr": ip }),
        Address::Mac(mac) => json!({ "afi": 16389, "addr": hex(mac) }),
        Address::Name(name) => json!({ "afi": 17, "name": String::from_utf8_lossy(name) }),
        Address::Lcaf(body) => {
            let mut out = json!({ "afi": 16387 });
            extend(&mut out, lcaf(body));
            out
        }
    }
}

fn lcaf(lcaf: &Lcaf<'_>) -> Value {
    match lcaf {
        Lcaf::Null => json!({ "lcaf": 0 }),
        Lcaf::AfiList(list) => {
            let items: Vec<Value> = list.items().map(|item| address(&item)).collect();
            json!({ "lcaf": 1, "items": items })
        }
        Lcaf::InstanceId {
            iid,
            iid_mask_len,
            address: inner,
        } => json!({
            "lcaf": 2,
            "iid": iid,
            "iid_mask_len": iid_mask_len,
            "address": address(&inner.read()),
        }),
        Lcaf::AsNumber {
            asn,
            address: inner,
        } => {
            json!({ "lcaf": 3, "asn": asn, "address": address(&inner.read()) })
        }
        Lcaf::Geo {
            coordinates,
            address: inner,
        } => {
            json!({ "lcaf": 5, "coordinates": coordinates, "address": address(&inner.read()) })
        }
        Lcaf::NatTraversal(nat) => nat_traversal(nat),
        Lcaf::Multicast { iid, source, group } => json!({
            "lcaf": 9,
            "iid": iid,
            "source": address(&source.0.read()),
            "source_mask_len": source.1,
            "group": address(&group.0.read()),
            "group_mask_len": group.1,
        }),
        Lcaf::ExplicitPath(path) => explicit_path(path),
        Lcaf::SecurityKey(keys) => json!({
            "lcaf": 11,
            "key_count": keys.key_count,
            "key_algorithm": keys.algorithm,
            "R": keys.revoked,
            "keys": keys.keys().map(hex).collect::<Vec<String>>(),
            "locator": address(&keys.locator.read()),
        }),
        Lcaf::SourceDest {
            source,
            destination,
        } => json!({
            "lcaf": 12,
            "src": address(&source.0.read()),
            "src_mask_len": source.1,
            "dst": address(&destination.0.read()),
            "dst_mask_len": destination.1,
        }),
        Lcaf::ReplicationList(list) => {
            let entries = list
                .entries()
                .map(|(level, item)| json!([level, address(&item)]));
            json!({ "lcaf": 13, "entries": entries.collect::<Vec<Value>>() })
        }
        Lcaf::Unknown { kind, body } => json!({ "lcaf": kind, "body": hex(body) }),
    }
}

fn nat_traversal(nat: &NatTraversal<'_>) -> Value {
    let rtrs: Vec<Value> = nat.rtrs().map(|item| address(&item)).collect();
    json!({
        "lcaf": 7,
        "ms_port": nat.ms_port,
        "etr_port": nat.etr_port,
        "global_etr": address(&nat.global_etr.read()),
        "ms": address(&nat.ms.read()),
        "private_etr": address(&nat.private_etr.read()),
        "rtrs": rtrs,
    })
}

fn explicit_path(path: &ExplicitPath<'_>) -> Value {
    let hops = path.hops().map(|hop| {
        let mut out = address(&hop.address);
        extend(
            &mut out,
            json!({ "L": hop.lookup, "P": hop.probe, "S": hop.strict }),
        );
        out
    });
    json!({ "lcaf": 10, "hops": hops.collect::<Vec<Value>>() })
}

fn extend(object: &mut Value, more: Value) {
    let (Value::Object(object), Value::Object(more)) = (object, more) else {
        panic!("not objects");
    };
    Map::extend(object, more);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
