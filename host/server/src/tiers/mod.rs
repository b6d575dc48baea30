//! Tiers as the cascade wants them: the local engine and other people's servers.

mod continuation;
mod device;
mod drafts;
mod encoder;
mod expense;
mod local;
#[cfg(test)]
mod local_tests;
mod models;
mod remote;
#[cfg(test)]
mod remote_tests;
mod sse;
mod stated;
mod upstream;
mod work;

pub use device::{TierDevice, device_id, device_state, is_part_of};
pub use drafts::{Drafts, Load};
pub use encoder::{Embedder, LocalEncoder, as_candidate};
pub use local::{LocalTier, Wishes};
pub use models::HostModels;
pub use remote::{Prefill, RemoteConfig, RemoteTier, WrittenOut};
pub use stated::StatedTier;
pub use work::{AnswerInHand, Usual, WorkInHand};
