//! Tests of the room that need more than one module: a tiny model made from a seed, histories
//! driven through the step by a scripted runner, equality of everything that must be equal, and
//! files that are damaged everywhere.

mod architectures;
mod constraint;
mod damaged;
mod departures;
mod equality;
mod life;
mod schemas;
mod simulator;
pub(crate) mod tiny;
mod tokenizers;
mod weight_formats;
