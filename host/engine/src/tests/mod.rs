//! Tests of the room that need more than one module: a tiny model made from a seed, histories
//! driven through the step by a scripted runner, equality of everything that must be equal, and
//! files that are damaged everywhere.

mod damaged;
mod equality;
mod life;
mod simulator;
pub(crate) mod tiny;
