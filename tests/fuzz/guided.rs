//! libFuzzer on the parser that `ANDON_FUZZ_TARGET` names: `tests/fuzz/run TARGET SECONDS`.
#![no_main]
#![allow(missing_docs)]

use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("ANDON_FUZZ_TARGET").unwrap_or_default();
    let names: Vec<&str> = andon::fuzz::TARGETS.iter().map(|t| t.0).collect();
    andon::fuzz::target(&name).unwrap_or_else(|| panic!("ANDON_FUZZ_TARGET is one of {}", names.join(" ")))
});

// Panics of tract are caught where models are loaded, so only one that comes through to here ends it;
// what it said is told by the tests, once the file is in the corpus.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |bytes: &[u8]| TARGET(bytes));
