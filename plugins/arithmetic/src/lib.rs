//! Exact evaluation of arithmetic as people write it.
//!
//! Two policies need it: a router that answers "17 * 23" without a model, and a validator
//! that checks "17 * 23 = 391" in an answer. Both must be right or silent, so this crate
//! computes with exact fractions, says so when a result is rounded, and refuses whatever
//! has two readings (`100 - 10%`), never ends (`1/0`) or does not fit 128 bits.

mod claims;
mod evaluate;
mod number;
mod tokens;

pub use claims::{Claim, claims};
pub use evaluate::evaluate;
pub use number::Number;

/// Why an expression has no value here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// It is no arithmetic expression.
    NotAnExpression,
    /// It has more than one common reading.
    Ambiguous,
    /// Division by zero, or a root of a negative number.
    Undefined,
    /// An intermediate result does not fit, or parentheses are nested too deeply.
    TooLarge,
}
