//! Who pays for a request, seen from the cascade.
//!
//! The cascade only asks, in this order: which candidates can be paid, whether the next step
//! can, and that it be paid for, however it ends. It refuses to know what a joule or a dollar is, what
//! a budget allows, and when its window ends.

use std::sync::Arc;

use futures::future::BoxFuture;
use homeostat_hooks::{Budget, Rejection, TierView};

use crate::tier::{TierError, TokenStream};

/// A generation that a tier was asked for.
pub type Begun = BoxFuture<'static, Result<TokenStream, TierError>>;

/// What is set aside for one job, for as long as anybody holds it: whoever drops it last has
/// it settled.
pub trait Purse: std::fmt::Debug + Send + Sync {
    /// Sets aside what the dearest of the candidates that can be paid is expected to cost, so
    /// that no other request takes it while policies decide.
    ///
    /// # Errors
    /// When none can be paid: which budget lacks how much, and when its window ends.
    fn open(&self, candidates: Vec<TierView>) -> Result<Payable, Rejection>;

    /// Keeps aside what this step is expected to cost, besides what earlier ones have cost,
    /// and gives the rest back.
    ///
    /// # Errors
    /// When the budgets no longer allow it, as may happen to a second step.
    fn begin(&self, tier: &str) -> Result<(), TierError>;

    /// The step that was begun: its prompt from now on, its tokens counted as they pass, and
    /// nothing if its tier refuses it. Who leaves before the tier has answered pays the prompt: it
    /// may be read already.
    fn pay(self: Arc<Self>, tier: &str, begun: Begun) -> Begun;
}

/// What an opened purse can pay, and what policies are told of it.
#[derive(Debug)]
pub struct Payable {
    /// The candidates that can be paid; at least one.
    pub tiers: Vec<TierView>,
    /// The budgets that pay, as they were before this request.
    pub budgets: Vec<Budget>,
}
