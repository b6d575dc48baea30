//! What the step needs from whoever multiplies matrices.
//!
//! It exists so that the scheduler, the sampler and the simulator do not know tensors, and so
//! that a GPU runner can stand in the same place. The KV memory and its layout belong to the
//! runner; the engine deals in block numbers.

use crate::batch::Batch;
use crate::block::BlockCopy;

/// A forward pass that could not be done. Nothing of the batch counts as computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RunnerError(pub String);

pub trait Runner: Send {
    /// Computes every row: writes its keys and values to its block, and the logits of
    /// [`Batch::logit_rows`].
    ///
    /// The result of a row depends on its sequence only, never on the rows beside it, and
    /// computing a row again writes the same bits: the engine's equality promises rest on this.
    fn forward(&mut self, batch: &Batch) -> Result<(), RunnerError>;

    /// `[vocabulary]` logits of the `index`-th entry of the last batch's `logit_rows`.
    fn logits(&self, index: usize) -> &[f32];

    /// Copies whole blocks, every layer of them, before anything else is computed.
    fn copy_blocks(&mut self, copies: &[BlockCopy]);

    /// The most threads that [`Runner::set_threads`] can ask for.
    fn max_threads(&self) -> usize {
        1
    }

    /// Computes with this many threads from the next pass on; the results do not depend on it.
    fn set_threads(&mut self, _threads: usize) {}
}
