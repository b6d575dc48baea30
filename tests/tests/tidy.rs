//! The rules of the house, as tests. A rule that only stands in a document is broken by
//! the third change after it; what fails here says what to do instead.

#[path = "tidy/arrows.rs"]
mod arrows;
#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/contract.rs"]
mod contract;
#[path = "tidy/failures.rs"]
mod failures;
#[path = "tidy/prose.rs"]
mod prose;
#[path = "tidy/published.rs"]
mod published;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/tree.rs"]
mod tree;

/// Fails with everything that is wrong, one line each: nobody likes to run a check ten
/// times to hear of ten mistakes.
fn report(wrong: Vec<String>) {
    assert!(
        wrong.is_empty(),
        "the house rules are broken in {} place(s):\n  {}\n",
        wrong.len(),
        wrong.join("\n  ")
    );
}
