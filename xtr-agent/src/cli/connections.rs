//! What `status` says of the connections of a proxy's clients.

use serde::Deserialize;

use super::table::{Table, span};

#[derive(Deserialize)]
pub(super) struct Connections {
    /// What their addresses are translated to.
    nat: Option<Vec<String>>,
    moves: Vec<Move>,
}

#[derive(Deserialize)]
struct Move {
    client: String,
    way: String,
    moved: Option<u32>,
    reset: Option<u32>,
    why: Option<String>,
    ago_ms: u64,
}

/// Nothing where no addresses are translated.
pub(super) fn lines(connections: &Connections) -> Vec<String> {
    let Some(nat) = &connections.nat else {
        return Vec::new();
    };
    let mut lines = vec![format!(
        "connections: translated to {} (clients that have moved: kept by the next proxy, and ended)",
        nat.join(" ")
    )];
    if connections.moves.is_empty() {
        return lines;
    }
    let mut table = Table::new(
        &["CLIENT", "WAY", "WHEN", "KEPT", "ENDED", "WHY UNKNOWN"],
        5,
    );
    let count = |count: Option<u32>| count.map_or_else(|| "-".to_owned(), |it| it.to_string());
    for it in &connections.moves {
        table.row(vec![
            it.client.clone(),
            it.way.clone(),
            format!("{} ago", span(it.ago_ms)),
            count(it.moved),
            count(it.reset),
            it.why.clone().unwrap_or_default(),
        ]);
    }
    lines.extend(table.lines());
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_proxy_that_translates_tells_what_became_of_connections_and_others_nothing() {
        let of = |value| lines(&serde_json::from_value(value).unwrap());
        assert_eq!(of(json!({ "nat": null, "moves": [] })), [""; 0]);
        let shown = of(json!({ "nat": ["203.0.113.9"], "moves": [
            { "client": "10.0.0.1/32", "way": "left", "moved": 5, "reset": 1, "why": null, "ago_ms": 3_000 },
            { "client": "10.0.0.2/32", "way": "came", "moved": null, "reset": null, "why": "no answer", "ago_ms": 9_000 },
        ] }));
        assert!(shown[0].contains("203.0.113.9"), "{shown:?}");
        assert_eq!(shown.len(), 4);
        assert!(
            shown[2].contains("left") && shown[2].contains('5'),
            "{shown:?}"
        );
        assert!(shown[3].ends_with("no answer"), "{shown:?}");
    }
}
