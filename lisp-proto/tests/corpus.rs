//! Every input that fuzzing found worth keeping is read again.

mod checks;

use std::fs;
use std::path::Path;

#[test]
fn the_corpus_is_read_and_written_back() {
    let mut count = 0;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for entry in fs::read_dir(directory).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        checks::read_everything(&bytes);
        checks::round_trip(&bytes);
        count += 1;
    }
    assert!(count > 100, "{count} inputs");
}
