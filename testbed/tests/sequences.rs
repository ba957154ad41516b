//! Every sequence that fuzzing the state machines found worth keeping runs again.

#[allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::single_match,
    missing_docs,
    unreachable_pub,
    reason = "a module of the fuzz targets, where a panic is the finding"
)]
#[path = "../../lisp-proto/fuzz/sequences/mod.rs"]
mod sequences;

use std::fs;
use std::io;
use std::path::Path;

fn replay(corpus: &str, run: fn(&[u8])) -> io::Result<()> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lisp-proto/fuzz");
    let mut count = 0;
    for entry in fs::read_dir(fuzz.join(corpus))? {
        run(&fs::read(entry?.path())?);
        count += 1;
    }
    assert!(count > 20, "{count} inputs in {corpus}");
    Ok(())
}

#[test]
fn a_map_server_survives_every_kept_sequence() -> io::Result<()> {
    replay("corpus-server", sequences::server::run)
}

#[test]
fn an_agent_survives_every_kept_sequence() -> io::Result<()> {
    replay("corpus-agent", sequences::agent::run)
}
