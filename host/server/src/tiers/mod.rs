//! Tiers as the cascade wants them: the local engine and other people's servers.

mod continuation;
mod drafts;
mod encoder;
mod local;
#[cfg(test)]
mod local_tests;
mod models;
mod remote;
#[cfg(test)]
mod remote_tests;
mod sse;
mod upstream;

pub use encoder::{Embedder, LocalEncoder};
pub use local::{LocalTier, Wishes};
pub use models::HostModels;
pub use remote::{Prefill, RemoteConfig, RemoteTier, WrittenOut};
