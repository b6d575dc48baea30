//! OpenAI's wire format: what comes in is checked here, what goes out is shaped here.
//! Nothing below this folder knows it.

pub mod embeddings;
pub mod error;
pub mod fields;
mod output;
pub mod request;
pub mod shape;
