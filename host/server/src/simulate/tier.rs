//! A tier of the simulated machine, as the cascade wants it.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use homeostat_cascade::{GenerateCall, Tier, TierError, TokenStream};
use homeostat_hooks::TierView;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::machine::{Arrival, Machine, TIERS};
use super::traffic::Ask;

/// One of the two.
pub struct SimulatedTier {
    pub index: usize,
    pub machine: Arc<Machine>,
    pub asks: Arc<Vec<Ask>>,
    /// When the day began.
    pub begun: Instant,
}

/// Id of the request with this number.
pub fn request_id(number: usize) -> String {
    format!("day-{number}")
}

/// Number of the request with this id.
pub fn number(request_id: &str) -> Option<usize> {
    request_id.strip_prefix("day-")?.parse().ok()
}

/// Whose energy it is; 0 is nobody's.
pub fn account(number: usize) -> u64 {
    number as u64 + 1
}

impl Tier for SimulatedTier {
    fn id(&self) -> &str {
        TIERS[self.index]
    }

    fn view(&self) -> TierView {
        self.machine.view(self.index)
    }

    fn generate(&self, call: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>> {
        let asked = number(&call.request_id)
            .and_then(|number| Some((number, self.asks.get(number)?.clone())));
        let Some((number, ask)) = asked else {
            let error = TierError::host("internal_error", "no such request on this day");
            return Box::pin(async { Err(error) });
        };
        let (events, mut receiver) = mpsc::unbounded_channel();
        let arrival = Arrival {
            account: account(number),
            told: ask.told[self.index].clone(),
            prompt_tokens: ask.prompt_tokens,
            max_tokens: call.max_tokens,
            max_draft_tokens: call.max_draft_tokens,
            events,
        };
        let at_ms = self.begun.elapsed().as_millis() as u64;
        self.machine.arrive(self.index, arrival, at_ms);
        let stream = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        Box::pin(async { Ok(stream.boxed()) })
    }
}
