//! What the engine relies on: the right numbers, and the same bits whatever else is in the batch.

use super::*;

#[test]
fn portable_is_always_available_and_last() {
    assert_eq!(
        Isa::available().last().map(|isa| isa.name()),
        Some("portable")
    );
}
