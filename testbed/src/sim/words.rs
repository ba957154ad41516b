//! Control messages as a reader of a report wants to see them.

use lisp_proto::{Message, RecordView, decode};

/// A control message in a few words.
pub(super) fn message(bytes: &[u8]) -> String {
    match decode(bytes) {
        Ok(Message::MapRequest(request)) => {
            let eids: Vec<String> = request.eids().map(|asked| asked.eid.to_string()).collect();
            format!("Map-Request {} for {}", request.nonce, eids.join(" "))
        }
        Ok(Message::MapReply(reply)) => {
            format!("Map-Reply {} {}", reply.nonce, records(reply.records()))
        }
        Ok(Message::MapRegister(register)) => {
            format!(
                "Map-Register {} {}",
                register.nonce,
                records(register.records())
            )
        }
        Ok(Message::MapNotify(notify)) => {
            format!("Map-Notify {} {}", notify.nonce, records(notify.records()))
        }
        Ok(Message::MapNotifyAck(ack)) => format!("Map-Notify-Ack {}", ack.nonce),
        Ok(Message::InfoRequest(info)) => {
            let seen = info
                .seen()
                .map_or_else(String::new, |at| format!(" at {at}"));
            format!("Info {}{seen}", info.nonce)
        }
        Ok(_) => "another message".to_owned(),
        Err(error) => format!("{} bytes: {error}", bytes.len()),
    }
}

fn records<'a>(records: impl Iterator<Item = RecordView<'a>>) -> String {
    let records = records.map(|record| {
        let eid = record
            .eid()
            .map_or_else(|| "?".to_owned(), |eid| eid.to_string());
        let locators = record.locator_count();
        let ttl = record.ttl().minutes();
        format!("{eid} ({locators} locators, {ttl} min)")
    });
    records.collect::<Vec<_>>().join(" ")
}
