//! What is made from `wit/` and kept in the tree is what would be made from it now.

use std::path::Path;

use homeostat_author::contract;

#[test]
fn reference_and_types_are_those_of_the_contract() {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let resolve = contract::read(&sdk.join("../wit")).expect("wit/ parses");
    for (name, made) in [
        ("REFERENCE.md", contract::reference(&resolve)),
        ("js/homeostat/contract.d.ts", contract::typescript(&resolve)),
    ] {
        let kept = std::fs::read_to_string(sdk.join(name)).unwrap_or_default();
        assert!(
            kept == made,
            "sdk/{name} is not what wit/ says: cargo run --release -p homeostat-author \
             --example contract"
        );
    }
}

#[test]
fn every_type_and_function_of_ours_is_in_both() {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let resolve = contract::read(&sdk.join("../wit")).expect("wit/ parses");
    let (reference, types) = (
        contract::reference(&resolve),
        contract::typescript(&resolve),
    );
    for (word, camel) in [
        ("`route(request: request", "  route(request: Request"),
        (
            "`thermal-margin-celsius`",
            "  thermalMarginCelsius: Sample | null;",
        ),
        ("`budget-exhausted`", "  | 'budget-exhausted'"),
        (
            "`count-tokens(text: string)",
            "  countTokens(text: string): number;",
        ),
        (
            "-> result<decision, error>`",
            "snapshot: Snapshot): Decision;",
        ),
    ] {
        assert!(reference.contains(word), "{word}");
        assert!(types.contains(camel), "{camel}");
    }
    // The rulers between groups of types are no documentation.
    assert!(!reference.contains("\n----") && !types.contains("----"));
}
